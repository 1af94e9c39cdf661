"""From the last C-STORE answer of a study to its report at the PACS: one study, then twenty at once.

A node as `dicom-node serve` runs it with the embedded defaults (two receiving processes, broker, one worker on the
CPU), the small ensemble that ships, pictures as configured by default, and a PACS that waits. The quiet period is
taken out where it says so: how long it is, is the hospital's choice.

    python benchmarks/end_to_end.py [--studies 2] [--loops 20] [--over 20] [--at-once 20]
"""

import queue
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from pydicom import Dataset
from serving import QUIET, Pacs, loops, running_node, send
from side_by_side import Results, parser, same_work

from tests.system.nodes import Node


def one_after_another(pictures: list[Dataset], node: Node, pacs: Pacs, options: Any, rows: Results) -> None:
    """Add what a cardiologist waits for after a study, and where that time goes."""
    waits, studies = [], []
    for _ in range(options.studies):
        study, answered_at = send(pictures, node.port, options.loops, options.over, "CART")
        waits.append(pacs.wait_for(study) - answered_at)
        studies.append(study)
    what = f"a study of {options.loops} loops that came over {options.over:.0f} s"
    rows.measure(
        f"{what}: last C-STORE answer to report at the PACS, quiet period taken out",
        [one - QUIET for one in waits],
        unit="s",
        at_most=1.0,
    )
    rows.measure(f"the same with a quiet period of {QUIET:g} s", waits, unit="s")
    steps = [times(node, study, options.loops) for study in studies]
    for name in steps[0]:
        rows.measure(f"of that: {name}", [one[name] * 1000 for one in steps], unit="ms")


def times(node: Node, study: str, num_loops: int) -> dict[str, float]:
    """Return how long the steps took, in seconds, as the study's history has it."""
    shown = node.wait_for(study)
    same_work(shown["loops_analysed"] == num_loops, f"{shown['loops_analysed']} of {num_loops} loops were analysed")
    at = {line["event"]: datetime.fromisoformat(line["at"]) for line in shown["history"]}
    last = datetime.fromisoformat(shown["last_received_at"])
    names = {
        "quiet period's end to the clock's tick": (last, "analysing", QUIET),
        "loops that were left": ("analysing", "reporting", 0.0),
        "report and pictures written": ("reporting", "delivering", 0.0),
        "delivered": ("delivering", "delivered", 0.0),
    }
    return {
        name: ((at[to] - (since if isinstance(since, datetime) else at[since])).total_seconds() - less)
        for name, (since, to, less) in names.items()
    }


def at_once(pictures: list[Dataset], port: int, pacs: Pacs, options: Any, rows: Results) -> None:
    """Add what happens when many studies come at the same time: nobody starves."""
    found: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()
    begin = time.monotonic()

    def be_cart(number: int) -> None:
        found.put(send(pictures, port, len(pictures), 0.0, f"CART{number}"))

    carts = [threading.Thread(target=be_cart, args=(number,)) for number in range(options.at_once)]
    for cart in carts:
        cart.start()
    for cart in carts:
        cart.join()
    sent = [found.get() for _ in carts]
    came = [(pacs.wait_for(study), answered_at) for study, answered_at in sent]
    waits = sorted(arrived - answered_at - QUIET for arrived, answered_at in came)
    what = f"{options.at_once} studies of {len(pictures)} loops at once"
    rows.measure(f"{what}: last C-STORE answer to report, quiet period taken out", waits, unit="s")
    rows.measure(f"{what}: the slowest against the median", [waits[-1] / waits[len(waits) // 2]], unit="x", at_most=3.0)
    hours = (max(arrived for arrived, _ in came) - begin) / 3600
    rows.measure(f"{what}: studies an hour of this machine", [len(carts) / hours], unit="studies/h")


def main() -> None:
    """Run a node and send it studies."""
    options_of = parser(__doc__)
    options_of.add_argument("--studies", type=int, default=2)
    options_of.add_argument("--loops", type=int, default=20)
    options_of.add_argument("--over", type=float, default=20.0, help="seconds")
    options_of.add_argument("--at-once", type=int, default=20)
    options = options_of.parse_args()
    rows, pictures, pacs = Results(options.results), loops(), Pacs()
    with tempfile.TemporaryDirectory() as name, running_node(Path(name), pacs.port) as node:
        one_after_another(pictures, node, pacs, options, rows)
        at_once(pictures, node.port, pacs, options, rows)
    pacs.close()


if __name__ == "__main__":
    main()

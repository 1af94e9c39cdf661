"""How soon a call reaches a worker that waits, and how soon the loops of a worker that was killed are looked at again.

The embedded broker, the node's bell and a real Celery worker, as `dicom-node serve` starts them. A call for a study
that the ledger does not know costs the worker two questions: what is measured is the way to it, from the call to
Celery's own event that the task has started. Then a node whose worker is killed in the middle of a study.

    python benchmarks/dispatch.py [--calls 150] [--kills 2]
"""

import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from celery import Celery
from serving import Pacs, loops, running_node, send
from side_by_side import Results, parser, percentile, same_work

from dicom_node.broker import EmbeddedBroker
from dicom_node.dispatch import Bell
from dicom_node.ledger.engine import close_ledger, open_ledger
from tests.binaries import free_port
from tests.system.nodes import Node, configured, running_worker, wait_until

PAUSE = 0.2
"""Seconds between calls: the worker waits, and the bell has rested from the call before."""
DEADLINE = 120.0


def started_tasks(broker_url: str, into: list[float], stop: threading.Event) -> threading.Thread:
    """Note when each task starts, by Celery's events, until `stop`."""
    app = Celery(broker=broker_url, set_as_current=False)

    def read() -> None:
        with app.connection_for_read() as connection:
            handlers: dict[str, Any] = {"task-started": lambda event: into.append(float(event["timestamp"]))}
            receiver = app.events.Receiver(connection, handlers=handlers)
            while not stop.is_set():
                try:
                    receiver.capture(limit=None, timeout=0.5, wakeup=False)
                except TimeoutError:
                    continue

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def wait_for(holds: Any, otherwise: str) -> None:
    """Poll until it is true."""
    deadline = time.monotonic() + DEADLINE
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(otherwise)
        time.sleep(0.005)


def call(folder: Path, num_calls: int, rows: Results) -> None:
    """Add how long calls are on their way."""
    broker = EmbeddedBroker(folder / "broker")
    broker.start()
    node = configured(folder, pacs_port=free_port(), broker_url=broker.url)
    (folder / "var").mkdir()
    close_ledger(open_ledger(node.database_url))
    stop, started = threading.Event(), list[float]()
    with running_worker(node, "one"):
        wait_until(lambda: node.events("ensemble_loaded") or None, "the worker has loaded the networks", node)
        Celery(broker=broker.url, set_as_current=False).control.enable_events()
        reader, bell = started_tasks(broker.url, started, stop), Bell(broker.url)
        waits = []
        for number in range(num_calls):
            time.sleep(PAUSE)
            rung_at = time.time()
            bell.ring(1_000_000 + number)
            wait_for(lambda expected=number: len(started) > expected, "a call did not arrive")
            waits.append((started[-1] - rung_at) * 1000)
        bell.close()
        stop.set()
        reader.join(5)
    broker.stop()
    same_work(len(started) == num_calls, f"{len(started)} of {num_calls} calls arrived")
    waits = waits[num_calls // 10 :]  # the first opens the line
    rows.measure("a call to a worker that waits: median", waits, unit="ms", at_most=5.0)
    rows.measure("the same: 99th percentile", waits, unit="ms", at_most=20.0, statistic=percentile(99))


def num_analysed(node: Node) -> int:
    """Return how many loops the log says were analysed."""
    return len(node.events("loop_analysed"))


def kill(folder: Path, num_kills: int, rows: Results) -> None:
    """Add how long the loops of a killed worker wait, and count that none is lost."""
    pacs, pictures, waits = Pacs(), loops(), []
    with running_node(folder, pacs.port) as node:
        for _ in range(num_kills):
            before = num_analysed(node)
            study, _ = send(pictures, node.port, 20, 0.0, "CART")
            wait_for(lambda since=before: num_analysed(node) > since, "no loop was analysed")
            (worker,) = (child["pid"] for child in node.state["children"] if child["name"] == "worker")
            os.kill(worker, signal.SIGKILL)
            killed_at = time.monotonic()
            before = num_analysed(node)
            wait_for(lambda since=before: num_analysed(node) > since, "no loop was analysed again")
            waits.append(time.monotonic() - killed_at)
            pacs.wait_for(study)
            analysed = node.wait_for(study)["loops_analysed"]
            same_work(analysed == 20, f"{analysed} of 20 loops were analysed")
    pacs.close()
    rows.measure("a worker is killed: until a loop of its study is analysed again", waits, unit="s", at_most=10.0)


def main() -> None:
    """Call and kill."""
    options_of = parser(__doc__)
    options_of.add_argument("--calls", type=int, default=150)
    options_of.add_argument("--kills", type=int, default=2)
    options = options_of.parse_args()
    rows = Results(options.results)
    with tempfile.TemporaryDirectory() as name:
        call(Path(name), options.calls, rows)
    with tempfile.TemporaryDirectory() as name:
        kill(Path(name), options.kills, rows)


if __name__ == "__main__":
    main()

"""One, two and four workers on one queue of loops, ledger in PostgreSQL, broker Redis; and what bounds them.

All loops wait when the workers begin; the clock stops with the last report at the PACS. First the ensemble that ships,
then networks that cost next to nothing and reports without pictures: what is left is reading a loop and the work of the
node itself. Processor time is said by whom it was used: more workers than cores cannot be faster here, so the figures
that a larger site is planned by (docs/scaling.md) are those of a loop, and what of it is the ledger's.

    python benchmarks/workers.py [--studies 8] [--loops 10] [--workers 1 2 4]
"""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from serving import Pacs, loops, send
from side_by_side import Results, parser

from tests.doubles.tiny import make_ensemble
from tests.peers import PostgresServer, running_postgres
from tests.system.nodes import (
    WITHOUT_PICTURES,
    Node,
    configured,
    running,
    running_redis,
    running_worker,
    wait_until,
)

USERS = ("workers", "node", "ledger", "broker")


@dataclass(frozen=True, kw_only=True)
class Site:
    """A node and its workers, who wait."""

    node: Node
    pacs: Pacs
    users: dict[str, list[psutil.Process]]
    """Whose processor time is looked at."""

    def seconds_used(self) -> dict[str, float]:
        """Return the processor time of each user so far."""
        return {name: sum(_used(one) for one in processes) for name, processes in self.users.items()}


@contextmanager
def site(folder: Path, num_workers: int, extra: str, postgres: PostgresServer) -> Iterator[Site]:
    """Run node, broker and workers until the block ends; their networks are loaded."""
    pacs = Pacs()
    with ExitStack() as stack:
        broker_url = stack.enter_context(running_redis(folder / "redis"))
        node = configured(
            folder / "node",
            pacs_port=pacs.port,
            pacs_ae="PACS",
            quiet=3.0,
            database_url=postgres.new_database(),
            broker_url=broker_url,
            extra=extra,
        )
        serving = stack.enter_context(running(node))
        workers = [stack.enter_context(running_worker(node, f"w{number}")) for number in range(num_workers)]
        wait_until(lambda: len(node.events("ensemble_loaded")) == num_workers or None, "networks are loaded", node)
        (redis,) = (one for one in psutil.Process().children() if one.name().startswith("redis"))
        assert postgres.process is not None
        yield Site(
            node=node,
            pacs=pacs,
            users={
                "workers": [whole for one in workers for whole in _tree(one.pid)],
                "node": _tree(serving.pid),
                "ledger": [psutil.Process(postgres.process.pid)],  # it counts the children that ended
                "broker": [redis],
            },
        )
    pacs.close()


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    living = sum(sum(one.cpu_times()[:2]) for one in process.children() if process.name() == "postgres")
    ended = times.children_user + times.children_system if process.name() == "postgres" else 0.0
    return times.user + times.system + living + ended


def drain(running_site: Site, num_studies: int, num_loops: int) -> tuple[float, dict[str, float]]:
    """Return how long the workers took for all loops and reports, in seconds, and who used how much processor time."""
    node, pictures = running_site.node, loops()
    workers = running_site.users["workers"]
    for one in workers:
        one.suspend()
    sent: list[str] = []
    carts = [
        threading.Thread(target=lambda n=n: sent.append(send(pictures, node.port, num_loops, 0.0, f"CART{n}")[0]))
        for n in range(num_studies)
    ]
    for cart in carts:
        cart.start()
    for cart in carts:
        cart.join()
    for study in sent:
        node.wait_for(study, "analysing")
    before, begin = running_site.seconds_used(), time.monotonic()
    for one in workers:
        one.resume()
    end = max(running_site.pacs.wait_for(study) for study in sent)
    after = running_site.seconds_used()
    return end - begin, {name: after[name] - before[name] for name in USERS}


def main() -> None:
    """Measure."""
    options_of = parser(__doc__)
    options_of.add_argument("--studies", type=int, default=8)
    options_of.add_argument("--loops", type=int, default=10)
    options_of.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    options = options_of.parse_args()
    rows, total = Results(options.results), options.studies * options.loops
    with tempfile.TemporaryDirectory() as name, running_postgres() as postgres:
        ensemble = make_ensemble(Path(name) / "ensemble")
        cheap = f'[ensemble]\npath = "{ensemble}"\n{WITHOUT_PICTURES}'
        for what, extra in (("the shipped ensemble, with pictures", ""), ("networks that cost nothing", cheap)):
            for number in options.workers:
                with site(Path(name) / f"{bool(extra)}-{number}", number, extra, postgres) as running_site:
                    seconds, used = drain(running_site, options.studies, options.loops)
                claim = f"{what}, {number} worker{'s' if number > 1 else ''}"
                rows.measure(f"{claim}: loops a second", [total / seconds], unit="loops/s")
                busy = sum(used.values()) / seconds / (psutil.cpu_count() or 1)
                rows.measure(f"{claim}: share of the machine that was busy", [busy], unit="of 1")
                for user in USERS:
                    milliseconds = used[user] / total * 1000
                    rows.measure(f"{claim}: processor time of a loop, {user}", [milliseconds], unit="ms")


if __name__ == "__main__":
    main()

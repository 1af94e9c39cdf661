"""What a study costs does not grow with the ledger: 1,000, 10,000 and 100,000 studies in it against 100.

Each ledger is filled with copies of one study that went its whole way, each with UIDs and times of its own: 4 loops,
their results, a report with two pictures, its delivery, commitments. The peer is the node itself with the small ledger,
measured in turn; what a measurement added is removed after it. Files and SQLite's ledger lie in memory, and PostgreSQL
does not fsync: no disk hides what grows.

    python benchmarks/growth.py [--largest 100000] [--pairs 5] [--engine sqlite --engine postgresql]
"""

import logging
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import psycopg
import structlog
from side_by_side import Results, Side, parser, same_work, seconds
from sqlalchemy import Column, Connection, Engine, Integer, delete, func, select, text

from dicom_node.acceptor import listen
from dicom_node.broker import EmbeddedBroker
from dicom_node.clock import utc_now
from dicom_node.commitment import Reference, Report, Request
from dicom_node.completion import tick
from dicom_node.identity import UID
from dicom_node.ledger import claims, commitments, future, outbox, pledges
from dicom_node.ledger.claims import Analysed
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger, reading
from dicom_node.ledger.reports import WrittenPicture
from dicom_node.ledger.schema import Commitment, Study, StudyState, Table, UtcDateTime
from dicom_node.retention import purge
from dicom_node.settings import Retention
from dicom_node.store import InstanceStore
from dicom_node.web.health import Pulse
from tests.doubles.analyst import LEASE, Analyst
from tests.doubles.arrivals import US_MULTIFRAME, Arrivals
from tests.node.sites import page_settings, serving_page
from tests.peers import running_postgres
from tests.system.nodes import configured, running, wait_until

SMALL = 100
AIM = 1.2
LOOPS, STUDIES = 4, 6
"""Of a study, and of a measurement."""
QUEUED_STUDIES, QUEUED_LOOPS = 500, 20
STRIDE = 1_000
"""Between the ids of one copy and of the next: more than a study has rows of any table."""
PRIME, FACTOR = 4_294_967_291, 2_654_435_761
"""Numbers of copies times the factor modulo the prime: all different, in no order, as UIDs are."""
QUIET = timedelta(seconds=30)
PACS = "pacs"
NewUrl = Callable[[str], str]
OUTPUTS = {"members": [{"lvef": 55.0, "lvedv": 120.0, "lvesv": 54.0, "view": [0.1, 0.7, 0.1, 0.1]}] * 3}


class Clock:
    """The time, which a measurement may move on."""

    ahead = timedelta(0)

    def __call__(self) -> datetime:
        """Return it."""
        return utc_now() + self.ahead


@dataclass(kw_only=True)
class Node:
    """The node's own parts around one ledger."""

    sessions: Sessions
    store: InstanceStore
    clock: Clock

    def __post_init__(self) -> None:
        """Give it both ends of the work."""
        self.arrivals = Arrivals(self.sessions, self.store, self.clock)
        self.analyst = Analyst(self.sessions, self.clock)
        self.number = self.num_filled = 0

    def new_study(self) -> UID:
        """Return a Study Instance UID that is not in the ledger."""
        self.number += 1
        return UID(f"1.2.826.0.1.{self.number * FACTOR % PRIME}")

    def receive(self, study: UID, loops: int = LOOPS) -> int:
        """Receive a study and return its id."""
        for number in range(loops):
            study_id = self.arrivals.send(study, UID(f"{study}.{number}"))
        return study_id

    def analyse(self, study_id: int) -> None:
        """Answer for what waits of a study."""
        while held := self.analyst.claim(study_id):
            for one in held:
                assert self.analyst.answer(one, Analysed(outputs=OUTPUTS))

    def life(self) -> int:
        """Bring a new study its whole way, to the commitment of the PACS, and return its id."""
        study = self.new_study()
        references = tuple(Reference(US_MULTIFRAME, UID(f"{study}.{number}")) for number in range(LOOPS))
        study_id = self.receive(study)
        self.analyse(study_id)
        with self.sessions.begin() as session:
            request = Request(transaction_uid=UID(f"{study}.9"), references=references)
            asked = commitments.record(session, "CART", request, LEASE, self.clock())
        assert asked is not None
        commitments.hold(self.sessions, [one.sop_instance_uid for one in references], self.clock)
        commitments.reported(
            self.sessions,
            asked,
            Report(transaction_uid=request.transaction_uid, committed=references),
            [study_id],
            self.clock,
        )
        self.clock.ahead += QUIET
        assert tick(self.sessions, self.clock, QUIET) == [study_id]
        pictures = [
            WrittenPicture(kind=kind, sop_instance_uid=f"{study}.{number}", sop_class_uid=US_MULTIFRAME, path="")
            for number, kind in enumerate(("attention", "summary"), start=100)
        ]
        self.analyst.report(study_id, [PACS], pictures)
        [item] = outbox.due(self.sessions, PACS, limit=10, lease=LEASE, clock=self.clock)
        assert outbox.delivered(self.sessions, item, self.clock, ask_for=references)
        [pledge] = pledges.due(self.sessions, PACS, limit=10, lease=LEASE, clock=self.clock)
        assert pledges.answered(
            self.sessions, Report(transaction_uid=pledge.request.transaction_uid, committed=references), self.clock
        )
        return study_id

    def cost_of_a_study(self) -> float:
        """Return the seconds of one of some studies; the ledger is then as before."""
        begin = time.perf_counter()
        ids = [self.life() for _ in range(STUDIES)]
        spent = time.perf_counter() - begin
        with self.sessions.begin() as session:
            states = {*session.scalars(select(Study.state).where(Study.id.in_(ids)))}
        same_work(states == {StudyState.DELIVERED}, f"studies that are {states}")
        self.forget(ids)
        return spent / STUDIES

    def cost_of_a_loop(self) -> float:
        """Return the seconds of one of a study's loops, received, claimed and answered; the ledger is as before."""
        begin = time.perf_counter()
        study_id = self.receive(self.new_study(), QUEUED_LOOPS)
        self.analyse(study_id)
        spent = time.perf_counter() - begin
        same_work(claims.drained(self.sessions, study_id), "a loop has no answer")
        self.forget([study_id])
        return spent / QUEUED_LOOPS

    def forget(self, ids: list[int]) -> None:
        """Remove these studies, and what was asked for."""
        with self.sessions.begin() as session:
            session.execute(delete(Study).where(Study.id.in_(ids)))
            session.execute(delete(Commitment).where(Commitment.id > self.num_filled * STRIDE))

    def size(self) -> int:
        """Return the number of studies."""
        with reading(self.sessions) as session:
            return session.scalar(select(func.count()).select_from(Study)) or 0

    def num_bytes(self) -> int:
        """Return the size of the ledger, indexes included."""
        is_sqlite = self.sessions.kw["bind"].dialect.name == "sqlite"
        pages = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        with reading(self.sessions) as session:
            return int(session.scalar(text(pages if is_sqlite else "SELECT pg_database_size(current_database())")))


# --- many studies ---


def fill(node: Node, num_studies: int) -> None:
    """Add copies of the one study that the ledger holds, until there are so many."""
    engine: Engine = node.sessions.kw["bind"]
    is_sqlite = engine.dialect.name == "sqlite"
    numbers = f"n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {num_studies - 1})"
    with engine.begin() as connection, _patient(connection):
        for table in Table.metadata.sorted_tables if num_studies > 1 else ():
            names = ", ".join(column.name for column in table.columns)
            values = ", ".join(_copied(column, is_sqlite=is_sqlite) for column in table.columns)
            copied = f"INSERT INTO {table.name} ({names}) SELECT {values} FROM n, {table.name} t"
            connection.execute(text(f"WITH RECURSIVE {numbers} {copied}"))
            if "id" in table.columns and not is_sqlite:
                connection.execute(text(f"SELECT setval('{table.name}_id_seq', {num_studies * STRIDE})"))
    if not is_sqlite:  # as its autovacuum would, in a minute
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection, _patient(connection):
            connection.execute(text("VACUUM ANALYZE"))
    node.num_filled = num_studies
    same_work(node.size() == num_studies, f"{node.size()} studies, not {num_studies}")


@contextmanager
def _patient(connection: Connection) -> Iterator[None]:
    """Let a connection to PostgreSQL wait for as long as it takes to add 100,000 studies at once: no node does that."""
    driver = connection.connection.driver_connection
    if isinstance(driver, psycopg.Connection):
        driver.answer_seconds = 600.0  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if isinstance(driver, psycopg.Connection):
            driver.answer_seconds = None  # type: ignore[attr-defined]


def _copied(column: Column[object], *, is_sqlite: bool) -> str:
    """Return what a copy has in a column: ids, UIDs and times of its own, a new study each ten minutes."""
    value = f"t.{column.name}"
    if isinstance(column.type, Integer) and (column.primary_key or column.foreign_keys):
        return f"{value} + n.i * {STRIDE}"
    if column.name.endswith("instance_uid") or column.name == "transaction_uid":
        return f"{value} || '.' || (n.i * {FACTOR} % {PRIME})"
    if isinstance(column.type, UtcDateTime):
        if is_sqlite:
            return f"strftime('%Y-%m-%d %H:%M:%f000', {value}, (-600 * n.i) || ' seconds')"
        return f"{value} - n.i * interval '600 seconds'"
    return value


# --- what is measured ---


def ticks(node: Node) -> Callable[[], float]:
    """Return a measure: the seconds of one tick of the clock with nothing to do."""
    return lambda: seconds(lambda: [tick(node.sessions, node.clock, QUIET) for _ in range(20)])() / 20


def seldom(node: Node) -> None:
    """Do what is done at a start, every ten minutes and every hour."""
    purge(node.sessions, node.store, Retention(days=100_000), node.clock)
    for one in (commitments, pledges):
        one.give_up(node.sessions, timedelta(days=2), node.clock)
    outbox.owed_peers(node.sessions)
    claims.prolong_all(node.sessions, node.clock())
    future.bring_back(node.sessions, node.clock())


def asked(client: httpx.Client, path: str) -> Callable[[], float]:
    """Return a measure: the seconds of one answer."""

    def ask() -> None:
        for _ in range(5):
            answer = client.get(path)
            same_work(answer.status_code == 200, f"{path} answers {answer.status_code}: {answer.text[:200]}")

    return lambda: seconds(ask)() / 5


def started(folder: Path, database_url: str, broker_url: str) -> float:
    """Return the seconds from `dicom-node serve` to the first sign of health."""
    node = configured(folder, pacs_port=1, database_url=database_url, broker_url=broker_url)

    def is_healthy() -> bool | None:
        try:
            return httpx.get(f"http://127.0.0.1:{node.state['web_port']}/healthz").status_code == 200 or None
        except (OSError, ValueError, httpx.HTTPError):
            return None

    begin = time.perf_counter()
    with running(node):
        wait_until(is_healthy, "healthy", node)
        return time.perf_counter() - begin


# --- the run ---


@contextmanager
def opened(url: str, folder: Path, num_studies: int) -> Iterator[Node]:
    """Give a node with a ledger of so many studies."""
    sessions = open_ledger(url)
    node = Node(sessions=sessions, store=InstanceStore(folder, min_free_bytes=0), clock=Clock())
    node.life()
    fill(node, num_studies)
    yield node
    close_ledger(sessions)


@contextmanager
def waiting(url: str, folder: Path) -> Iterator[Node]:
    """Give a node with 10,000 loops that no worker has looked at, in complete studies."""
    sessions = open_ledger(url)
    node = Node(sessions=sessions, store=InstanceStore(folder, min_free_bytes=0), clock=Clock())
    node.receive(node.new_study(), QUEUED_LOOPS)
    fill(node, QUEUED_STUDIES)
    node.clock.ahead += QUIET
    tick(node.sessions, node.clock, QUIET)
    yield node
    close_ledger(sessions)


@contextmanager
def page_of(node: Node, folder: Path, broker_url: str) -> Iterator[httpx.Client]:
    """Give a client of the node's page."""
    with (
        listen("127.0.0.1", 0) as door,
        serving_page(
            page_settings(folder, broker_url),
            node.sessions,
            node.store,
            door.getsockname()[1],
            pulse=Pulse(now=lambda: 0.0),  # this clock is moved by hand, and to fill a ledger takes minutes
        ) as site,
    ):
        yield site.client


@contextmanager
def sqlite(folder: Path) -> Iterator[tuple[str, NewUrl]]:
    """Give the engine's name, and what gives the URL of a new ledger."""
    yield f"SQLite {sqlite3.sqlite_version}", lambda key: f"sqlite:///{folder / key}.sqlite"


@contextmanager
def postgresql(_folder: Path) -> Iterator[tuple[str, NewUrl]]:
    """Give the engine's name, and what gives the URL of a new ledger."""
    with running_postgres() as server:
        with psycopg.connect(host=str(server.folder), user="postgres") as connection:
            version = connection.info.server_version
        yield f"PostgreSQL {version // 10_000}.{version % 10_000}", lambda _key: server.new_database()


ENGINES = {"sqlite": sqlite, "postgresql": postgresql}


def compare(
    engine: str,
    new_url: NewUrl,
    folder: Path,
    broker_url: str,
    largest: int,
    pairs: int,
    results: Results,
) -> None:
    """Add the rows of one engine."""
    with ExitStack() as open_now:
        sizes = [SMALL, *(size for size in (1_000, 10_000) if size < largest), largest]
        urls = {size: new_url(f"{size}") for size in sizes}
        nodes = {size: open_now.enter_context(opened(urls[size], folder / f"{size}", size)) for size in sizes}
        pages = {
            size: open_now.enter_context(page_of(nodes[size], folder / f"{size}", broker_url))
            for size in {SMALL, sizes[1], largest}
        }
        queue = open_now.enter_context(waiting(new_url("queue"), folder / "queue"))

        def row(claim: str, ours: Callable[[], float], peer: Callable[[], float], of: str, pairs: int = pairs) -> None:
            results.compare(
                f"{engine}: {claim}",
                Side(name="ours", measure=ours),
                Side(name=of, measure=peer),
                unit="ms",
                scale=1000.0,
                pairs=pairs,
                at_most=AIM,
            )

        small, large, of_small = nodes[SMALL], nodes[largest], f"{SMALL} studies"
        results.measure(f"{engine}: the ledger's size, a study of {LOOPS} loops",
                        [(large.num_bytes() - small.num_bytes()) / (largest - SMALL) / 1000], unit="kB")  # fmt: skip
        for size in sizes[1:]:
            row(f"a study's whole way, {size:,} studies in the ledger", nodes[size].cost_of_a_study,
                small.cost_of_a_study, of_small)  # fmt: skip
        row(f"a tick of the clock with nothing to do, {largest:,} studies", ticks(large), ticks(small), of_small)
        row(f"/healthz, {largest:,} studies", asked(pages[largest], "/healthz"), asked(pages[SMALL], "/healthz"),
            of_small)  # fmt: skip
        row(f"the page, of the newest 200 of {largest:,} studies", asked(pages[largest], "/"),
            asked(pages[sizes[1]], "/"), f"of {sizes[1]:,} studies")  # fmt: skip
        row(f"what is done hourly and at a start, {largest:,} studies", seconds(lambda: seldom(large)),
            seconds(lambda: seldom(small)), of_small)  # fmt: skip
        scrapes = [asked(pages[largest], "/metrics")() * 1000 for _ in range(pairs)]
        results.measure(f"{engine}: /metrics, which counts {largest:,} studies", scrapes, unit="ms", at_most=100)
        row("a loop received, claimed and answered, 10,000 others waiting", queue.cost_of_a_loop,
            small.cost_of_a_loop, "none waiting")  # fmt: skip
        busy = [ticks(queue)() * 1000 for _ in range(pairs)]
        results.measure(f"{engine}: a tick of the clock, 10,000 loops waiting", busy, unit="ms", at_most=20)
        row(
            f"from dicom-node serve to its first sign of health, {largest:,} studies",
            lambda: started(folder / "start", urls[largest], broker_url),
            lambda: started(folder / "start", urls[SMALL], broker_url),
            of_small,
            pairs=max(pairs // 3, 2),
        )


def main() -> None:
    """Compare on each engine."""
    options_of = parser(__doc__)
    options_of.add_argument("--largest", type=int, default=100_000, help="studies")
    options_of.add_argument("--pairs", type=int, default=5)
    options_of.add_argument("--engine", action="append", choices=ENGINES)
    options = options_of.parse_args()
    results = Results(options.results)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    in_memory = Path("/dev/shm")
    with ExitStack() as open_now:
        made = tempfile.TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None)
        folder = Path(open_now.enter_context(made))
        broker = EmbeddedBroker(folder / "broker")
        broker.start()
        open_now.callback(broker.stop)
        for engine in options.engine or ENGINES:
            with ENGINES[engine](folder) as (name, new_url):
                compare(name, new_url, folder / engine, broker.url, options.largest, options.pairs, results)


if __name__ == "__main__":
    main()

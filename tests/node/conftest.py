"""What the node's tests share: a ledger on each engine, a clock, a store, and both ends of the work."""

import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from dicom_node import completion
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.store import InstanceStore
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import Arrivals
from tests.doubles.clock import ManualClock
from tests.doubles.receiver import Inbox, Receiver, running_receiver
from tests.peers import PostgresServer, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres: PostgresServer) -> str:
    """The name of a database with the newest schema and no rows."""
    url = postgres.new_database()
    close_ledger(open_ledger(url))
    return make_url(url).database or ""


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty ledger, once on each engine."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger' / 'ledger.sqlite'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.new_database(request.getfixturevalue("postgres_template"))
    yield url
    server.drop_database(url)  # a thousand of them would be 8 GB


@pytest.fixture
def sessions(ledger_url: str) -> Iterator[Sessions]:
    """An empty ledger, once on each engine."""
    opened = open_ledger(ledger_url)
    yield opened
    close_ledger(opened)


@pytest.fixture
def memory() -> Iterator[Path]:
    """An empty folder in memory, where there is one: for what would wait for a disk without need."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as path:
        yield Path(path)


@pytest.fixture
def clock() -> ManualClock:
    """A clock that moves when told."""
    return ManualClock()


@pytest.fixture
def store(tmp_path: Path) -> InstanceStore:
    """An empty store without a reserve."""
    return InstanceStore(tmp_path / "data", min_free_bytes=0)


@pytest.fixture
def arrivals(sessions: Sessions, store: InstanceStore, clock: ManualClock) -> Arrivals:
    """A scanner's end of the node."""
    return Arrivals(sessions, store, clock)


@pytest.fixture
def analyst(sessions: Sessions, clock: ManualClock) -> Analyst:
    """A worker's end of the ledger."""
    return Analyst(sessions, clock)


@pytest.fixture
def inbox() -> Inbox:
    """An intake that remembers."""
    return Inbox()


@pytest.fixture
def receiver(tmp_path: Path, inbox: Inbox) -> Iterator[Receiver]:
    """A node with the usual limits."""
    with running_receiver(tmp_path, inbox.receive) as running:
        yield running


@pytest.fixture
def failed(sessions: Sessions, arrivals: Arrivals, clock: ManualClock) -> int:
    """The ledger's id of a study whose analysis failed."""
    study_id = arrivals.send()
    clock.pass_by(60)
    completion.tick(sessions, clock, timedelta(seconds=30))
    with sessions.begin() as session:
        session.connection().exec_driver_sql(f"UPDATE study SET state='failed', error='no heart' WHERE id={study_id}")
    return study_id

"""What the node's tests share: a ledger on each engine, a clock, a store, and both ends of the work."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.store import InstanceStore
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import Arrivals
from tests.doubles.clock import ManualClock
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
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger, once on each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger' / 'ledger.sqlite'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database(request.getfixturevalue("postgres_template"))


@pytest.fixture
def sessions(ledger_url: str) -> Iterator[Sessions]:
    """An empty ledger, once on each engine."""
    opened = open_ledger(ledger_url)
    yield opened
    close_ledger(opened)


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

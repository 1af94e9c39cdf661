"""The ledger's engine: opens, creates and upgrades it, and tells SQLite how to be a database that keeps its word."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Dialect, Engine, PoolProxiedConnection, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from dicom_node.errors import ConfigurationError, LedgerUnavailable
from dicom_node.ledger.prepared import as_sqlalchemy, failure
from dicom_node.ledger.schema import Table

Sessions = sessionmaker[Session]
"""Makes sessions; `with sessions.begin() as session` is one unit of work."""

AWAY = (OperationalError, InterfaceError, PoolTimeout)
"""What is raised where the ledger cannot be read or written now, and may be later."""

LOCK_SECONDS = 5
"""A ledger that is locked for longer cannot commit now."""

_MIGRATION_LOCK = 0x6563686F  # any constant; "echo"
_MIGRATION_SECONDS = 3600.0
_READING = "ledger_reading"
_LOCK_NAME = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")


def open_ledger(url: str) -> Sessions:
    """Return the ledger at `url`, created or upgraded to the newest schema; several processes may start at once.

    Raises:
        LedgerUnavailable: the database does not answer.
        ConfigurationError: a newer version of this program wrote the ledger.
    """
    parsed = make_url(url)
    engine = _sqlite_engine(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql_engine(parsed)
    try:
        if engine.dialect.name == "sqlite":
            _upgrade_sqlite(engine)
        else:
            _upgrade_postgresql(engine)
    except (DBAPIError, OSError) as error:
        engine.dispose()
        raise LedgerUnavailable(f"the ledger cannot be opened: {getattr(error, 'orig', error)}") from error
    except CommandError as error:
        engine.dispose()
        raise ConfigurationError(f"database.url: the ledger does not fit this version: {error}") from error
    return sessionmaker(engine, expire_on_commit=False)


def close_ledger(sessions: Sessions) -> None:
    """Close every connection of this process."""
    engine = sessions.kw["bind"]
    assert isinstance(engine, Engine)
    engine.dispose()


@contextmanager
def reading(sessions: Sessions) -> Iterator[Session]:
    """Give a session that only reads: it waits for no writer and stops none."""
    with sessions() as session:
        session.connection(execution_options={_READING: True})
        yield session


@contextmanager
def asking(sessions: Sessions) -> Iterator[PoolProxiedConnection]:
    """Give the driver's connection for one question, a prepared one: it waits for no writer, and is the cheapest way.

    Raises:
        DBAPIError: the ledger is away.
    """
    engine = sessions.kw["bind"]
    assert isinstance(engine, Engine)
    try:
        connection = engine.raw_connection()
    except failure(engine.dialect) as error:
        raise as_sqlalchemy(error, engine.dialect) from error
    try:
        yield connection
    except DBAPIError as error:
        if engine.dialect.is_disconnect(error.orig, connection.dbapi_connection, None):  # type: ignore[arg-type]
            connection.invalidate(error)
        raise
    finally:
        connection.close()  # which gives it back


def lock_name(on: Session | Connection, name: str) -> None:
    """Hold `name` until this transaction ends; a second holder waits.

    On SQLite every write transaction holds all names: it began with BEGIN IMMEDIATE.
    """
    connection = on.connection() if isinstance(on, Session) else on
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK_NAME, {"name": name})


def insert_or_ignore(session: Session, table: type[Table], row: Mapping[str, object]) -> int | None:
    """Insert a row and return its id, or None when a unique key says that it is there already."""
    columns = table.__table__.c
    if _dialect(session) == "postgresql":
        pg = postgresql.insert(table).values(dict(row)).on_conflict_do_nothing().returning(columns.id)
        return session.execute(pg).scalar_one_or_none()
    lite = sqlite.insert(table).values(dict(row)).on_conflict_do_nothing().returning(columns.id)
    return session.execute(lite).scalar_one_or_none()


def _dialect(session: Session) -> str:
    return session.get_bind().dialect.name


# --- SQLite ---


def _sqlite_engine(url: URL) -> Engine:
    # One write transaction at a time exists anyway, so waiting connections only wait; the pool must not refuse them.
    engine = create_engine(url, pool_size=8, max_overflow=120, pool_timeout=LOCK_SECONDS)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _upgrade_sqlite(engine: Engine) -> None:
    path = Path(engine.url.database or "")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite gives -wal and -shm the same mode
    with _file_lock(path.with_name(path.name + ".lock")):
        _use_wal(engine)
        with engine.begin() as connection:
            _upgrade(connection)


def _prepare_sqlite(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # pysqlite's own BEGIN is off; see _begin_sqlite
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {LOCK_SECONDS * 1000}")
    # FULL, not NORMAL: in WAL mode NORMAL does not fsync a commit, so that a power cut would take back rows
    # for which a peer has already had Success and may have deleted its images.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later fails at once with "database is locked" when another wrote in
    # between, whatever busy_timeout says; one that begins as a writer waits its turn.
    is_reading = connection.get_execution_options().get(_READING, False)
    connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")


def _use_wal(engine: Engine) -> None:
    # Kept in the file; changing it needs the file alone, therefore only here, under the lock.
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.close()
    finally:
        connection.close()


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- PostgreSQL ---


def _postgresql_engine(url: URL) -> Engine:
    engine = create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_size=8,
        max_overflow=24,
        pool_timeout=LOCK_SECONDS,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": LOCK_SECONDS,
            "options": f"-c lock_timeout={LOCK_SECONDS}s -c timezone=UTC",
            "application_name": "echo-ai-node",
            # A server that vanished without a word: not noticed for hours otherwise.
            "keepalives_idle": LOCK_SECONDS,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 2000 * LOCK_SECONDS,
        },
    )
    event.listen(engine, "do_connect", _connect_postgresql)
    return engine


def _connect_postgresql(_dialect: Dialect, _record: object, _given: object, options: dict[str, Any]) -> Any:
    from dicom_node.ledger.patience import BoundedConnection  # psycopg is there on PostgreSQL alone

    return BoundedConnection.connect(**options)


def _upgrade_postgresql(engine: Engine) -> None:
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.answer_seconds = _MIGRATION_SECONDS  # a large table takes its time
        connection.detach()  # used for this alone
        with connection.begin():
            connection.execute(text("SET LOCAL lock_timeout = '60s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            _upgrade(connection)


# --- migrations ---


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    head = ScriptDirectory.from_config(config).get_current_head()
    if MigrationContext.configure(connection).get_current_revision() == head:
        return
    config.attributes["connection"] = connection
    command.upgrade(config, "head")

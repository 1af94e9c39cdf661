"""The ledger opens on both engines, once for many processes, and keeps its word."""

import multiprocessing
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, select, text

from dicom_node.errors import ConfigurationError, LedgerUnavailable
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger, reading
from dicom_node.ledger.schema import Study, StudyState, Table
from tests.peers import PostgresServer

STARTERS = 6


def engine_of(sessions: Sessions) -> Engine:
    engine = sessions.kw["bind"]
    assert isinstance(engine, Engine)
    return engine


def new_study(uid: str, at: datetime) -> Study:
    return Study(study_instance_uid=uid, state=StudyState.RECEIVING, received_at=at, last_received_at=at)


def start(url: str, ready: "multiprocessing.synchronize.Barrier") -> None:  # the body of a child process
    ready.wait(30)
    sessions = open_ledger(url)
    with sessions.begin() as session:
        session.add(new_study(f"1.2.{multiprocessing.current_process().pid}", datetime.now(UTC)))
    close_ledger(sessions)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'ledger.sqlite'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


def test_the_revisions_make_exactly_the_tables_of_the_schema(sessions: Sessions) -> None:
    with engine_of(sessions).begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


def test_a_ledger_of_the_first_schema_is_brought_up_to_date_with_what_it_holds(empty_url: str) -> None:
    sessions = open_ledger(empty_url)
    with sessions.begin() as session:
        session.add(new_study("1.2.3", datetime.now(UTC)))
    with engine_of(sessions).begin() as connection:  # back to what version 1 left: a study, no pictures, no commitment
        for table in ("draft", "pledge_transaction", "pledge", "commitment", "picture"):
            connection.execute(text(f"DROP TABLE {table}"))
        for column in ("manifest_at", "committed_at"):
            connection.execute(text(f"ALTER TABLE study DROP COLUMN {column}"))
        connection.execute(text("DROP INDEX instance_unshared"))
        connection.execute(text("ALTER TABLE instance DROP COLUMN shared_at"))
        connection.execute(text("DROP INDEX delivery_by_state"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    close_ledger(sessions)

    upgraded = open_ledger(empty_url)

    with engine_of(upgraded).begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []
    with reading(upgraded) as session:
        assert session.scalars(select(Study.study_instance_uid)).all() == ["1.2.3"]
    close_ledger(upgraded)


def test_many_processes_may_make_one_ledger_at_once(empty_url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(STARTERS)
    starters = [spawn.Process(target=start, args=(empty_url, ready)) for _ in range(STARTERS)]

    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(60)

    assert [starter.exitcode for starter in starters] == [0] * STARTERS
    sessions = open_ledger(empty_url)
    with reading(sessions) as session:
        assert len(session.scalars(select(Study.id)).all()) == STARTERS
    close_ledger(sessions)


def test_a_ledger_opens_again_with_its_rows(sessions: Sessions, ledger_url: str) -> None:
    with sessions.begin() as session:
        session.add(new_study("1.2.3", datetime.now(UTC)))

    again = open_ledger(ledger_url)

    with reading(again) as session:
        assert session.scalars(select(Study.study_instance_uid)).all() == ["1.2.3"]
    close_ledger(again)


def test_a_ledger_of_a_newer_version_is_refused(sessions: Sessions, ledger_url: str) -> None:
    with sessions.begin() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(ConfigurationError, match=r"database\.url"):
        open_ledger(ledger_url)


def test_a_database_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable):
        open_ledger(f"postgresql+psycopg://nobody@/none?host={tmp_path}")


def test_times_come_back_aware_and_in_utc(sessions: Sessions) -> None:
    at = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=9)))
    with sessions.begin() as session:
        session.add(new_study("1.2.3", at))

    with reading(sessions) as session:
        read = session.scalars(select(Study.received_at)).one()

    assert read == at
    assert read.utcoffset() == timedelta(0)


def test_a_reader_waits_for_no_writer(sessions: Sessions) -> None:
    with sessions.begin() as writer:
        writer.add(new_study("1.2.3", datetime.now(UTC)))
        writer.flush()
        with reading(sessions) as reader:
            assert reader.scalars(select(Study.id)).all() == []


def test_every_table_has_an_index_behind_its_foreign_key(sessions: Sessions) -> None:
    inspector = inspect(engine_of(sessions))
    for table in Table.metadata.tables:
        led_by = {index["column_names"][0] for index in inspector.get_indexes(table)}
        led_by |= {unique["column_names"][0] for unique in inspector.get_unique_constraints(table)}
        led_by |= {*inspector.get_pk_constraint(table)["constrained_columns"][:1]}
        for key in inspector.get_foreign_keys(table):
            assert key["constrained_columns"][0] in led_by, (table, key)


def test_sqlite_fsyncs_each_commit_and_keeps_references(tmp_path: Path) -> None:
    sessions = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")

    with engine_of(sessions).connect() as connection:
        pragmas = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }

    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}
    close_ledger(sessions)


def test_the_files_of_a_sqlite_ledger_are_for_the_node_alone(tmp_path: Path) -> None:
    sessions = open_ledger(f"sqlite:///{tmp_path / 'data' / 'ledger.sqlite'}")
    with sessions.begin() as session:
        session.add(new_study("1.2.3", datetime.now(UTC)))

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data").iterdir()}

    assert set(modes.values()) == {0o600}
    assert "ledger.sqlite-wal" in modes
    close_ledger(sessions)


def test_two_transactions_that_read_before_they_write_both_end_well(sessions: Sessions) -> None:
    def read_and_write(uid: str) -> None:
        with sessions.begin() as session:
            session.scalars(select(Study.id)).all()
            session.add(new_study(uid, datetime.now(UTC)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_and_write, [f"1.2.{number}" for number in range(80)]))

    with reading(sessions) as session:
        assert len(session.scalars(select(Study.id)).all()) == 80

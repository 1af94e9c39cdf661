"""What runs every second or for every loop finds its rows by an index, however many studies are done."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from dicom_node.clock import utc_now
from dicom_node.completion import tick
from dicom_node.identity import UID
from dicom_node.intake import Intake
from dicom_node.ledger import claims, outbox
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.store import InstanceStore
from tests.doubles.arrivals import STUDY, instance

SOON = timedelta(seconds=1)


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[Sessions]:
    """A SQLite ledger: its planner says what it would read, without any rows."""
    sessions = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    yield sessions
    close_ledger(sessions)


def full_scans(sessions: Sessions, statements: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    """Return the statements that read a whole table, each with the planner's words."""
    engine: Engine = sessions.kw["bind"]
    found = []
    with engine.connect() as connection:
        for statement, parameters in statements:
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters):
                if row[3].startswith("SCAN ") and row[3] != "SCAN CONSTANT ROW":
                    found.append((statement, row[3]))
    return found


def test_nothing_that_runs_often_reads_a_whole_table(lite: Sessions, tmp_path: Path) -> None:
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE")):
            statements.append((statement, parameters))

    event.listen(lite.kw["bind"], "before_cursor_execute", note)
    intake = Intake(lite, InstanceStore(tmp_path / "data", min_free_bytes=0), utc_now, lambda _study_id: None)
    study_id = intake.receive(instance(STUDY, UID("1.2.3"))).study_id
    tick(lite, utc_now, SOON)
    claims.claim(lite, study_id, "owner", 8, SOON, utc_now)
    claims.renew(lite, "token", SOON, utc_now)
    claims.release(lite, "token", utc_now)
    claims.drained(lite, study_id)
    outbox.due(lite, "pacs", limit=10, lease=SOON, clock=utc_now)
    event.remove(lite.kw["bind"], "before_cursor_execute", note)

    assert len(statements) > 10
    assert full_scans(lite, statements) == []


def test_a_read_of_a_whole_table_would_be_seen(lite: Sessions) -> None:
    assert len(full_scans(lite, [("SELECT * FROM study WHERE error = 'x'", ())])) == 1

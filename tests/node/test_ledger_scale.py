"""What runs again and again, or for every loop, finds its rows by an index, however many studies are done."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from dicom_node.commitment import Reference, Report, Request
from dicom_node.completion import tick
from dicom_node.identity import UID
from dicom_node.ledger import claims, commitments, condition, future, outbox, pledges, shares
from dicom_node.ledger.dead_letters import dead_letters
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.retention import purge
from dicom_node.settings import Retention
from dicom_node.store import InstanceStore
from tests.doubles.analyst import LEASE, Analyst
from tests.doubles.arrivals import US_MULTIFRAME, Arrivals
from tests.doubles.clock import ManualClock

SOON = timedelta(seconds=1)
LONG = timedelta(hours=48)

Statements = list[tuple[str, Any]]


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[Sessions]:
    """A SQLite ledger: its planner says what it would read, without any rows."""
    sessions = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    yield sessions
    close_ledger(sessions)


@contextmanager
def noted(sessions: Sessions) -> Iterator[Statements]:
    """Give what is asked of the ledger until the block ends."""
    engine: Engine = sessions.kw["bind"]
    statements: Statements = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE", "INSERT")):
            statements.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    yield statements
    event.remove(engine, "before_cursor_execute", note)


def plans(sessions: Sessions, statements: Statements) -> list[tuple[str, str]]:
    """Return the statements, each with a step of the planner's."""
    engine: Engine = sessions.kw["bind"]
    with engine.connect() as connection:
        return [
            (statement, row[3])
            for statement, parameters in statements
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]


def full_scans(sessions: Sessions, statements: Statements) -> list[tuple[str, str]]:
    """Return the statements that read a whole table, each with the planner's words."""
    return [
        (statement, step)
        for statement, step in plans(sessions, statements)
        if step.startswith("SCAN ") and step != "SCAN CONSTANT ROW"
    ]


def test_nothing_in_the_life_of_a_study_reads_a_whole_table(
    lite: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    arrivals, analyst = Arrivals(lite, store, clock), Analyst(lite, clock)
    instance_uid = UID("1.2.3")
    references = (Reference(US_MULTIFRAME, instance_uid),)
    request = Request(transaction_uid=UID("2.25.1"), references=references)
    with noted(lite) as statements:
        study_id = arrivals.send(sop_uid=instance_uid)
        [claimed] = analyst.claim(study_id)
        claims.renew(lite, claimed.token, LEASE, clock)
        claims.release(lite, claimed.token, clock)
        clock.pass_by(60)
        assert tick(lite, clock, SOON) == [study_id]
        analyst.report(study_id, ["pacs"])
        [delivery] = outbox.due(lite, "pacs", limit=10, lease=LEASE, clock=clock)
        assert outbox.delivered(lite, delivery, clock, ask_for=references)
        [pledge] = pledges.due(lite, "pacs", limit=10, lease=LEASE, clock=clock)
        committed = Report(transaction_uid=pledge.request.transaction_uid, committed=references, failed={})
        assert pledges.answered(lite, committed, clock)
        with lite.begin() as session:
            commitments.record(session, "CART", request, LEASE, clock())
        assert commitments.hold(lite, [instance_uid], clock)

    assert len(statements) > 40
    assert full_scans(lite, statements) == []


def test_nothing_that_a_page_shows_reads_a_whole_table(lite: Sessions) -> None:
    """The newest rows of a table, so many and no more, are read as they lie."""
    with noted(lite) as statements:
        condition.contacts(lite, [("pacs", "PACS")])
        condition.queue(lite)
        condition.holders(lite)
        condition.last_ensemble(lite)
        condition.failures(lite, 50)
        dead_letters(lite, 50)
    scans = full_scans(lite, statements)
    newest = re.compile(r"FROM (\w+) ORDER BY \1\.id DESC\s+LIMIT")

    assert len(statements) >= 12
    assert len(scans) == 3
    assert [one for one in scans if not newest.search(one[0])] == []


def test_nothing_that_runs_again_and_again_reads_a_whole_table(
    lite: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    with noted(lite) as statements:
        tick(lite, clock, SOON)
        outbox.due(lite, "pacs", limit=10, lease=LEASE, clock=clock)
        outbox.owed_peers(lite)
        commitments.due(lite, "CART", limit=10, lease=LEASE, clock=clock)
        commitments.give_up(lite, LONG, clock)
        pledges.due(lite, "pacs", limit=10, lease=LEASE, clock=clock)
        pledges.give_up(lite, LONG, clock)
        claims.prolong_all(lite, clock())
        future.bring_back(lite, clock())
        purge(lite, store, Retention(days=7), clock)

    assert len(statements) > 15
    assert full_scans(lite, statements) == []


def test_retention_looks_only_at_what_is_old_and_has_its_images(
    lite: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    with noted(lite) as statements:
        purge(lite, store, Retention(days=0), clock)
        assert statements == []
        purge(lite, store, Retention(days=7), clock)
    found = [step for _, step in plans(lite, statements) if " study " in step]
    with lite() as session:
        index = session.scalar(text("SELECT sql FROM sqlite_master WHERE name = 'study_by_delivery'"))

    assert found == ["SEARCH study USING INDEX study_by_delivery (state=? AND delivered_at>? AND delivered_at<?)"]
    assert index.endswith("WHERE purged_at IS NULL")


def test_what_the_object_store_has_is_not_looked_at_again(lite: Sessions) -> None:
    with noted(lite) as statements:
        shares.unshared(lite, 16)
        shares.unshared(lite, 16, {1})
    found = [step for _, step in plans(lite, statements) if " instance " in step]
    with lite() as session:
        index = session.scalar(text("SELECT sql FROM sqlite_master WHERE name = 'instance_unshared'"))

    assert (
        found
        == [
            "SEARCH instance USING INDEX instance_unshared (state=?)",
            "SCAN instance USING INDEX instance_unshared",  # of what it has not got: no more is in the index
        ]
        * 2
    )
    assert index.endswith("WHERE shared_at IS NULL")


def test_a_read_of_a_whole_table_would_be_seen(lite: Sessions) -> None:
    assert len(full_scans(lite, [("SELECT * FROM study WHERE error = 'x'", ())])) == 1

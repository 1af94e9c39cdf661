"""The list of studies, page by page."""

from datetime import timedelta

import pytest
from sqlalchemy import select, text

from dicom_node.errors import InvalidCursor
from dicom_node.identity import UID
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.listing import count_unfinished, listing
from dicom_node.ledger.schema import Study, StudyState
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import Arrivals
from tests.doubles.clock import ManualClock
from tests.node.test_ledger_scale import full_scans, lite, noted, plans

__all__ = ["lite"]


def arrive(arrivals: Arrivals, clock: ManualClock, number: int, *, apart: float = 1.0) -> list[str]:
    """Let studies arrive, so many seconds apart; return their UIDs, the newest first."""
    uids = [UID(f"1.2.826.0.1.5.{place}") for place in range(1, number + 1)]
    for uid in uids:
        arrivals.send(uid)
        clock.pass_by(apart)
    return [*reversed(uids)]


def pages(sessions: Sessions, limit: int, state: StudyState | None = None) -> list[list[str]]:
    """Return the UIDs of every page."""
    found, cursor = [], None
    while True:
        page = listing(sessions, state, cursor, limit)
        found.append([one.study_instance_uid for one in page.studies])
        if page.next is None:
            return found
        cursor = page.next


def test_pages_hold_every_study_once_the_newest_first(
    sessions: Sessions, arrivals: Arrivals, clock: ManualClock
) -> None:
    uids = arrive(arrivals, clock, 7)

    assert pages(sessions, 3) == [uids[:3], uids[3:6], uids[6:]]
    assert pages(sessions, 7) == [uids]


def test_studies_of_one_moment_are_parted_by_no_page(
    sessions: Sessions, arrivals: Arrivals, clock: ManualClock
) -> None:
    uids = arrive(arrivals, clock, 5, apart=0.0)

    assert pages(sessions, 2) == [uids[:2], uids[2:4], uids[4:]]


def test_a_study_that_comes_meanwhile_moves_no_page(sessions: Sessions, arrivals: Arrivals, clock: ManualClock) -> None:
    uids = arrive(arrivals, clock, 4)
    first = listing(sessions, limit=2)
    arrivals.send(UID("1.2.826.0.1.6"))
    second = listing(sessions, cursor=first.next, limit=2)

    assert [one.study_instance_uid for one in second.studies] == uids[2:]


def test_a_page_is_of_one_state(sessions: Sessions, arrivals: Arrivals, clock: ManualClock) -> None:
    uids = arrive(arrivals, clock, 4)
    with sessions.begin() as session:
        session.execute(text("UPDATE study SET state = 'failed' WHERE study_instance_uid IN (:one, :two)"),
                        {"one": uids[0], "two": uids[3]})  # fmt: skip

    assert pages(sessions, 1, StudyState.FAILED) == [[uids[0]], [uids[3]]]
    assert pages(sessions, 1, StudyState.DELIVERED) == [[]]
    assert count_unfinished(sessions) == {
        StudyState.RECEIVING: 2, StudyState.ANALYSING: 0, StudyState.REPORTING: 0, StudyState.DELIVERING: 0,
        StudyState.FAILED: 2,
    }  # fmt: skip


def test_a_study_is_listed_with_its_counts_and_what_its_newest_report_says(
    sessions: Sessions, arrivals: Arrivals, analyst: Analyst, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    arrivals.send()
    arrivals.send(num_frames=1)
    for revision in (1, 2):
        with sessions.begin() as session:
            session.execute(text("UPDATE study SET state = 'analysing', revision = :number"), {"number": revision})
        analyst.drain(study_id)
        job = analyst.begin(study_id)
        assert job is not None
        analyst.write(job, results=[{"task": "lvef", "value": 50.0 + revision}])
        clock.pass_by(1)
    (one,) = listing(sessions).studies

    assert (one.num_instances, one.num_loops, one.num_analysed) == (3, 2, 2)
    assert [result["value"] for result in one.findings["results"]] == [52.0]


@pytest.mark.parametrize("cursor", ["", "x", "20260301T120000000000-", "20261399T120000000000-1", "-1", "1-1"])
def test_a_cursor_that_no_page_gave_is_refused(sessions: Sessions, cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        listing(sessions, cursor=cursor)


def test_no_page_reads_or_sorts_all_studies(lite: Sessions, clock: ManualClock) -> None:
    """What the planner would do, with a cursor and without, of one state and of all."""
    with lite.begin() as session:
        session.add_all(
            Study(study_instance_uid=f"1.2.{number}", state="delivered", received_at=clock(), last_received_at=clock())
            for number in range(3)
        )
    with noted(lite) as statements:
        for state in (None, StudyState.DELIVERED):
            page = listing(lite, state, limit=2)
            listing(lite, state, page.next, limit=2)
        count_unfinished(lite)

    assert len(statements) >= 9
    assert full_scans(lite, [one for one in statements if "FROM study" not in one[0]]) == []
    steps = [step for statement, step in plans(lite, statements) if "FROM study" in statement]
    assert all("USING INDEX study_by" in step or "USING COVERING INDEX study_by" in step for step in steps
               if not step.startswith("USE TEMP")), steps  # fmt: skip
    assert [step for step in steps if step.startswith("USE TEMP B-TREE FOR ORDER BY")] == []
    after_another = [one for one in statements if "last_received_at <=" in one[0]]
    assert len(after_another) == 2
    assert all(step.startswith("SEARCH study USING INDEX study_by") for _, step in plans(lite, after_another))
    with lite() as session:
        assert session.scalars(select(Study.id)).all() == [1, 2, 3]


def test_a_page_costs_as_many_statements_for_many_studies_as_for_one(lite: Sessions, clock: ManualClock) -> None:
    asked = []
    for number in (1, 400):
        with lite.begin() as session:
            session.add_all(
                Study(study_instance_uid=f"1.{number}.{one}", state="delivered", received_at=clock(),
                      last_received_at=clock() + timedelta(seconds=one))
                for one in range(number)
            )  # fmt: skip
        with noted(lite) as statements:
            listing(lite)
        asked.append(len(statements))

    assert asked[0] == asked[1] == 3

"""What peers ask, and what they are asked, is in the ledger, on each engine, and nobody does it twice."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import text

from dicom_node.commitment import Reference, Report, Request
from dicom_node.completion import tick
from dicom_node.identity import UID
from dicom_node.ledger import commitments, outbox, pledges
from dicom_node.ledger.commitments import DueCommitment
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.future import bring_back
from dicom_node.ledger.views import study_json
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, US_MULTIFRAME, Arrivals
from tests.doubles.clock import ManualClock

LEASE = timedelta(minutes=5)
REQUEST = Request(transaction_uid=UID("1.2.3"), references=(Reference(US_MULTIFRAME, UID("1.2.826.0.1.9.1")),))
SENT = Reference(UID("1.2.840.10008.5.1.4.1.1.88.33"), UID("1.2.3.88"))


def record(sessions: Sessions, clock: ManualClock, request: Request = REQUEST) -> DueCommitment | None:
    """Keep a request of the scanner."""
    with sessions.begin() as session:
        return commitments.record(session, "CART", request, LEASE, clock())


def due(sessions: Sessions, clock: ManualClock) -> list[DueCommitment]:
    """Lease what the scanner is to hear."""
    return commitments.due(sessions, "CART", limit=10, lease=LEASE, clock=clock)


def test_a_request_is_with_who_took_it_until_it_is_given_back_or_its_lease_ends(
    sessions: Sessions, clock: ManualClock
) -> None:
    taken = record(sessions, clock)
    assert taken is not None
    with_taker = due(sessions, clock)
    commitments.retry_later(sessions, taken, "it has left", clock())
    (given_back,) = due(sessions, clock)
    clock.pass_by(LEASE.total_seconds() + 1)
    (lost,) = due(sessions, clock)

    assert with_taker == []
    assert (given_back.request, given_back.attempt, lost.attempt) == (REQUEST, 1, 2)
    assert not commitments.renew(sessions, given_back, LEASE, clock)


def test_the_same_request_is_kept_once_and_another_under_its_uid_not_at_all(
    sessions: Sessions, clock: ManualClock
) -> None:
    first = record(sessions, clock)
    again = record(sessions, clock)
    other = record(sessions, clock, Request(transaction_uid=REQUEST.transaction_uid, references=(SENT,)))

    assert first is not None
    assert again is not None
    assert first.commitment_id == again.commitment_id
    assert other is None
    assert not commitments.renew(sessions, first, LEASE, clock)


def test_requests_that_come_at_once_are_each_kept_once(sessions: Sessions, clock: ManualClock) -> None:
    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(lambda _: record(sessions, clock), range(16)))

    assert len({one.commitment_id for one in taken if one is not None}) == 1
    assert sum(one is not None and commitments.renew(sessions, one, LEASE, clock) for one in taken) == 1


def test_what_is_reported_is_reported_once_and_in_the_history(
    sessions: Sessions, clock: ManualClock, arrivals: Arrivals
) -> None:
    study_id = arrivals.send()
    taken = record(sessions, clock)
    assert taken is not None
    report = Report(transaction_uid=REQUEST.transaction_uid, committed=REQUEST.references)

    assert commitments.reported(sessions, taken, report, [study_id], clock)
    assert not commitments.reported(sessions, taken, report, [study_id], clock)
    clock.pass_by(LEASE.total_seconds() + 1)
    assert due(sessions, clock) == []
    assert [one["event"] for one in study_json(sessions, STUDY)["history"]][-1] == "commitment_reported"


def test_many_instances_are_looked_up(sessions: Sessions, clock: ManualClock, arrivals: Arrivals) -> None:
    study_id = arrivals.send()
    unknown = [UID(f"1.2.3.{number}") for number in range(1200)]

    held = commitments.hold(sessions, [*unknown, UID("1.2.826.0.1.9.1")], clock)

    assert {uid: one.study_id for uid, one in held.items()} == {"1.2.826.0.1.9.1": study_id}


def test_what_nobody_could_be_told_is_given_up(sessions: Sessions, clock: ManualClock) -> None:
    """When its time is over and it was tried often; or its time is over by far."""
    hour = timedelta(hours=1)
    record(sessions, clock)
    with sessions.begin() as session:
        session.execute(text("UPDATE commitment SET attempts = :n"), {"n": commitments.GIVE_UP_ATTEMPTS})
    clock.pass_by(3600)
    early = commitments.give_up(sessions, hour, clock)
    clock.pass_by(1)

    assert early == 0
    assert commitments.give_up(sessions, hour, clock) == 1
    assert due(sessions, clock) == []


def test_a_clock_that_is_set_forward_gives_nothing_up(sessions: Sessions, clock: ManualClock) -> None:
    record(sessions, clock)
    clock.pass_by(3 * 3600)
    too_early = commitments.give_up(sessions, timedelta(hours=1), clock)
    clock.pass_by(2 * 3600)

    assert too_early == 0
    assert commitments.give_up(sessions, timedelta(hours=1), clock) == 1


@pytest.fixture
def delivered(sessions: Sessions, clock: ManualClock, arrivals: Arrivals, analyst: Analyst) -> int:
    """A study whose report was delivered to `pacs`, which is to commit to it."""
    study_id = arrivals.send()
    clock.pass_by(31)
    tick(sessions, clock, timedelta(seconds=30))
    analyst.report(study_id, ["pacs"])
    (item,) = outbox.due(sessions, "pacs", limit=1, lease=LEASE, clock=clock)
    assert outbox.delivered(sessions, item, clock, ask_for=[SENT])
    return study_id


@pytest.mark.usefixtures("delivered")
def test_processes_that_ask_at_once_ask_once(sessions: Sessions, clock: ManualClock) -> None:
    def ask(_number: int) -> int:
        return len(pledges.due(sessions, "pacs", limit=5, lease=LEASE, clock=clock))

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(ask, range(4))) == 1


@pytest.mark.usefixtures("delivered")
def test_an_answer_outruns_the_answer_to_the_request(sessions: Sessions, clock: ManualClock) -> None:
    """A peer may report before it has said that it will."""
    (item,) = pledges.due(sessions, "pacs", limit=5, lease=LEASE, clock=clock)
    report = Report(transaction_uid=item.request.transaction_uid, committed=item.request.references)

    assert pledges.answered(sessions, report, clock)
    assert not pledges.requested(sessions, item, clock() + timedelta(hours=1))
    assert not pledges.ask_later(sessions, item, "too late", clock())
    assert study_json(sessions, STUDY)["deliveries"][0]["commitment"] == "committed"


@pytest.mark.usefixtures("delivered")
def test_a_failure_takes_the_study_back_to_its_delivery_and_then_to_a_person(
    sessions: Sessions, clock: ManualClock
) -> None:
    states = []
    for _ in range(2):
        (item,) = pledges.due(sessions, "pacs", limit=5, lease=LEASE, clock=clock)
        report = Report(transaction_uid=item.request.transaction_uid, committed=(), failed={SENT: 0x0112})
        pledges.answered(sessions, report, clock)
        states.append(study_json(sessions, STUDY)["state"])
        clock.pass_by(1)
        for again in outbox.due(sessions, "pacs", limit=1, lease=LEASE, clock=clock):
            outbox.delivered(sessions, again, clock, ask_for=[SENT])

    assert states == ["delivering", "failed"]


@pytest.mark.usefixtures("delivered")
def test_a_failure_of_before_it_was_delivered_again_is_none(sessions: Sessions, clock: ManualClock) -> None:
    """The peer was asked twice, and answers both."""
    asked = []
    for _ in range(2):
        asked += pledges.due(sessions, "pacs", limit=5, lease=LEASE, clock=clock)
        clock.pass_by(LEASE.total_seconds())
    failures = [
        Report(transaction_uid=one.request.transaction_uid, committed=(), failed={SENT: 0x0112}) for one in asked
    ]
    pledges.answered(sessions, failures[0], clock)
    (again,) = outbox.due(sessions, "pacs", limit=1, lease=LEASE, clock=clock)
    outbox.delivered(sessions, again, clock, ask_for=[SENT])
    pledges.answered(sessions, failures[1], clock)

    assert study_json(sessions, STUDY)["state"] == "delivered"
    assert study_json(sessions, STUDY)["deliveries"][0]["commitment"] == "wanted"


@pytest.mark.usefixtures("delivered")
def test_a_clock_that_is_set_back_holds_no_commitment_up(sessions: Sessions, clock: ManualClock) -> None:
    clock.pass_by(365 * 86400)
    taken = record(sessions, clock)
    assert taken is not None
    commitments.retry_later(sessions, taken, "", clock())
    assert pledges.due(sessions, "pacs", limit=5, lease=LEASE, clock=clock)
    clock.pass_by(-365 * 86400)

    bring_back(sessions, clock())

    assert len(due(sessions, clock)) == 1
    assert len(pledges.due(sessions, "pacs", limit=5, lease=LEASE, clock=clock)) == 1

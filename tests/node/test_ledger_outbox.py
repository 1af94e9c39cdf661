"""The promise to deliver is kept, tried again, or becomes a dead letter that people see."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from dicom_node.completion import tick
from dicom_node.identity import UID
from dicom_node.ledger import outbox, studies
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.outbox import DueDelivery
from dicom_node.ledger.views import study_json
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock

LEASE = timedelta(minutes=2)


@pytest.fixture
def reported(arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock) -> int:
    """A study whose report waits for two peers."""
    study_id = arrivals.send()
    clock.pass_by(31)
    tick(sessions, clock, timedelta(seconds=30))
    analyst.report(study_id, ["pacs", "archive"])
    return study_id


def take(sessions: Sessions, clock: ManualClock, peer: str = "pacs") -> list[DueDelivery]:
    return outbox.due(sessions, peer, limit=10, lease=LEASE, clock=clock)


def states(sessions: Sessions) -> dict[str, str]:
    return {delivery["peer"]: delivery["state"] for delivery in study_json(sessions, STUDY)["deliveries"]}


@pytest.mark.usefixtures("reported")
def test_a_due_delivery_says_what_to_send(sessions: Sessions, clock: ManualClock) -> None:
    (item,) = take(sessions, clock)

    (report,) = study_json(sessions, STUDY)["reports"]
    assert (item.sop_instance_uid, item.path, item.attempt) == (report["sop_instance_uid"], report["path"], 1)
    assert item.study_instance_uid == STUDY


@pytest.mark.usefixtures("reported")
def test_a_delivery_on_its_way_is_not_due_until_its_lease_ends(sessions: Sessions, clock: ManualClock) -> None:
    (lost,) = take(sessions, clock)
    meanwhile = take(sessions, clock)
    clock.pass_by(LEASE.total_seconds() + 1)

    (again,) = take(sessions, clock)

    assert meanwhile == []
    assert again.attempt == 2
    assert not outbox.delivered(sessions, lost, clock)
    assert outbox.delivered(sessions, again, clock)


@pytest.mark.usefixtures("reported")
def test_the_study_is_delivered_with_its_last_destination(sessions: Sessions, clock: ManualClock) -> None:
    (pacs,) = take(sessions, clock, "pacs")
    (archive,) = take(sessions, clock, "archive")

    outbox.delivered(sessions, archive, clock)
    between = study_json(sessions, STUDY)["state"]
    outbox.delivered(sessions, pacs, clock)

    assert between == "delivering"
    assert study_json(sessions, STUDY)["state"] == "delivered"
    assert states(sessions) == {"pacs": "delivered", "archive": "delivered"}


@pytest.mark.parametrize("ends", ["later", "dead"])
def test_a_report_that_was_on_its_way_when_the_next_was_written_is_not_sent_after_it(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock, reported: int, ends: str
) -> None:
    (old,) = take(sessions, clock)
    arrivals.send()
    clock.pass_by(31)
    tick(sessions, clock, timedelta(seconds=30))
    analyst.report(reported, ["pacs"])

    if ends == "later":
        outbox.retry_later(sessions, old, "aborted", clock())
    else:
        outbox.dead(sessions, old, "refused", clock)
    (new,) = take(sessions, clock)
    outbox.delivered(sessions, new, clock)

    assert new.sop_instance_uid != old.sop_instance_uid
    assert take(sessions, clock) == []
    of_pacs = [one for one in study_json(sessions, STUDY)["deliveries"] if one["peer"] == "pacs"]
    assert sorted(one["state"] for one in of_pacs) == ["delivered", "superseded"]


@pytest.mark.usefixtures("reported")
def test_a_failed_attempt_waits_for_its_time(sessions: Sessions, clock: ManualClock) -> None:
    (item,) = take(sessions, clock)

    outbox.retry_later(sessions, item, "connection refused", clock() + timedelta(seconds=15))

    assert take(sessions, clock) == []
    clock.pass_by(15)
    assert [again.attempt for again in take(sessions, clock)] == [2]


@pytest.mark.usefixtures("reported")
def test_a_delivery_given_back_has_made_no_attempt(sessions: Sessions, clock: ManualClock) -> None:
    (item,) = take(sessions, clock)

    outbox.release(sessions, item)

    assert [again.attempt for again in take(sessions, clock)] == [1]


@pytest.mark.usefixtures("reported")
def test_a_renewed_delivery_is_not_due(sessions: Sessions, clock: ManualClock) -> None:
    (item,) = take(sessions, clock)
    clock.pass_by(100)

    assert outbox.renew(sessions, item, LEASE, clock)
    clock.pass_by(100)

    assert take(sessions, clock) == []
    assert outbox.delivered(sessions, item, clock)


@pytest.mark.usefixtures("reported")
def test_a_dead_letter_fails_the_study_and_the_other_peer_still_gets_its_report(
    sessions: Sessions, clock: ManualClock
) -> None:
    (item,) = take(sessions, clock)

    outbox.dead(sessions, item, "0xA900", clock)
    (other,) = take(sessions, clock, "archive")
    outbox.delivered(sessions, other, clock)

    study = study_json(sessions, STUDY)
    assert (study["state"], study["error"]) == ("failed", "the report did not reach pacs: 0xA900")
    assert states(sessions) == {"pacs": "dead", "archive": "delivered"}


@pytest.mark.usefixtures("reported")
def test_a_retry_sends_the_dead_letter_again(sessions: Sessions, clock: ManualClock) -> None:
    (item,) = take(sessions, clock)
    (other,) = take(sessions, clock, "archive")
    outbox.dead(sessions, item, "0xA900", clock)
    outbox.delivered(sessions, other, clock)

    state = studies.retry(sessions, STUDY, clock)
    (again,) = take(sessions, clock)
    outbox.delivered(sessions, again, clock)

    assert state == "delivering"
    assert again.attempt == 1
    assert study_json(sessions, STUDY)["state"] == "delivered"
    assert study_json(sessions, STUDY)["error"] is None


def test_a_delivery_of_an_older_report_does_not_end_the_new_revision(
    reported: int, arrivals: Arrivals, sessions: Sessions, clock: ManualClock
) -> None:
    (pacs,) = take(sessions, clock, "pacs")
    (archive,) = take(sessions, clock, "archive")
    arrivals.send()

    outbox.delivered(sessions, pacs, clock)
    outbox.dead(sessions, archive, "0xA900", clock)

    study = study_json(sessions, STUDY)
    assert (study["state"], study["error"]) == ("receiving", None)


@pytest.mark.usefixtures("reported")
def test_peers_do_not_see_each_others_deliveries(sessions: Sessions, clock: ManualClock) -> None:
    assert take(sessions, clock, "nobody") == []
    assert [item.peer for item in take(sessions, clock, "archive")] == ["archive"]


def test_two_peers_that_answer_at_once_end_the_study(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    uids = [UID(f"1.2.826.0.6.{number}") for number in range(12)]
    study_ids = [arrivals.send(uid) for uid in uids]
    clock.pass_by(31)
    tick(sessions, clock, timedelta(seconds=30))
    for study_id in study_ids:
        analyst.report(study_id, ["pacs", "archive"])
    gate = threading.Barrier(2)

    def answer(peer: str) -> None:
        items = outbox.due(sessions, peer, limit=100, lease=LEASE, clock=clock)
        for item in items:
            gate.wait(timeout=30)
            outbox.delivered(sessions, item, clock)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(answer, ["pacs", "archive"]))

    assert [study_json(sessions, uid)["state"] for uid in uids] == ["delivered"] * len(uids)

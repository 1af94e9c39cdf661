"""A report that did not reach a peer is sent again by hand."""

from collections.abc import Sequence
from datetime import timedelta

import pytest

from dicom_node import completion
from dicom_node.errors import UnknownStudy
from dicom_node.identity import UID
from dicom_node.ledger import outbox
from dicom_node.ledger.dead_letters import dead_letters, deliver_again
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.views import StudyJson, study_json
from tests.doubles.analyst import LEASE, Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock


@pytest.fixture
def study_id(arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock) -> int:
    """A study whose report is to go to two peers."""
    study_id = arrivals.send()
    clock.pass_by(60)
    completion.tick(sessions, clock, timedelta(seconds=30))
    analyst.report(study_id, ["pacs", "archive"])
    return study_id


def refuse(sessions: Sessions, clock: ManualClock, peers: Sequence[str]) -> None:
    """Let peers refuse the report for good."""
    for peer in peers:
        for item in outbox.due(sessions, peer, limit=9, lease=LEASE, clock=clock):
            outbox.dead(sessions, item, f"{peer} says no", clock)


def take(sessions: Sessions, clock: ManualClock, peers: Sequence[str]) -> int:
    """Let peers take the report; return how often it came."""
    items = [item for peer in peers for item in outbox.due(sessions, peer, limit=9, lease=LEASE, clock=clock)]
    return sum(outbox.delivered(sessions, item, clock) for item in items)


def again(sessions: Sessions, clock: ManualClock, peer: str) -> bool:
    """Send the study's newest report again."""
    return deliver_again(sessions, STUDY, UID(shown(sessions)["reports"][-1]["sop_instance_uid"]), peer, clock)


def shown(sessions: Sessions) -> StudyJson:
    """Return the study as people see it."""
    return study_json(sessions, STUDY)


@pytest.mark.usefixtures("study_id")
def test_a_dead_letter_is_delivered_again_and_the_study_with_it(sessions: Sessions, clock: ManualClock) -> None:
    take(sessions, clock, ["archive"])
    refuse(sessions, clock, ["pacs"])
    failed = shown(sessions)
    is_again = again(sessions, clock, "pacs")
    underway = shown(sessions)
    number = take(sessions, clock, ["pacs", "archive"])
    done = shown(sessions)

    assert (failed["state"], failed["error"]) == ("failed", "the report did not reach pacs: pacs says no")
    assert is_again
    assert (underway["state"], underway["error"]) == ("delivering", None)
    assert number == 1  # not to the peer that has it
    assert done["state"] == "delivered"
    assert [one["attempts"] for one in done["deliveries"] if one["peer"] == "pacs"] == [1]


@pytest.mark.usefixtures("study_id")
def test_a_study_with_another_dead_letter_stays_failed_and_says_which(sessions: Sessions, clock: ManualClock) -> None:
    refuse(sessions, clock, ["pacs", "archive"])
    again(sessions, clock, "pacs")
    first = shown(sessions)
    take(sessions, clock, ["pacs"])
    again(sessions, clock, "archive")
    take(sessions, clock, ["archive"])

    assert (first["state"], first["error"]) == ("failed", "the report did not reach archive: archive says no")
    assert shown(sessions)["state"] == "delivered"


@pytest.mark.usefixtures("study_id")
def test_what_is_no_dead_letter_is_not_sent_again(sessions: Sessions, clock: ManualClock) -> None:
    waiting = again(sessions, clock, "pacs")
    take(sessions, clock, ["pacs", "archive"])
    delivered = again(sessions, clock, "pacs")
    report = UID(shown(sessions)["reports"][0]["sop_instance_uid"])

    assert not waiting
    assert not delivered
    assert not deliver_again(sessions, STUDY, report, "nobody", clock)
    assert not deliver_again(sessions, STUDY, UID("1.2.3"), "pacs", clock)
    with pytest.raises(UnknownStudy):
        deliver_again(sessions, UID("1.2.3"), report, "pacs", clock)
    assert take(sessions, clock, ["pacs", "archive"]) == 0


@pytest.mark.usefixtures("study_id")
def test_dead_letters_are_listed_with_their_study_and_reason(sessions: Sessions, clock: ManualClock) -> None:
    refuse(sessions, clock, ["pacs", "archive"])

    assert [(one.study_instance_uid, one.peer, one.error) for one in dead_letters(sessions, 9)] == [
        (STUDY, "archive", "archive says no"), (STUDY, "pacs", "pacs says no"),
    ]  # fmt: skip
    assert len(dead_letters(sessions, 1)) == 1

"""A person takes a study up again: its given-up instances, or all of it."""

from datetime import timedelta

import pytest
from sqlalchemy import select, text

from dicom_node.completion import tick
from dicom_node.errors import CannotReopen, UnknownStudy
from dicom_node.identity import UID
from dicom_node.ledger.claims import Analysed
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.schema import Instance, InstanceState, Result, StudyState
from dicom_node.ledger.studies import reprocess, retry
from dicom_node.ledger.views import study_json
from dicom_node.retention import purge
from dicom_node.settings import Retention
from dicom_node.store import InstanceStore
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock

DEADLY = UID("1.2.826.0.1.9.666")
LONG_AGO = 8 * 86400


@pytest.fixture
def delivered(arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock) -> int:
    """A study whose report was written and promised to nobody."""
    study_id = arrivals.send()
    clock.pass_by(31)
    tick(sessions, clock, timedelta(seconds=30))
    analyst.report(study_id)
    return study_id


@pytest.fixture
def partial(arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock) -> int:
    """A delivered study of two loops, of which one was given up."""
    study_id = arrivals.send()
    arrivals.send(sop_uid=DEADLY)
    analyst.answer(analyst.claim(study_id, limit=1)[0])
    for _ in range(3):
        assert analyst.claim(study_id)
        clock.pass_by(31)
        tick(sessions, clock, timedelta(seconds=30))
    analyst.report(study_id)
    assert states(sessions) == ["analysed", "failed"]
    return study_id


def states(sessions: Sessions) -> list[str]:
    with sessions() as session:
        return [*session.scalars(select(Instance.state).order_by(Instance.id))]


def set_state(sessions: Sessions, state: StudyState) -> None:
    with sessions.begin() as session:
        session.execute(text("UPDATE study SET state = :state"), {"state": state.value})


@pytest.mark.parametrize("state", [StudyState.DELIVERED, StudyState.DELIVERING, StudyState.FAILED])
def test_a_study_that_is_reprocessed_gets_a_report_that_names_its_predecessor(
    delivered: int, analyst: Analyst, sessions: Sessions, clock: ManualClock, state: StudyState
) -> None:
    set_state(sessions, state)

    reprocess(sessions, STUDY, clock)
    reopened = study_json(sessions, STUDY)
    (claimed,) = analyst.claim(delivered)
    analyst.answer(claimed, Analysed(outputs={"anew": True}))
    analyst.report(delivered)

    first, second = study_json(sessions, STUDY)["reports"]
    assert (reopened["state"], reopened["revision"], reopened["error"]) == ("analysing", 2, None)
    assert claimed.attempt == 1
    assert second["supersedes"] == first["sop_instance_uid"] != second["sop_instance_uid"]
    with sessions() as session:
        assert session.scalars(select(Result.outputs)).all() == [{"anew": True}]


@pytest.mark.usefixtures("delivered")
@pytest.mark.parametrize("state", [StudyState.RECEIVING, StudyState.ANALYSING, StudyState.REPORTING])
def test_a_study_that_is_still_being_analysed_is_not_reprocessed(
    sessions: Sessions, clock: ManualClock, state: StudyState
) -> None:
    set_state(sessions, state)

    with pytest.raises(CannotReopen, match="still being analysed"):
        reprocess(sessions, STUDY, clock)

    assert (study_json(sessions, STUDY)["state"], study_json(sessions, STUDY)["revision"]) == (state, 1)


@pytest.mark.usefixtures("delivered")
def test_a_study_whose_images_retention_removed_is_reprocessed_once_they_were_sent_again(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    clock.pass_by(LONG_AGO)
    purge(sessions, store, Retention(days=7), clock)
    with pytest.raises(CannotReopen, match=r"removed 1 images of study .*: send or pull it again"):
        reprocess(sessions, STUDY, clock)

    arrivals.send(sop_uid=UID("1.2.826.0.1.9.1"))
    kept = purge(sessions, store, Retention(days=7), clock)  # the study is delivered, and was so long ago
    reprocess(sessions, STUDY, clock)

    assert kept == []
    assert (study_json(sessions, STUDY)["state"], states(sessions)) == ("analysing", ["pending"])


def test_a_study_of_which_some_images_are_gone_is_not_reprocessed(
    delivered: int, arrivals: Arrivals, analyst: Analyst, sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    clock.pass_by(LONG_AGO)
    purge(sessions, store, Retention(days=7), clock)
    arrivals.send()
    clock.pass_by(31)
    tick(sessions, clock, timedelta(seconds=30))
    analyst.report(delivered)

    with pytest.raises(CannotReopen, match="removed 1 images"):
        reprocess(sessions, STUDY, clock)


def test_reprocess_names_a_study_that_is_not_there(sessions: Sessions, clock: ManualClock) -> None:
    with pytest.raises(UnknownStudy):
        reprocess(sessions, STUDY, clock)


def test_a_reprocessed_study_forgets_who_was_to_have_its_earlier_report(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    clock.pass_by(31)
    tick(sessions, clock, timedelta(seconds=30))
    analyst.report(study_id, ["pacs"])

    reprocess(sessions, STUDY, clock)
    analyst.report(study_id, ["pacs"])

    assert [one["state"] for one in study_json(sessions, STUDY)["deliveries"]] == ["superseded", "waiting"]


def test_retry_takes_up_what_was_given_up_in_a_report_and_that_alone(
    partial: int, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    state = retry(sessions, STUDY, clock)
    taken = states(sessions)
    analyst.report(partial)

    assert (state, taken) == (StudyState.ANALYSING, ["analysed", "pending"])
    study = study_json(sessions, STUDY)
    assert (study["state"], study["revision"], study["not_analysed"]) == ("delivered", 2, [])
    assert retry(sessions, STUDY, clock) is None


@pytest.mark.usefixtures("partial")
def test_retry_of_what_was_given_up_says_that_its_images_are_gone(
    sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    clock.pass_by(LONG_AGO)
    purge(sessions, store, Retention(days=7), clock)

    with pytest.raises(CannotReopen, match="removed 1 images"):
        retry(sessions, STUDY, clock)


@pytest.mark.parametrize("is_purged", [False, True])
def test_a_given_up_instance_that_is_sent_again_is_tried_again(
    partial: int,
    arrivals: Arrivals,
    analyst: Analyst,
    sessions: Sessions,
    store: InstanceStore,
    clock: ManualClock,
    is_purged: bool,
) -> None:
    clock.pass_by(LONG_AGO)
    if is_purged:
        purge(sessions, store, Retention(days=7), clock)
    arrivals.rung.clear()

    arrivals.send(sop_uid=DEADLY)
    seen = study_json(sessions, STUDY)
    clock.pass_by(31)
    tick(sessions, clock, timedelta(seconds=30))
    analyst.report(partial)

    assert arrivals.rung == [partial]
    assert (seen["state"], seen["revision"]) == ("receiving", 2)
    study = study_json(sessions, STUDY)
    assert (study["state"], study["not_analysed"], len(study["reports"])) == ("delivered", [], 2)


def test_an_instance_that_was_analysed_opens_nothing_when_it_is_sent_again(
    partial: int, arrivals: Arrivals, sessions: Sessions, clock: ManualClock
) -> None:
    arrivals.send(sop_uid=UID("1.2.826.0.1.9.1"))

    assert study_json(sessions, STUDY)["state"] == "delivered"
    assert InstanceState.FAILED in states(sessions)

"""A machine whose clock was ahead, and was set right."""

from datetime import timedelta

import pytest
from sqlalchemy import update

from dicom_node import completion
from dicom_node.ledger import claims, outbox
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.future import bring_back
from dicom_node.ledger.schema import Delivery, Instance, Study
from dicom_node.ledger.views import study_json
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock

QUIET = timedelta(seconds=30)
AHEAD = 365 * 86400


def state(sessions: Sessions) -> str:
    """Return the state of the study."""
    return study_json(sessions, STUDY)["state"]


@pytest.mark.parametrize("stage", ["receiving", "loops on lease", "report on lease", "delivery waits", "being sent"])
def test_a_clock_that_is_set_back_holds_nothing_up(
    stage: str, arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    clock.pass_by(AHEAD)
    study_id = arrivals.send()
    if stage == "loops on lease":
        assert analyst.claim(study_id)
    elif stage != "receiving":
        clock.pass_by(31)
        completion.tick(sessions, clock, QUIET)
        analyst.drain(study_id)
        job = analyst.begin(study_id)
        assert job is not None
        if stage != "report on lease":
            analyst.write(job, ["pacs"])
            if stage == "being sent":
                assert outbox.due(sessions, "pacs", limit=1, lease=timedelta(seconds=120), clock=clock)
    clock.pass_by(-AHEAD)

    bring_back(sessions, clock())
    clock.pass_by(31)
    completion.tick(sessions, clock, QUIET)
    completion.tick(sessions, clock, QUIET)

    if stage in ("delivery waits", "being sent"):
        clock.pass_by(120)
        assert outbox.due(sessions, "pacs", limit=1, lease=timedelta(seconds=120), clock=clock)
    else:
        analyst.report(study_id, ["pacs"])
        assert state(sessions) == "delivering"


def test_waits_of_ours_are_left_alone(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    (held,) = analyst.claim(study_id)
    with sessions.begin() as session:
        session.execute(update(Instance).values(lease_until=clock() + timedelta(minutes=45)))
        session.execute(update(Delivery).values(next_attempt_at=clock() + timedelta(hours=1)))
        session.execute(update(Study).values(last_received_at=clock() + timedelta(seconds=20)))

    assert bring_back(sessions, clock()) == 0
    assert claims.renew(sessions, held.token, timedelta(seconds=20), clock) == 1


def test_a_clock_that_is_set_forward_costs_a_loop_and_a_report_one_attempt_each(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    (held,) = analyst.claim(study_id)
    clock.pass_by(AHEAD)
    completion.tick(sessions, clock, QUIET)
    is_kept = analyst.answer(held)
    (again,) = analyst.claim(study_id)
    analyst.answer(again)
    first = analyst.begin(study_id)
    assert first is not None
    clock.pass_by(AHEAD)
    completion.tick(sessions, clock, QUIET)
    is_written = analyst.write(first)
    second = analyst.report(study_id, ["pacs"])

    assert (is_kept, again.attempt) == (False, 2)
    assert (is_written, second.attempt) == (False, 2)
    assert state(sessions) == "delivering"

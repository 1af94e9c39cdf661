"""Time alone completes quiet studies and takes back what the dead held."""

from datetime import timedelta

from sqlalchemy import insert

from dicom_node.completion import tick
from dicom_node.ledger import studies
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.schema import Study, StudyState
from dicom_node.ledger.views import study_json
from tests.doubles.analyst import LEASE, Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock

QUIET = timedelta(seconds=30)
LEASE_SECONDS = LEASE.total_seconds()


def state(sessions: Sessions) -> str:
    return study_json(sessions, STUDY)["state"]


def test_a_quiet_study_is_complete_and_rung_for_once(
    arrivals: Arrivals, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    clock.pass_by(30)

    assert tick(sessions, clock, QUIET) == [study_id]
    assert tick(sessions, clock, QUIET) == []
    assert state(sessions) == "analysing"


def test_a_late_instance_restarts_the_wait(arrivals: Arrivals, sessions: Sessions, clock: ManualClock) -> None:
    arrivals.send()
    clock.pass_by(29)
    arrivals.send()
    clock.pass_by(29)
    tick(sessions, clock, QUIET)
    before = state(sessions)
    clock.pass_by(1)
    tick(sessions, clock, QUIET)

    assert (before, state(sessions)) == ("receiving", "analysing")


def test_a_study_of_stills_alone_completes_and_reports(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send(num_frames=1)
    clock.pass_by(30)
    tick(sessions, clock, QUIET)

    analyst.report(study_id)

    assert state(sessions) == "delivered"


def test_what_a_killed_worker_held_is_rung_for_as_soon_as_its_lease_ends(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    analyst.claim(study_id)
    clock.pass_by(LEASE_SECONDS)
    before = tick(sessions, clock, QUIET)
    clock.pass_by(0.001)

    assert before == []
    assert tick(sessions, clock, QUIET) == [study_id]
    assert len(analyst.claim(study_id)) == 1


def test_after_three_lost_workers_an_instance_fails_and_its_study_goes_on(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    poison = arrivals.new_uid()
    study_id = arrivals.send(sop_uid=poison)
    for _ in range(3):
        analyst.claim(study_id)
        clock.pass_by(LEASE_SECONDS + 1)
        tick(sessions, clock, QUIET)

    assert analyst.claim(study_id) == []
    assert analyst.begin(study_id) is not None
    assert study_json(sessions, STUDY)["not_analysed"] == [
        {"sop_instance_uid": poison, "reason": "the analysis of this instance failed 3 times (worker lost)"}
    ]


def test_a_report_whose_writer_died_is_taken_up_and_given_up_after_three(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    analyst.drain(study_id)
    clock.pass_by(30)
    tick(sessions, clock, QUIET)
    seen = []
    for _ in range(3):
        assert analyst.begin(study_id) is not None
        clock.pass_by(LEASE_SECONDS + 1)
        rung = tick(sessions, clock, QUIET)
        seen.append((state(sessions), rung))

    assert seen == [("analysing", [study_id]), ("analysing", [study_id]), ("failed", [])]
    assert "worker lost" in (study_json(sessions, STUDY)["error"] or "")


def test_a_retry_forgets_the_attempts(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    for _ in range(3):
        analyst.claim(study_id)
        clock.pass_by(LEASE_SECONDS + 1)
        tick(sessions, clock, QUIET)
    for _ in range(3):
        assert analyst.begin(study_id) is not None
        clock.pass_by(LEASE_SECONDS + 1)
        tick(sessions, clock, QUIET)

    studies.retry(sessions, STUDY, clock)

    (again,) = analyst.claim(study_id)
    assert again.attempt == 1


def test_a_bell_that_nobody_heard_is_rung_again_every_five_seconds(
    arrivals: Arrivals, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    rung = []
    for _ in range(11):
        clock.pass_by(1)
        rung.append(tick(sessions, clock, QUIET))

    assert rung == [[], [], [], [], [study_id], [], [], [], [], [study_id], []]


def test_a_study_that_workers_hold_or_have_answered_is_left_alone(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    analyst.claim(study_id)
    clock.pass_by(6)
    held = tick(sessions, clock, QUIET)
    clock.pass_by(15)
    tick(sessions, clock, QUIET)
    analyst.drain(study_id)
    clock.pass_by(6)

    assert (held, tick(sessions, clock, QUIET)) == ([], [])


def test_a_complete_drained_study_is_rung_for_until_its_report_is_begun(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    analyst.drain(study_id)
    clock.pass_by(30)
    tick(sessions, clock, QUIET)
    clock.pass_by(6)

    assert tick(sessions, clock, QUIET) == [study_id]
    analyst.begin(study_id)
    clock.pass_by(6)
    assert tick(sessions, clock, QUIET) == []


def test_a_backlog_does_not_flood_the_broker_and_nobody_is_forgotten(
    arrivals: Arrivals, sessions: Sessions, clock: ManualClock
) -> None:
    with sessions.begin() as session:
        row = {"state": StudyState.ANALYSING, "received_at": clock(), "last_received_at": clock()}
        session.execute(insert(Study), [{"study_instance_uid": f"1.2.{number}", **row} for number in range(250)])

    ticks = [tick(sessions, clock, QUIET) for _ in range(4)]

    assert [len(rung) for rung in ticks] == [100, 100, 50, 0]
    assert len({study_id for rung in ticks for study_id in rung}) == 250

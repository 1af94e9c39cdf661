"""One worker writes the report of one revision; the report and the promise to deliver it are one commit."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from sqlalchemy import func, select

from dicom_node.completion import tick
from dicom_node.ledger import claims, reports, studies
from dicom_node.ledger.claims import NotAnalysed
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.schema import Delivery, InstanceState, Report
from dicom_node.ledger.views import study_json
from tests.doubles.analyst import ENSEMBLE, LEASE, Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock

QUIET = timedelta(seconds=30)


def complete(sessions: Sessions, clock: ManualClock) -> None:
    clock.pass_by(31)
    tick(sessions, clock, QUIET)


def test_no_report_before_the_study_is_complete(arrivals: Arrivals, analyst: Analyst) -> None:
    study_id = arrivals.send()
    analyst.drain(study_id)

    assert analyst.begin(study_id) is None


def test_no_report_while_an_instance_has_no_answer(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    complete(sessions, clock)
    analyst.claim(study_id)

    assert analyst.begin(study_id) is None


def test_a_job_holds_every_instance_with_its_answer(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    arrivals.send()
    complete(sessions, clock)
    loop, doppler = analyst.claim(study_id)
    analyst.answer(loop)
    analyst.answer(doppler, NotAnalysed(code="doppler", reason="spectral Doppler"))

    job = analyst.begin(study_id)

    assert job is not None
    assert (job.study_instance_uid, job.revision, job.predecessor) == (STUDY, 1, None)
    assert [(i.state, i.outputs, i.reason) for i in job.instances] == [
        (InstanceState.ANALYSED, {"by": loop.sop_instance_uid}, None),
        (InstanceState.NOT_ANALYSED, None, "spectral Doppler"),
    ]
    assert study_json(sessions, STUDY)["state"] == "reporting"


def test_instances_that_this_ensemble_has_not_seen_wait_again(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    analyst.drain(study_id)
    complete(sessions, clock)

    assert analyst.begin(study_id, ensemble="f" * 64) is None
    assert not claims.drained(sessions, study_id)


def test_only_one_of_many_workers_writes_the_report(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    analyst.drain(study_id)
    complete(sessions, clock)
    gate = threading.Barrier(4)

    def begin(_number: int) -> bool:
        gate.wait(timeout=30)
        return analyst.begin(study_id) is not None

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(begin, range(4))) == [False, False, False, True]


def test_a_report_and_its_deliveries_are_recorded_together(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    complete(sessions, clock)

    analyst.report(study_id, ["pacs", "archive"])

    study = study_json(sessions, STUDY)
    assert study["state"] == "delivering"
    assert [(d["peer"], d["state"], d["attempts"]) for d in study["deliveries"]] == [
        ("pacs", "waiting", 0),
        ("archive", "waiting", 0),
    ]


def test_a_report_that_nobody_receives_is_delivered(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    complete(sessions, clock)

    analyst.report(study_id)

    study = study_json(sessions, STUDY)
    assert (study["state"], study["delivered_at"]) == ("delivered", "2026-03-01T12:00:31.000Z")


def test_a_late_instance_takes_the_report_from_its_writer(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    analyst.drain(study_id)
    complete(sessions, clock)
    job = analyst.begin(study_id)
    assert job is not None
    arrivals.send()

    assert not analyst.write(job, ["pacs"])

    assert study_json(sessions, STUDY)["state"] == "receiving"
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(Report)) == 0
        assert session.scalar(select(func.count()).select_from(Delivery)) == 0


def test_a_writer_that_was_taken_for_dead_changes_nothing(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    analyst.drain(study_id)
    complete(sessions, clock)
    slow = analyst.begin(study_id)
    clock.pass_by(LEASE.total_seconds() + 1)
    tick(sessions, clock, QUIET)
    quick = analyst.begin(study_id)
    assert slow is not None
    assert quick is not None

    assert not analyst.write(slow)
    assert not reports.fail_report(sessions, slow, "late", clock)
    assert analyst.write(quick)
    assert study_json(sessions, STUDY)["state"] == "delivered"


def test_the_next_revision_names_its_predecessor_and_takes_its_place_in_the_outbox(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    complete(sessions, clock)
    analyst.report(study_id, ["pacs"])
    arrivals.send()
    complete(sessions, clock)

    job = analyst.report(study_id, ["pacs"])

    first, second = study_json(sessions, STUDY)["reports"]
    assert job.predecessor is not None
    assert job.predecessor.sop_instance_uid == first["sop_instance_uid"] == second["supersedes"]
    assert first["sop_instance_uid"] != second["sop_instance_uid"]
    assert [d["state"] for d in study_json(sessions, STUDY)["deliveries"]] == ["superseded", "waiting"]


def test_only_what_is_new_is_analysed_for_the_next_revision(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    complete(sessions, clock)
    analyst.report(study_id)
    arrivals.send()

    assert analyst.drain(study_id) == 1


def test_a_report_that_cannot_be_made_fails_the_study_with_its_reason(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    analyst.drain(study_id)
    complete(sessions, clock)
    job = analyst.begin(study_id)
    assert job is not None

    assert reports.fail_report(sessions, job, "two patients in one study", clock)

    study = study_json(sessions, STUDY)
    assert (study["state"], study["error"]) == ("failed", "two patients in one study")


def test_a_report_lease_lives_by_renewal_and_is_given_back_unharmed(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    analyst.drain(study_id)
    complete(sessions, clock)
    job = analyst.begin(study_id)
    assert job is not None
    clock.pass_by(15)

    renewed = claims.renew(sessions, job.token, LEASE, clock)
    clock.pass_by(15)
    tick(sessions, clock, QUIET)
    still_reporting = study_json(sessions, STUDY)["state"]
    claims.release(sessions, job.token, clock)

    assert (renewed, still_reporting) == (1, "reporting")
    assert not analyst.write(job)
    again = analyst.begin(study_id)
    assert again is not None
    assert study_json(sessions, STUDY)["history"][-1]["detail"] == "revision 1, attempt 1"


def test_a_retry_takes_up_a_study_whose_report_failed(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    analyst.drain(study_id)
    complete(sessions, clock)
    job = analyst.begin(study_id, ENSEMBLE)
    assert job is not None
    reports.fail_report(sessions, job, "no Patient ID", clock)

    state = studies.retry(sessions, STUDY, clock)

    assert state == "analysing"
    assert study_json(sessions, STUDY)["error"] is None
    assert analyst.begin(study_id) is not None


def test_a_retry_of_a_study_that_did_not_fail_changes_nothing(
    arrivals: Arrivals, sessions: Sessions, clock: ManualClock
) -> None:
    arrivals.send()
    before = study_json(sessions, STUDY)

    assert studies.retry(sessions, STUDY, clock) is None
    assert study_json(sessions, STUDY) == before

"""A report that is made before its study is complete: handed in when nothing changed, forgotten when something did."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pydicom import Dataset
from sqlalchemy import select
from structlog.testing import capture_logs

from dicom_node import completion
from dicom_node.clock import utc_now
from dicom_node.errors import StoreError
from dicom_node.ledger import claims
from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.reports import begin_report
from dicom_node.ledger.schema import Draft
from dicom_node.orphans import missing, orphans
from dicom_node.settings import Report as ReportSection
from dicom_node.store import InstanceStore
from tests.doubles.incoming import arrive
from tests.system.validators import assert_valid_report
from tests.worker.test_analyse import complete, shown
from worker.analyse import Analyst
from worker.compose import Composed
from worker.engine import Engine

Arrive = Callable[[Sequence[Dataset]], int]


@pytest.fixture
def analyst(analyst: Analyst) -> Analyst:
    """A worker whose clock is half a quiet period ahead, and that draws."""
    later = lambda: utc_now() + timedelta(seconds=16)  # noqa: E731
    return replace(analyst, report=ReportSection(), clock=later)


@pytest.fixture
def arrived(sessions: Sessions, store: InstanceStore, rung: list[int]) -> Arrive:
    """Let instances arrive; give the study's id."""
    return lambda instances: arrive([*instances], sessions, store, rung.append)


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[Composed]:
    """Every report that is composed."""
    found = []
    compose = Analyst._compose

    def noted(*arguments: object) -> Composed:
        found.append(compose(*arguments))
        return found[-1]

    monkeypatch.setattr(Analyst, "_compose", noted)
    return found


def drafts(sessions: Sessions) -> list[bool]:
    """Return of each draft whether it is finished."""
    with reading(sessions) as session:
        return [one.report is not None for one in session.scalars(select(Draft))]


def test_a_draft_becomes_the_report_when_nothing_came_after_it(
    analyst: Analyst,
    study: list[Dataset],
    arrived: Arrive,
    composed: list[Composed],
    sessions: Sessions,
    store: InstanceStore,
) -> None:
    study_id = arrived(study)
    analyst.drain(study_id)
    before, drafted = shown(study, sessions), drafts(sessions)
    complete(sessions)

    replace(analyst, owner="another").drain(study_id)

    seen = shown(study, sessions)
    (report,) = seen["reports"]
    assert (before["state"], before["reports"], drafted) == ("receiving", [], [True])
    assert len(composed) == 1
    assert (seen["state"], drafts(sessions)) == ("delivering", [])
    assert store.path(report["path"]).read_bytes() == composed[0].document.part10
    assert [one["kind"] for one in report["pictures"]][-2:] == ["summary", "summary_pdf"]
    assert seen["results"] == [{**one} for one in composed[0].ledger["results"]]
    assert_valid_report(composed[0].document.part10)
    assert list(orphans(sessions, store, older_than=timedelta(0))) == list(missing(sessions, store)) == []


def test_a_loop_that_comes_after_the_draft_is_in_the_report(
    analyst: Analyst, study: list[Dataset], arrived: Arrive, composed: list[Composed], sessions: Sessions
) -> None:
    study_id = arrived(study[:1])
    analyst.drain(study_id)
    arrived(study[1:])
    complete(sessions)

    analyst.drain(study_id)

    seen = shown(study, sessions)
    assert len(composed) == 2
    assert (seen["state"], seen["loops_analysed"], len(seen["reports"])) == ("delivering", 2, 1)
    assert drafts(sessions) == []


def test_a_draft_of_an_ensemble_that_was_replaced_is_no_report(
    analyst: Analyst,
    study: list[Dataset],
    arrived: Arrive,
    composed: list[Composed],
    sessions: Sessions,
    engine: Engine,
) -> None:
    study_id = arrived(study[:1])
    analyst.drain(study_id)
    complete(sessions)
    newer = replace(engine.ensemble.info, digest="0" * 64)
    ensemble = type("Newer", (), {"info": newer, "__getattr__": lambda _self, name: getattr(engine.ensemble, name)})()

    replace(analyst, current_engine=lambda: replace(engine, ensemble=ensemble)).drain(study_id)

    assert len(composed) == 2
    assert shown(study, sessions)["state"] == "delivering"


def test_nothing_is_drafted_while_instances_come(
    analyst: Analyst, study: list[Dataset], arrived: Arrive, sessions: Sessions
) -> None:
    replace(analyst, clock=utc_now).drain(arrived(study))

    assert drafts(sessions) == []


def test_what_was_drafted_is_not_drafted_again(
    analyst: Analyst, study: list[Dataset], arrived: Arrive, composed: list[Composed]
) -> None:
    study_id = arrived(study)
    for owner in ("one", "one", "another"):
        replace(analyst, owner=owner).drain(study_id)

    assert len(composed) == 1


def test_a_draft_gives_way_to_a_loop_that_waits(
    analyst: Analyst,
    study: list[Dataset],
    arrived: Arrive,
    composed: list[Composed],
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study_id = arrived(study[:1])

    def another(*_arguments: object) -> Composed:
        other = [Dataset(one) for one in study[1:2]]
        for one in other:
            one.file_meta, one.StudyInstanceUID, one.SOPInstanceUID = study[0].file_meta, "1.2.826.0.2", "1.2.826.0.3"
        arrived(other)
        _arguments[-1]()  # type: ignore[operator]
        raise AssertionError("it goes on")

    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(Analyst, "_compose", another)
        analyst.drain(study_id)
    after = drafts(sessions)
    with reading(sessions) as session:
        other_id = max(session.scalars(select(completion.Study.id)))  # type: ignore[attr-defined]
    analyst.drain(other_id)
    analyst.drain(study_id)

    assert [one["event"] for one in logs][-1] == "report_not_drafted"
    assert after == []
    assert len(composed) == 2  # each study's, once nothing waited
    assert drafts(sessions) == [True, True]


def test_a_draft_that_ended_its_worker_is_not_begun_again(
    analyst: Analyst, study: list[Dataset], arrived: Arrive, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts no attempt: one after another, every worker would end at it."""
    study_id = arrived(study)
    calls = []

    def die(*_arguments: object) -> Composed:
        calls.append(1)
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(Analyst, "_compose", die)
        with pytest.raises(SystemExit):
            analyst.drain(study_id)
        analyst.drain(study_id)
    complete(sessions)
    analyst.drain(study_id)

    assert len(calls) == 1
    assert shown(study, sessions)["state"] == "delivering"


def test_a_draft_that_comes_too_late_leaves_the_report_alone(
    analyst: Analyst,
    study: list[Dataset],
    arrived: Arrive,
    sessions: Sessions,
    store: InstanceStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study_id = arrived(study)
    staged = Composed.staged

    def slowly(*arguments: object) -> object:
        monkeypatch.setattr(Composed, "staged", staged)
        complete(sessions)
        replace(analyst, owner="quicker").drain(study_id)
        reports.append(store.path(shown(study, sessions)["reports"][0]["path"]).read_bytes())
        return staged(*arguments)

    reports: list[bytes] = []
    monkeypatch.setattr(Composed, "staged", slowly)

    analyst.drain(study_id)

    (report,) = shown(study, sessions)["reports"]
    assert [store.path(report["path"]).read_bytes()] == reports
    assert list(orphans(sessions, store, older_than=timedelta(0))) == []


def test_a_draft_names_no_file_while_another_worker_writes_the_report(
    analyst: Analyst,
    study: list[Dataset],
    arrived: Arrive,
    sessions: Sessions,
    store: InstanceStore,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its names are those that the other writes under."""
    study_id = arrived(study)
    staged = Composed.staged

    def slowly(*arguments: object) -> object:
        complete(sessions)
        assert begin_report(sessions, study_id, "quicker", timedelta(seconds=6), utc_now, engine.digest) is not None
        return staged(*arguments)

    monkeypatch.setattr(Composed, "staged", slowly)

    analyst.drain(study_id)

    assert [*store.files("reports"), *store.files("pictures"), *store.files("incoming")] == []


def test_a_draft_whose_file_is_gone_is_made_again(
    analyst: Analyst,
    study: list[Dataset],
    arrived: Arrive,
    composed: list[Composed],
    store: InstanceStore,
    sessions: Sessions,
) -> None:
    study_id = arrived(study)
    analyst.drain(study_id)
    for path, _ in [*store.files("reports")]:
        store.remove(path)
    complete(sessions)

    analyst.drain(study_id)

    assert len(composed) == 2
    assert list(missing(sessions, store)) == []


def test_a_disk_that_takes_no_draft_costs_no_report(
    analyst: Analyst,
    study: list[Dataset],
    arrived: Arrive,
    sessions: Sessions,
    store: InstanceStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study_id = arrived(study)

    def refuse(*_arguments: object) -> None:
        raise StoreError("no")

    with monkeypatch.context() as patched:
        patched.setattr(InstanceStore, "stage_report", refuse)
        analyst.drain(study_id)
    left = drafts(sessions), [*store.files("incoming")]
    complete(sessions)
    analyst.drain(study_id)

    assert left == ([], [])
    assert shown(study, sessions)["state"] == "delivering"


def test_a_study_without_a_patient_id_is_drafted_once_and_fails_when_it_is_complete(
    analyst: Analyst, study: list[Dataset], arrived: Arrive, sessions: Sessions
) -> None:
    for one in study:
        one.PatientID = ""
    study_id = arrived(study)
    analyst.drain(study_id)
    before = shown(study, sessions)["state"], drafts(sessions)
    complete(sessions)
    analyst.drain(study_id)

    assert before == ("receiving", [False])
    assert shown(study, sessions)["state"] == "failed"


def test_a_worker_is_called_once_when_half_of_the_quiet_period_is_over(
    analyst: Analyst, study: list[Dataset], arrived: Arrive, sessions: Sessions
) -> None:
    study_id = arrived(study)
    replace(analyst, clock=utc_now).drain(study_id)
    last = datetime.fromisoformat(shown(study, sessions)["last_received_at"])
    quiet, half = timedelta(seconds=30), timedelta(seconds=15)

    def tick(seconds: int) -> list[int]:
        return completion.tick(sessions, lambda: last + timedelta(seconds=seconds), quiet, half)

    assert [tick(seconds) for seconds in (5, 14, 16, 17, 29, 31)] == [[], [], [study_id], [], [], [study_id]]


def test_a_draft_keeps_no_instance_from_being_claimed(
    analyst: Analyst, study: list[Dataset], arrived: Arrive, sessions: Sessions, tmp_path: Path
) -> None:
    study_id = arrived(study[:1])
    analyst.drain(study_id)
    arrived(study[1:2])

    assert len(claims.claim(sessions, study_id, "w", 8, timedelta(seconds=6), utc_now)) == 1

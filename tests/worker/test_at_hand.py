"""A worker on a machine of its own: what it needs comes from the object store, or is waited for."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from pydicom import Dataset
from sqlalchemy import select
from structlog.testing import capture_logs

from dicom_node import completion
from dicom_node.clock import utc_now
from dicom_node.errors import ObjectsUnavailable, ReportError
from dicom_node.fetched import FetchedStore
from dicom_node.identity import UID
from dicom_node.ledger import reports
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.reports import EarlierReport
from dicom_node.ledger.schema import Instance
from dicom_node.ledger.views import StudyJson, study_json
from dicom_node.objects import ObjectStore
from dicom_node.settings import Objects
from dicom_node.settings import Report as ReportSection
from dicom_node.sharing import Sharer
from dicom_node.store import InstanceStore
from tests.doubles.incoming import arrive
from tests.doubles.object_server import ObjectServer, running_objects
from worker.analyse import Analyst
from worker.at_hand import material_of

NOW = timedelta(0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ObjectServer]:
    """An object store."""
    with running_objects(tmp_path / "s3") as running:
        yield running


@pytest.fixture
def node(tmp_path: Path, server: ObjectServer) -> InstanceStore:
    """The node's store."""
    return InstanceStore(tmp_path / "node", 0, server.connect())


@pytest.fixture
def store(tmp_path: Path, server: ObjectServer) -> InstanceStore:
    """The worker's store."""
    return FetchedStore(tmp_path / "worker", 0, server.connect(), 1 << 30)


@pytest.fixture
def sharer(sessions: Sessions, node: InstanceStore, rung: list[int]) -> Sharer:
    """The node's copier."""
    return Sharer(sessions, node, rung.append, utc_now)


@pytest.fixture
def study_id(study: list[Dataset], sessions: Sessions, node: InstanceStore, sharer: Sharer) -> int:
    """The study, received and in the object store."""
    received = arrive(study, sessions, node)
    sharer.share_due()
    return received


def complete(sessions: Sessions) -> None:
    """Let the quiet period pass."""
    completion.tick(sessions, lambda: utc_now() + timedelta(minutes=1), timedelta(seconds=30))


def shown(study: list[Dataset], sessions: Sessions) -> StudyJson:
    """Return the study as people see it."""
    return study_json(sessions, UID(study[0].StudyInstanceUID))


def attempts(sessions: Sessions) -> list[int]:
    """Return how often each instance was tried."""
    with sessions() as session:
        return [*session.scalars(select(Instance.attempts).order_by(Instance.id))]


def test_a_study_is_reported_by_a_worker_that_shares_no_folder_with_the_node(
    analyst: Analyst, study: list[Dataset], sessions: Sessions, node: InstanceStore, sharer: Sharer
) -> None:
    analyst = replace(analyst, report=ReportSection())
    study_id = arrive(study, sessions, node)
    with capture_logs() as lines:
        analyst.drain(study_id)
    sharer.share_due()
    complete(sessions)

    analyst.drain(study_id)

    seen = shown(study, sessions)
    assert lines == []  # nothing is looked for before it can be there
    assert (seen["state"], seen["loops_analysed"]) == ("delivering", 2)
    (report,) = seen["reports"]
    written = [report["path"], *(one["path"] for one in report["pictures"])]
    assert len(written) == 4
    assert not any(node.exists(path) for path in written)
    assert all(node.fetch(path).read_bytes()[128:132] == b"DICM" for path in written)
    assert len(node.shared_names(f"previews/{study[0].StudyInstanceUID}")) == 2


def test_loops_that_cannot_be_fetched_now_are_waited_for_and_no_attempt_is_counted(
    analyst: Analyst, study_id: int, study: list[Dataset], sessions: Sessions, server: ObjectServer
) -> None:
    server.stop()
    analyst.drain(study_id)
    meanwhile = attempts(sessions)
    server.start()

    analyst.drain(study_id)

    assert meanwhile == [0, 0, 0]
    assert shown(study, sessions)["loops_analysed"] == 2


def test_a_worker_whose_disk_is_full_says_so_and_counts_no_attempt(
    analyst: Analyst, study_id: int, sessions: Sessions, server: ObjectServer, tmp_path: Path
) -> None:
    full = FetchedStore(tmp_path / "worker", 1 << 60, server.connect(), 1 << 30)

    with capture_logs() as lines:
        replace(analyst, store=full).drain(study_id)

    assert [one["event"] for one in lines if one["log_level"] == "error"] == ["loops_not_fetched"]
    assert attempts(sessions) == [0, 0, 0]


def test_a_loop_that_the_object_store_lost_takes_no_neighbour_with_it_and_comes_again(
    analyst: Analyst, study_id: int, sessions: Sessions, sharer: Sharer, server: ObjectServer
) -> None:
    lost = min(server.objects())
    server.connect().remove_folder(lost)
    analyst.drain(study_id)
    meanwhile = sorted(attempts(sessions))
    sharer.share_due()

    analyst.drain(study_id)

    assert meanwhile == [0, 1, 1]
    assert attempts(sessions) == [1, 1, 1]
    assert lost in server.objects()


def test_a_report_that_the_object_store_does_not_take_waits_whole_and_no_attempt_is_counted(
    analyst: Analyst, study_id: int, study: list[Dataset], sessions: Sessions, server: ObjectServer
) -> None:
    analyst = replace(analyst, report=ReportSection())
    analyst.drain(study_id)
    complete(sessions)
    server.stop()
    with capture_logs() as lines:
        analyst.drain(study_id)
    meanwhile = shown(study, sessions)
    server.start()

    analyst.drain(study_id)

    seen = shown(study, sessions)
    assert [one["event"] for one in lines if one["log_level"] == "error"] == ["report_not_kept"]
    assert (meanwhile["state"], meanwhile["reports"]) == ("analysing", [])
    assert seen["state"] == "delivering"
    assert len(seen["reports"][0]["pictures"]) == 3
    assert "revision 1, attempt 1" in seen["history"][-2]["detail"]


class Moment(ObjectStore):
    """An object store that is away when it is to take its first picture."""

    was_away = False

    def put(self, relative: str, path: Path) -> None:
        """Put it there, the second time."""
        if relative.startswith("pictures/") and not self.was_away:
            self.was_away = True
            raise ObjectsUnavailable("away for a moment")
        super().put(relative, path)


def test_an_outage_of_a_moment_does_not_cost_a_report_its_pictures(
    analyst: Analyst, study_id: int, study: list[Dataset], sessions: Sessions, server: ObjectServer, tmp_path: Path
) -> None:
    store = FetchedStore(tmp_path / "worker", 0, Moment(Objects(**server.settings)), 1 << 30)
    analyst = replace(analyst, store=store, report=ReportSection())
    complete(sessions)

    analyst.drain(study_id)
    meanwhile = shown(study, sessions)["reports"]
    analyst.drain(study_id)

    assert meanwhile == []
    assert len(shown(study, sessions)["reports"][0]["pictures"]) == 3


def test_a_report_waits_for_an_instance_that_the_object_store_lost_after_it_was_analysed(
    analyst: Analyst,
    study_id: int,
    study: list[Dataset],
    sessions: Sessions,
    sharer: Sharer,
    server: ObjectServer,
    tmp_path: Path,
) -> None:
    analyst.drain(study_id)
    FetchedStore(tmp_path / "worker", 0, server.connect(), 0)  # forgets what was fetched
    server.connect().remove_folder(min(one for one in server.objects() if one.startswith("instances/")))
    complete(sessions)
    analyst.drain(study_id)
    meanwhile = shown(study, sessions)
    num_shared = sharer.share_due()

    analyst.drain(study_id)

    assert (meanwhile["state"], num_shared) == ("analysing", 1)
    assert shown(study, sessions)["state"] == "delivering"


def test_where_images_are_gone_and_the_earlier_report_is_lost_the_reason_is_said(
    analyst: Analyst, study_id: int, sessions: Sessions
) -> None:
    analyst.drain(study_id)
    complete(sessions)
    digest = analyst.current_engine().digest
    job = reports.begin_report(sessions, study_id, "test", timedelta(seconds=60), utc_now, digest)
    assert job is not None
    removed = tuple(replace(one, path="") for one in job.instances)
    earlier = EarlierReport(path="reports/1.2.3.dcm", findings={})

    with analyst.store.borrowing() as borrow, pytest.raises(ReportError, match="the earlier report is gone"):
        material_of(replace(job, instances=removed, earlier=earlier), borrow, sessions, lambda: None)


def test_a_study_whose_file_is_gone_fails_with_the_reason(
    analyst: Analyst,
    study: list[Dataset],
    sessions: Sessions,
    node: InstanceStore,
    sharer: Sharer,
) -> None:
    study_id = arrive(study, sessions, node)
    ((path, _), *_) = node.files("instances")
    node.remove(path)
    sharer.share_due()
    analyst.drain(study_id)
    complete(sessions)

    analyst.drain(study_id)

    seen = shown(study, sessions)
    assert seen["state"] == "failed"
    assert "is gone from the node's disk; send it again" in seen["error"]


def test_a_draft_is_handed_in_where_it_was_made_and_is_in_the_object_store_by_then(
    analyst: Analyst, study_id: int, study: list[Dataset], sessions: Sessions, server: ObjectServer
) -> None:
    analyst = replace(analyst, report=ReportSection(), draft_after=NOW)
    analyst.drain(study_id)
    before = [one for one in server.objects() if one.startswith(("reports", "pictures"))]
    complete(sessions)

    with capture_logs() as lines:
        analyst.drain(study_id)

    assert before == []
    assert [one["event"] for one in lines if one["event"].startswith("report_")] == ["report_handed_in"]
    (report,) = shown(study, sessions)["reports"]
    assert {report["path"], *(one["path"] for one in report["pictures"])} <= server.objects()

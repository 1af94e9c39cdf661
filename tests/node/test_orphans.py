"""Files without a row and rows without a file are found, and what nobody needs is removed."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian
from sqlalchemy import text

from dicom_node.completion import tick
from dicom_node.identity import UID
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.reports import WrittenPicture
from dicom_node.ledger.schema import StudyState
from dicom_node.orphans import missing, orphans, sweep
from dicom_node.retention import purge
from dicom_node.settings import Retention
from dicom_node.store import InstanceStore
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock

SOP = UID("1.2.826.0.1.9.1000")
NOW = timedelta(0)


@pytest.fixture
def study_id(arrivals: Arrivals, analyst: Analyst, sessions: Sessions, store: InstanceStore, clock: ManualClock) -> int:
    """A delivered study with all its files: an image, a picture, a report."""
    study_id = arrivals.send(sop_uid=SOP)
    clock.pass_by(31)
    tick(sessions, clock, timedelta(seconds=30))
    picture = store.keep_picture(STUDY, UID("1.2.5"), b"picture")
    written = WrittenPicture(kind="summary", sop_instance_uid="1.2.5", sop_class_uid="1.2", path=picture)
    job = analyst.report(study_id, pictures=[written])
    assert job is not None
    with sessions() as session:
        report = session.connection().exec_driver_sql("SELECT sop_instance_uid FROM report").scalar_one()
    store.keep_report(UID(report), report_of(STUDY))
    age(store, clock)
    return study_id


def report_of(study_uid: str) -> bytes:
    """Return a report that says whose it is, and nothing else."""
    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID, report.StudyInstanceUID = ComprehensiveSRStorage, "1.2.6", study_uid
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    dcmwrite(buffer, report, enforce_file_format=True)
    return buffer.getvalue()


def age(store: InstanceStore, clock: ManualClock, hours: float = 2) -> None:
    """Date every file of the store so far back."""
    at = clock().timestamp() - hours * 3600
    for path in files(store):
        os.utime(path, (at, at))


def files(store: InstanceStore) -> list[Path]:
    return [path for path in store.path("").rglob("*") if path.is_file()]


Leave = Callable[[InstanceStore], str]
LEFT: dict[str, Leave] = {
    "instance of the study": lambda store: store.keep(STUDY, UID("1.2.7"), b"", b"x").path,
    "other bytes of an instance": lambda store: store.keep(STUDY, SOP, b"", b"other").path,
    "instance of no study": lambda store: store.keep(UID("1.2.8"), UID("1.2.7"), b"", b"x").path,
    "picture": lambda store: store.keep_picture(STUDY, UID("1.2.7"), b"x"),
    "report": lambda store: store.keep_report(UID("1.2.7"), report_of(STUDY)),
    "damaged report": lambda store: store.keep_report(UID("1.2.7"), b"x"),
}


@pytest.mark.usefixtures("study_id")
@pytest.mark.parametrize("kind", LEFT)
def test_an_old_file_without_a_row_is_found_and_removed_and_no_other(
    sessions: Sessions, store: InstanceStore, clock: ManualClock, kind: str
) -> None:
    whole = {*files(store)}
    left = LEFT[kind](store)
    age(store, clock)

    found = [one.path for one in orphans(sessions, store, clock)]
    tried = [one.path for one in sweep(sessions, store, clock, dry_run=True)]
    still = store.exists(left)
    removed = [one.path for one in sweep(sessions, store, clock)]

    assert found == tried == removed == [left]
    assert still
    assert {*files(store)} == whole
    assert [*orphans(sessions, store, clock, NOW)] == [*missing(sessions, store)] == []


@pytest.mark.usefixtures("study_id")
def test_a_young_file_may_have_its_row_in_a_moment(
    sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    left = store.keep(STUDY, UID("1.2.7"), b"", b"x").path
    age(store, clock, hours=0.9)

    assert sweep(sessions, store, clock) == []
    assert store.exists(left)


@pytest.mark.usefixtures("study_id")
@pytest.mark.parametrize("kind", ["picture", "report"])
def test_what_the_writer_of_a_report_made_is_left_alone_while_it_writes(
    sessions: Sessions, store: InstanceStore, clock: ManualClock, kind: str
) -> None:
    left = LEFT[kind](store)
    age(store, clock)
    with sessions.begin() as session:
        session.execute(text("UPDATE study SET state = :state"), {"state": StudyState.REPORTING.value})

    assert sweep(sessions, store, clock) == []
    assert store.exists(left)


@pytest.mark.usefixtures("study_id")
def test_what_a_person_put_there_is_not_touched(sessions: Sessions, store: InstanceStore, clock: ManualClock) -> None:
    note = store.path("instances") / "README"
    note.write_text("mounted from the filer")
    age(store, clock)

    assert sweep(sessions, store, clock) == []
    assert note.exists()


@pytest.mark.usefixtures("study_id")
def test_half_written_files_of_dead_processes_are_orphans(
    sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    (store.path("incoming") / "0.part").write_bytes(b"half")
    age(store, clock)

    assert [one.path for one in sweep(sessions, store, clock)] == ["incoming/0.part"]
    assert [*store.path("incoming").iterdir()] == []


@pytest.mark.usefixtures("study_id")
def test_files_that_a_crash_left_of_a_purged_study_are_orphans(
    sessions: Sessions, store: InstanceStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(_study_uid: UID) -> None:
        raise KeyboardInterrupt

    clock.pass_by(8 * 86400)
    monkeypatch.setattr(store, "remove_study", crash)
    with pytest.raises(KeyboardInterrupt):
        purge(sessions, store, Retention(days=7), clock)

    assert len([*sweep(sessions, store, clock)]) == 2
    assert [path.parent.name for path in files(store)] == ["reports"]
    assert [*missing(sessions, store)] == []


@pytest.mark.usefixtures("study_id")
def test_a_preview_belongs_to_its_loop_and_is_an_orphan_without_it(
    sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    ((loop, _),) = store.files("instances")
    kept = store.keep_preview(loop, b"seen")
    lost = [store.keep_preview(f"instances/{path}", b"seen") for path in (f"{STUDY}/{SOP}-0000.dcm", "1.2/1.3-1.dcm")]
    age(store, clock)

    found = {one.path for one in orphans(sessions, store, clock)}
    removed = {one.path for one in sweep(sessions, store, clock)}

    assert found == removed == {*lost}
    assert store.exists(kept)
    assert not any(map(store.exists, lost))


@pytest.mark.usefixtures("study_id")
def test_an_orphan_that_cannot_be_removed_is_said_and_costs_the_others_nothing(
    sessions: Sessions, store: InstanceStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, gone = (store.keep(STUDY, UID(uid), b"", b"x").path for uid in ("1.2.7", "1.2.8"))
    age(store, clock)
    remove = store.remove

    def refuse(path: str) -> None:
        if path == stuck:
            raise OSError(30, "Read-only file system")
        remove(path)

    monkeypatch.setattr(store, "remove", refuse)
    said = {one.path: one.error for one in sweep(sessions, store, clock)}

    assert said == {stuck: "Read-only file system", gone: ""}
    assert store.exists(stuck)


@pytest.mark.parametrize("kind", ["instances", "pictures", "reports"])
@pytest.mark.usefixtures("study_id")
def test_a_row_whose_file_the_disk_lost_is_missing(sessions: Sessions, store: InstanceStore, kind: str) -> None:
    (lost,) = [path for path in files(store) if kind in path.parts]
    lost.unlink()

    assert [*missing(sessions, store)] == [str(lost.relative_to(store.path("")))]


@pytest.mark.usefixtures("study_id")
def test_what_retention_removed_is_not_missing_even_when_the_study_goes_on(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    clock.pass_by(8 * 86400)
    purge(sessions, store, Retention(days=7), clock)
    arrivals.send()

    assert [*missing(sessions, store)] == []


def test_a_sweep_takes_nothing_from_an_intake_at_work(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    """Even one that takes everything for old: it asks under the lock, and the intake looks again under the same."""
    is_over = threading.Event()

    def sweeping() -> int:
        rounds = 0
        while not is_over.is_set():
            sweep(sessions, store, clock, timedelta(days=-10_000))
            rounds += 1
        return rounds

    with ThreadPoolExecutor(1) as pool:
        rounds = pool.submit(sweeping)
        try:
            for number in range(60):
                arrivals.send(sop_uid=UID(f"1.2.826.0.1.8.{number}"))
        finally:
            is_over.set()

    assert rounds.result() > 0
    assert [*missing(sessions, store)] == []
    assert len([path for path in files(store) if path.suffix == ".dcm"]) == 60


@pytest.mark.usefixtures("study_id")
def test_an_empty_folder_that_a_crash_left_of_a_study_goes_and_a_new_one_stays(
    sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    old, new = (store.path(f"instances/1.2.{number}") for number in (8, 9))
    old.mkdir()
    new.mkdir()
    at = clock().timestamp() - 7200
    os.utime(old, (at, at))

    sweep(sessions, store, clock)

    assert not old.exists()
    assert new.exists()
    assert store.path(f"instances/{STUDY}").exists()

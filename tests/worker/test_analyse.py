"""The worker on a real ledger with the shipped networks: claims, reports, and what must not happen twice."""

import json
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from pydicom import Dataset, dcmread
from structlog.testing import capture_logs

from dicom_node import completion
from dicom_node.clock import utc_now
from dicom_node.identity import UID
from dicom_node.ledger import claims
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.ledger.views import StudyJson, study_json
from dicom_node.settings import Report as ReportSection
from dicom_node.store import InstanceStore
from model.clip.loop import Clips
from model.ensemble import SHIPPED
from model.prediction import LoopOutputs
from tests.doubles.incoming import arrive
from tests.system.validators import referenced
from worker.analyse import Analyst
from worker.engine import CurrentEngine, Engine, load_engine
from worker.errors import NoEnsemble, UnreadableNow
from worker.settings import Limits


def complete(sessions: Sessions) -> None:
    """Let the quiet period pass."""
    completion.tick(sessions, lambda: utc_now() + timedelta(minutes=1), timedelta(seconds=30))


def shown(study: list[Dataset], sessions: Sessions) -> StudyJson:
    """Return the study as people see it."""
    return study_json(sessions, UID(study[0].StudyInstanceUID))


def test_loops_are_analysed_before_the_study_is_complete(
    analyst: Analyst, study: list[Dataset], sessions: Sessions, store: InstanceStore, rung: list[int]
) -> None:
    study_id = arrive(study, sessions, store, rung.append)

    analyst.drain(study_id)

    seen = shown(study, sessions)
    assert (seen["state"], seen["loops_analysed"], seen["reports"]) == ("receiving", 2, [])
    assert [one["reason"] for one in seen["not_analysed"]] == ["still image, not a cine loop"]
    close_ledger(sessions)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param((b"\x08\x00\x20\x00DA", b"\x08\x00\x20\x00GA"), id="unknown value representation"),
        pytest.param((b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00US\x03\x00\x00"), id="number of three bytes"),
    ],
)
def test_a_damaged_header_costs_its_own_instance_alone(
    analyst: Analyst,
    study: list[Dataset],
    sessions: Sessions,
    store: InstanceStore,
    rung: list[int],
    damage: tuple[bytes, bytes],
) -> None:
    arrive(study[:2], sessions, store, rung.append)
    study_id = arrive(study[2:], sessions, store, rung.append, damage)
    complete(sessions)

    analyst.drain(study_id)

    seen = shown(study, sessions)
    assert (seen["state"], seen["loops_analysed"], len(seen["not_analysed"])) == ("delivering", 2, 1)
    close_ledger(sessions)


def test_the_last_worker_of_a_complete_study_writes_its_one_report(
    analyst: Analyst, study: list[Dataset], sessions: Sessions, store: InstanceStore, rung: list[int]
) -> None:
    study_id = arrive(study, sessions, store, rung.append)
    complete(sessions)
    workers = [threading.Thread(target=analyst.drain, args=(study_id,)) for _ in range(2)]

    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    analyst.drain(study_id)  # a bell that comes once more

    seen = shown(study, sessions)
    assert seen["state"] == "delivering"
    assert len(seen["reports"]) == len(seen["deliveries"]) == 1
    report = dcmread(store.path(seen["reports"][0]["path"]))
    assert report.SOPInstanceUID == seen["reports"][0]["sop_instance_uid"]
    close_ledger(sessions)


def test_pictures_are_kept_before_the_report_and_the_ledger_names_them_in_their_order(
    analyst: Analyst, study: list[Dataset], sessions: Sessions, store: InstanceStore, rung: list[int]
) -> None:
    study_id = arrive(study, sessions, store, rung.append)
    complete(sessions)

    replace(analyst, report=ReportSection()).drain(study_id)

    (report,) = shown(study, sessions)["reports"]
    assert [one["kind"] for one in report["pictures"]] == ["saliency", "summary", "summary_pdf"]
    for one in report["pictures"]:
        assert dcmread(store.path(one["path"])).SOPInstanceUID == one["sop_instance_uid"]
    assert {one["sop_instance_uid"] for one in report["pictures"]} <= referenced(dcmread(store.path(report["path"])))


def test_a_report_whose_pictures_end_every_attempt_is_written_without_them_at_the_last(
    analyst: Analyst,
    study: list[Dataset],
    sessions: Sessions,
    store: InstanceStore,
    rung: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study_id = arrive(study, sessions, store, rung.append)
    complete(sessions)
    drawing = replace(analyst, report=ReportSection())

    def out_of_memory(*_arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("worker.drawing.draw", out_of_memory)
    for _ in range(2):
        with pytest.raises(MemoryError):
            drawing.drain(study_id)
        complete(sessions)  # the clock finds the lease run out
    drawing.drain(study_id)

    assert shown(study, sessions)["state"] == "delivering"
    assert shown(study, sessions)["reports"][0]["pictures"] == []


def test_a_disk_that_has_room_for_the_report_alone_gets_the_report(
    analyst: Analyst, study: list[Dataset], sessions: Sessions, store: InstanceStore, rung: list[int]
) -> None:
    study_id = arrive(study, sessions, store, rung.append)
    complete(sessions)
    full = InstanceStore(store.path(""), min_free_bytes=store.free_bytes() + (1 << 40))

    replace(analyst, report=ReportSection(), store=full).drain(study_id)

    assert shown(study, sessions)["state"] == "delivering"
    assert shown(study, sessions)["reports"][0]["pictures"] == []


def test_a_report_that_the_disk_does_not_take_waits_and_no_attempt_is_counted(
    analyst: Analyst, study: list[Dataset], sessions: Sessions, store: InstanceStore, rung: list[int]
) -> None:
    study_id = arrive(study[:1], sessions, store, rung.append)
    complete(sessions)
    folder = store.path("reports")
    folder.rename(store.path("elsewhere"))
    folder.write_bytes(b"")  # a disk that refuses every report

    with capture_logs() as logs:
        for _ in range(claims.MAX_ATTEMPTS + 1):
            analyst.drain(study_id)
    waiting = shown(study, sessions)
    folder.unlink()
    store.path("elsewhere").rename(folder)
    analyst.drain(study_id)

    assert (waiting["state"], waiting["error"]) == ("analysing", None)
    assert "put off" in waiting["history"][-1]["detail"]
    begun = {line["detail"] for line in waiting["history"] if line["event"] == "reporting"}
    assert begun == {"revision 1, attempt 1"}
    assert [line["event"] for line in logs].count("report_not_kept") == claims.MAX_ATTEMPTS + 1
    assert shown(study, sessions)["state"] == "delivering"


def test_nobody_is_called_at_once_for_a_report_that_was_put_off(
    analyst: Analyst, study: list[Dataset], sessions: Sessions, store: InstanceStore, rung: list[int]
) -> None:
    study_id = arrive(study[2:], sessions, store, rung.append)
    complete(sessions)
    store.path("reports").rmdir()
    store.path("reports").write_bytes(b"")
    analyst.drain(study_id)
    now = utc_now()

    soon, later = (
        completion.tick(sessions, lambda moment=now + wait: moment, timedelta(seconds=30))  # type: ignore[misc]
        for wait in (timedelta(seconds=20), Limits().put_off + completion.RING_AGAIN)
    )

    assert (soon, later) == ([], [study_id])


def test_answers_wait_for_a_ledger_that_is_away_and_are_not_worked_out_again(
    analyst: Analyst,
    engine: Engine,
    study: list[Dataset],
    store: InstanceStore,
    rung: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dicom_node.ledger.engine.LOCK_SECONDS", 1)  # how long SQLite itself waits
    path = tmp_path / "other.sqlite"
    sessions = open_ledger(f"sqlite:///{path}")
    study_id = arrive(study[:1], sessions, store, rung.append)
    complete(sessions)
    looks: list[int] = []
    away = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def look_and_lose_the_ledger(one: Engine, clips: Clips) -> LoopOutputs:
        looks.append(1)
        outputs = look(one, clips)
        away.execute("BEGIN IMMEDIATE")
        threading.Timer(3.0, away.rollback).start()
        return outputs

    look = Engine.look_at
    monkeypatch.setattr(Engine, "look_at", look_and_lose_the_ledger)
    with capture_logs() as logs:
        replace(analyst, sessions=sessions, limits=Limits(lease=timedelta(minutes=1))).drain(study_id)

    assert "answer_waits_for_the_ledger" in [line["event"] for line in logs]
    assert len(looks) == 1
    assert shown(study, sessions)["state"] == "delivering"
    close_ledger(sessions)
    away.close()


def test_a_loop_that_the_machine_does_not_give_back_has_no_verdict_and_is_tried_again(
    analyst: Analyst, study: list[Dataset], sessions: Sessions, store: InstanceStore, rung: list[int]
) -> None:
    study_id = arrive(study[:1], sessions, store, rung.append)
    (file,) = store.path(f"instances/{study[0].StudyInstanceUID}").iterdir()
    file.rename(store.path("kept"))
    file.symlink_to("/proc/self/mem")  # opens, and its first byte is an input/output error

    with pytest.raises(UnreadableNow, match="error"):
        analyst.drain(study_id)
    file.unlink()
    store.path("kept").rename(file)
    completion.tick(sessions, lambda: utc_now() + timedelta(minutes=1), timedelta(hours=1))
    analyst.drain(study_id)

    assert shown(study, sessions)["loops_analysed"] == 1


def test_a_gpu_that_is_full_costs_the_attention_and_no_number(
    analyst: Analyst,
    study: list[Dataset],
    sessions: Sessions,
    store: InstanceStore,
    rung: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def out_of_memory(*_arguments: object, **_named: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("model.rollout.drawn", out_of_memory)
    study_id = arrive(study, sessions, store, rung.append)
    complete(sessions)

    replace(analyst, report=ReportSection()).drain(study_id)

    (report,) = shown(study, sessions)["reports"]
    assert shown(study, sessions)["results"]
    assert [one["kind"] for one in report["pictures"]] == ["summary", "summary_pdf"]


def test_a_study_without_a_patient_id_fails_with_the_reason(
    analyst: Analyst, study: list[Dataset], sessions: Sessions, store: InstanceStore, rung: list[int]
) -> None:
    for instance in study:
        instance.PatientID = ""
    study_id = arrive(study, sessions, store, rung.append)
    complete(sessions)

    analyst.drain(study_id)

    seen = shown(study, sessions)
    assert seen["state"] == "failed"
    assert "no Patient ID" in (seen["error"] or "")
    close_ledger(sessions)


def test_a_worker_that_lost_its_lease_writes_nothing(
    engine: Engine, analyst: Analyst, study: list[Dataset], sessions: Sessions, store: InstanceStore, rung: list[int]
) -> None:
    study_id = arrive(study, sessions, store, rung.append)
    claimed = analyst._claim(study_id)
    completion.tick(sessions, lambda: utc_now() + timedelta(minutes=1), timedelta(hours=1))  # the leases ran out
    again = claims.claim(sessions, study_id, "other", 8, timedelta(minutes=5), utc_now)

    analyst._analyse(claimed, engine)

    assert again
    assert shown(study, sessions)["loops_analysed"] == 0
    close_ledger(sessions)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Two versions of the shipped ensemble, of which 1 is current."""
    for version in ("1", "2"):
        folder = tmp_path / "shelf" / "versions" / version
        shutil.copytree(SHIPPED, folder)
        manifest = json.loads((folder / "ensemble.json").read_text())
        (folder / "ensemble.json").write_text(json.dumps(manifest | {"version": version}))
    switch(tmp_path / "shelf", "1")
    return tmp_path / "shelf"


def switch(shelf: Path, version: str) -> None:
    """Make another version current, as publishing does."""
    (shelf / "next").symlink_to(Path("versions") / version)
    (shelf / "next").rename(shelf / "current")


def test_a_study_in_the_middle_of_a_switch_ends_in_one_report_of_the_new_ensemble(
    analyst: Analyst, study: list[Dataset], sessions: Sessions, store: InstanceStore, rung: list[int], shelf: Path
) -> None:
    study_id = arrive(study, sessions, store, rung.append)
    complete(sessions)
    holder = CurrentEngine(shelf, load_engine)
    asked: list[str] = []

    def current() -> Engine:
        if len(asked) == 1:  # after the first batch
            switch(shelf, "2")
        engine = holder()
        asked.append(engine.info.version)
        return engine

    replace(analyst, current_engine=current, limits=Limits(max_batch=1)).drain(study_id)

    seen = shown(study, sessions)
    assert asked[:2] == ["1", "2"]
    assert (seen["state"], seen["loops_analysed"], len(seen["reports"])) == ("delivering", 2, 1)
    report = dcmread(store.path(seen["reports"][0]["path"]))
    assert "2" in versions(report)
    assert "1" not in versions(report)
    assert report.CompletionFlag == "COMPLETE"  # it has seen the loop that the first one had answered for
    close_ledger(sessions)


def test_an_ensemble_that_does_not_load_leaves_the_last_one_in_use(
    shelf: Path,
) -> None:
    holder = CurrentEngine(shelf, load_engine)
    manifest = shelf / "versions" / "2" / "ensemble.json"
    whole = manifest.read_text()
    manifest.write_text("{}")
    with capture_logs() as logs:
        switch(shelf, "2")
        versions_used = [holder().info.version for _ in range(3)]
        manifest.write_text(whole)
        versions_used.append(holder().info.version)

    assert versions_used == ["1", "1", "1", "2"]
    events = [entry["event"] for entry in logs if entry["event"] != "ensemble_loaded"]
    assert events == ["ensemble_refused", "ensemble_replaced"]


def versions(report: Dataset) -> list[str]:
    """Return every text under Algorithm Version."""
    return [
        item.TextValue
        for item in items(report)
        if "ConceptNameCodeSequence" in item and item.ConceptNameCodeSequence[0].CodeValue == "111003"
    ]


def items(item: Dataset) -> Iterator[Dataset]:
    """Yield every content item below."""
    for child in item.get("ContentSequence", []):
        yield child
        yield from items(child)


def test_an_ensemble_that_is_missing_is_said_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(NoEnsemble, match="nowhere"):
        load_engine(tmp_path / "nowhere")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_said() -> None:
    with pytest.raises(NoEnsemble, match="sees no GPU"):
        load_engine(SHIPPED, device="cuda:0")

"""The worker on a real ledger with the shipped networks: claims, reports, and what must not happen twice."""

import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from pydicom import Dataset, dcmread, dcmwrite
from structlog.testing import capture_logs

from dicom_node import completion
from dicom_node.clock import utc_now
from dicom_node.identity import UID
from dicom_node.intake import Intake, Received
from dicom_node.ledger import claims
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.ledger.views import StudyJson, study_json
from dicom_node.settings import Report as ReportSection
from dicom_node.store import InstanceStore
from dicom_node.wire import walk
from model.ensemble import SHIPPED
from model.phantom.heart import Heart
from model.tasks import View
from tests.system.validators import referenced
from worker.analyse import Analyst
from worker.engine import CurrentEngine, Engine, load_engine
from worker.errors import NoEnsemble
from worker.phantom_study import Shot, make_study
from worker.settings import Limits

SHOTS = (Shot(view=View.A4C, num_frames=24), Shot(view=View.PLAX, num_frames=24), Shot(view=View.PLAX, num_frames=1))


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The shipped networks."""
    return load_engine(SHIPPED, device="cpu", precision="fp32")


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    """An empty ledger."""
    return open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")


@pytest.fixture
def store(tmp_path: Path) -> InstanceStore:
    """An empty store."""
    return InstanceStore(tmp_path / "data", min_free_bytes=0)


@pytest.fixture
def rung() -> list[int]:
    """The studies that were rung for."""
    return []


@pytest.fixture
def analyst(engine: Engine, sessions: Sessions, store: InstanceStore, rung: list[int]) -> Analyst:
    """A worker."""
    return Analyst(
        current_engine=lambda: engine,
        sessions=sessions,
        store=store,
        destinations=("pacs",),
        report=ReportSection().without_pictures,
        limits=Limits(),
        ring=rung.append,
        owner="test",
    )


@pytest.fixture
def study() -> list[Dataset]:
    """Two loops and a still."""
    heart = Heart(edv_ml=120.0, esv_ml=50.0)
    return [*make_study(heart, seed=1, at=datetime(2026, 11, 24, tzinfo=UTC), shots=SHOTS)]


def arrive(
    instances: list[Dataset],
    sessions: Sessions,
    store: InstanceStore,
    ring: Callable[[int], None],
    damage: tuple[bytes, bytes] = (b"", b""),
) -> int:
    """Let instances arrive as the SCP hands them on, some bytes replaced by others; return the study's id."""
    intake = Intake(sessions, store, utc_now, ring)
    for instance in instances:
        buffer = io.BytesIO()
        dcmwrite(buffer, instance, enforce_file_format=True)
        file = buffer.getvalue().replace(*damage, 1)
        walk(file[144 + int.from_bytes(file[140:144], "little") :], instance.file_meta.TransferSyntaxUID)
        # The data set begins after preamble, prefix and group 2, whose length the first element tells.
        start = 144 + int.from_bytes(file[140:144], "little")
        outcome = intake.receive(
            Received(
                study_uid=UID(instance.StudyInstanceUID),
                series_uid=UID(instance.SeriesInstanceUID),
                sop_instance_uid=UID(instance.SOPInstanceUID),
                sop_class_uid=UID(instance.SOPClassUID),
                transfer_syntax_uid=UID(instance.file_meta.TransferSyntaxUID),
                calling_ae="SCANNER",
                num_frames=instance.get("NumberOfFrames"),
                meta=file[:start],
                dataset=file[start:],
            )
        )
    return outcome.study_id


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

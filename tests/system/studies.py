"""Studies to send: the real ultrasound files as one study of one patient, and phantoms."""

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread, dcmwrite

from model.phantom.heart import Heart
from tests import warm
from worker.phantom_study import Shot, make_study

AT = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
HEART = Heart(edv_ml=130.0, esv_ml=55.0, heart_rate=66.0)
REAL_STUDY = "2.25.318840928374652093847561"


def real_study(shared_data: Path) -> dict[str, Dataset]:
    """Return every real ultrasound file that may be used, by its name, as one study of one patient.

    Pixel data and all that describes it stay as they are; only who and which study is written anew.
    """
    with (shared_data / "index.csv").open() as table:
        rows = [row for row in csv.DictReader(table) if row["file"].startswith("us/") and row["set"] == "dev"]
    return {
        row["file"].removeprefix("us/"): _moved(shared_data / row["file"], number) for number, row in enumerate(rows, 1)
    }


def phantom_study(seed: int = 1, shots: tuple[Shot, ...] | None = None) -> list[Dataset]:
    """Return a synthetic study."""
    return [*make_study(HEART, seed=seed, at=AT, **({} if shots is None else {"shots": shots}))]


def part10(instance: Dataset) -> bytes:
    """Return the instance as a file's bytes."""
    buffer = io.BytesIO()
    dcmwrite(buffer, instance, enforce_file_format=True)
    return buffer.getvalue()


def written(study: list[Dataset], folder: Path) -> Path:
    """Return a folder with the study's files."""
    folder.mkdir()
    for number, instance in enumerate(study):
        (folder / f"{number}.dcm").write_bytes(part10(instance))
    return folder


def analysed(folder: Path, out: Path, *options: str) -> dict[str, Any]:
    """Return what `dicom-node analyse --json` prints."""
    done = warm.run("-m", "dicom_node", "analyse", folder, "--out", out, "--json", *options)
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def _moved(path: Path, number: int) -> Dataset:
    instance = dcmread(path)
    instance.remove_private_tags()
    instance.StudyInstanceUID = REAL_STUDY
    instance.SeriesInstanceUID = f"{REAL_STUDY}.1"
    instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = f"{REAL_STUDY}.1.{number}"
    instance.SpecificCharacterSet = "ISO_IR 192"
    instance.PatientID = "DEMO-1"
    instance.PatientName = "Demo^Real"
    instance.SeriesNumber, instance.InstanceNumber = 1, number
    return instance

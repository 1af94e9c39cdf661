"""Phantoms in the layout of MIMIC-IV-ECHO: DICOM files by subject and study, record lists and measurements.

Beside the B-mode loops of several views each study holds what a reader must leave out: a still, a spectral Doppler
trace and a colour Doppler loop. The data set knows no views; `view-labels.csv` stands for a reader who wrote them down.
"""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEGBaseline8Bit,
    UltrasoundImageStorage,
    generate_uid,
)

from model.phantom.dicom import compress, picture, region
from model.tasks import View
from trainer.phantom.case import Case, Film, Plan, make_case
from trainer.phantom.tables import Row, Tables

RECORDS, STUDIES = "echo-record-list.csv", "echo-study-list.csv"
MEASUREMENTS = "structured-measurement.csv.gz"
VIEWS, TRUTH = "view-labels.csv", "truth.csv"

_FIRST_SUBJECT, _FIRST_STUDY, _FIRST_MEASUREMENT = 10_000_032, 94_100_000, 7_000_000
_BEGIN = datetime(2180, 1, 1, 8)  # noqa: DTZ001  # dates of the data set are shifted and have no zone
_LOOPS = (View.PLAX, View.PSAX, View.PSAX, View.A4C, View.A4C, View.A2C, View.OTHER)
_STENOSIS = ("No AS", "Mild AS", "Mild-moderate AS", "Moderate AS", "Severe AS")


def case(plan: Plan, number: int) -> Case:
    """Return a patient under the scanner of one of the vendors."""
    return make_case(plan, number)


def write_case(patient: Case, root: Path) -> Tables:
    """Write a patient of version 1.0, with measurements."""
    return _write(patient, root, has_measurements=True)


def write_case_of_version_0_1(patient: Case, root: Path) -> Tables:
    """Write a patient of version 0.1, which had no measurements."""
    return _write(patient, root, has_measurements=False)


def _write(patient: Case, root: Path, *, has_measurements: bool) -> Tables:
    subject, study = str(_FIRST_SUBJECT + 7 * patient.number), str(_FIRST_STUDY + 13 * patient.number)
    at = _BEGIN + timedelta(days=3 * patient.number)
    folder = f"files/p{subject[:2]}/p{subject}/s{study}"
    (root / folder).mkdir(parents=True, exist_ok=True)
    records: list[Row] = []
    views: list[Row] = []
    for number, (instance, view) in enumerate(_instances(patient), start=1):
        taken = at + timedelta(seconds=20 * number)
        path = f"{folder}/{study}_{number:04d}.dcm"
        _identify(instance, subject=subject, study=study, number=number, at=taken)
        instance.save_as(root / path, enforce_file_format=True)
        records.append(
            {"subject_id": subject, "study_id": study, "acquisition_datetime": f"{taken}", "dicom_filepath": path}
        )
        if view is not None:
            views.append({"dicom_filepath": path, "view": view.value})
    listed = {"subject_id": subject, "study_id": study, "study_datetime": f"{at}"}
    listed |= {"note_id": "", "note_seq": "", "note_charttime": ""}
    tables = {RECORDS: records, VIEWS: views, TRUTH: [{"subject_id": subject} | patient.truth]}
    if not has_measurements:
        return tables | {STUDIES: [listed]}
    measurement = str(_FIRST_MEASUREMENT + patient.number)
    named = {"subject_id": subject, "measurement_id": measurement, "measurement_datetime": f"{at}", "test_type": "tte"}
    return tables | {
        STUDIES: [listed | {"measurement_id": measurement, "measurement_datetime": f"{at}"}],
        MEASUREMENTS: [named | row for row in _measured(patient)],
    }


def _measured(patient: Case) -> list[Row]:
    heart = patient.heart
    values = [
        ("lvef", "LVEF, visual", f"{5 * round(heart.lvef_percent / 5)}", "%"),
        ("biplane_lvef", "LVEF, biplane", f"{heart.lvef_percent:.1f}", "%"),
        ("biplane_lvedv", "LV EDV, biplane", f"{heart.edv_ml:.1f}", "mL"),
        ("biplane_lvesv", "LV ESV, biplane", f"{heart.esv_ml:.1f}", "mL"),
        ("resting_hr", "Heart rate", f"{heart.heart_rate:.0f}", "bpm"),
        ("aortic_stenosis", "Aortic stenosis", _STENOSIS[heart.stenosis], ""),
    ]
    keys = ("measurement", "measurement_description", "result", "unit")
    return [dict(zip(keys, value, strict=True)) for value in values]


def _instances(patient: Case) -> list[tuple[Dataset, View | None]]:
    """Return the study in the order of the examination; the view stands by the B-mode loops alone."""
    made: list[tuple[Dataset, View | None]] = []
    for number, view in enumerate(_LOOPS):
        made.append((_image(patient.film(view, number), patient), view))
    made.insert(2, (_image(patient.film(View.PLAX, 20, num_frames=(1, 1)), patient), None))
    made.insert(5, (_image(patient.film(View.A4C, 21, has_colour=True), patient), None))
    made.append((_doppler(patient), None))
    return made


def _image(film: Film, patient: Case) -> Dataset:
    return picture(film.frames_THWC, film.screen, frame_time_ms=film.frame_time_ms, heart_rate=patient.heart.heart_rate)


def _doppler(patient: Case) -> Dataset:
    """Return a still of a spectral trace: an envelope for every beat, higher the tighter the valve."""
    rng, heart = patient.random(3), patient.heart
    rows, columns = patient.screen.rows, patient.screen.columns
    times = np.arange(columns) * 10.0 * 320.0 / columns
    speed = 0.25 + 0.17 * heart.stenosis
    envelope = speed * np.array([heart.aortic_opening(time) for time in times])
    depth = np.linspace(-0.3, 1.0, rows)[:, None]
    grey = np.where(
        (depth > 0.0) & (depth < envelope), rng.rayleigh(90.0, (rows, columns)), rng.rayleigh(6.0, (rows, columns))
    )
    frame = np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)
    instance = Dataset()
    instance.SOPClassUID = UltrasoundImageStorage
    instance.SequenceOfUltrasoundRegions = Sequence([region(patient.screen, spatial_format=3, data_type=4)])
    compress(instance, frame[None])
    return instance


def _identify(instance: Dataset, *, subject: str, study: str, number: int, at: datetime) -> None:
    instance.SOPInstanceUID = generate_uid(entropy_srcs=["phantom", study, str(number)])
    instance.StudyInstanceUID = generate_uid(entropy_srcs=["phantom", study])
    instance.SeriesInstanceUID = generate_uid(entropy_srcs=["phantom", study, "series"])
    instance.PatientID, instance.PatientName = subject, ""
    instance.PatientBirthDate, instance.PatientSex = "", ""
    instance.StudyID, instance.AccessionNumber, instance.ReferringPhysicianName = study, "", ""
    instance.StudyDate = instance.ContentDate = f"{at:%Y%m%d}"
    instance.StudyTime = instance.ContentTime = f"{at:%H%M%S}"
    instance.Modality, instance.Manufacturer = "US", "Echo AI node phantom"
    instance.SeriesNumber, instance.InstanceNumber = 1, number
    instance.file_meta = FileMetaDataset()
    instance.file_meta.MediaStorageSOPClassUID = instance.SOPClassUID
    instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    instance.file_meta.TransferSyntaxUID = JPEGBaseline8Bit

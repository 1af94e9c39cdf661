"""The pictures beside a report: valid DICOM, of the patient and the loop that they say, and named by the report."""

import io
import subprocess
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.uid import (
    EncapsulatedPDFStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from dicom_node.report.findings import Findings, PictureKind
from dicom_node.report.origin import Origin
from dicom_node.report.pictures import Picture, saliency, summary_pdf
from tests.binaries import require_binary
from tests.node.report.samples import (
    ALGORITHM,
    APICAL,
    CINE,
    COLUMNS,
    EMPTY,
    FRAMES,
    MEASURED,
    MOMENT,
    PAGE,
    ROWS,
    STUDY,
    origin,
    patient,
    pictures,
    report,
)
from tests.system.validators import assert_valid_report

LOOP = MEASURED.loops[0]
SWITCHES = [kinds for number in range(4) for kinds in combinations(PictureKind, number)]


def document(picture: Picture) -> Dataset:
    """Return the picture as others read it."""
    return dcmread(io.BytesIO(picture.part10))


ALL = pictures()


def errors(part10: bytes, folder: Path) -> list[str]:
    """Return what dciodvfy and dcmftest find wrong."""
    file = folder / "picture.dcm"
    file.write_bytes(part10)
    verdict = subprocess.run(
        [require_binary("dciodvfy"), "-new", str(file)], capture_output=True, text=True, check=False
    )
    lines = (verdict.stdout + verdict.stderr).split("\n")
    assert any(line.endswith(("SCImage", "EncapsulatedPDF")) for line in lines), lines  # it knew the IOD
    whole = subprocess.run([require_binary("dcmftest"), str(file)], capture_output=True, text=True, check=False)
    return [line for line in lines if line.startswith("Error")] + (
        [] if whole.stdout.startswith("yes:") else [file.name]
    )


@pytest.mark.parametrize("kind", PictureKind)
@pytest.mark.parametrize(
    "header",
    [
        patient(),
        patient(PatientName="Müller^Jörg", PatientSex="F", PatientBirthDate="19600102", StudyDate="20261124"),
        patient(PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう", StudyTime="101112.5", AccessionNumber="A" * 16),
    ],
)
def test_each_picture_is_valid(kind: PictureKind, header: Dataset, tmp_path: Path) -> None:
    (made,) = pictures([kind], origin(header=header))

    assert errors(made.part10, tmp_path) == []
    assert document(made).PatientName == header.PatientName


def test_a_still_page_of_an_empty_report_is_valid_too(tmp_path: Path) -> None:
    assert errors(summary_pdf(origin(), PAGE, []).part10, tmp_path) == []


def test_the_moving_picture_plays_at_the_pace_of_its_loop_and_names_its_frames() -> None:
    image = document(ALL[0])

    assert image.SOPClassUID == MultiFrameTrueColorSecondaryCaptureImageStorage
    assert (image.NumberOfFrames, float(image.FrameTime), image.Modality) == (3, 33.3, "US")
    (source,) = image.SourceImageSequence
    assert (source.ReferencedSOPInstanceUID, list(source.ReferencedFrameNumber)) == (APICAL, [5, 6, 7])
    assert list(generate_frames(image.PixelData, number_of_frames=3)) == [
        frame + b"\0" * (len(frame) % 2) for frame in FRAMES
    ]


def test_a_loop_without_frame_time_plays_and_says_so() -> None:
    image = document(saliency(origin(), LOOP, 1, replace(CINE, frame_time_ms=None)))

    assert float(image.FrameTime) == 40.0
    assert "no frame time" in image.DerivationDescription


def test_any_reader_sees_the_pixels() -> None:
    pixels_THWC = document(ALL[0]).pixel_array

    assert pixels_THWC.shape == (3, ROWS, COLUMNS, 3)
    assert [int(frame.mean()) for frame in pixels_THWC] == pytest.approx([0, 60, 120], abs=1)


def test_the_page_is_an_image_and_a_document_of_the_same_bytes_as_given() -> None:
    image, paper = document(ALL[1]), document(ALL[2])

    assert (image.SOPClassUID, paper.SOPClassUID) == (SecondaryCaptureImageStorage, EncapsulatedPDFStorage)
    assert paper.EncapsulatedDocument[: paper.EncapsulatedDocumentLength] == PAGE.pdf
    assert [one.ReferencedSOPInstanceUID for one in paper.SourceInstanceSequence] == [APICAL]


@pytest.mark.parametrize("picture", ALL, ids=[one.kind.value for one in ALL])
def test_each_says_whose_it_is_what_it_is_worth_and_who_made_it(picture: Picture) -> None:
    made = document(picture)

    assert (made.PatientID, made.StudyInstanceUID) == ("P1", STUDY)
    assert made.SeriesDescription == "Echo AI (research): untrained weights: numbers have no meaning"
    assert made.BurnedInAnnotation == "YES"
    assert (made.Manufacturer, made.DeviceSerialNumber) == ("Echo AI node", ALGORITHM.ensemble_digest[:16])
    assert made.SOPInstanceUID == picture.sop_instance_uid


def test_uids_tell_kinds_revisions_loops_and_ensembles_apart_and_nothing_else() -> None:
    def uids(whence: Origin) -> list[str]:
        return [one.sop_instance_uid for one in pictures(whence=whence)]

    others = [
        origin(revision=2),
        origin(algorithm=replace(ALGORITHM, ensemble_digest="cd" * 32)),
        origin(study_uid="1.2.3"),
    ]
    every = [*uids(origin()), *(uid for one in others for uid in uids(one))]
    second = saliency(origin(), MEASURED.loops[1], 2, CINE)

    assert len({*every, second.sop_instance_uid}) == 13
    assert uids(origin(created_at=MOMENT.replace(year=2027))) == uids(origin())


def test_two_runs_differ_in_their_dates_alone() -> None:
    later = pictures(whence=origin(created_at=MOMENT.replace(year=2027)))

    for one, other in zip(ALL, later, strict=True):
        first, second = document(one), document(other)
        differing = {element.keyword for element in first if element != second.get(element.tag)}
        assert differing == {"ContentDate", "InstanceCreationDate"}


def test_a_back_slash_in_the_statement_parts_no_value(tmp_path: Path) -> None:
    whence = origin(algorithm=replace(ALGORITHM, statement="not\\for\nclinical use", name="a\\b"))

    for one in pictures(whence=whence):
        assert errors(one.part10, tmp_path) == []
        assert document(one).SeriesDescription == "Echo AI (research): not for clinical use"


# --- The report that names them ---


@pytest.mark.parametrize("kinds", SWITCHES, ids=["+".join(one) or "none" for one in SWITCHES])
@pytest.mark.parametrize("findings", [MEASURED, EMPTY], ids=["measured", "empty"])
def test_the_report_is_valid_with_every_combination_of_them(findings: Findings, kinds: tuple[PictureKind, ...]) -> None:
    made = [one for one in pictures(kinds) if findings is MEASURED or one.loop is None]

    assert_valid_report(report(findings, pictures=made).part10, pixelmed=len(kinds) == 3)


def test_every_picture_is_evidence_in_its_own_series() -> None:
    sr = dcmread(io.BytesIO(report(pictures=ALL).part10))
    (study,) = sr.CurrentRequestedProcedureEvidenceSequence
    evidence = {
        (series.SeriesInstanceUID, one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID)
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }

    assert {(one.series_instance_uid, one.sop_class_uid, one.sop_instance_uid) for one in ALL} <= evidence
    assert len({one.series_instance_uid for one in ALL}) == 3

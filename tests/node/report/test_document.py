"""The report as a document: what stands in it, and what others' validators say of it."""

import io
from dataclasses import replace
from typing import Any

import pytest
from highdicom.sr import srread
from pydicom import Dataset, dcmread

from dicom_node.errors import ReportError
from dicom_node.report import concepts
from dicom_node.report.document import Evidence
from dicom_node.report.findings import CartValue, Evaluation, Findings, Measurement
from dicom_node.report.text import render_text
from tests.node.report.samples import EMPTY, EVIDENCE, MEASURED, PREDECESSOR, STILL, UNSEEN, patient, report
from tests.system.validators import assert_valid_report

VARIANTS: dict[str, tuple[Findings, dict[str, Any]]] = {
    "measured": (MEASURED, {}),
    "empty": (EMPTY, {}),
    "unseen": (UNSEEN, {}),
    "revision": (MEASURED, {"revision": 2, "predecessor": PREDECESSOR, "is_complete": False}),
}


def read(part10: bytes) -> Dataset:
    """Return the document."""
    return dcmread(io.BytesIO(part10))


def numbers(item: Dataset) -> list[tuple[str, str, str]]:
    """Return every number of a tree: code, value, unit."""
    own = []
    if item.ValueType == "NUM":
        measured = item.MeasuredValueSequence[0]
        unit = measured.MeasurementUnitsCodeSequence[0].CodeValue
        own = [(item.ConceptNameCodeSequence[0].CodeValue, str(measured.NumericValue), unit)]
    return own + [number for child in item.get("ContentSequence", ()) for number in numbers(child)]


def codes(item: Dataset) -> list[tuple[str, str]]:
    """Return every coded answer of a tree: question, answer."""
    own = []
    if item.ValueType == "CODE":
        own = [(item.ConceptNameCodeSequence[0].CodeValue, item.ConceptCodeSequence[0].CodeValue)]
    return own + [code for child in item.get("ContentSequence", ()) for code in codes(child)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_validators_find_no_error(variant: str) -> None:
    findings, changes = VARIANTS[variant]

    assert_valid_report(report(findings, **changes).part10, pixelmed=variant in ("measured", "empty"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_highdicom_reads_it_back_with_a_group_a_loop(variant: str, tmp_path: Any) -> None:
    findings, changes = VARIANTS[variant]
    path = tmp_path / "report.dcm"
    path.write_bytes(report(findings, **changes).part10)

    document = srread(path)

    groups = document.content.get_image_measurement_groups()  # type: ignore[attr-defined]
    assert len(groups) == 2 + len(findings.loops)
    assert len({group.tracking_uid for group in groups}) == len(groups)


def test_a_loop_that_its_header_contradicts_says_so() -> None:
    words = "the header names the view PLAX, the picture looks like the view A4C (p=0.93): not used"
    silent = replace(UNSEEN, loops=(replace(UNSEEN.loops[0], contradiction=words), UNSEEN.loops[1]))

    part10 = report(silent).part10

    assert_valid_report(part10, pixelmed=False)
    assert words in render_text(read(part10))


def test_the_same_findings_give_the_same_bytes() -> None:
    assert report().part10 == report().part10


def test_the_numbers_stand_as_reports_write_them() -> None:
    found = numbers(read(report().part10))

    assert ("18043-0", "57.3", "%") in found
    assert ("18026-5", "120", "ml") in found
    assert ("18148-7", "51", "ml") in found
    assert ("371884006", "8.0", "ml") in found or ("371884006", "8", "ml") in found
    assert ("P-REDEF", "8", "%") in found


def test_what_was_not_measured_is_said_by_a_code_and_a_sentence() -> None:
    document = read(report(EMPTY).part10)

    answers = dict(codes(document))
    assert answers["18043-0"] == "114007"
    assert answers["18026-5"] == "114006"
    assert answers["18148-7"] == "114009"
    assert answers["371862006"] == "373068000"
    assert answers["60573004"] == "373068000"
    assert numbers(document) == []
    assert "no apical loop was found" in render_text(document)


def test_every_refused_instance_is_named_with_its_reason() -> None:
    text = render_text(read(report().part10))

    assert "Not analysed: series 1, instance 3: still image, not a cine loop" in text


def test_what_the_cart_measured_is_said_in_words_and_as_no_number() -> None:
    value = CartValue(measurement=Measurement.LVEF, value=54.0, unit="%", method="", sop_instance_uid="1.2.3.7")
    with_cart = replace(EMPTY, cart=(value, replace(value, value=61.0, method="Teichholz")))

    document = read(report(with_cart).part10)

    text = render_text(document)
    assert "Comment: Cart: EF 54 %, EF 61 % (Teichholz). Not used for the values of this report." in text
    assert numbers(document) == []
    assert "Cart:" not in render_text(read(report().part10))


def test_the_statement_of_the_ensemble_cannot_be_missed() -> None:
    document = read(report().part10)

    assert "untrained weights: numbers have no meaning" in document.SeriesDescription
    assert render_text(document).lower().count("untrained weights: numbers have no meaning") == 2


@pytest.mark.parametrize(
    "statement",
    ["untrained weights: numbers have no meaning", "trained on synthetic phantoms: not for clinical use", "x" * 64],
)
def test_a_statement_that_fits_a_series_description_stands_whole(statement: str) -> None:
    findings = replace(MEASURED, algorithm=replace(MEASURED.algorithm, statement=statement))

    description = read(report(findings).part10).SeriesDescription

    assert statement in description
    assert len(description) <= 64


def test_an_unfinished_study_is_reported_as_partial() -> None:
    assert read(report(is_complete=False).part10).CompletionFlag == "PARTIAL"
    assert read(report().part10).CompletionFlag == "COMPLETE"


def test_a_revision_has_its_own_uid_and_names_its_predecessor() -> None:
    first, second = report(), report(revision=2, predecessor=PREDECESSOR)

    assert first.sop_instance_uid != second.sop_instance_uid
    assert first.series_instance_uid == second.series_instance_uid
    study = read(second.part10).PredecessorDocumentsSequence[0]
    reference = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == PREDECESSOR.sop_instance_uid


def test_private_instances_are_no_evidence() -> None:
    private = Evidence(
        sop_class_uid="1.3.46.670589.2.5.1.1",
        sop_instance_uid="1.2.3.9",
        series_instance_uid="1.2.9",
        rows=None,
        columns=None,
    )

    document = read(report(evidence=(*EVIDENCE, private)).part10)

    assert "1.2.3.9" not in str(document)
    assert STILL in str(document)


def test_a_study_without_an_image_is_not_reported() -> None:
    paper = Evidence(
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.11",
        sop_instance_uid="1.2.3.8",
        series_instance_uid="1.2.9",
        rows=None,
        columns=None,
    )

    with pytest.raises(ReportError, match="holds no image"):
        report(EMPTY, evidence=(paper,))


def test_every_task_has_its_code() -> None:
    assert set(concepts.MEASURED) == set(Measurement)
    assert set(concepts.EVALUATED) == set(Evaluation)


def test_a_long_patient_name_survives() -> None:
    name = "A" * 64

    assert str(read(report(header=patient(PatientName=name)).part10).PatientName) == name

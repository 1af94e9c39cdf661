"""Reports as ultrasound carts write them: TID 5200 by hand, so that it can be written wrong too."""

from collections.abc import Iterable
from pathlib import Path

from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian

Code = tuple[str, str]

CART_REPORT = "1.2.826.0.1.3680043.8.498.77"

LVEF, EDV, ESV = ("LN", "18043-0"), ("LN", "18026-5"), ("LN", "18148-7")
PERCENT, ML, CM3, LITRE, ONE = (("UCUM", unit) for unit in ("%", "ml", "cm3", "l", "1"))

REPORT, FINDINGS, GROUP = ("DCM", "125200"), ("DCM", "121070"), ("DCM", "125007")
METHOD, METHOD_SRT = ("SCT", "370129005"), ("SRT", "G-C036")
BIPLANE, SINGLE_PLANE, TEICHHOLZ = ("DCM", "125207"), ("DCM", "125208"), ("DCM", "125209")
VIEW = ("DCM", "111031")
A4C, A4C_SRT, A2C = ("SCT", "399214001"), ("SRT", "G-A19C"), ("SCT", "399232001")
DERIVATION, MEAN, MEAN_SRT = ("DCM", "121401"), ("SCT", "373098007"), ("SRT", "R-00317")
SELECTION, USER_CHOSEN, MEAN_CHOSEN = ("DCM", "121404"), ("DCM", "121410"), ("DCM", "121412")


def coded(code: Code) -> Sequence:
    """Return a code as the sequence that names it."""
    item = Dataset()
    item.CodingSchemeDesignator, item.CodeValue = code
    item.CodeMeaning = "in the vendor's words"
    return Sequence([item])


def modifier(name: Code, value: Code, relationship: str = "HAS CONCEPT MOD") -> Dataset:
    """Return a CODE item."""
    item = Dataset()
    item.RelationshipType, item.ValueType = relationship, "CODE"
    item.ConceptNameCodeSequence, item.ConceptCodeSequence = coded(name), coded(value)
    return item


def number(name: Code, value: str, unit: Code | None, *modifiers: tuple[Code, Code]) -> Dataset:
    """Return a NUM item; without a unit its measured value has none."""
    measured = Dataset()
    measured.add_new("NumericValue", "DS", value)
    if unit is not None:
        measured.MeasurementUnitsCodeSequence = coded(unit)
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "NUM"
    item.ConceptNameCodeSequence = coded(name)
    item.MeasuredValueSequence = [measured]
    if modifiers:
        item.ContentSequence = [modifier(*one) for one in modifiers]
    return item


def container(name: Code, children: Iterable[Dataset]) -> Dataset:
    """Return a CONTAINER item."""
    item = Dataset()
    item.RelationshipType, item.ValueType, item.ContinuityOfContent = "CONTAINS", "CONTAINER", "SEPARATE"
    item.ConceptNameCodeSequence = coded(name)
    item.ContentSequence = list(children)
    return item


def section(*numbers: Dataset, group: Iterable[tuple[Code, Code]] = (), site: Code = ("SCT", "87878005")) -> Dataset:
    """Return an Echo Section (TID 5202) of the left ventricle with one measurement group."""
    children = [*(modifier(*one) for one in group), *numbers]
    return container(FINDINGS, [modifier(("SCT", "363698007"), site), container(GROUP, children)])


def cart_report(*sections: Dataset, **attributes: object) -> Dataset:
    """Return a report (TID 5200)."""
    report = container(REPORT, sections)
    del report.RelationshipType
    report.SOPClassUID, report.SOPInstanceUID = ComprehensiveSRStorage, CART_REPORT
    report.StudyInstanceUID, report.SeriesInstanceUID = "1.2.3", "1.2.826.0.1.3680043.8.498.78"
    report.PatientID, report.PatientName, report.Modality = "P1", "Phantom^Echo", "SR"
    report.Manufacturer = "A maker of carts"
    for keyword, value in attributes.items():
        setattr(report, keyword, value)
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return report


def write(path: Path, report: Dataset) -> Path:
    """Write a report to a file of that path; return the path."""
    dcmwrite(path, report, enforce_file_format=True)
    return path

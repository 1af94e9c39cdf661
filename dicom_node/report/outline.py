"""A stored report as an outline for people: each content item with its name, its value and what hangs below it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread

from dicom_node.errors import UnreadableReport
from dicom_node.report.header import DAMAGE

MAX_DEPTH = 32
"""Of what is shown; a report of ours has a few levels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A content item."""

    name: str
    value: str
    """In words, a number with its unit; empty: a container."""
    code: str
    """Of a coded value, and of a unit: its value and scheme; empty: the value is no code and has no unit."""
    reference: str
    """SOP Instance UID of what it refers to; empty: nothing."""
    children: "Sequence[Item]"


def read_outline(path: Path) -> Item:
    """Return the outline of the report at `path`.

    Raises:
        UnreadableReport: the file is missing or damaged.
    """
    try:
        return _item(dcmread(path), 0)
    except (*DAMAGE, OSError) as error:
        raise UnreadableReport(f"{path.name} cannot be read ({type(error).__name__})") from error


def _item(item: Dataset, depth: int) -> Item:
    name = item.ConceptNameCodeSequence[0].CodeMeaning if item.get("ConceptNameCodeSequence") else ""
    value, code, reference = _value(item)
    below = item.get("ContentSequence", ()) if depth < MAX_DEPTH else ()
    return Item(
        name=str(name),
        value=value,
        code=code,
        reference=reference,
        children=[_item(child, depth + 1) for child in below],
    )


def _value(item: Dataset) -> tuple[str, str, str]:
    match item.ValueType:
        case "CODE":
            concept = item.ConceptCodeSequence[0]
            return str(concept.CodeMeaning), _code(concept), ""
        case "TEXT":
            return str(item.TextValue), "", ""
        case "UIDREF":
            return str(item.UID), "", ""
        case "NUM":
            return _number(item)
        case "IMAGE" | "COMPOSITE":
            reference = item.ReferencedSOPSequence[0]
            frames = reference.get("ReferencedFrameNumber")
            return ("" if frames is None else "some of its frames"), "", str(reference.ReferencedSOPInstanceUID)
        case "SCOORD":
            return str(item.GraphicType).lower(), "", ""
        case _:
            return "", "", ""


def _number(item: Dataset) -> tuple[str, str, str]:
    if not item.get("MeasuredValueSequence"):
        qualifier = item.get("NumericValueQualifierCodeSequence")
        return (f"no value: {qualifier[0].CodeMeaning}" if qualifier else "no value"), "", ""
    measured = item.MeasuredValueSequence[0]
    unit = measured.MeasurementUnitsCodeSequence[0]
    return f"{measured.NumericValue} {unit.CodeMeaning}", _code(unit), ""


def _code(concept: Dataset) -> str:
    return f"{concept.CodeValue}, {concept.CodingSchemeDesignator}"

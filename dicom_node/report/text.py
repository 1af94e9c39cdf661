"""A report as plain text, for terminals: every content item on a line, indented."""

from pydicom import Dataset

_INDENT = "  "


def render_text(report: Dataset) -> str:
    """Return the content tree of an SR in words."""
    return "\n".join(_lines(report, 0))


def _lines(item: Dataset, depth: int) -> list[str]:
    lines = [f"{_INDENT * depth}{_line(item)}"]
    for child in item.get("ContentSequence", ()):
        lines += _lines(child, depth + 1)
    return lines


def _line(item: Dataset) -> str:
    name = item.ConceptNameCodeSequence[0].CodeMeaning if item.get("ConceptNameCodeSequence") else ""
    value = _value(item)
    return f"{name}: {value}" if value else str(name)


def _value(item: Dataset) -> str:
    match item.ValueType:
        case "CODE":
            return str(item.ConceptCodeSequence[0].CodeMeaning)
        case "TEXT":
            return str(item.TextValue)
        case "UIDREF":
            return str(item.UID)
        case "NUM":
            measured = item.MeasuredValueSequence[0]
            unit = measured.MeasurementUnitsCodeSequence[0].CodeValue
            return f"{measured.NumericValue} {unit}"
        case "IMAGE" | "COMPOSITE":
            reference = item.ReferencedSOPSequence[0]
            return str(reference.ReferencedSOPInstanceUID)
        case "SCOORD":
            return str(item.GraphicType)
        case _:
            return ""

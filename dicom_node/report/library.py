"""What a report of ours says of the loops that it was made of: its image library (TID 1600)."""

from collections.abc import Iterator
from pathlib import Path

from pydicom import Dataset, dcmread

from dicom_node.report import concepts
from dicom_node.report.header import DAMAGE

_UNREADABLE = (*DAMAGE, OSError)  # pydicom reads sequences when they are asked for


def read_library(path: Path) -> dict[str, tuple[int, int]]:
    """Return rows and columns of each loop, by SOP Instance UID; of a damaged report what can be read."""
    found = {}
    try:
        for item in _images(dcmread(path)):
            rows, columns = (_number(item, one.value) for one in (concepts.PIXEL_ROWS, concepts.PIXEL_COLUMNS))
            if rows and columns:
                found[str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)] = (rows, columns)
    except _UNREADABLE:
        return found
    return found


def _images(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", ()):
        if child.ValueType == "IMAGE":
            yield child
        else:
            yield from _images(child)


def _number(item: Dataset, code: str) -> int | None:
    for child in item.get("ContentSequence", ()):
        if child.ValueType == "NUM" and child.ConceptNameCodeSequence[0].CodeValue == code:
            return int(child.MeasuredValueSequence[0].NumericValue)
    return None

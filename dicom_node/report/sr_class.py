"""The SOP classes that a report can go out as: the same tree is valid in all three, so that a peer chooses.

A report of another class is another SOP instance (PS3.4 B.2): its UID is a function of the stored report's and the
class, so that sending twice is storing once, and a revision names the predecessor that the same peer has.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from dicom_node.identity import UID, result_uid

if TYPE_CHECKING:  # the configuration knows these names: a command that only reads it need not wait for pydicom
    from pydicom import Dataset

SrClass = Literal["comprehensive3d", "comprehensive", "enhanced"]
"""Names in the configuration."""

SR_CLASSES: Mapping[SrClass, str] = MappingProxyType(
    {
        "comprehensive3d": "1.2.840.10008.5.1.4.1.1.88.34",  # what IHE AI Results names
        "comprehensive": "1.2.840.10008.5.1.4.1.1.88.33",
        "enhanced": "1.2.840.10008.5.1.4.1.1.88.22",
    }
)

WRITTEN_AS = SR_CLASSES["comprehensive"]
"""The class of the stored report: every PACS knows it, and nothing in it needs 3-D."""


def candidates(preferred: SrClass) -> tuple[str, ...]:
    """Return the classes in which a peer is offered a report, the preferred one first."""
    first = SR_CLASSES[preferred]
    return (first, *(one for one in SR_CLASSES.values() if one != first))


def uid_in_class(sop_instance_uid: UID, sop_class_uid: str) -> UID:
    """Return the SOP Instance UID of a stored report in a class."""
    return sop_instance_uid if sop_class_uid == WRITTEN_AS else result_uid(sop_instance_uid, 0, "", sop_class_uid)


def in_class(report: "Dataset", sop_class_uid: str) -> "Dataset":
    """Return a stored report as one of another class; the data set given is changed."""
    _rename(report, "SOPClassUID", "SOPInstanceUID", sop_class_uid)
    _rename(report.file_meta, "MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", sop_class_uid)
    for study in report.get("PredecessorDocumentsSequence", ()):
        for series in study.ReferencedSeriesSequence:
            for one in series.ReferencedSOPSequence:
                _rename(one, "ReferencedSOPClassUID", "ReferencedSOPInstanceUID", sop_class_uid)
    return report


def _rename(dataset: "Dataset", class_keyword: str, instance_keyword: str, sop_class_uid: str) -> None:
    stored = UID(str(dataset[instance_keyword].value))
    setattr(dataset, class_keyword, sop_class_uid)
    setattr(dataset, instance_keyword, uid_in_class(stored, sop_class_uid))

"""The services that the node speaks, in which role, and what it proposes for each: what associations and the
conformance statement are both made from.
"""

from collections.abc import Mapping
from types import MappingProxyType

from pydicom.uid import UID as PydicomUID
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from dicom_node.identity import UID
from dicom_node.report.sr_class import SR_CLASSES

VERIFICATION = UID("1.2.840.10008.1.1")
"""Every acceptor offers it (PS3.2 section 7)."""

STORAGE_COMMITMENT = UID("1.2.840.10008.1.20.1")
"""Storage Commitment Push Model (PS3.4 annex J), in both roles."""

FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")
MOVE = UID("1.2.840.10008.5.1.4.1.2.2.2")
GET = UID("1.2.840.10008.5.1.4.1.2.2.3")
"""Study Root Query/Retrieve (PS3.4 annex C), as user."""

UNCOMPRESSED = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
)
"""Accepted for what is no storage; for storage, everything is."""

PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
"""Proposed for what has no pixels."""

_PICTURE = (JPEGBaseline8Bit, *PLAIN)

SENT: Mapping[str, tuple[PydicomUID, ...]] = MappingProxyType(
    {
        **dict.fromkeys(SR_CLASSES.values(), PLAIN),
        MultiFrameTrueColorSecondaryCaptureImageStorage: _PICTURE,
        SecondaryCaptureImageStorage: _PICTURE,
        EncapsulatedPDFStorage: PLAIN,
    }
)
"""What the node creates: SOP class -> transfer syntaxes that are proposed for it."""

TAKEN_FOR_STORAGE = tuple(
    UID(f"1.2.840.10008.{suffix}")
    for suffix in (
        "5.1.1.22",  # VOI LUT Box
        "5.1.4.31",  # Modality Worklist FIND
        "5.1.4.39.2",  # Color Palette FIND, MOVE, GET
        "5.1.4.39.3",
        "5.1.4.39.4",
        "10.1",  # Real-Time Communication
        "10.2",
        "10.3",
        "10.4",
    )
)
"""SOP classes of other services that pynetdicom has under other names, or not at all, and accepts with the rest."""

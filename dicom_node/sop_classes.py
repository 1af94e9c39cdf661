"""What the node says about SOP classes and transfer syntaxes: the tables behind negotiation and conformance statement.

The Storage SCP takes every class that is no other service's, private and retired ones too, in every transfer syntax
(`_config.UNRESTRICTED_STORAGE_SERVICE` of pynetdicom): a cart whose one context is refused gives up the whole study
(pynetdicom #1006, dcm4che #957). The tables therefore say what becomes of an instance, not whether it is taken.
Of several transfer syntaxes in one context the requestor's first is accepted: it knows in which one it holds the image,
and a node that picked another would make it compress, or decompress, what it has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import pynetdicom  # noqa: F401  # it adds the names of UIDs that are newer than pydicom's table
from pydicom.uid import UID as PydicomUID

from dicom_node.identity import UID


class Handling(StrEnum):
    """What becomes of an instance that was kept."""

    ANALYSED = "analysed"
    """B-mode cine loops go to the networks; the others stand in the report with their reason."""
    LISTED = "listed"
    """Kept, and stands in the report with the reason why it was not analysed."""


class Encoding(StrEnum):
    """How the elements of a data set are written (PS3.5 annex A)."""

    IMPLICIT_LITTLE = "implicit VR, little endian"
    EXPLICIT_LITTLE = "explicit VR, little endian"
    EXPLICIT_BIG = "explicit VR, big endian"
    DEFLATED = "explicit VR, little endian, the whole data set deflated"


class Decoding(StrEnum):
    """What a worker can do with the pixels."""

    FRAMES = "frames"
    """The wanted frames alone are decoded."""
    VIDEO = "video"
    """A video decoder reads the stream."""
    NONE = "none"
    """Kept, not decoded; the report says so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SopClass:
    """A SOP class that the node names."""

    uid: UID
    handling: Handling

    @property
    def name(self) -> str:
        """Return its name in PS3.6."""
        return PydicomUID(self.uid).name


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferSyntax:
    """A transfer syntax that the node knows."""

    uid: UID
    encoding: Encoding
    decoding: Decoding

    @property
    def name(self) -> str:
        """Return its name in PS3.6."""
        return PydicomUID(self.uid).name


def _storage(suffix: str, handling: Handling = Handling.LISTED) -> SopClass:
    return SopClass(uid=UID(f"1.2.840.10008.5.1.4.1.1.{suffix}"), handling=handling)


ULTRASOUND_MULTIFRAME = _storage("3.1", Handling.ANALYSED)
ULTRASOUND_MULTIFRAME_RETIRED = _storage("3", Handling.ANALYSED)
ULTRASOUND = _storage("6.1")
ULTRASOUND_RETIRED = _storage("6")

STORED = (
    ULTRASOUND_MULTIFRAME,
    ULTRASOUND_MULTIFRAME_RETIRED,
    ULTRASOUND,
    ULTRASOUND_RETIRED,
    _storage("6.2"),  # Enhanced US Volume
    _storage("6.3"),  # Photoacoustic
    *(_storage(suffix) for suffix in ("7", "7.1", "7.2", "7.3", "7.4")),  # Secondary Capture
    *(_storage(suffix) for suffix in ("88.11", "88.22", "88.33", "88.34", "88.35", "88.75")),  # Structured Reports
    _storage("88.59"),  # Key Object Selection
    _storage("104.1"),  # Encapsulated PDF
    _storage("11.1"),  # Grayscale Softcopy Presentation State
    _storage("66"),  # Raw Data
    _storage("9.1.1"),  # 12-lead ECG
)
"""The storage classes that an echo study is made of; any other is kept and listed too."""


def _syntax(suffix: str, decoding: Decoding, encoding: Encoding = Encoding.EXPLICIT_LITTLE) -> TransferSyntax:
    return TransferSyntax(uid=UID(f"1.2.840.10008.1.2{suffix}"), encoding=encoding, decoding=decoding)


def _compressed(decoding: Decoding, *numbers: str) -> tuple[TransferSyntax, ...]:
    return tuple(_syntax(f".4.{number}", decoding) for number in numbers)


TRANSFER_SYNTAXES = (
    _syntax("", Decoding.FRAMES, Encoding.IMPLICIT_LITTLE),
    _syntax(".1", Decoding.FRAMES),
    _syntax(".1.99", Decoding.FRAMES, Encoding.DEFLATED),
    _syntax(".2", Decoding.FRAMES, Encoding.EXPLICIT_BIG),
    *_compressed(Decoding.FRAMES, "50", "51", "57", "70", "80", "81", "90", "91", "201", "202", "203"),
    _syntax(".5", Decoding.FRAMES),  # RLE
    *_compressed(Decoding.VIDEO, "100", "101", "102", "103", "104", "105", "106"),
    *_compressed(Decoding.VIDEO, "100.1", "101.1", "102.1", "103.1", "104.1", "105.1", "106.1"),
    *_compressed(Decoding.VIDEO, "107", "108"),
    *_compressed(Decoding.NONE, "52", "53", "54", "55", "56", "58", "59", "60", "61", "62", "63", "64", "65", "66"),
    *_compressed(Decoding.NONE, "92", "93", "94", "110", "111", "112", "204"),
    _syntax(".4.95", Decoding.NONE, Encoding.DEFLATED),  # JPIP: the pixels are elsewhere
    _syntax(".4.205", Decoding.NONE, Encoding.DEFLATED),
    _syntax(".1.98", Decoding.NONE),  # Encapsulated Uncompressed
    _syntax(".8.1", Decoding.NONE),  # Deflated Image Frame
    # GE's private one: as the default one, but for the order of the pixels' bytes.
    TransferSyntax(uid=UID("1.2.840.113619.5.2"), encoding=Encoding.IMPLICIT_LITTLE, decoding=Decoding.NONE),
)
"""The transfer syntaxes that the node knows; a data set in another is kept when it can be read at all."""

_ENCODINGS: Mapping[str, tuple[Encoding, ...]] = {syntax.uid: (syntax.encoding,) for syntax in TRANSFER_SYNTAXES}
_PLAIN = (Encoding.EXPLICIT_LITTLE, Encoding.IMPLICIT_LITTLE, Encoding.EXPLICIT_BIG)


def encodings(transfer_syntax_uid: str) -> tuple[Encoding, ...]:
    """Return the ways in which a data set of this transfer syntax may be written; several for an unknown one."""
    return _ENCODINGS.get(transfer_syntax_uid, _PLAIN)

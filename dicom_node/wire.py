"""A data set as bytes on the wire: walked once, whole, without decoding, before it may be answered with Success.

The walk proves that every length fits (PS3.5 section 7), so that a truncated or damaged data set is refused while the
sender still has it, and picks out the few attributes that the node needs. It takes no part in what is kept: that is the
bytes as sent.
"""

import struct
import threading
import zlib
from collections.abc import Mapping

import structlog

from dicom_node.errors import NodeError
from dicom_node.sop_classes import Encoding, encodings

log = structlog.get_logger(__name__)

MAX_INFLATED = 256 << 20
"""Bytes that a deflated data set may grow to; one at a time is inflated in a process."""

MAX_ELEMENTS = 1_000_000
"""Data elements of a data set. The walk takes a second for so many, readers ten."""

MAX_ITEMS = 200_000
"""Items of all its sequences, and fragments of its pixel data: readers take ten times as long for one as for an
element. An hour of compressed ultrasound has half of it."""

MAX_DEPTH = 64
"""Sequences inside sequences; real reports have 12, and readers fail at 200."""

CHARACTER_SET = 0x00080005
SOP_CLASS = 0x00080016
SOP_INSTANCE = 0x00080018
PATIENT_ID = 0x00100020
STUDY = 0x0020000D
SERIES = 0x0020000E
NUM_FRAMES = 0x00280008

_WANTED = frozenset({CHARACTER_SET, SOP_CLASS, SOP_INSTANCE, PATIENT_ID, STUDY, SERIES, NUM_FRAMES})
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_DATA = 0x7FE00010
_INFLATING = threading.Lock()  # a small deflated data set may grow a thousandfold, and there are many peers
_PIECE = 1 << 20
_DEFLATE_TRAILER = 9  # real writers append the checksum and length of gzip, and a byte of padding
_BLANK = frozenset((b"  ", b"??", b"--"))  # what real writers put for a VR that they do not know; the length is short
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))


class DamagedDataSet(NodeError):
    """The bytes are no whole data set; the message says where, without a value."""


def walk(dataset: bytes | bytearray, transfer_syntax_uid: str) -> Mapping[int, str]:
    """Return the wanted attributes of a data set that is whole.

    Returns:
        Tag to text, of those of Specific Character Set, SOP Class, SOP Instance, Study and Series Instance UID, Patient
        ID and Number of Frames that it has. Bytes that are no ASCII stand in it as surrogates (PEP 383).

    Raises:
        DamagedDataSet: it is not whole.
    """
    possible = encodings(transfer_syntax_uid)
    if len(possible) == 1:
        return _walk_as(dataset, possible[0])
    for encoding in possible:
        try:
            if found := _walk_as(dataset, encoding):
                return found
        except DamagedDataSet as error:
            log.debug("encoding_excluded", encoding=encoding.name, reason=str(error))
    raise DamagedDataSet("the transfer syntax is unknown, and no plain encoding fits")


def _walk_as(dataset: bytes | bytearray, encoding: Encoding) -> Mapping[int, str]:
    if encoding is Encoding.DEFLATED:
        with _INFLATING:
            return _walk_content(_inflated(dataset), encoding)
    return _walk_content(dataset, encoding)


def _walk_content(content: bytes | bytearray, encoding: Encoding) -> Mapping[int, str]:
    found: dict[int, str] = {}
    end = _Walk(content, encoding, found).elements(0, len(content), depth=0)
    if end != len(content):
        raise DamagedDataSet(f"data set ends at byte {end} of {len(content)}")
    return found


class _Walk:
    """One pass over the bytes."""

    def __init__(self, content: bytes | bytearray, encoding: Encoding, found: dict[int, str]) -> None:
        order = ">" if encoding is Encoding.EXPLICIT_BIG else "<"
        self._content = content
        self._explicit = encoding is not Encoding.IMPLICIT_LITTLE
        self._found = found
        self._elements_left, self._items_left = MAX_ELEMENTS, MAX_ITEMS
        self._tag = struct.Struct(order + "HH")
        self._short = struct.Struct(order + "H")
        self._long = struct.Struct(order + "L")

    def elements(self, start: int, end: int, depth: int, is_explicit: bool | None = None) -> int:
        """Walk elements until `end`, or until the delimiter of an item without length; return where it stopped."""
        if depth > MAX_DEPTH:
            raise DamagedDataSet(f"sequences nest deeper than {MAX_DEPTH}")
        explicit = self._explicit if is_explicit is None else is_explicit
        position = start
        while position < end:
            tag = self._read_tag(position, end)
            if tag == _ITEM_END and depth:
                return position + 8
            if tag >> 16 == 0x0002:
                raise DamagedDataSet("group 2 inside the data set")
            self._elements_left -= 1
            if self._elements_left < 0:
                raise DamagedDataSet(f"more than {MAX_ELEMENTS} elements")
            vr, length, value = self._header(position, end, explicit)
            if length == _UNDEFINED:
                position = self._undefined(tag, vr, value, end, depth, explicit)
                continue
            position = value + length
            if position > end:
                raise DamagedDataSet(f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) is longer than the data set")
            if depth == 0 and tag in _WANTED:
                self._found[tag] = self._content[value:position].decode("ascii", "surrogateescape").strip(" \0")
        return position

    def _undefined(self, tag: int, vr: bytes, value: int, end: int, depth: int, explicit: bool) -> int:
        if tag == _PIXEL_DATA:
            return self._fragments(value, end)
        if vr not in (b"SQ", b"UN", b""):
            raise DamagedDataSet(f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) has no length")
        # A sequence of unknown VR is written implicitly whatever the transfer syntax (PS3.5 section 6.2.2).
        return self._items(value, end, depth + 1, explicit and vr != b"UN")

    def _items(self, start: int, end: int, depth: int, explicit: bool) -> int:
        position = start
        while True:
            tag, length = self._item_header(position, end)
            position += 8
            if tag == _SEQUENCE_END:
                return position
            if tag != _ITEM:
                raise DamagedDataSet("a sequence holds something that is no item")
            if length == _UNDEFINED:
                position = self._open_item(position, end, depth, explicit)
            else:
                position += length
                if position > end:
                    raise DamagedDataSet("an item is longer than the data set")

    def _open_item(self, start: int, end: int, depth: int, explicit: bool) -> int:
        stopped = self.elements(start, end, depth, explicit)
        if stopped >= end and self._content[stopped - 8 : stopped - 4] != self._tag.pack(0xFFFE, 0xE00D):
            raise DamagedDataSet("an item does not end")
        return stopped

    def _fragments(self, start: int, end: int) -> int:
        position = start
        while True:
            tag, length = self._item_header(position, end)
            position += 8
            if tag == _SEQUENCE_END:
                return position
            if tag != _ITEM or length == _UNDEFINED or position + length > end:
                raise DamagedDataSet("the compressed pixel data is cut off or damaged")
            position += length

    def _item_header(self, position: int, end: int) -> tuple[int, int]:
        self._items_left -= 1
        if self._items_left < 0:
            raise DamagedDataSet(f"more than {MAX_ITEMS} items or fragments")
        tag = self._read_tag(position, end)
        return tag, int(self._long.unpack_from(self._content, position + 4)[0])

    def _read_tag(self, position: int, end: int) -> int:
        if position + 8 > end:
            raise DamagedDataSet(f"data set ends in an element at byte {position}")
        group, element = self._tag.unpack_from(self._content, position)
        return int(group) << 16 | int(element)

    def _header(self, position: int, end: int, explicit: bool) -> tuple[bytes, int, int]:
        """Return VR (empty if implicit), length and where the value starts."""
        if not explicit:
            return b"", int(self._long.unpack_from(self._content, position + 4)[0]), position + 8
        vr = bytes(self._content[position + 4 : position + 6])
        if not (vr.isalpha() and vr.isupper()) and vr not in _BLANK:
            raise DamagedDataSet(f"no value representation at byte {position}")
        if vr not in _LONG:
            return vr, int(self._short.unpack_from(self._content, position + 6)[0]), position + 8
        if position + 12 > end:
            raise DamagedDataSet(f"data set ends in an element at byte {position}")
        return vr, int(self._long.unpack_from(self._content, position + 8)[0]), position + 12


def _inflated(dataset: bytes | bytearray) -> bytearray:
    """Return the inflated data set (PS3.5 A.5: a raw deflate stream), bounded."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    content = bytearray()  # zlib's own result would be in memory twice when it is whole
    rest = memoryview(dataset)
    try:
        while not stream.eof:
            piece: bytes | memoryview = stream.unconsumed_tail
            if not piece:
                piece, rest = rest[:_PIECE], rest[_PIECE:]
            inflated = stream.decompress(piece, _PIECE)
            if not inflated and not piece:  # without input it may still hold the end of its output back
                break
            content += inflated
            if len(content) > MAX_INFLATED:
                raise DamagedDataSet(f"inflates to more than {MAX_INFLATED} bytes")
    except zlib.error as error:
        raise DamagedDataSet("the deflate stream is damaged") from error
    if not stream.eof:
        raise DamagedDataSet("the deflate stream is cut off")
    if len(stream.unused_data) + len(rest) > _DEFLATE_TRAILER:
        raise DamagedDataSet("something follows the deflate stream")
    return content

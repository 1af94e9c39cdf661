"""What a compressed frame says about itself, read from its first markers: nothing is allocated or decoded."""

import struct
from typing import NamedTuple

_JPEG_START = b"\xff\xd8"
_J2K_START = b"\xff\x4f\xff\x51"
_JP2_START = b"\x00\x00\x00\x0cjP  "
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
_HEAD = 64
_NO_LENGTH = {0x01, *range(0xD0, 0xD9)}
_FRAME_HEADERS = ({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}) | {0xF7}  # 0xF7: JPEG-LS


class Form(NamedTuple):
    """What a frame holds."""

    rows: int
    columns: int
    samples: int
    """Components of a pixel."""
    bits: int
    """Bits of a component."""


def form_of(frame: bytes) -> Form | None:
    """Return the form of a JPEG, JPEG-LS or JPEG 2000 frame; None where no frame header is found."""
    if frame.startswith(_JPEG_START):
        return _jpeg_form(frame)
    if frame.startswith((_J2K_START, _JP2_START)):
        return _j2k_form(frame, frame.find(_J2K_START))
    return None


def marked_as_rgb(frame: bytes) -> bytes:
    """Return a JPEG frame that holds RGB with the marker that says so.

    Some carts leave it out and trust the header's Photometric Interpretation; libjpeg then guesses, or refuses.
    """
    head = frame[:_HEAD]
    if not frame.startswith(_JPEG_START) or b"Adobe" in head or b"JFIF" in head:
        return frame
    return _JPEG_START + _ADOBE_RGB + frame[2:]


def _jpeg_form(frame: bytes) -> Form | None:
    position = 2
    while position + 10 <= len(frame):
        if frame[position] != 0xFF:
            return None
        marker = frame[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _NO_LENGTH:
            position += 2
        elif marker in _FRAME_HEADERS:
            bits, rows, columns, samples = struct.unpack(">BHHB", frame[position + 4 : position + 10])
            return Form(rows=rows, columns=columns, samples=samples, bits=bits)
        else:
            position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    return None


def _j2k_form(frame: bytes, start: int) -> Form | None:
    sizes = frame[start + 8 : start + 43]
    if start < 0 or len(sizes) < 35:
        return None
    right, bottom, left, top = struct.unpack(">LLLL", sizes[:16])
    samples, depth = struct.unpack(">HB", sizes[32:])
    return Form(rows=bottom - top, columns=right - left, samples=samples, bits=(depth & 0x7F) + 1)

"""What a compressed frame says about itself, read from its first markers: nothing is allocated or decoded."""

import struct

_JPEG_START = b"\xff\xd8"
_J2K_START = b"\xff\x4f\xff\x51"
_JP2_START = b"\x00\x00\x00\x0cjP  "
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
_HEAD = 64
_NO_LENGTH = {0x01, *range(0xD0, 0xD9)}
_FRAME_HEADERS = ({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}) | {0xF7}  # 0xF7: JPEG-LS


def picture_size(frame: bytes) -> tuple[int, int] | None:
    """Return rows and columns of a JPEG, JPEG-LS or JPEG 2000 frame; None where no frame header is found."""
    if frame.startswith(_JPEG_START):
        return _jpeg_size(frame)
    if frame.startswith((_J2K_START, _JP2_START)):
        return _j2k_size(frame, frame.find(_J2K_START))
    return None


def marked_as_rgb(frame: bytes) -> bytes:
    """Return a JPEG frame that holds RGB with the marker that says so.

    Some carts leave it out and trust the header's Photometric Interpretation; libjpeg then guesses, or refuses.
    """
    head = frame[:_HEAD]
    if not frame.startswith(_JPEG_START) or b"Adobe" in head or b"JFIF" in head:
        return frame
    return _JPEG_START + _ADOBE_RGB + frame[2:]


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    position = 2
    while position + 9 <= len(frame):
        if frame[position] != 0xFF:
            return None
        marker = frame[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _NO_LENGTH:
            position += 2
        elif marker in _FRAME_HEADERS:
            rows, columns = struct.unpack(">HH", frame[position + 5 : position + 9])
            return rows, columns
        else:
            position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    return None


def _j2k_size(frame: bytes, start: int) -> tuple[int, int] | None:
    sizes = frame[start + 8 : start + 24]
    if start < 0 or len(sizes) < 16:
        return None
    right, bottom, left, top = struct.unpack(">LLLL", sizes)
    return bottom - top, right - left

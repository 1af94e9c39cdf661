"""A multipart answer (RFC 2046 section 5.1) part by part, as it comes in; one part is in memory at a time."""

import re
from collections.abc import Iterable, Iterator
from email.message import Message

from dicom_node.errors import NodeError

_MAX_HEADERS = 1 << 16
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PADDING = b" \t"


class DamagedMultipart(NodeError):
    """The answer is no whole multipart message; the parts before were whole."""


def boundary_of(content_type: str) -> bytes | None:
    """Return the boundary that a Content-Type names; None: it is no multipart one."""
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_boundary()
    if message.get_content_maintype() != "multipart" or boundary is None or not _BOUNDARY.fullmatch(boundary):
        return None
    return boundary.encode("ascii")


def parts(pieces: Iterable[bytes], boundary: bytes, longest: int) -> Iterator[bytearray]:
    """Give the content of each part, without its headers.

    Args:
        pieces: the body, cut anywhere.
        boundary: between the parts.
        longest: bytes that one part may have.

    Raises:
        DamagedMultipart: it ends in the middle, or a part is too long.
    """
    reader = _Reader(pieces, b"\r\n--" + boundary)
    reader.part(_MAX_HEADERS)  # the preamble
    number = 0
    while not reader.is_at_the_end():
        number += 1
        reader.skip_headers()
        yield reader.part(longest)


class _Reader:
    """The bytes that have come and not been given on."""

    def __init__(self, pieces: Iterable[bytes], delimiter: bytes) -> None:
        self._pieces = iter(pieces)
        self._delimiter = delimiter
        self._buffer = bytearray(b"\r\n")  # the first delimiter may stand at the very start

    def part(self, longest: int) -> bytearray:
        """Return what stands before the next delimiter, which is taken too."""
        end = self._find(self._delimiter, longest)
        content, self._buffer = self._buffer, self._buffer[end + len(self._delimiter) :]
        del content[end:]
        return content

    def is_at_the_end(self) -> bool:
        """Return whether the delimiter was the last; else its line is taken too."""
        while len(self._buffer) < 2:
            self._more()
        if self._buffer.startswith(b"--"):
            return True
        end = self._find(b"\r\n", _MAX_HEADERS)
        if self._buffer[:end].strip(_PADDING):
            raise DamagedMultipart("something follows a boundary on its line")
        del self._buffer[:end]  # the end of the line begins what follows: the headers may be none
        return False

    def skip_headers(self) -> None:
        """Take the headers and the empty line after them."""
        end = self._find(b"\r\n\r\n", _MAX_HEADERS)
        del self._buffer[: end + 2]
        # What is left of the empty line may begin the delimiter of a part without content.
        del self._buffer[:2]

    def _find(self, wanted: bytes, within: int) -> int:
        searched = 0
        while (found := self._buffer.find(wanted, searched)) < 0 and len(self._buffer) <= within + len(wanted):
            searched = max(len(self._buffer) - len(wanted) + 1, 0)
            self._more()
        if not 0 <= found <= within:
            raise DamagedMultipart(f"a part, or its headers, are longer than {within} bytes")
        return found

    def _more(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            raise DamagedMultipart("it ends in the middle")
        self._buffer += piece

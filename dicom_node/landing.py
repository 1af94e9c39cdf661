"""The bytes of a data set while they come in: each PDU is read from the line to where its fragment stays."""

from collections.abc import Callable

_AHEAD = 6
"""Bytes before a fragment in its PDU (PS3.8 9.3.5.1): they lie for a moment where the fragment before it ends."""

_GROWS = range(1 << 16, 8 << 20)  # bytes that are made room for at least, and at most beyond what is wanted
_EXPECTED_MAX = 4 << 20


class Landing:
    """Room for a data set, which grows as it comes."""

    def __init__(self, expected: int) -> None:
        """Make room for so many bytes, within limits: senders send alike things one after the other."""
        self._buffer = bytearray(_AHEAD + min(expected, _EXPECTED_MAX))
        self._filled = 0

    def tell(self) -> int:
        """Return how many bytes have come."""
        return self._filled

    def write(self, fragment: bytes | memoryview) -> None:
        """Take a fragment that was read elsewhere."""
        start = self._make_room(len(fragment))
        self._buffer[start : start + len(fragment)] = fragment
        self._filled += len(fragment)

    def read_pdu(self, length: int, read: Callable[[memoryview], None], is_fragment: Callable[[bytes], bool]) -> bytes:
        """Read the rest of a PDU and take it, if its first 6 bytes say that it is one fragment; else return it.

        Raises:
            OSError: `read`, which fills what it is given, could not.
        """
        start = self._make_room(length) - _AHEAD
        behind = bytes(self._buffer[start : start + _AHEAD])
        try:
            with memoryview(self._buffer) as whole, whole[start : start + length] as room:
                read(room)
                if not is_fragment(bytes(room[:_AHEAD])):
                    return bytes(room)
                self._filled += length - _AHEAD
                return b""
        finally:
            self._buffer[start : start + _AHEAD] = behind

    def take(self) -> bytearray:
        """Return what has come; nothing can be written any more."""
        content, self._buffer = self._buffer, bytearray()
        del content[:_AHEAD]  # which moves nothing
        del content[self._filled :]
        return content

    def _make_room(self, num_bytes: int) -> int:
        """Return where the next bytes belong; there is room for so many."""
        start = _AHEAD + self._filled
        missing = start + num_bytes - len(self._buffer)
        if missing > 0:
            more = min(max(self._filled // 4, _GROWS.start), _GROWS.stop)
            self._buffer += bytes(missing + more)
        return start

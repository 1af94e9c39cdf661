"""Seats: the associations that all receiving processes of a node may hold together, and of these each peer's.

A seat is one byte of a file, held by a lock on it. The kernel gives the locks of a dead process back, so that an
acceptor that was killed leaves no seat taken; nothing is ever written. Each association holds two: one of the node's,
at the file's begin, and one of its peer's, far behind it, at a place that the peer's name gives.
"""

import hashlib
import os
import threading
from collections.abc import Hashable, Iterable
from enum import StrEnum
from pathlib import Path

from dicom_node import locks

_PEER_SPAN = 1 << 16  # more than settings allow seats
_NUM_SPANS = 1 << 40  # two of a hundred peers share one by chance once in 10^8 hospitals


class Full(StrEnum):
    """Which seats are all taken, by the setting that says how many there are."""

    NODE = "node.max_associations"
    PEER = "node.max_associations_per_peer"


class Seats:
    """This process's hold on the shared seats. One in a process: POSIX locks are the process's, not the object's."""

    def __init__(self, path: Path, num_seats: int, num_per_peer: int) -> None:
        """Make the file if it is not there."""
        self._num_seats = num_seats
        self._num_per_peer = num_per_peer
        self._taken: dict[Hashable, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, holder: Hashable, peer: str) -> Full | None:
        """Return why `holder`, an association of `peer`, has got no seat, or None: it has."""
        first = _first_seat_of(peer)
        with self._lock:
            of_peer = self._one_of(range(first, first + self._num_per_peer))
            if of_peer is None:
                return Full.PEER
            of_node = self._one_of(range(self._num_seats))
            if of_node is None:
                self._unlock(of_peer)
                return Full.NODE
            self._taken[holder] = (of_node, of_peer)
        return None

    def leave(self, holder: Hashable) -> None:
        """Give the seat back; who has none is no mistake."""
        with self._lock:
            for seat in self._taken.pop(holder, ()):
                self._unlock(seat)

    def holders(self) -> list[Hashable]:
        """Return who has a seat in this process."""
        with self._lock:
            return list(self._taken)

    def close(self) -> None:
        """Give all seats back."""
        with self._lock:
            self._taken.clear()
            os.close(self._file)

    def _one_of(self, seats: Iterable[int]) -> int | None:
        ours = {seat for pair in self._taken.values() for seat in pair}  # the kernel would give them to us again
        return next((seat for seat in seats if seat not in ours and locks.take(self._file, seat)), None)

    def _unlock(self, seat: int) -> None:
        locks.give_back(self._file, seat)


def num_taken(path: Path, num_seats: int) -> int:
    """Return how many of the node's seats other processes have taken; in one that has seats itself, never to be called:
    to close the file would give them back."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # to look at a lock for writing, the file must be writable
    except FileNotFoundError:
        return 0
    try:
        return sum(locks.is_taken(file, seat) for seat in range(num_seats))
    finally:
        os.close(file)


def _first_seat_of(peer: str) -> int:
    digest = hashlib.sha256(peer.encode()).digest()
    return (1 + int.from_bytes(digest[:8], "big") % _NUM_SPANS) * _PEER_SPAN

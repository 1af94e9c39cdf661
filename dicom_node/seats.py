"""Seats: the associations that all receiving processes of a node may hold together.

A seat is one byte of a file, held by a lock on it. The kernel gives the locks of a dead process back, so that an
acceptor that was killed leaves no seat taken; nothing is ever written.
"""

import fcntl
import os
import threading
from collections.abc import Hashable
from pathlib import Path


class Seats:
    """This process's hold on the shared seats. One in a process: POSIX locks are the process's, not the object's."""

    def __init__(self, path: Path, num_seats: int) -> None:
        """Make the file if it is not there."""
        self._num_seats = num_seats
        self._taken: dict[Hashable, int] = {}
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, holder: Hashable) -> bool:
        """Return whether `holder` has got a seat."""
        with self._lock:
            ours = set(self._taken.values())  # the kernel would give them to us again
            for seat in range(self._num_seats):
                if seat not in ours and self._locked(seat):
                    self._taken[holder] = seat
                    return True
        return False

    def leave(self, holder: Hashable) -> None:
        """Give the seat back; who has none is no mistake."""
        with self._lock:
            seat = self._taken.pop(holder, None)
            if seat is not None:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, seat)

    def holders(self) -> list[Hashable]:
        """Return who has a seat in this process."""
        with self._lock:
            return list(self._taken)

    def close(self) -> None:
        """Give all seats back."""
        with self._lock:
            self._taken.clear()
            os.close(self._file)

    def _locked(self, seat: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, seat)
        except (BlockingIOError, PermissionError):  # which of the two is the system's choice
            return False
        return True

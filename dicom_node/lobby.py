"""The lobby: connections that have not asked for an association yet, those in a TLS handshake too.

There is room for so many. When it is full, the address that has most of them loses the one that has waited longest: who
means to ask does so within milliseconds, and who opens connections to keep others out keeps out himself.
"""

import socket
import threading
from collections import Counter

import structlog

from dicom_node.greeting import shut_down

log = structlog.get_logger(__name__)


class Lobby:
    """The waiting connections of one process; any thread may call it."""

    def __init__(self, num_places: int) -> None:
        self._num_places = num_places
        self._waiting: dict[socket.socket, str] = {}  # in the order in which they came
        self._lock = threading.Lock()

    def enter(self, connection: socket.socket, address: str) -> None:
        """Let a connection wait; if there is no place, end another."""
        with self._lock:
            crowded_out = self._crowding() if len(self._waiting) >= self._num_places else None
            if crowded_out is not None:
                crowd = self._waiting.pop(crowded_out)
            self._waiting[connection] = address
        if crowded_out is not None:
            log.warning("connection_crowded_out", address=crowd, limit=self._num_places)
            shut_down(crowded_out)

    def leave(self, connection: socket.socket) -> None:
        """Take a connection out; who is not there any more is no mistake."""
        with self._lock:
            self._waiting.pop(connection, None)

    def sweep(self) -> None:
        """Forget those that were closed without a word."""
        with self._lock:
            for connection in [one for one in self._waiting if one.fileno() < 0]:
                del self._waiting[connection]

    def end_all(self) -> None:
        """End all that wait."""
        with self._lock:
            waiting = list(self._waiting)
            self._waiting.clear()
        for connection in waiting:
            shut_down(connection)

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    def _crowding(self) -> socket.socket:
        most, _ = Counter(self._waiting.values()).most_common(1)[0]
        return next(connection for connection, address in self._waiting.items() if address == most)

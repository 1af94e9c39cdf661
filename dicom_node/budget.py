"""The memory that a receiving process spends on data sets, whoever sends them and however many at a time.

A sender for whose bytes there is no room waits: nothing is read from its socket, so that TCP holds it back. Half of the
budget is everyone's. The other half is for the one who is first in line when the first half is full: else all might
wait for each other for ever, each in the middle of an object.
"""

import threading
import time
from collections.abc import Hashable
from datetime import timedelta
from enum import Enum
from io import BytesIO
from weakref import WeakKeyDictionary

from dicom_node.landing import Landing

_LOOK = 0.02  # seconds between two looks: memory that is free again tells nobody


class Room(Enum):
    """What becomes of bytes that a sender wants to send."""

    GRANTED = "granted"
    """They may be read."""
    TOO_LONG = "too long"
    """With what has come of the others' objects, this one is more than the whole budget holds."""
    TOO_LATE = "too late"
    """There was no room in all the time that the sender may wait, or until it left."""


class Budget:
    """Counts the bytes of all objects in this process: those that come in, and those that wait to be kept."""

    def __init__(self, num_bytes: int) -> None:
        self._limit = num_bytes
        self._shared = num_bytes // 2
        self._coming: dict[Hashable, int] = {}
        # Nobody says when one of them is done with.
        self._whole: WeakKeyDictionary[BytesIO | Landing, int] = WeakKeyDictionary()
        self._at_most = 0  # counting anew for each PDU would cost more than receiving it
        self._first: Hashable | None = None
        self._lock = threading.Lock()

    def ask(self, sender: Hashable, num_so_far: int, num_more: int, patience: timedelta) -> Room:
        """Wait until there is room for `num_more` bytes of the object of which `num_so_far` have come."""
        deadline = time.monotonic() + patience.total_seconds()
        with self._lock:
            room = self._look(sender, num_so_far, num_more)
            self._coming.setdefault(sender, num_so_far)
        while room is None:
            time.sleep(_LOOK)
            with self._lock:
                if sender not in self._coming or time.monotonic() > deadline:
                    return Room.TOO_LATE
                room = self._look(sender, num_so_far, num_more)
        return room

    def complete(self, sender: Hashable, content: BytesIO | Landing) -> None:
        """Note that an object has come; it counts as long as anybody holds it."""
        with self._lock:
            self._coming.pop(sender, None)
            if content.tell():
                self._whole[content] = content.tell()
            self._resign(sender)

    def leave(self, sender: Hashable) -> None:
        """Note that nothing more comes of a sender; who is unknown is no mistake."""
        with self._lock:
            self._coming.pop(sender, None)
            self._resign(sender)

    def spent(self) -> int:
        """Return the bytes of all objects that are in memory now."""
        with self._lock:
            return self._count()

    def _look(self, sender: Hashable, num_so_far: int, num_more: int) -> Room | None:
        if self._at_most + num_more > self._shared:
            self._at_most = self._count() - self._coming.get(sender, 0) + num_so_far
        if self._at_most + num_more > self._shared:
            self._first = sender if self._first is None else self._first
            if self._first != sender:
                return None
            if sum(self._coming.values()) - self._coming.get(sender, 0) + num_so_far + num_more > self._limit:
                return Room.TOO_LONG  # the others wait for this one: it would for ever
            if self._at_most + num_more > self._limit:
                return None
        self._at_most += num_more
        self._coming[sender] = num_so_far + num_more
        return Room.GRANTED

    def _count(self) -> int:
        return sum(self._coming.values()) + sum(self._whole.values())

    def _resign(self, sender: Hashable) -> None:
        if self._first == sender:
            self._first = None

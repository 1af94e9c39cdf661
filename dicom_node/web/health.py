"""What is wrong with the node, looked at when asked."""

import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from dicom_node import broker
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.schema import Study
from dicom_node.settings import Settings
from dicom_node.store import InstanceStore

LOST = timedelta(seconds=60)
"""A clock that has not ticked for this long is wrong."""

LATE = timedelta(minutes=5)
"""An object store that has taken nothing for this long is wrong."""

_FRESH = timedelta(seconds=2)
_CONNECT_SECONDS = 2


class Pulse:
    """When the node's clock last ticked without a mistake; shared by the threads of its process."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Count from now: a clock that never ticks is wrong too."""
        self._now = now
        self._last = now()

    def beat(self) -> None:
        """Note a tick."""
        self._last = self._now()

    @property
    def age(self) -> float:
        """Return the seconds since the last tick."""
        return self._now() - self._last

    @property
    def is_lost(self) -> bool:
        """Return whether the last tick is too long ago."""
        return self.age > LOST.total_seconds()


class Health:
    """Looks at everything that the node needs."""

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        store: InstanceStore,
        node_port: int,
        pulse: Pulse,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._node_port = node_port
        self._pulse = pulse
        self._now = now
        self._looking = threading.Lock()
        self._looked_at = 0.0
        self._was_right: bool | None = None

    def wrong(self) -> list[str]:
        """Return what is wrong now."""
        found = self._ledger()
        if self._store.free_bytes() <= self._settings.node.min_free_bytes:
            found.append("the disk has less than node.min_free_bytes left")
        if not self._accepts():
            found.append("nobody accepts DICOM associations")
        if not broker.answers(self._settings.broker.url.get_secret_value()):
            found.append("the broker does not answer")
        if self._store.objects_away_seconds > LATE.total_seconds():
            found.append("the object store does not answer")
        if self._pulse.is_lost:
            found.append("the clock of the node does not tick")
        return found

    def is_right(self) -> bool:
        """Return whether nothing was wrong a moment ago: anybody may ask, and must not keep the node busy with it."""
        if self._looking.acquire(blocking=self._was_right is None):
            try:
                if self._was_right is None or self._now() - self._looked_at > _FRESH.total_seconds():
                    self._was_right = not self.wrong()
                    self._looked_at = self._now()
            finally:
                self._looking.release()
        return bool(self._was_right)

    def _ledger(self) -> list[str]:
        try:
            with self._sessions.begin() as session:  # writes nothing, but must be allowed to
                session.execute(update(Study).where(Study.id == -1).values(attempts=0))
        except SQLAlchemyError as error:
            return [f"the ledger cannot be written ({type(error).__name__})"]
        return []

    def _accepts(self) -> bool:
        host = self._settings.node.host
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        try:
            socket.create_connection((reachable, self._node_port), timeout=_CONNECT_SECONDS).close()
        except OSError:
            return False
        return True

"""Housekeeping: what is removed from the disk, and when. Each minute there must be room, each hour the old goes, each
day the orphans."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog

from dicom_node import orphans, retention
from dicom_node.clock import Clock
from dicom_node.ledger.engine import Sessions
from dicom_node.retention import Purged, Tell, tell_nobody
from dicom_node.settings import Retention
from dicom_node.store import InstanceStore, Leftover

log = structlog.get_logger(__name__)

EVERY_MINUTE = timedelta(minutes=1)
HOURLY = timedelta(hours=1)
DAILY = timedelta(days=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cleaned:
    """What was removed, or would be."""

    studies: list[Purged]
    files: list[Leftover]
    """Of the quarantine, and orphans."""

    @property
    def num_bytes(self) -> int:
        """Return how much that is, without what could not be removed whole."""
        everything: list[Purged | Leftover] = [*self.studies, *self.files]
        return sum(one.num_bytes for one in everything if not one.error)

    @property
    def errors(self) -> list[str]:
        """Return what could not be removed, and why."""
        studies = [f"study {one.study_instance_uid}: {one.error}" for one in self.studies if one.error]
        return [*studies, *(f"{one.path}: {one.error}" for one in self.files if one.error)]

    def to_json(self, *, dry_run: bool) -> dict[str, Any]:
        """Return the same for programs."""
        return {
            "dry_run": dry_run,
            "studies": [
                {
                    "study_instance_uid": one.study_instance_uid,
                    "delivered_at": one.delivered_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                    "bytes": one.num_bytes,
                    "error": one.error or None,
                }
                for one in self.studies
            ],
            "files": [{"path": one.path, "bytes": one.num_bytes, "error": one.error or None} for one in self.files],
            "bytes": self.num_bytes,
        }


def clean(
    sessions: Sessions,
    store: InstanceStore,
    settings: Retention,
    room: int,
    clock: Clock,
    *,
    dry_run: bool = False,
    tell: Tell = tell_nobody,
) -> Cleaned:
    """Do at once all that `Housekeeper` does in time."""
    aside = retention.purge_quarantine(store, settings, clock, dry_run=dry_run)
    lost = orphans.sweep(sessions, store, clock, dry_run=dry_run)
    studies = retention.purge(sessions, store, settings, clock, room=room, dry_run=dry_run, tell=tell)
    return Cleaned(studies=studies, files=[*aside, *lost])


@dataclass(kw_only=True)
class Housekeeper:
    """The service; `tick` is called each minute."""

    sessions: Sessions
    store: InstanceStore
    settings: Retention
    room: int
    """Free bytes below which delivered studies go before their time."""
    clock: Clock
    tell: Tell = tell_nobody
    _last: dict[str, datetime] = field(default_factory=dict)

    def tick(self) -> None:
        """Do what is due."""
        if self._is_due("quarantine", HOURLY):
            retention.purge_quarantine(self.store, self.settings, self.clock)
        is_low = self.store.free_bytes() < self.room
        if self._is_due("purge", HOURLY) or is_low:
            purged = retention.purge(
                self.sessions, self.store, self.settings, self.clock, room=self.room, tell=self.tell
            )
            is_low = is_low and not any(one.num_bytes for one in purged if not one.error)
        if is_low and self._is_due("disk_low", HOURLY):
            log.error("disk_low", free_bytes=self.store.free_bytes(), wanted=self.room)

    def sweep(self) -> None:
        """Remove the orphans if that is due; it looks at every file, and nobody who wants room may wait for it."""
        if self._is_due("orphans", DAILY):
            orphans.sweep(self.sessions, self.store, self.clock)

    def _is_due(self, what: str, every: timedelta) -> bool:
        """Return whether it was not done for so long, and take it as done."""
        now = self.clock()
        last = self._last.get(what)
        if last is not None and timedelta(0) <= now - last < every:  # less than nothing: the clock was set back
            return False
        self._last[what] = now
        return True

"""Sharing: what was received is copied from the node's disk into the object store, once it is safe and answered for.

Nobody who sends waits for that. What is not there yet stands in the ledger, and is tried for as long as it takes.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import PurePath

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.clock import Clock
from dicom_node.errors import ObjectsUnavailable, StoreError
from dicom_node.ledger import shares
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.shares import Unshared
from dicom_node.store import InstanceStore

log = structlog.get_logger(__name__)

_BATCH = 16
_AT_ONCE = 4
_POLL = timedelta(seconds=0.1)
_PAUSE = timedelta(seconds=2)
_ASIDE = timedelta(minutes=1)
"""So long a file waits that the disk did not give: the others go on."""


@dataclass(frozen=True, slots=True)
class Sharer:
    """Puts instances into the object store of its store."""

    sessions: Sessions
    store: InstanceStore
    ring: Callable[[int], None]
    """Calls a worker for a study."""
    clock: Clock
    aside: dict[int, float] = field(default_factory=dict)
    """Instances that the disk did not give, and when each is looked at again (`time.monotonic`)."""

    def run(self, stop: threading.Event) -> None:
        """Share what is to be shared until `stop`; the body of the thread."""
        while not stop.is_set():
            pause = _POLL
            try:
                if self.share_due():
                    continue
            except ObjectsUnavailable:
                pause = _PAUSE  # said once, by the object store
            except SQLAlchemyError as error:
                log.warning("instances_not_shared", reason=type(error).__name__)
                pause = _PAUSE
            except Exception:  # the loop of a service: no worker elsewhere would get anything any more
                log.exception("sharing_failed")
                pause = _PAUSE
            stop.wait(pause.total_seconds())

    def share_due(self) -> int:
        """Put what is not there yet into the object store, some at once, and ring; return how many are there now.

        Raises:
            ObjectsUnavailable: it does not take the rest now.
            SQLAlchemyError: the ledger cannot be read or written now.
        """
        now = time.monotonic()
        for instance_id in [one for one, until in self.aside.items() if until <= now]:
            del self.aside[instance_id]
        due = shares.unshared(self.sessions, _BATCH, self.aside.keys())
        if not due:
            return 0
        is_away = threading.Event()
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="share") as pool:
            futures = [pool.submit(self._put, one, is_away) for one in due]
        done = [one for one, future in zip(due, futures, strict=True) if future.exception() is None and future.result()]
        for study_id in shares.shared(self.sessions, done, self.clock):  # also where an outage began in between
            self.ring(study_id)
        for future in futures:
            future.result()
        return len(done)

    def _put(self, one: Unshared, is_away: threading.Event) -> bool:
        """Return whether the object store has an instance now, or need not have it."""
        if one.is_removed:
            return True
        if is_away.is_set():
            return False
        try:
            if self.store.share(one.path) or self._is_there(one.path):
                return True
        except ObjectsUnavailable:
            is_away.set()
            raise
        except StoreError as error:
            self.aside[one.instance_id] = time.monotonic() + _ASIDE.total_seconds()
            log.error("instance_not_shared", instance=one.sop_instance_uid, reason=str(error))
            return False
        if shares.lost(self.sessions, one, self.clock):
            log.error("instance_failed", study=one.study_id, instance=one.sop_instance_uid)
            self.ring(one.study_id)  # the rest of the study goes on without it
        return False

    def _is_there(self, path: str) -> bool:
        """Return whether the object store has a file that the disk lost."""
        return PurePath(path).name in self.store.shared_names(str(PurePath(path).parent))

"""The audit trail on disk: one message a line, one file a day, in a folder that all processes of the node append to.

The files are the trail, and what `audit_forwarder` sends on: nobody who audits waits for a network. A message that the
disk does not take is lost with an ERROR line, and the work that it was about goes on: a study matters more.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from dicom_node.audit import (
    Application,
    Audit,
    Event,
    Outcome,
    Person,
    StudyContent,
    study_deleted,
    user_authentication,
)
from dicom_node.audit_xml import to_xml
from dicom_node.clock import Clock
from dicom_node.settings import AuditSection, Node

log = structlog.get_logger(__name__)

_LOCK_SECONDS = 2.0
_LOOK_SECONDS = 0.005
_ANYBODY = "web"  # the page has one token for all
FILES = "audit-*.log"
"""The trail's files in its folder; by name they are in the order of time."""


def this_application(node: Node) -> Application:
    """Return how the node calls itself: its AE title and, always the same (PS3.15 A.5.2.4), the machine's name."""
    return Application(ae_title=node.ae_title, address=socket.gethostname())


def trail_folder(settings: AuditSection, node: Node) -> Path:
    """Return where the files are."""
    return Path(settings.folder).expanduser().absolute() if settings.folder else node.data_dir / "audit"


def tell_deleted(audit: Audit, node: Node, content: StudyContent) -> None:
    """Put into the trail that retention removes the images of a study."""
    audit(study_deleted(this_application(node), content))


def tell_login(audit: Audit, node: Node, address: str, is_accepted: bool) -> None:
    """Put into the trail that somebody showed a token to the page, and whether it was the right one."""
    outcome = Outcome.SUCCESS if is_accepted else Outcome.MINOR_FAILURE
    audit(user_authentication(this_application(node), Person(user=_ANYBODY, address=address), outcome))


class AuditTrail:
    """Appends messages; any number of threads and processes may share the folder."""

    def __init__(self, settings: AuditSection, node: Node, clock: Clock) -> None:
        self._settings = settings
        self._source = node.ae_title
        self._folder = trail_folder(settings, node)
        self._clock = clock
        self.num_lost = 0

    def record(self, event: Event) -> None:
        """Put an event into the trail, with the time now; if the disk will not take it, the log says so, and
        `num_lost` counts it."""
        try:
            self._append(event)
        except OSError as error:
            self.num_lost += 1
            log.error("audit_not_written", message=event.id.meaning, reason=error.strerror)

    def _append(self, event: Event) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _exclusive(self._folder):
            now = self._clock()
            message = to_xml(
                event,
                source=self._source,
                site=self._settings.site,
                at=now,
                has_patient_ids=self._settings.patient_id,
            )
            # Never a file before the newest, even if the clock was set back: who reads is past it.
            names = [f"audit-{now:%Y-%m-%d}.log", *(path.name for path in self._folder.glob(FILES))]
            _append_line(self._folder / max(names), message)


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Wait for the lock, but not for a process that was stopped while it had it.

    Raises:
        TimeoutError: it is not to be had.
    """
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "another process holds the trail") from None
            time.sleep(_LOOK_SECONDS)
        else:
            return


def _append_line(path: Path, message: bytes) -> None:
    """Append a line, whole or not at all.

    Raises:
        OSError: the disk did not take it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # the machine went down in a write
        left = memoryview((b"\n" if is_torn else b"") + message + b"\n")
        try:
            while left:
                left = left[os.write(descriptor, left) :]
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)

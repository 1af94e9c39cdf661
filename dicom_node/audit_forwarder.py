"""Sends the audit trail to a syslog receiver: reads the files that all processes append to, from where it stopped.

The files are the queue: a receiver that is away, or a node that ends, costs no message. Where it stands is written
after each batch, so that a message may come twice when the node is killed or a connection breaks, and none is left out.
"""

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog

from dicom_node.audit_trail import FILES
from dicom_node.errors import DamagedMessage
from dicom_node.syslog import Receiver, syslog_message

log = structlog.get_logger(__name__)

POSITION_FILE = "forwarded.json"
"""In the trail's folder: the file and the byte up to which everything was sent."""
FIRST_WAIT = timedelta(seconds=1)
LONGEST_WAIT = timedelta(minutes=1)
FAREWELL = timedelta(seconds=5)
"""How long what is left may be sent when the node ends; the rest waits for its next start."""

_POLL = timedelta(seconds=0.5)
_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Up to where the trail was sent."""

    file: str
    """Name; empty: nothing was sent."""
    offset: int


class Forwarder:
    """Sends what is new in a folder to a receiver; one at a time may."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self._folder = folder
        self._receiver = receiver
        self._position: Position | None = None
        self._failures = 0

    def run(self, stop: threading.Event) -> None:
        """Send until `stop`, and then what is left; the body of a thread."""
        while not stop.wait(self._pause().total_seconds()):
            self._try(lambda: not stop.is_set())
        deadline = time.monotonic() + FAREWELL.total_seconds()
        self._try(lambda: time.monotonic() < deadline)
        self._receiver.close()

    def forward(self) -> bool:
        """Send a batch of what is new, in order; return whether there was any.

        Raises:
            OSError: the receiver is out of reach, or the files are.
        """
        position = self._position = self._position or self._last_position()
        lines, after = self._read(position)
        if messages := list(_messages(lines)):
            self._receiver.send(messages)
        if after == position:
            return False
        self._position = after
        self._keep(after)
        return True

    def _pause(self) -> timedelta:
        wait: timedelta = min(FIRST_WAIT * 2 ** min(self._failures - 1, 16), LONGEST_WAIT)
        return wait if self._failures else _POLL

    def _try(self, may_go_on: Callable[[], bool]) -> None:
        try:
            while self.forward() and may_go_on():
                pass
        except OSError as error:
            if not self._failures:
                log.warning("syslog_unreachable", reason=str(error))
            self._failures += 1
        except Exception:  # the loop of a service: the trail on disk is whole, and sent when this is mended
            log.exception("audit_not_forwarded")
            self._failures += 1
        else:
            if self._failures:
                log.info("syslog_reached", failures=self._failures)
            self._failures = 0

    def _read(self, position: Position) -> tuple[list[bytes], Position]:
        """Return the next lines, and the position after them."""
        # Looked for first: once there is a later file, nobody appends to this one.
        later = sorted(path.name for path in self._folder.glob(FILES) if path.name > position.file)
        lines, end = self._lines(position) if position.file else ([], 0)
        if not lines and later:
            return [], Position(file=later[0], offset=0)
        return lines, Position(file=position.file, offset=end)

    def _lines(self, position: Position) -> tuple[list[bytes], int]:
        try:
            with (self._folder / position.file).open("rb") as file:
                start = position.offset
                if start > os.fstat(file.fileno()).st_size:
                    log.warning("audit_file_shrank", file=position.file)
                    start = 0
                file.seek(start)
                lines = list(itertools.islice(itertools.takewhile(_is_whole, file), _BATCH))
                return lines, start + sum(map(len, lines))
        except FileNotFoundError:  # someone tidied up
            return [], position.offset

    def _last_position(self) -> Position:
        try:
            content = json.loads((self._folder / POSITION_FILE).read_bytes())
            return Position(file=str(content["file"]), offset=int(content["offset"]))
        except FileNotFoundError:
            return Position(file="", offset=0)
        except (ValueError, KeyError, TypeError) as error:
            log.warning("audit_position_damaged", reason=type(error).__name__)  # then everything is sent again
            return Position(file="", offset=0)

    def _keep(self, position: Position) -> None:
        path = self._folder / POSITION_FILE
        part = path.with_suffix(".part")
        try:
            with part.open("w") as file:
                json.dump({"file": position.file, "offset": position.offset}, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:  # while this process lives, nothing is sent twice
            log.warning("audit_position_not_kept", reason=error.strerror)


def _is_whole(line: bytes) -> bool:
    return line.endswith(b"\n")


def _messages(lines: Iterable[bytes]) -> Iterator[bytes]:
    for line in lines:
        try:
            yield syslog_message(line.rstrip(b"\n"))
        except DamagedMessage as error:
            log.warning("audit_line_damaged", reason=str(error))

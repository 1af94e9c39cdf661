"""Structured logs: one JSON line an event, without patient data."""

import contextlib
import logging
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import TextIO, cast

import structlog

_DICOM_LIBRARIES = ("pynetdicom", "pydicom", "highdicom")
_LONGEST = 200  # characters of what a library says


def configure_logs(*, level: str = "INFO", json: bool = True, stream: TextIO | None = None) -> None:
    """Send every event of this process to `stream` (standard error by default); called by entry points only."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Unfailing(stream or sys.stderr))),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, stream=stream or sys.stderr, force=True)
    logging.raiseExceptions = False
    # Below ERROR, and in their warnings, these libraries quote what is odd: a name, a birth date (PS3.15 E).
    # pydicom sets its own level when it is imported, so the handler is what must refuse.
    for handler in logging.getLogger().handlers:
        handler.addFilter(_without_values)
        handler.addFilter(_in_one_line)
    warnings.simplefilter("ignore", UserWarning)


def log_thread(ending: threading.ExceptHookArgs) -> None:
    """Say in one line that a thread ended by an exception; one of pynetdicom's does so on much that makes no sense."""
    name = ending.thread.name if ending.thread is not None else "unknown"
    frame = traceback.extract_tb(ending.exc_traceback)[-1]
    reason, where = ending.exc_type.__name__, f"{Path(frame.filename).name}:{frame.lineno}"
    structlog.get_logger(__name__).warning("thread_failed", thread=name, reason=reason, where=where)


class _Unfailing:
    """A stream whose disk may be full: a line that cannot be written is lost, and stops nobody's work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        """Hand on what can be handed on."""
        with contextlib.suppress(OSError):
            self._stream.flush()


def _without_values(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or record.name.partition(".")[0] not in _DICOM_LIBRARIES


def _in_one_line(record: logging.LogRecord) -> bool:
    """Take the traceback out: pynetdicom writes one for each PDU that makes no sense, as many as a peer may send."""
    if record.name.partition(".")[0] in _DICOM_LIBRARIES:
        record.msg, record.args = " ".join(record.getMessage().split())[:_LONGEST], None
        record.exc_info = record.exc_text = None
    return True

"""Structured logs: one JSON line an event, without patient data."""

import logging
import sys
from typing import TextIO

import structlog


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
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    # pynetdicom and pydicom write identifiers and data sets below WARNING: they stay quiet (PS3.15 E).
    logging.basicConfig(level=logging.WARNING, stream=stream or sys.stderr, force=True)
    for name in ("pynetdicom", "pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.ERROR)

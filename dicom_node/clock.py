"""The time, as an argument: aware UTC datetimes."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the time now, aware, UTC."""


def utc_now() -> datetime:
    """Return the machine's time: the clock of everything but tests."""
    return datetime.now(UTC)

"""A clock for tests."""

from datetime import UTC, datetime, timedelta


class ManualClock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Return its time."""
        return self.now

    def pass_by(self, seconds: float) -> None:
        """Move it on."""
        self.now += timedelta(seconds=seconds)

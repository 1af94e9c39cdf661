"""Waiting for what another thread or process does: as long as a busy machine needs, and not for ever."""

import time
from collections.abc import Callable

DEADLINE = 60.0
"""Seconds."""


def eventually(holds: Callable[[], object], patience: float = DEADLINE) -> bool:
    """Return whether it becomes true in time."""
    end = time.monotonic() + patience
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def wait_until(is_true: Callable[[], object], patience: float = DEADLINE) -> None:
    """Poll until it is true."""
    assert eventually(is_true, patience), f"did not happen in {patience:.0f} s"

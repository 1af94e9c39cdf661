"""The heartbeat: what this process holds stays its own as long as it lives and gets on."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.exc import SQLAlchemyError

from worker.settings import Limits

log = structlog.get_logger(__name__)

Renew = Callable[[], object]
"""Renews the leases of what is held now; called from the heartbeat's thread."""


class Heartbeat:
    """Renews leases in the background until the block ends, or until nothing was done for the loop's deadline."""

    def __init__(self, renew: Renew, limits: Limits) -> None:
        self._renew = renew
        self._limits = limits
        self._stop = threading.Event()
        self._last_step = time.monotonic()

    def step(self) -> None:
        """Note that a loop was finished: the next one has its whole deadline."""
        self._last_step = time.monotonic()

    def run(self) -> None:
        """Renew until stopped or hung; the body of the thread."""
        while not self._stop.wait(self._limits.heartbeat.total_seconds()):
            if time.monotonic() - self._last_step > self._limits.loop.total_seconds():
                # A person must look at the loop that hangs; the ledger gives it to another process meanwhile.
                log.error("loop_hung", seconds=self._limits.loop.total_seconds())
                return
            try:
                self._renew()
            except SQLAlchemyError as error:
                # The lease may run out: then another worker does the same work once more, and one of the two wins.
                log.warning("lease_not_renewed", reason=type(error).__name__)

    def stop(self) -> None:
        """End the thread at its next breath."""
        self._stop.set()


@contextmanager
def beating(renew: Renew, limits: Limits) -> Iterator[Heartbeat]:
    """Keep renewing while the block runs."""
    heartbeat = Heartbeat(renew, limits)
    thread = threading.Thread(target=heartbeat.run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield heartbeat
    finally:
        heartbeat.stop()
        thread.join()

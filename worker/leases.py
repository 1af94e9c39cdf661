"""The heartbeat: what this process holds stays its own as long as it lives and gets on; one that hangs ends."""

import faulthandler
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.exc import SQLAlchemyError

from worker.settings import Limits

log = structlog.get_logger(__name__)

_STANDARD_ERROR = 2

Renew = Callable[[], object]
"""Renews the leases of what is held now; called from the heartbeat's thread."""


class Heartbeat:
    """Renews leases in the background until the block ends, or until nothing was done for the loop's deadline.

    Then the process is ended, for a decoder that hangs cannot be stopped in any other way, and a worker that waited for
    the time limit of its task would be of no use for a quarter of an hour. The pool starts another; the ledger counts
    the attempt. The watchdog is the interpreter's own: it needs no lock that the decoder may hold.
    """

    def __init__(self, renew: Renew, limits: Limits) -> None:
        self._renew = renew
        self._limits = limits
        self._stop = threading.Event()
        self.step()

    def step(self) -> None:
        """Note that a loop was finished: the next one has its whole deadline."""
        self._last_step = time.monotonic()
        # Later than the heartbeat sees it, so that the log says what the watchdog did.
        patience = self._limits.loop + 2 * self._limits.heartbeat
        faulthandler.dump_traceback_later(patience.total_seconds(), exit=True, file=_STANDARD_ERROR)

    def run(self) -> None:
        """Renew until stopped or hung; the body of the thread."""
        while not self._stop.wait(self._limits.heartbeat.total_seconds()):
            if time.monotonic() - self._last_step > self._limits.loop.total_seconds():
                # A person must look at the loop that hangs.
                log.error("loop_hung", seconds=self._limits.loop.total_seconds())
                return
            try:
                self._renew()
            except SQLAlchemyError as error:
                # The lease may run out: then another worker does the same work once more, and one of the two wins.
                log.warning("lease_not_renewed", reason=type(error).__name__)

    def stop(self) -> None:
        """End the thread at its next breath, and call the watchdog off."""
        faulthandler.cancel_dump_traceback_later()
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

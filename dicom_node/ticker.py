"""The thread that moves studies on, ten times a second, and what it does when time itself made a leap."""

import threading
from datetime import datetime, timedelta

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dicom_node import completion
from dicom_node.clock import Clock
from dicom_node.dispatch import Bell
from dicom_node.ledger import claims, future
from dicom_node.ledger.engine import Sessions
from dicom_node.settings import Study as StudySection
from dicom_node.web.health import Pulse

log = structlog.get_logger(__name__)

TICK = timedelta(seconds=0.1)
"""How often the clock looks for studies that time has moved on."""

_SET_BACK = timedelta(seconds=1)  # what is less is the machine keeping its clock right

GAP = timedelta(seconds=3)
"""Without a tick for so long, the workers may not have been able to renew their leases either."""

GRACE = timedelta(seconds=6)
"""What they get to renew them in."""


class Ticker:
    """Moves on what time moves on, and knows when time itself made a leap."""

    def __init__(self, sessions: Sessions, bell: Bell, study: StudySection, clock: Clock, pulse: Pulse) -> None:
        self._sessions = sessions
        self._bell = bell
        self._study = study
        self._clock = clock
        self._pulse = pulse
        self._last: datetime | None = None
        self._was_late = False

    def run(self, stop: threading.Event) -> None:
        """Tick until `stop`; the body of the thread."""
        while not stop.wait(TICK.total_seconds()):
            try:
                self.tick()
            except SQLAlchemyError as error:
                log.warning("ledger_not_ticked", reason=type(error).__name__)  # the next tick repeats it
            except Exception:  # the loop of a service: without it no study would ever be complete
                log.exception("tick_failed")

    def tick(self) -> None:
        """Complete what is quiet, take back what was lost, and ring.

        Raises:
            SQLAlchemyError: the ledger cannot be read or written now.
        """
        now = self._clock()
        self._mend_leaps(now)
        for study_id in completion.tick(self._sessions, self._clock, self._study.quiet, self._study.draft_after):
            self._bell.ring(study_id)
        self._last = now
        self._pulse.beat()

    def _mend_leaps(self, now: datetime) -> None:
        # At the start, and whenever the clock was set back.
        if (self._last is None or now < self._last - _SET_BACK) and (number := future.bring_back(self._sessions, now)):
            log.warning("clock_was_ahead", rows=number)
        # The ledger was away, the machine slept, or its clock was set forward: who is alive must not be taken for
        # lost. Once: where every tick is slow, the dead must still be found.
        is_late = self._last is not None and now - self._last > GAP
        if is_late and not self._was_late and (number := claims.prolong_all(self._sessions, now + GRACE)):
            log.warning("leases_prolonged", leases=number)
        self._was_late = is_late

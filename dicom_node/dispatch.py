"""The bell: a Celery message that calls a worker for a study. Losing one costs seconds, never a study.

The node rings tasks by name and never imports the worker.
"""

import queue
import threading
from datetime import timedelta

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

log = structlog.get_logger(__name__)

TASK = "worker.analyse_study"
"""Name of the worker's task; its one argument is the ledger's id of the study."""

QUEUE = "inference"
"""The queue that workers listen on."""

_CLOSE_DEADLINE = timedelta(seconds=5)


class Bell:
    """Rings from a thread of its own, so that a slow broker never delays who rings."""

    def __init__(self, broker_url: str) -> None:
        """Connect at the first ring to the broker at `broker_url`."""
        self._app = Celery("dicom_node", broker=broker_url, set_as_current=False)
        self._app.conf.update(
            task_serializer="json",
            broker_transport_options={"socket_connect_timeout": 2, "socket_timeout": 5, "max_retries": 0},
            broker_connection_timeout=2,
        )
        self._waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pending: set[int] = set()
        self._is_failing = False
        self._thread = threading.Thread(target=self._run, name="bell", daemon=True)
        self._thread.start()

    def ring(self, study_id: int) -> None:
        """Call a worker for the study soon; many calls at once are one. Never blocks, never raises."""
        with self._lock:
            if study_id in self._pending:
                return
            self._pending.add(study_id)
        self._waiting.put(study_id)

    def close(self) -> None:
        """Send what waits, within a few seconds, and end the thread."""
        self._waiting.put(None)
        self._thread.join(_CLOSE_DEADLINE.total_seconds())
        self._app.close()

    def _run(self) -> None:
        while (study_id := self._waiting.get()) is not None:
            with self._lock:
                self._pending.discard(study_id)  # who rings from now on may know more than this message's reader
            self._send(study_id)

    def _send(self, study_id: int) -> None:
        try:
            self._app.send_task(TASK, args=[study_id], queue=QUEUE, ignore_result=True, retry=False)
        except (OperationalError, OSError) as error:
            if not self._is_failing:
                log.warning("bell_silent", reason=type(error).__name__)  # once, not for each study
            self._is_failing = True
        else:
            self._is_failing = False

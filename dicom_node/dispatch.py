"""The bell: a Celery message that calls a worker for a study. Losing one costs seconds, never a study.

The node rings tasks by name and never imports the worker.
"""

import threading
import time
from datetime import timedelta

import structlog
from celery import Celery
from kombu.connection import Connection
from kombu.exceptions import KombuError
from redis import RedisError

log = structlog.get_logger(__name__)

TASK = "worker.analyse_study"
"""Name of the worker's task; its one argument is the ledger's id of the study."""

QUEUE = "inference"
"""The queue that workers listen on."""

QUEUE_MAX = 1000
"""Calls that may wait: with so many nobody listens, and the clock would fill the broker by ringing again."""

_CLOSE_DEADLINE = timedelta(seconds=5)
_TIMEOUT_SECONDS = 2
_RESTS = 29
"""Times as long as it took to ring, so that ringing takes a thirtieth of a processor at most: a tenth of a second,
mostly."""
_LONGEST_REST = 1.0  # seconds; a broker that does not answer takes longer
_FAILURES = (KombuError, RedisError, OSError)  # what kombu lets through depends on where the line breaks


class Bell:
    """Rings from a thread of its own, so that a slow broker never delays who rings."""

    def __init__(self, broker_url: str) -> None:
        """Connect at the first ring to the broker at `broker_url`."""
        self._app = Celery("dicom_node", broker=broker_url, set_as_current=False)
        self._app.conf.update(
            task_serializer="json",
            broker_transport_options={
                "socket_connect_timeout": _TIMEOUT_SECONDS,
                "socket_timeout": _TIMEOUT_SECONDS,
                "socket_keepalive": True,
            },
        )
        self._line: _Line | None = None
        self._is_failing = False
        self._is_full = False
        """Whether there was no room for all calls at the last ring."""
        self._waiting: dict[int, None] = {}  # in the order of ringing, each study once
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bell", daemon=True)
        self._thread.start()

    def ring(self, study_id: int) -> None:
        """Call a worker for the study soon; many calls at once are one. Never blocks, never raises."""
        with self._changed:
            self._waiting[study_id] = None
            self._changed.notify()

    def close(self) -> None:
        """Send what waits, within a few seconds, and end the thread."""
        self._closing.set()
        with self._changed:
            self._changed.notify()
        self._thread.join(_CLOSE_DEADLINE.total_seconds())

    def _run(self) -> None:
        while study_ids := self._next():
            begun_at = time.monotonic()
            try:
                self._send(study_ids)
            except _FAILURES as error:
                if not self._is_failing:
                    log.warning("bell_silent", reason=type(error).__name__)  # once, not for each study
                self._is_failing = True
            except Exception:  # the loop of a service: without its thread the bell would be silent for ever
                log.exception("bell_failed")
                self._hang_up()
            else:
                self._is_failing = False
            self._rest(min(_RESTS * (time.monotonic() - begun_at), _LONGEST_REST))
        self._hang_up()
        self._app.close()

    def _next(self) -> list[int]:
        """Wait for studies to ring for; none: the bell is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing.is_set())
            study_ids, self._waiting = list(self._waiting), {}
            return study_ids

    def _rest(self, seconds: float) -> None:
        """Gather what is rung for meanwhile: a message for each image, or to be woken by each, is CPU that receiving
        needs."""
        self._closing.wait(seconds)

    def _send(self, study_ids: list[int]) -> None:
        try:
            self._send_on_line(study_ids)
        except _FAILURES:
            self._hang_up()  # it may have been cut while nobody rang: once more, on a new line
            try:
                self._send_on_line(study_ids)
            except _FAILURES:
                self._hang_up()
                raise

    def _send_on_line(self, study_ids: list[int]) -> None:
        if self._line is None:
            self._line = _Line(self._app)
        room = QUEUE_MAX - self._line.num_waiting()
        was_full, self._is_full = self._is_full, room < len(study_ids)
        if self._is_full and not was_full:  # once, not at each ring
            log.warning("bell_not_rung", waiting=QUEUE_MAX - room)
        for study_id in study_ids[: max(room, 0)]:
            self._line.send(study_id)

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()


class _Line:
    """An open connection to the broker."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Connection = app.connection_for_write()
        try:
            self._connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
            self._channel = self._connection.channel()
            self._producer = app.amqp.Producer(self._channel)
        except _FAILURES:
            self.close()
            raise

    def num_waiting(self) -> int:
        """Return how many calls no worker has taken yet."""
        return int(self._channel.queue_declare(queue=QUEUE).message_count)

    def send(self, study_id: int) -> None:
        """Put a call into the queue."""
        self._app.send_task(
            TASK, args=[study_id], queue=QUEUE, ignore_result=True, retry=False, producer=self._producer
        )

    def close(self) -> None:
        """Close the connection; one that is broken already is as good as closed."""
        try:
            self._connection.release()  # type: ignore[no-untyped-call]  # kombu types some of its methods
        except _FAILURES as error:
            log.debug("line_was_broken", reason=type(error).__name__)

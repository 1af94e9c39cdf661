"""What an acceptor counts: instances, their bytes and how long their answers took, and associations."""

import threading
import time
from collections.abc import Callable, Hashable
from enum import StrEnum
from typing import Any, ParamSpec, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.pdu_primitives import A_P_ABORT

from dicom_node.intake import IntakeKind, Received
from dicom_node.scp import Note, Rejection, StoreStatus

P = ParamSpec("P")
Answer = TypeVar("Answer", Dataset, Dataset | None)

ANSWER_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class End(StrEnum):
    """How an association that was accepted ended."""

    RELEASED = "released"
    """In good order."""
    ABORTED = "aborted"
    """By an A-ABORT, the peer's or ours."""
    LOST = "lost"
    """The connection was gone without a word."""
    STALLED = "stalled"
    """The peer stopped in the middle of a PDU."""
    CUT_OFF = "cut_off"
    """The peer sent more, or slower, than it may."""


class AcceptorMetrics:
    """The counts of one process; its threads share them."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Make them, all at 0: a rate of what first appears at 1 would miss it."""
        instances = Counter(
            "echo_node_received_instances",
            "Instances that came by C-STORE and were answered Success, by what became of them",
            ["outcome"],
            registry=registry,
        )
        num_bytes = Counter(
            "echo_node_received_bytes", "Bytes of the data sets of these instances", ["outcome"], registry=registry
        )
        refused = Counter(
            "echo_node_refused_instances",
            "C-STORE requests that were answered otherwise than Success, by status",
            ["status"],
            registry=registry,
        )
        associations = Counter(
            "echo_node_associations", "Requests for an association, by our answer", ["outcome"], registry=registry
        )
        ended = Counter(
            "echo_node_associations_ended", "Associations that were accepted, by their end", ["end"], registry=registry
        )
        self._instances = {kind: instances.labels(kind.value) for kind in IntakeKind}
        self._bytes = {kind: num_bytes.labels(kind.value) for kind in IntakeKind}
        failures = [one for one in StoreStatus if one is not StoreStatus.SUCCESS]
        self._refused = {int(one): refused.labels(f"0x{one:04X}") for one in failures}
        self._rejected = {one: associations.labels(f"rejected_{one.name.lower()}") for one in Rejection}
        self._accepted = associations.labels("accepted")
        self._ended = {end: ended.labels(end.value) for end in End}
        self._seconds = Histogram(
            "echo_node_store_seconds",
            "From the last byte of an instance to the answer to its C-STORE",
            buckets=ANSWER_SECONDS,
            registry=registry,
        )
        self._open: set[Hashable] = set()
        self._lock = threading.Lock()

    def noting(self, note: Note) -> Note:
        """Return `note`, with each instance that is answered Success counted too."""

        def count_and_note(association: Hashable, address: str, received: Received, kind: IntakeKind | None) -> None:
            if kind is not None:
                self._instances[kind].inc()
                self._bytes[kind].inc(len(received.dataset))
            note(association, address, received, kind)

        return count_and_note

    def timing(self, keep: Callable[P, Answer]) -> Callable[P, Answer]:
        """Return what keeps an instance and gives its status (None: Success), with its time and refusals counted."""

        def count_and_keep(*arguments: P.args, **options: P.kwargs) -> Answer:
            begun_at = time.perf_counter()
            answer = keep(*arguments, **options)
            self._seconds.observe(time.perf_counter() - begun_at)
            if answer is not None and answer.Status != StoreStatus.SUCCESS:
                self.refused(answer.Status)
            return answer

        return count_and_keep

    def refused(self, status: int) -> None:
        """Count a C-STORE that was refused."""
        self._refused[status].inc()

    def rejected(self, why: Rejection) -> None:
        """Count an association that was rejected."""
        self._rejected[why].inc()

    @property
    def handlers(self) -> list[tuple[Any, Callable[[evt.Event], None]]]:
        """Return what counts associations."""
        return [
            (evt.EVT_ACCEPTED, self._on_accepted),
            (evt.EVT_RELEASED, lambda event: self.ended(event.assoc, End.RELEASED)),
            (evt.EVT_ACSE_RECV, self._on_acse),
            (evt.EVT_ABORTED, lambda event: self.ended(event.assoc, End.ABORTED)),
        ]

    def ended(self, association: Hashable, end: End) -> None:
        """Count the end of an association; what is told of it first is its end, and of most more than one is told."""
        with self._lock:
            if association not in self._open:
                return
            self._open.remove(association)
        self._ended[end].inc()

    def settle(self, is_running: Callable[[Any], bool]) -> None:
        """Count those that ended without a word of it."""
        with self._lock:
            gone = [association for association in self._open if not is_running(association)]
        for association in gone:
            self.ended(association, End.LOST)

    def _on_acse(self, event: evt.Event) -> None:
        # What pynetdicom tells itself when the connection is gone; it calls that an abort a moment later.
        if isinstance(getattr(event, "primitive", None), A_P_ABORT):
            self.ended(event.assoc, End.LOST)

    def _on_accepted(self, event: evt.Event) -> None:
        with self._lock:
            self._open.add(event.assoc)
        self._accepted.inc()

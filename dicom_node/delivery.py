"""Delivery: each report to each of its peers, until the peer has answered, from the outbox of the ledger.

One thread a peer, so that a dead destination never blocks another. What a failure means follows PS3.4 B.2.3 and
PS3.8 9.3.4: what may pass is tried again, longer and longer apart; what will not is a dead letter.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.audit import Outcome, StudyContent
from dicom_node.clock import Clock
from dicom_node.commitment import Reference
from dicom_node.errors import DeliveryError, ObjectLost, Refused, StoreError, Transient, UnreadableReport
from dicom_node.ledger import outbox
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.outbox import DueDelivery
from dicom_node.ledger.reports import WrittenPicture
from dicom_node.metrics.delivery import DeliveryMetrics
from dicom_node.senders import Send, Sender, patience
from dicom_node.settings import Peer
from dicom_node.store import InstanceStore
from dicom_node.transfers import patient_id_of

log = structlog.get_logger(__name__)

FIRST_WAIT = timedelta(seconds=15)
LONGEST_WAIT = timedelta(minutes=15)
GIVE_UP_AFTER = timedelta(hours=48)
"""A report that could not be delivered for so long is a dead letter."""
GIVE_UP_ATTEMPTS = 40
"""But not before so many attempts: the clock may have been set forward, or the machine have been off, all the while."""
PICTURE_ATTEMPTS = 3
"""A report goes before its pictures once they have held it up so often."""
REFUSALS = 2
"""A refusal counts when it comes this often: peers refuse by mistake while they restart."""

_BATCH = 16
_LEASE = timedelta(seconds=120)
_POLL = timedelta(seconds=0.1)
_PAUSE = timedelta(seconds=2)


def backoff(attempt: int, jitter: float) -> timedelta:
    """Return how long to wait after the `attempt`th failure (from 1); `jitter` in -1..1 spreads it by a fifth."""
    wait: timedelta = min(FIRST_WAIT * int(2 ** min(attempt - 1, 16)), LONGEST_WAIT)
    return wait * (1.0 + 0.2 * jitter)


Tell = Callable[[StudyContent, Outcome], None]


class _AssociationLost(Exception):
    """The association is not to be trusted any more; what was not tried on it gets a new one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deliverer:
    """Delivers to one peer."""

    peer: Peer
    sender: Sender
    sessions: Sessions
    store: InstanceStore
    clock: Clock
    jitter: random.Random = field(default_factory=random.Random)
    held_up: Counter[int] = field(default_factory=Counter)
    """How often a picture held up a delivery, by its id; in memory alone, for another process may count anew."""
    refusals: Counter[int] = field(default_factory=Counter)
    """How often the peer refused a report, by the id of its delivery."""
    tell: Tell = lambda _content, _outcome: None
    """Hears of what the peer has, and of what it will not have."""
    metrics: DeliveryMetrics = field(default_factory=DeliveryMetrics)

    def run(self, stop: threading.Event) -> None:
        """Deliver what is due until `stop`; the body of the peer's thread."""
        while not stop.is_set():
            pause = _POLL
            try:
                self.deliver_due()
            except SQLAlchemyError as error:
                log.warning("outbox_unavailable", peer=self.peer.name, reason=type(error).__name__)
                pause = _PAUSE
            except Exception:  # the loop of a service: what was leased comes back, the other reports go on
                log.exception("delivery_failed", peer=self.peer.name)
                pause = _PAUSE
            stop.wait(pause.total_seconds())

    def deliver_due(self) -> int:
        """Deliver what is due now, over one association; return how many were leased."""
        items = outbox.due(self.sessions, self.peer.name, limit=_BATCH, lease=_LEASE, clock=self.clock)
        if items:
            self._deliver_all(items)
        return len(items)

    def _deliver_all(self, items: Sequence[DueDelivery]) -> None:
        left = list(items)
        try:
            with self.sender.open() as send:
                self._deliver(left.pop(0), send)
                while left:
                    item = left.pop(0)
                    if outbox.renew(self.sessions, item, _LEASE, self.clock):  # those before it may have been slow
                        self._deliver(item, send)
        except _AssociationLost:
            for item in left:
                outbox.release(self.sessions, item)  # not tried: due again, on a new association
        except DeliveryError as error:  # no association: the same answer for all
            for item in left:
                self.refusals[item.delivery_id] += isinstance(error, Refused)
                self._failed(item, error)
        except Exception as error:
            # A mistake of ours. What has its answer keeps it; the others wait longer and longer, and not for ever.
            for item in items:
                self._failed(item, Transient(f"a mistake of the node: {type(error).__name__}"))
            raise

    def _deliver(self, item: DueDelivery, send: Send) -> None:
        """Send the pictures of a report and the report; the report first once they have held it up too often."""
        is_held_up = self.held_up[item.delivery_id] >= PICTURE_ATTEMPTS
        sent: list[Reference] = []
        try:
            without = [] if is_held_up else self._send_pictures(item, send, sent)
            report = self._send(item, item.path, send)
        except Transient as error:
            self._failed(item, error)
            raise _AssociationLost from error
        except DeliveryError as error:
            self.refusals[item.delivery_id] += isinstance(error, Refused)
            self._failed(item, error)
            return
        is_lost = False
        if is_held_up:
            without, is_lost = self._send_late_pictures(item, send, sent)
        self._forget(item)
        ask_for = [*sent, report] if self.peer.storage_commitment else []
        outbox.delivered(self.sessions, item, self.clock, without, ask_for, self.metrics.passed)
        self.metrics.attempted(self.peer.name, "delivered")
        self._tell(item, without, Outcome.SUCCESS)
        log.info("report_delivered", peer=self.peer.name, report=item.sop_instance_uid, attempt=item.attempt,
                 pictures=len(item.pictures) - len(without))  # fmt: skip
        if is_lost:
            raise _AssociationLost

    def _send_pictures(self, item: DueDelivery, send: Send, sent: list[Reference]) -> list[str]:
        """Send what the report refers to, and add it to `sent`; return what the peer will not have, with the reasons.

        Raises:
            Transient: it may have it later; the report waits, but not for ever.
        """
        without = []
        for picture in item.pictures:
            try:
                sent.append(self._send(item, picture.path, send))
            except Transient:
                self.held_up[item.delivery_id] += 1
                raise
            except DeliveryError as error:
                without.append(self._without(item, picture, error))
        return without

    def _send_late_pictures(self, item: DueDelivery, send: Send, sent: list[Reference]) -> tuple[list[str], bool]:
        """Send them after their report, once; return what the peer has not, and whether the association is lost."""
        without = []
        lost: Transient | None = None
        for picture in item.pictures:
            try:
                if lost is not None:
                    raise lost
                sent.append(self._send(item, picture.path, send))
            except DeliveryError as error:
                lost = error if isinstance(error, Transient) else lost
                without.append(self._without(item, picture, error))
        return without, lost is not None

    def _without(self, item: DueDelivery, picture: WrittenPicture, error: DeliveryError) -> str:
        log.warning("picture_not_delivered", peer=self.peer.name, report=item.sop_instance_uid,
                    picture=picture.sop_instance_uid, reason=str(error))  # fmt: skip
        return f"without {picture.kind} {picture.sop_instance_uid}: {error}"

    def _send(self, item: DueDelivery, relative: str, send: Send) -> Reference:
        """Prolong the lease for as long as sending the file may take, and send it; return what the peer then has.

        Raises:
            Transient: the lease is lost, and whoever has it now sends the rest; or the object store does not give the
                file now; or as `send`.
            UnreadableReport: the object store has lost the file; or as `send`.
        """
        try:
            path = self.store.fetch(relative)
        except ObjectLost as error:
            raise UnreadableReport(str(error)) from error
        except StoreError as error:
            raise Transient(str(error)) from error
        if not outbox.renew(self.sessions, item, _LEASE + patience(path), self.clock):
            raise Transient("the lease was lost")
        return send(path)

    def _forget(self, item: DueDelivery) -> None:
        self.held_up.pop(item.delivery_id, None)
        self.refusals.pop(item.delivery_id, None)

    def _failed(self, item: DueDelivery, error: DeliveryError) -> None:
        now = self.clock()
        is_late = now - item.created_at > GIVE_UP_AFTER and item.attempt >= GIVE_UP_ATTEMPTS
        is_refused = isinstance(error, Refused) and self.refusals[item.delivery_id] >= REFUSALS
        if is_late or is_refused or isinstance(error, UnreadableReport):
            self._forget(item)
            if outbox.dead(self.sessions, item, str(error), self.clock):
                self._tell(item, (), Outcome.SERIOUS_FAILURE)
                self.metrics.attempted(self.peer.name, "dead")
            return
        at = self._next(item, error, now)
        if outbox.retry_later(self.sessions, item, str(error), at):
            self.metrics.attempted(self.peer.name, "failed")
            log.warning(
                "report_not_delivered",
                peer=self.peer.name,
                report=item.sop_instance_uid,
                attempt=item.attempt,
                reason=str(error),
                next_attempt_at=at.isoformat(),
            )

    def _tell(self, item: DueDelivery, without: Sequence[str], outcome: Outcome) -> None:
        missing = " ".join(without)
        sent = [picture.sop_class_uid for picture in item.pictures if f"{picture.sop_instance_uid}:" not in missing]
        content = StudyContent(
            study_uid=item.study_instance_uid,
            patient_id=patient_id_of(self.store.path(item.path)),
            num_instances=Counter((*sent, item.sop_class_uid)),
        )
        self.tell(content, outcome)

    def _next(self, item: DueDelivery, error: DeliveryError, now: datetime) -> datetime:
        asked = error.retry_after if isinstance(error, Transient) else None
        return now + (asked or backoff(item.attempt, self.jitter.uniform(-1.0, 1.0)))

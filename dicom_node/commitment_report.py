"""A peer hears what the node commits to on an association of ours, again and again with the waits of `delivery`.

For what could not be told on the association that asked (`commitment_scp`); who holds the lease reports.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import structlog
from pynetdicom import build_role
from pynetdicom.association import Association

from dicom_node import commitment
from dicom_node.clock import Clock
from dicom_node.commitment import WELL_KNOWN_INSTANCE, Status
from dicom_node.custody import Verdict, judge
from dicom_node.delivery import backoff
from dicom_node.errors import DeliveryError, Refused, Transient
from dicom_node.ledger import commitments
from dicom_node.ledger.commitments import DueCommitment
from dicom_node.ledger.engine import Sessions
from dicom_node.senders import LIST_WARNINGS, associate
from dicom_node.services import PLAIN, STORAGE_COMMITMENT
from dicom_node.settings import Node, Peer
from dicom_node.store import InstanceStore

log = structlog.get_logger(__name__)

LEASE = timedelta(minutes=5)
"""Time to look at the instances of one request and to tell the peer."""

_CLASSES: Mapping[str, Sequence[str]] = {STORAGE_COMMITMENT: PLAIN}
_BATCH = 16
_RENEW = timedelta(seconds=30)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reporter:
    """Reports to one peer on associations of our own."""

    node: Node
    peer: Peer
    sessions: Sessions
    store: InstanceStore
    clock: Clock
    jitter: random.Random = field(default_factory=random.Random)

    def report_due(self) -> int:
        """Report what the peer is to hear now, over one association; return how much was leased."""
        items = commitments.due(self.sessions, self.peer.ae_title, limit=_BATCH, lease=LEASE, clock=self.clock)
        if items:
            self._report_all(items)
        return len(items)

    def _report_all(self, items: Sequence[DueCommitment]) -> None:
        # Before there is an association: to read many images takes longer than a peer waits on an idle one.
        left = [(item, self._judge(item)) for item in items]
        try:
            association = self._associate()
            try:
                while left:
                    item, verdict = left[0]
                    if commitments.renew(self.sessions, item, LEASE, self.clock):
                        self._report(association, item, verdict)
                    left.pop(0)
            except BaseException:
                association.abort()
                raise
            association.release()
        except DeliveryError as error:  # no association, or none any more: the same for all that are left
            for item, _ in left:
                self._later(item, str(error))

    def _judge(self, item: DueCommitment) -> Verdict:
        renewed_at = self.clock()

        def renew() -> None:
            nonlocal renewed_at
            if self.clock() - renewed_at > _RENEW:
                commitments.renew(self.sessions, item, LEASE, self.clock)
                renewed_at = self.clock()

        return judge(self.sessions, self.store, item.request, self.clock, renew)

    def _associate(self) -> Association:
        """Associate as the SCP that we are (PS3.4 J.4), or in the default role with a peer that takes no other."""
        try:
            as_scp = build_role(STORAGE_COMMITMENT, scp_role=True)
            return associate(self.node, self.peer, _CLASSES, roles=[as_scp])
        except Refused:
            return associate(self.node, self.peer, _CLASSES)

    def _report(self, association: Association, item: DueCommitment, verdict: Verdict) -> None:
        try:
            answer, _ = association.send_n_event_report(
                commitment.event_information(verdict.report),
                int(verdict.report.event_type),
                STORAGE_COMMITMENT,
                WELL_KNOWN_INSTANCE,
                commitment.message_id(),
            )
        except RuntimeError as error:  # the association is gone
            raise Transient(f"N-EVENT-REPORT could not be sent: {type(error).__name__}") from error
        if "Status" not in answer:
            raise Transient("no answer to the N-EVENT-REPORT (aborted, lost or timed out)")
        refusal = settle(self.sessions, item, verdict, int(answer.Status), self.clock)
        if refusal is not None:
            self._later(item, refusal)

    def _later(self, item: DueCommitment, error: str) -> None:
        at = self.clock() + backoff(item.attempt, self.jitter.uniform(-1.0, 1.0))
        if commitments.retry_later(self.sessions, item, error, at):
            log.warning("commitment_waits", peer=self.peer.name, transaction=item.request.transaction_uid,
                        attempt=item.attempt, reason=error, next_attempt_at=at.isoformat())  # fmt: skip


def settle(sessions: Sessions, item: DueCommitment, verdict: Verdict, status: int, clock: Clock) -> str | None:
    """Record that the peer has heard the report; return why not."""
    if status != Status.SUCCESS and status not in LIST_WARNINGS:
        return f"the peer answered the report with status 0x{status:04X}"
    commitments.reported(sessions, item, verdict.report, verdict.study_ids, clock)
    log.info("commitment_reported", transaction=item.request.transaction_uid, peer=item.calling_ae,
             committed=len(verdict.report.committed), failed=len(verdict.report.failed))  # fmt: skip
    return None

"""Peers commit to the node's reports: Storage Commitment Push Model SCU (PS3.4 J.3).

After a delivery the peer is asked for the report and its pictures, as they were sent. It answers on the same
association, for which a few seconds are waited, or on one of its own, which an acceptor takes (`on_n_event_report`);
that may be days later. Whoever hears the answer writes it into the ledger.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import structlog
from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from sqlalchemy.exc import SQLAlchemyError

from dicom_node import commitment
from dicom_node.clock import Clock
from dicom_node.commitment import REQUEST_COMMITMENT, WELL_KNOWN_INSTANCE, EventType, Status
from dicom_node.delivery import REFUSALS, backoff
from dicom_node.dimse_turns import Conversation, Message, action
from dicom_node.errors import DeliveryError, MalformedCommitment, Refused, Transient
from dicom_node.identity import UID
from dicom_node.ledger import pledges
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.pledges import DuePledge
from dicom_node.senders import associate
from dicom_node.services import PLAIN, STORAGE_COMMITMENT
from dicom_node.settings import Node, Peer

log = structlog.get_logger(__name__)

ASK_AGAIN_AFTER = timedelta(hours=1)
"""A peer that took a request and did not answer it is asked again."""

_LEASE = timedelta(minutes=5)
_BATCH = 16
_ANSWER_SECONDS = 30.0
_REPORT_SECONDS = 5.0
_REFUSED = frozenset({0x0118, 0x0122, 0x0124, 0x0211})  # PS3.7 annex C: it does not commit to anything


def on_n_event_report(event: evt.Event, sessions: Sessions, clock: Clock) -> tuple[Dataset, None]:
    """Answer a peer's report on an association of its own; Success means that it is in the ledger."""
    asked = event.request
    assert isinstance(asked, N_EVENT_REPORT)
    content = b"" if asked.EventInformation is None else asked.EventInformation.getvalue()
    with structlog.contextvars.bound_contextvars(peer=str(event.assoc.requestor.ae_title).strip()):
        status, _ = take_report(sessions, clock, asked.EventTypeID, content, str(event.context.transfer_syntax))
    return status, None


def take_report(
    sessions: Sessions, clock: Clock, event_type: object, content: bytes, syntax: str
) -> tuple[Dataset, UID | None]:
    """Record a peer's report; return the status for it, and the transaction that it settles."""
    transaction = None
    try:
        status, comment, transaction = _record(sessions, clock, event_type, content, syntax)
    except MalformedCommitment as error:
        status, comment = Status.INVALID_ARGUMENT, str(error)
    except SQLAlchemyError as error:
        log.error("ledger_unavailable", reason=type(error).__name__)
        status, comment = Status.RESOURCE_LIMITATION, "the ledger cannot commit, report again later"
    except Exception:  # the DIMSE handler is a border: the peer gets a status, the log the traceback
        log.exception("commitment_answer_failed")
        status, comment = Status.PROCESSING_FAILURE, "internal error, see the node's log"
    if status is not Status.SUCCESS:
        log.warning("commitment_answer_refused", status=f"0x{status:04X}", reason=comment)
    return commitment.answer(status, comment), transaction


def _record(
    sessions: Sessions, clock: Clock, event_type: object, content: bytes, syntax: str
) -> tuple[Status, str, UID | None]:
    if event_type not in tuple(EventType):
        return Status.NO_SUCH_EVENT, "the Event Type IDs are 1 and 2", None
    report = commitment.read_report(content, syntax)
    if event_type == EventType.FAILURES_EXIST and not report.failed:
        return Status.INVALID_ARGUMENT, "failures exist, but Failed SOP Sequence is empty", None
    if not pledges.answered(sessions, report, clock):
        return Status.INVALID_ARGUMENT, "this Transaction UID was not asked for", None
    log.info("commitment_answered", transaction=report.transaction_uid, failed=len(report.failed))
    return Status.SUCCESS, "", report.transaction_uid


@dataclass(frozen=True, kw_only=True, slots=True)
class Requester:
    """Asks one peer."""

    node: Node
    peer: Peer
    sessions: Sessions
    clock: Clock
    jitter: random.Random = field(default_factory=random.Random)
    report_seconds: float = _REPORT_SECONDS
    """How long the association stays open for the peer's report."""
    refusals: Counter[int] = field(default_factory=Counter)
    """How often the peer refused to be asked, by the id of the pledge; in memory alone."""

    def ask_due(self) -> int:
        """Ask for what is due now, over one association; return how much that was."""
        items = pledges.due(self.sessions, self.peer.name, limit=_BATCH, lease=_LEASE, clock=self.clock)
        if items:
            self._ask_all(items)
        return len(items)

    def _ask_all(self, items: Sequence[DuePledge]) -> None:
        left = list(items)
        conversation = Conversation()
        handlers = [(evt.EVT_DIMSE_RECV, conversation.heard)]
        try:
            association = associate(self.node, self.peer, {STORAGE_COMMITMENT: PLAIN}, handlers=handlers)
            try:
                self._converse(association, conversation, left)
            except BaseException:
                association.abort()
                raise
            association.release()
        except DeliveryError as error:  # no association, or none any more: the same for all that are left
            for item in left:
                self._later(item, error)

    def _converse(self, association: Association, conversation: Conversation, left: list[DuePledge]) -> None:
        """Ask for all that is left, and take what reports come in the meantime, and shortly after."""
        open_transactions = {item.request.transaction_uid for item in left}
        answer = partial(self._answer, association, conversation, open_transactions)
        while left:
            item = left[0]
            try:
                self._ask(association, conversation, item, answer)
            except Refused as error:
                self._later(item, error)
                open_transactions.discard(item.request.transaction_uid)
            left.pop(0)
        while open_transactions:
            message = conversation.next(association, self.report_seconds)
            if message is None:
                return
            answer(message)

    def _ask(
        self,
        association: Association,
        conversation: Conversation,
        item: DuePledge,
        answer: partial[None],
    ) -> None:
        (context, *_) = association.accepted_contexts
        assert context.context_id is not None
        content = commitment.encode_request(item.request, str(context.transfer_syntax[0]))
        message_id = commitment.message_id()
        request = action(STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE, REQUEST_COMMITMENT, message_id, content)
        conversation.ask(association, request, context.context_id)
        while True:
            message = conversation.next(association, _ANSWER_SECONDS)
            if message is None:
                raise Transient("no answer to the N-ACTION (aborted, lost or timed out)")
            if message.is_request:
                answer(message)
            elif message.command.get("MessageIDBeingRespondedTo") == message_id:
                break
        status = int(message.command.get("Status", Status.PROCESSING_FAILURE))
        if status in _REFUSED:
            raise Refused(f"N-ACTION status 0x{status:04X}")
        if status != Status.SUCCESS:
            self._later(item, Transient(f"N-ACTION status 0x{status:04X}"))
            return
        self.refusals.pop(item.pledge_id, None)
        pledges.requested(self.sessions, item, self.clock() + ASK_AGAIN_AFTER)
        log.info("commitment_asked_for", peer=self.peer.name, transaction=item.request.transaction_uid,
                 attempt=item.attempt, instances=len(item.request.references))  # fmt: skip

    def _answer(
        self, association: Association, conversation: Conversation, open_transactions: set[UID], message: Message
    ) -> None:
        """Record a report that came on this association, and answer it."""
        if not message.is_request:
            return
        syntaxes = {one.context_id: str(one.transfer_syntax[0]) for one in association.accepted_contexts}
        event_type = message.command.get("EventTypeID")
        syntax = syntaxes[message.context_id]
        status, transaction = take_report(self.sessions, self.clock, event_type, message.content, syntax)
        conversation.answer(association, message, status)
        if transaction is not None:
            open_transactions.discard(transaction)

    def _later(self, item: DuePledge, error: DeliveryError) -> None:
        self.refusals[item.pledge_id] += isinstance(error, Refused)
        if self.refusals[item.pledge_id] >= REFUSALS:
            del self.refusals[item.pledge_id]
            pledges.refuse(self.sessions, item, str(error), self.clock)
            return
        at = self.clock() + backoff(item.attempt, self.jitter.uniform(-1.0, 1.0))
        if pledges.ask_later(self.sessions, item, str(error), at):
            log.warning("commitment_not_asked_for", peer=self.peer.name, attempt=item.attempt, reason=str(error),
                        next_attempt_at=at.isoformat())  # fmt: skip

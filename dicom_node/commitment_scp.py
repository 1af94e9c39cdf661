"""The node commits to what peers sent it: Storage Commitment Push Model SCP (PS3.4 J.3).

A request is safe in the ledger before it is answered, so that it outlives a restart. Then each instance is looked at
(`custody`), and the peer hears of it: on the association on which it asked, if that is open still, else on a new one,
again and again (`commitment_report`). The first is done in the acceptor, the second in the process with the clock; who
holds the lease reports.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakKeyDictionary, WeakSet

import structlog
from pydicom import Dataset
from pydicom.uid import UID as PydicomUID
from pynetdicom import build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.presentation import PresentationContext
from sqlalchemy.exc import SQLAlchemyError

from dicom_node import commitment
from dicom_node.clock import Clock
from dicom_node.commitment import (
    MAX_INSTANCES,
    REQUEST_COMMITMENT,
    WELL_KNOWN_INSTANCE,
    Status,
)
from dicom_node.commitment_report import LEASE, settle
from dicom_node.custody import judge
from dicom_node.dimse_turns import Besides, event_report
from dicom_node.errors import MalformedCommitment
from dicom_node.ledger import commitments, manifests
from dicom_node.ledger.commitments import DueCommitment
from dicom_node.ledger.engine import Sessions
from dicom_node.services import STORAGE_COMMITMENT
from dicom_node.settings import Peer
from dicom_node.store import InstanceStore

log = structlog.get_logger(__name__)

_GRACE_SECONDS = 0.5  # most peers release after the answer: a report that crosses the release is lost
_ANSWER_SECONDS = 10.0
_THREADS = 4
_NO_PEER = "no peer with this AE title and a host is in the configuration: name it under [[peers]] and restart the node"

_REQUESTS: Mapping[str, tuple[type[N_ACTION] | type[N_EVENT_REPORT], str, str, str, Status]] = {
    "N_ACTION_RQ": (
        N_ACTION, "RequestedSOPClassUID", "RequestedSOPInstanceUID", "ActionTypeID", Status.NO_SUCH_ACTION,
    ),
    "N_EVENT_REPORT_RQ": (
        N_EVENT_REPORT, "AffectedSOPClassUID", "AffectedSOPInstanceUID", "EventTypeID", Status.NO_SUCH_EVENT,
    ),
}  # fmt: skip


class Committer:
    """Answers requests for commitment, and reports on the association that asked while it is open."""

    def __init__(
        self, *, commits: bool, peers: Sequence[Peer], sessions: Sessions, store: InstanceStore, clock: Clock
    ) -> None:
        """Commit, or (False) only note what is named."""
        self._commits = commits
        self._reachable = {peer.ae_title for peer in peers if peer.host}
        self._sessions = sessions
        self._store = store
        self._clock = clock
        self._besides = Besides()
        self._answering: WeakKeyDictionary[Association, DueCommitment] = WeakKeyDictionary()
        self._mute: WeakSet[Association] = WeakSet()
        self._threads = ThreadPoolExecutor(_THREADS, "commitment")

    @property
    def handlers(self) -> list[evt.EventHandlerType]:
        """Return what a server binds."""
        return [
            (evt.EVT_REQUESTED, grant_role),
            (evt.EVT_N_ACTION, self.on_n_action),
            (evt.EVT_DIMSE_SENT, self.on_sent),
            (evt.EVT_DIMSE_RECV, self._besides.heard),
            (evt.EVT_DIMSE_RECV, on_message),
        ]

    def close(self) -> None:
        """End after the reports that are on their way; the others are due when their leases end."""
        self._threads.shutdown(cancel_futures=True)

    def on_n_action(self, event: evt.Event) -> tuple[Dataset, None]:
        """Answer a request for commitment; Success means that it will be reported on."""
        calling = str(event.assoc.requestor.ae_title).strip()
        with structlog.contextvars.bound_contextvars(peer=calling):
            try:
                status, comment = self._take(event, calling)
            except MalformedCommitment as error:
                status, comment = Status.INVALID_ARGUMENT, str(error)
            except SQLAlchemyError as error:
                log.error("ledger_unavailable", reason=type(error).__name__)
                status, comment = Status.RESOURCE_LIMITATION, "the ledger cannot commit, ask again later"
            except Exception:  # the DIMSE handler is a border: the peer gets a status, the log the traceback
                log.exception("commitment_request_failed")
                status, comment = Status.PROCESSING_FAILURE, "internal error, see the node's log"
            if status is not Status.SUCCESS:
                log.warning("commitment_refused", status=f"0x{status:04X}", reason=comment)
        return commitment.answer(status, comment), None

    def on_sent(self, event: evt.Event) -> None:
        """Report on a request once its answer is on its way."""
        if type(event.message).__name__ != "N_ACTION_RSP":
            return
        item = self._answering.pop(event.assoc, None)
        if item is not None:
            context_id, syntax = _context(event.assoc)
            self._threads.submit(self._report_besides, event.assoc, item, context_id, syntax)

    def _take(self, event: evt.Event, calling: str) -> tuple[Status, str]:
        asked = event.request
        assert isinstance(asked, N_ACTION)
        if asked.ActionTypeID != REQUEST_COMMITMENT:
            return Status.NO_SUCH_ACTION, "the one Action Type ID is 1"
        content = b"" if asked.ActionInformation is None else asked.ActionInformation.getvalue()
        request = commitment.read_request(content, str(event.context.transfer_syntax))
        if len(request.references) > MAX_INSTANCES:
            return Status.RESOURCE_LIMITATION, f"more than {MAX_INSTANCES} instances in one request"
        now = self._clock()
        with self._sessions.begin() as session:
            manifests.record(session, calling, [one.sop_instance_uid for one in request.references], now)
            if not self._commits:
                return Status.NOT_AUTHORIZED, "this node is no archive: node.storage_commitment is off"
            item = commitments.record(session, calling, request, LEASE, now)
        if item is None:
            return Status.INVALID_ARGUMENT, "Transaction UID is in use for other instances"
        log.info("commitment_requested", transaction=request.transaction_uid, instances=len(request.references))
        self._besides.take_turns(event.assoc)
        self._answering[event.assoc] = item
        return Status.SUCCESS, ""

    def _report_besides(self, association: Association, item: DueCommitment, context_id: int, syntax: str) -> None:
        """Report on the association that asked, or leave it to a new one."""
        with structlog.contextvars.bound_contextvars(peer=item.calling_ae):
            try:
                association.join(_GRACE_SECONDS)
                error = self._try_besides(association, item, context_id, syntax)
                if error is not None:
                    self._leave(item, error)
            except SQLAlchemyError as failure:  # the lease ends, and the clock reports
                log.warning("commitment_waits", reason=type(failure).__name__)
            except Exception:  # the body of a thread: the lease ends, and the clock reports
                log.exception("commitment_report_failed")

    def _try_besides(self, association: Association, item: DueCommitment, context_id: int, syntax: str) -> str | None:
        """Return why the peer has not heard the report; None: it has, or another reports it."""
        if not association.is_established or association in self._mute:
            return "the association on which it was asked for has ended, or does not take it"
        if not commitments.renew(self._sessions, item, LEASE, self._clock):
            return None
        verdict = judge(self._sessions, self._store, item.request, self._clock)
        if not association.is_established:
            return "the association on which it was asked for has ended"
        request = event_report(STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE, verdict.report.event_type,
                               commitment.message_id(), commitment.encode_report(verdict.report, syntax))  # fmt: skip
        status = self._besides.ask(association, request, context_id, _ANSWER_SECONDS)
        if status is None:
            self._mute.add(association)
            return "no answer to the report on the association on which it was asked for"
        return settle(self._sessions, item, verdict, status, self._clock)

    def _leave(self, item: DueCommitment, error: str) -> None:
        if item.calling_ae not in self._reachable:
            error = f"{error}; {_NO_PEER}"
            log.error("commitment_not_reported", transaction=item.request.transaction_uid, reason=error)
        commitments.retry_later(self._sessions, item, error, self._clock())


def grant_role(event: evt.Event) -> None:
    """Grant the role of SCP to a peer that wants it for its reports.

    pynetdicom takes it, but does not say so in the answer when any storage class is accepted.
    """
    proposed = event.assoc.requestor.role_selection.get(PydicomUID(STORAGE_COMMITMENT))
    if proposed is not None and (proposed.scu_role or proposed.scp_role):
        granted = build_role(STORAGE_COMMITMENT, bool(proposed.scu_role), bool(proposed.scp_role))
        event.assoc.acceptor.add_negotiation_item(granted)


def on_message(event: evt.Event) -> None:
    """Answer a request that pynetdicom would drop in silence, or for which it would abort the association."""
    message = event.message
    known = _REQUESTS.get(type(message).__name__)
    contexts = [one.context_id for one in _contexts(event.assoc)]
    if known is None or "MessageID" not in message.command_set or message.context_id not in contexts:
        return
    make, sop_class, instance, type_id, no_such_type = known
    command = message.command_set
    if command.get(sop_class) != STORAGE_COMMITMENT:
        status, comment = Status.NO_SUCH_CLASS, f"the SOP class of this context is {STORAGE_COMMITMENT}"
    elif command.get(instance) != WELL_KNOWN_INSTANCE:
        status, comment = Status.NO_SUCH_INSTANCE, f"the one instance is {WELL_KNOWN_INSTANCE}"
    elif not isinstance(command.get(type_id), int):
        status, comment = no_such_type, f"{type_id} is missing"
    else:
        return
    for keyword in (sop_class, instance, type_id):
        if keyword in command:
            del command[keyword]  # then it is no valid request, and is left alone
    response = make()
    response.MessageIDBeingRespondedTo = command.MessageID
    response.Status = int(status)
    response.ErrorComment = comment  # type: ignore[assignment]  # pynetdicom declares it without its type
    assert message.context_id is not None
    event.assoc.dimse.send_msg(response, message.context_id)
    log.warning("commitment_refused", status=f"0x{status:04X}", reason=comment)


def _context(association: Association) -> tuple[int, str]:
    context = _contexts(association)[0]
    assert context.context_id is not None
    return context.context_id, str(context.transfer_syntax[0])


def _contexts(association: Association) -> list[PresentationContext]:
    return [one for one in association.accepted_contexts if str(one.abstract_syntax) == STORAGE_COMMITMENT]

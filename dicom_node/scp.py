"""The Storage and Verification SCP: who may associate, and what each C-STORE is answered. No policy, disk or SQL here.

Statuses: PS3.4 B.2.3; the reason stands in Error Comment (0000,0902).
"""

import ipaddress
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

import structlog
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID as PydicomUID
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_STORE

from dicom_node import wire
from dicom_node.errors import InvalidAETitle, InvalidUID, LedgerUnavailable, StoreError, UidConflict
from dicom_node.identity import UID, AETitle, parse_ae_title, parse_uid
from dicom_node.intake import IntakeOutcome, Received
from dicom_node.settings import Node, Peer
from dicom_node.wire import DamagedDataSet

log = structlog.get_logger(__name__)

IMPLEMENTATION_CLASS_UID = "2.25.133571563240921863148936447402863210981"
IMPLEMENTATION_VERSION = "ECHO_AI_NODE"

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"  # PS3.7 A.2.1

_COMMENT_MAX = 64  # PS3.7 table C-1, LO
_PRIORITIES = (0, 1, 2)  # PS3.7 table E.1-1
_COMMAND_UIDS = ("AffectedSOPClassUID", "AffectedSOPInstanceUID")
_IDENTITY = {
    wire.SOP_INSTANCE: "SOP Instance UID",
    wire.SOP_CLASS: "SOP Class UID",
    wire.STUDY: "Study Instance UID",
    wire.SERIES: "Series Instance UID",
}


class StoreStatus(IntEnum):
    """Answers to a C-STORE."""

    SUCCESS = 0x0000
    """The instance is safe."""
    OUT_OF_RESOURCES = 0xA700
    """It could not be kept now; send it again."""
    MISMATCH = 0xA900
    """The data set is another instance than the command says."""
    CANNOT_UNDERSTAND = 0xC000
    """It is no whole data set."""
    MISSING_UID = 0xC001
    """It does not say which instance of which study it is."""
    UID_REUSED = 0xC010
    """Its SOP Instance UID is known under another study."""


class Rejection(Enum):
    """Answers to an association that is not accepted: result, source, reason (PS3.8 table 9-21)."""

    APPLICATION_CONTEXT = (1, 1, 2)
    CALLING_AE = (1, 1, 3)
    CALLED_AE = (1, 1, 7)
    CONGESTION = (2, 3, 1)
    LOCAL_LIMIT = (2, 3, 2)


Receive = Callable[[Received], IntakeOutcome]
"""Keeps an instance, or raises an IntakeError."""

Quarantine = Callable[[bytes, bytes], object]
"""Keeps what was refused, for a person to look at: Part 10 header, data set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Doorkeeper:
    """Decides who may associate."""

    node: Node
    peers: Sequence[Peer]
    has_room: Callable[[], bool]
    """Whether the disk has its reserve."""
    take_seat: Callable[[Hashable], bool]
    """Whether the association got one of node.max_associations."""

    def judge(self, called: str, calling: str, address: str, association: Hashable) -> Rejection | None:
        """Return why an association is rejected, or None."""
        if called != self.node.ae_title:
            return Rejection.CALLED_AE
        if self.node.require_known_peer and not self._is_known(calling, address):
            return Rejection.CALLING_AE
        if not self.has_room():
            return Rejection.CONGESTION
        return None if self.take_seat(association) else Rejection.LOCAL_LIMIT

    def _is_known(self, calling: str, address: str) -> bool:
        caller = ipaddress.ip_address(address)
        if isinstance(caller, ipaddress.IPv6Address) and caller.ipv4_mapped is not None:  # of a socket for both
            caller = caller.ipv4_mapped
        return any(
            peer.ae_title == calling and (not peer.addresses or any(caller in network for network in peer.addresses))
            for peer in self.peers
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """An answer other than Success."""

    status: StoreStatus
    comment: str
    offending: int | None = None
    """Tag of the data element that is wrong."""


def on_requested(event: evt.Event, doorkeeper: Doorkeeper) -> None:
    """Reject an association that is not allowed, before anything is negotiated."""
    try:
        _admit(event, doorkeeper)
    except Exception:
        # pynetdicom goes on after an exception here: nobody may come in because of our mistake.
        log.exception("admission_failed")
        event.assoc.acse.send_abort(0x00)
        event.assoc.kill()


def _admit(event: evt.Event, doorkeeper: Doorkeeper) -> None:
    request = event.assoc.requestor.primitive
    assert request is not None  # this event comes with it
    called, calling = _ae(request.called_ae_title), _ae(request.calling_ae_title)
    address = event.assoc.requestor.address
    if request.application_context_name != APPLICATION_CONTEXT:
        rejection: Rejection | None = Rejection.APPLICATION_CONTEXT
    else:
        rejection = doorkeeper.judge(called or "", calling or "", address, event.assoc)
    if rejection is None:
        return
    log.warning("association_rejected", calling=calling, called=called, address=address, why=rejection.name.lower())
    event.assoc.acse.send_reject(*rejection.value)
    event.assoc.kill()


def on_accepted(event: evt.Event) -> None:
    """Tell the log which presentation contexts a peer wanted in vain: a cart may give up the study for one of them."""
    refused = [str(context.abstract_syntax) for context in event.assoc.rejected_contexts]
    if refused:
        calling = _ae(event.assoc.requestor.ae_title)
        num_accepted = len(event.assoc.accepted_contexts)
        log.warning("contexts_refused", calling=calling, accepted=num_accepted, refused=refused)


def on_c_echo(_event: evt.Event) -> int:
    """Answer a C-ECHO."""
    return StoreStatus.SUCCESS


def on_c_store(event: evt.Event, receive: Receive, quarantine: Quarantine) -> Dataset:
    """Answer one C-STORE request; Success means that the instance is safely kept."""
    calling = _ae(event.assoc.requestor.ae_title) or ""
    with structlog.contextvars.bound_contextvars(peer=calling):
        try:
            refusal = _store(event, calling, receive, quarantine)
        except Exception:
            # The DIMSE handler is a border: the peer gets a status, the log the traceback.
            log.exception("store_failed")
            refusal = Refusal(status=StoreStatus.OUT_OF_RESOURCES, comment="internal error, see the node's log")
    return _answer(refusal)


def on_dimse_message(event: evt.Event) -> None:
    """Answer a C-STORE request that pynetdicom drops in silence, or for which it aborts the whole association."""
    message = event.message
    if type(message).__name__ != "C_STORE_RQ" or "MessageID" not in message.command_set:
        return
    if message.command_set.get("Priority") not in _PRIORITIES:
        message.command_set.Priority = 0  # nothing depends on it
    reason = _flaw(message.command_set)
    if reason is None:
        return
    response = C_STORE()
    response.MessageIDBeingRespondedTo = message.command_set.MessageID
    response.Status = int(StoreStatus.CANNOT_UNDERSTAND)
    response.ErrorComment = reason  # type: ignore[assignment]  # pynetdicom declares it without its type
    for keyword in _COMMAND_UIDS:
        uid = _uid(message.command_set.get(keyword))
        if uid is not None:
            setattr(response, keyword, uid)
        elif keyword in message.command_set:
            del message.command_set[keyword]  # pynetdicom ends the association for some; without it, it goes on
    assert message.context_id is not None
    event.assoc.dimse.send_msg(response, message.context_id)
    log.warning("instance_refused", status=f"0x{StoreStatus.CANNOT_UNDERSTAND:04X}", reason=reason)


def _flaw(command: Dataset) -> str | None:
    for keyword in _COMMAND_UIDS:
        if _uid(command.get(keyword)) is None:
            return f"{keyword} of the command is missing or no UID"
    return None


def _store(event: evt.Event, calling: str, receive: Receive, quarantine: Quarantine) -> Refusal | None:
    request = event.request
    assert isinstance(request, C_STORE)
    assert request.DataSet is not None  # pynetdicom takes none for an empty one
    dataset = request.DataSet.getvalue()
    syntax = str(event.context.transfer_syntax)
    meta = part10_header(str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID), syntax, calling)
    read = _read(dataset, syntax, request, calling, meta)
    if isinstance(read, Refusal):
        log.warning("instance_refused", status=f"0x{read.status:04X}", reason=read.comment, bytes=len(dataset))
        if dataset:
            _set_aside(quarantine, meta, dataset)
        return read
    try:
        receive(read)
    except UidConflict:
        return Refusal(status=StoreStatus.UID_REUSED, comment="SOP Instance UID is known under another study")
    except StoreError as error:
        log.error("store_refused", reason=str(error), instance=read.sop_instance_uid)
        return Refusal(status=StoreStatus.OUT_OF_RESOURCES, comment="out of space or disk failure, send again later")
    except LedgerUnavailable as error:
        log.error("ledger_unavailable", reason=str(error), instance=read.sop_instance_uid)
        return Refusal(status=StoreStatus.OUT_OF_RESOURCES, comment="the ledger cannot commit, send again later")
    return None


def _set_aside(quarantine: Quarantine, meta: bytes, dataset: bytes) -> None:
    try:
        quarantine(meta, dataset)
    except StoreError as error:
        log.warning("quarantine_failed", reason=str(error))


def _read(dataset: bytes, syntax: str, request: C_STORE, calling: str, meta: bytes) -> Received | Refusal:
    if not dataset:
        return Refusal(status=StoreStatus.CANNOT_UNDERSTAND, comment="no data set")
    try:
        found = wire.walk(dataset, syntax)
    except DamagedDataSet as error:
        return Refusal(status=StoreStatus.CANNOT_UNDERSTAND, comment=str(error))
    uids: dict[int, UID] = {}
    for tag, name in _IDENTITY.items():
        uid = _uid(found.get(tag))
        if uid is None:
            return Refusal(status=StoreStatus.MISSING_UID, comment=f"{name} is missing or no UID", offending=tag)
        uids[tag] = uid
    commanded = {wire.SOP_INSTANCE: request.AffectedSOPInstanceUID, wire.SOP_CLASS: request.AffectedSOPClassUID}
    for tag, value in commanded.items():
        if uids[tag] != _uid(value):
            comment = f"{_IDENTITY[tag]} differs from the command's"
            return Refusal(status=StoreStatus.MISMATCH, comment=comment, offending=tag)
    return Received(
        study_uid=uids[wire.STUDY],
        series_uid=uids[wire.SERIES],
        sop_instance_uid=uids[wire.SOP_INSTANCE],
        sop_class_uid=uids[wire.SOP_CLASS],
        transfer_syntax_uid=parse_uid(syntax),
        calling_ae=calling,
        num_frames=_number(found.get(wire.NUM_FRAMES)),
        meta=meta,
        dataset=dataset,
    )


def part10_header(sop_class: str, sop_instance: str, transfer_syntax: str, calling: str) -> bytes:
    """Return preamble, prefix and file meta information for a data set (PS3.10 section 7.1)."""
    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0  # the writer counts
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = PydicomUID(sop_class)
    meta.MediaStorageSOPInstanceUID = PydicomUID(sop_instance)
    meta.TransferSyntaxUID = PydicomUID(transfer_syntax)
    meta.ImplementationClassUID = PydicomUID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION
    if calling:
        meta.SourceApplicationEntityTitle = calling
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, meta, enforce_standard=False)
    return b"\x00" * 128 + b"DICM" + buffer.getvalue()


def _answer(refusal: Refusal | None) -> Dataset:
    status = Dataset()
    status.Status = int(StoreStatus.SUCCESS if refusal is None else refusal.status)
    if refusal is not None:
        status.ErrorComment = refusal.comment[:_COMMENT_MAX]
        if refusal.offending is not None:
            status.OffendingElement = [refusal.offending]
    return status


def _ae(value: object) -> AETitle | None:
    try:
        return parse_ae_title(value)
    except InvalidAETitle:
        return None


def _uid(value: object) -> UID | None:
    try:
        return parse_uid(value)
    except InvalidUID:  # its message holds the value, which may be anything: it is not logged
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None

"""The Storage and Verification SCP: who may associate, and what each C-STORE is answered. No policy, disk or SQL here.

Statuses: PS3.4 B.2.3; the reason stands in Error Comment (0000,0902).
"""

import ipaddress
from collections.abc import Callable, Sequence
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
from dicom_node.identity import AETitle, parse_ae_title, parse_uid
from dicom_node.intake import IntakeOutcome, Received
from dicom_node.settings import Node, Peer
from dicom_node.wire import DamagedDataSet

log = structlog.get_logger(__name__)

IMPLEMENTATION_CLASS_UID = "2.25.133571563240921863148936447402863210981"
IMPLEMENTATION_VERSION = "ECHO_AI_NODE"

_COMMENT_MAX = 64  # PS3.7 table C-1, LO


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
    PROCESSING_FAILURE = 0x0110
    """A mistake of this node; the log says which."""


class Rejection(Enum):
    """Answers to an association that is not accepted: result, source, reason (PS3.8 table 9-21)."""

    CALLING_AE = (1, 1, 3)
    CALLED_AE = (1, 1, 7)
    CONGESTION = (2, 3, 1)


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

    def judge(self, called: str, calling: str, address: str) -> Rejection | None:
        """Return why an association is rejected, or None."""
        if called != self.node.ae_title:
            return Rejection.CALLED_AE
        if self.node.require_known_peer and not self._is_known(calling, address):
            return Rejection.CALLING_AE
        return None if self.has_room() else Rejection.CONGESTION

    def _is_known(self, calling: str, address: str) -> bool:
        caller = ipaddress.ip_address(address)
        return any(
            peer.ae_title == calling and (not peer.addresses or any(caller in network for network in peer.addresses))
            for peer in self.peers
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """An answer other than Success."""

    status: StoreStatus
    comment: str


def on_requested(event: evt.Event, doorkeeper: Doorkeeper) -> None:
    """Reject an association that is not allowed, before anything is negotiated."""
    request = event.assoc.requestor.primitive
    assert request is not None  # this event comes with it
    called, calling = _ae(request.called_ae_title), _ae(request.calling_ae_title)
    address = event.assoc.requestor.address
    rejection = doorkeeper.judge(called or "", calling or "", address)
    if rejection is None:
        return
    log.warning("association_rejected", calling=calling, called=called, address=address, why=rejection.name.lower())
    event.assoc.acse.send_reject(*rejection.value)
    event.assoc.kill()


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
            refusal = Refusal(status=StoreStatus.PROCESSING_FAILURE, comment="internal error, see the node's log")
    return _answer(refusal)


def on_dimse_message(event: evt.Event) -> None:
    """Answer a C-STORE request without a data set, which pynetdicom drops in silence."""
    message = event.message
    if type(message).__name__ != "C_STORE_RQ" or message.command_set.CommandDataSetType != 0x0101:
        return
    response = C_STORE()
    response.MessageIDBeingRespondedTo = message.command_set.MessageID
    response.AffectedSOPClassUID = message.command_set.get("AffectedSOPClassUID")
    response.AffectedSOPInstanceUID = message.command_set.get("AffectedSOPInstanceUID")
    response.Status = int(StoreStatus.CANNOT_UNDERSTAND)
    response.ErrorComment = "no data set"  # type: ignore[assignment]  # pynetdicom declares it without its type
    assert message.context_id is not None
    event.assoc.dimse.send_msg(response, message.context_id)
    log.warning("instance_refused", status="0xC000", reason="no data set")


def _store(event: evt.Event, calling: str, receive: Receive, quarantine: Quarantine) -> Refusal | None:
    request = event.request
    assert isinstance(request, C_STORE)
    assert request.DataSet is not None  # without one the handler is not called
    dataset = request.DataSet.getvalue()
    syntax = str(event.context.transfer_syntax)
    meta = part10_header(str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID), syntax, calling)
    read = _read(dataset, syntax, request, calling, meta)
    if isinstance(read, Refusal):
        log.warning("instance_refused", status=f"0x{read.status:04X}", reason=read.comment, bytes=len(dataset))
        try:
            quarantine(meta, dataset)
        except StoreError as error:
            log.warning("quarantine_failed", reason=str(error))
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


def _read(dataset: bytes, syntax: str, request: C_STORE, calling: str, meta: bytes) -> Received | Refusal:
    try:
        found = wire.walk(dataset, syntax)
    except DamagedDataSet as error:
        return Refusal(status=StoreStatus.CANNOT_UNDERSTAND, comment=str(error))
    try:
        instance = parse_uid(found.get(wire.SOP_INSTANCE, ""))
        sop_class = parse_uid(found.get(wire.SOP_CLASS, ""))
        study, series = parse_uid(found.get(wire.STUDY, "")), parse_uid(found.get(wire.SERIES, ""))
    except InvalidUID as error:
        return Refusal(status=StoreStatus.MISSING_UID, comment=f"SOP, Study or Series UID: {error}")
    if (instance, sop_class) != (_plain(request.AffectedSOPInstanceUID), _plain(request.AffectedSOPClassUID)):
        return Refusal(status=StoreStatus.MISMATCH, comment="SOP Class or Instance UID differs from the command's")
    return Received(
        study_uid=study,
        series_uid=series,
        sop_instance_uid=instance,
        sop_class_uid=sop_class,
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
    return status


def _ae(value: object) -> AETitle | None:
    try:
        return parse_ae_title(value)
    except InvalidAETitle:
        return None


def _plain(uid: object) -> str:
    return str(uid or "").rstrip("\0 ")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None

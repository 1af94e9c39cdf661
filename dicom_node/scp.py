"""The Storage and Verification SCP: who may associate, and what each C-STORE is answered. No policy, disk or SQL here.

Statuses: PS3.4 B.2.3; the reason stands in Error Comment (0000,0902).
"""

import ipaddress
import struct
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import partial

import structlog
from pydicom import Dataset
from pydicom.charset import convert_encodings, decode_bytes
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

from dicom_node import tls, wire
from dicom_node.audit import Application, Audit, peer_refused, unaudited
from dicom_node.audit_trail import this_application
from dicom_node.errors import InvalidAETitle, InvalidUID, LedgerUnavailable, OtherStudy, StoreError, UidConflict
from dicom_node.identity import UID, AETitle, parse_ae_title, parse_uid
from dicom_node.intake import IntakeKind, IntakeOutcome, Received
from dicom_node.seats import Full
from dicom_node.settings import Node, Peer
from dicom_node.store_requests import StoreRequest
from dicom_node.wire import DamagedDataSet

log = structlog.get_logger(__name__)

IMPLEMENTATION_CLASS_UID = "2.25.133571563240921863148936447402863210981"
IMPLEMENTATION_VERSION = "ECHO_AI_NODE"

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"  # PS3.7 A.2.1

_META_VERSION = struct.pack("<HH2sxxL", 0x0002, 0x0001, b"OB", 2) + b"\x00\x01"  # PS3.10 table 7.1-1
_INTEGER_MAX = 12  # characters, PS3.5 table 6.2-1, IS
_COMMENT_MAX = 64  # PS3.7 table C-1, LO
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
    NOT_ASKED_FOR = 0x0124
    """It came in answer to a C-GET of another study (PS3.7 C.5.10: not authorized)."""
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


_STRANGERS = {
    Rejection.CALLING_AE: "association rejected: this AE title is not known, or not from this address",
    Rejection.CALLED_AE: "association rejected: it asked for another AE title than the node's",
}
"""Rejections that are a matter of who calls, and what the audit trail says of them."""

Receive = Callable[[Received], IntakeOutcome]
"""Keeps an instance, or raises an IntakeError."""

Quarantine = Callable[[bytes, bytes | bytearray], object]
"""Keeps what was refused, for a person to look at: Part 10 header, data set."""


Note = Callable[[Hashable, str, Received, IntakeKind | None], None]
"""Counts an instance for the audit trail: association, address, instance, what became of it (None: not kept)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """One instance as a peer sent it, with what the peer says that it is."""

    sop_class: object
    sop_instance: object
    transfer_syntax: str
    sender: str
    """AE title."""
    dataset: bytes | bytearray


@dataclass(frozen=True, kw_only=True, slots=True)
class Doorkeeper:
    """Decides who may associate."""

    node: Node
    peers: Sequence[Peer]
    has_room: Callable[[], bool]
    """Whether the disk has its reserve."""
    take_seat: Callable[[Hashable, str], Full | None]
    """Gives an association of a calling AE title its seat, or says which are all taken."""
    audit: Audit = unaudited
    """Hears of those who are not who may come in."""
    count: Callable[[Rejection], None] = lambda _why: None
    """Counts who was rejected."""

    def judge(
        self, called: str, calling: str, address: str, association: Hashable, certificate: str = ""
    ) -> Rejection | None:
        """Return why an association is rejected, or None; `certificate` is the SHA-256 of the one that was shown."""
        if called != self.node.ae_title:
            return Rejection.CALLED_AE
        if not self._may_call(calling, address, certificate):
            return Rejection.CALLING_AE
        if not self.has_room():
            return Rejection.CONGESTION
        full = self.take_seat(association, calling)
        if full is None:
            return None
        log.warning("no_seat_left", calling=calling, limit=full.value)
        return Rejection.LOCAL_LIMIT

    def _may_call(self, calling: str, address: str, certificate: str) -> bool:
        namesakes = [peer for peer in self.peers if peer.ae_title == calling]
        if not self.node.require_known_peer and not any(peer.certificate_sha256 for peer in namesakes):
            return True
        caller = ipaddress.ip_address(address)
        if isinstance(caller, ipaddress.IPv6Address) and caller.ipv4_mapped is not None:  # of a socket for both
            caller = caller.ipv4_mapped
        return any(
            (not peer.addresses or any(caller in network for network in peer.addresses))
            and (not peer.certificate_sha256 or peer.certificate_sha256 == certificate)
            for peer in namesakes
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
        connection = event.assoc.dul.socket
        certificate = tls.sha256(connection.socket) if connection is not None else ""
        rejection = doorkeeper.judge(called or "", calling or "", address, event.assoc, certificate)
    if rejection is None:
        return
    log.warning("association_rejected", calling=calling, called=called, address=address, why=rejection.name.lower())
    doorkeeper.count(rejection)
    if rejection in _STRANGERS:
        caller = Application(ae_title=calling or "", address=address)
        doorkeeper.audit(peer_refused(this_application(doorkeeper.node), caller, _STRANGERS[rejection]))
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


def on_c_store(event: evt.Event, receive: Receive, quarantine: Quarantine, note: Note) -> Dataset:
    """Answer one C-STORE request; Success means that the instance is safely kept."""
    noted = noting(receive, partial(note, event.assoc, event.assoc.requestor.address))
    return answer(take(event, _ae(event.assoc.requestor.ae_title) or "", noted, quarantine))


def on_store(
    association: Association,
    request: StoreRequest,
    transfer_syntax: str,
    dataset: bytes | bytearray,
    receive: Receive,
    quarantine: Quarantine,
    note: Note,
) -> Dataset | None:
    """Return the status of one C-STORE request, None: Success, which means that the instance is safely kept."""
    sent = Sent(
        sop_class=request.sop_class,
        sop_instance=request.sop_instance,
        transfer_syntax=transfer_syntax,
        sender=_ae(association.requestor.ae_title) or "",
        dataset=dataset,
    )
    noted = noting(receive, partial(note, association, association.requestor.address))
    refusal = _guarded(sent.sender, lambda: keep(sent, noted, quarantine))
    return None if refusal is None else answer(refusal)


def noting(receive: Receive, note: Callable[[Received, IntakeKind | None], None]) -> Receive:
    """Return `receive`, of which `note` hears what became of each instance; None: it was not kept."""

    def receive_and_note(received: Received) -> IntakeOutcome:
        kind = None
        try:
            outcome = receive(received)
            kind = outcome.kind
            return outcome
        finally:
            note(received, kind)

    return receive_and_note


def take(event: evt.Event, sender: str, receive: Receive, quarantine: Quarantine) -> Refusal | None:
    """Keep what a C-STORE request brings; None: it is safely kept."""
    return _guarded(sender, lambda: keep(_sent(event, sender), receive, quarantine))


def _guarded(sender: str, work: Callable[[], Refusal | None]) -> Refusal | None:
    with structlog.contextvars.bound_contextvars(peer=sender):
        try:
            return work()
        except Exception:
            # The DIMSE handler is a border: the peer gets a status, the log the traceback.
            log.exception("store_failed")
            return Refusal(status=StoreStatus.OUT_OF_RESOURCES, comment="internal error, see the node's log")


def _sent(event: evt.Event, sender: str) -> Sent:
    request = event.request
    assert isinstance(request, C_STORE)
    assert request.DataSet is not None  # pynetdicom takes none for an empty one
    return Sent(
        sop_class=request.AffectedSOPClassUID,
        sop_instance=request.AffectedSOPInstanceUID,
        transfer_syntax=str(event.context.transfer_syntax),
        sender=sender,
        dataset=request.DataSet.getvalue(),
    )


def keep(sent: Sent, receive: Receive, quarantine: Quarantine) -> Refusal | None:
    """Keep an instance, by whatever road it came; None: it is safely kept.

    What is no whole data set, or another instance than its sender says, is refused and set aside.
    """
    meta = part10_header(str(sent.sop_class), str(sent.sop_instance), sent.transfer_syntax, sent.sender)
    read = _read(sent, meta)
    if isinstance(read, Refusal):
        log.warning("instance_refused", status=f"0x{read.status:04X}", reason=read.comment, bytes=len(sent.dataset))
        if sent.dataset:
            _set_aside(quarantine, meta, sent.dataset)
        return read
    try:
        receive(read)
    except OtherStudy as error:
        log.warning("instance_refused", status=f"0x{StoreStatus.NOT_ASKED_FOR:04X}", reason=str(error))
        return Refusal(status=StoreStatus.NOT_ASKED_FOR, comment=str(error))
    except UidConflict:
        return Refusal(status=StoreStatus.UID_REUSED, comment="SOP Instance UID is known under another study")
    except StoreError as error:
        log.error("store_refused", reason=str(error), instance=read.sop_instance_uid)
        return Refusal(status=StoreStatus.OUT_OF_RESOURCES, comment="out of space or disk failure, send again later")
    except LedgerUnavailable as error:
        log.error("ledger_unavailable", reason=str(error), instance=read.sop_instance_uid)
        return Refusal(status=StoreStatus.OUT_OF_RESOURCES, comment="the ledger cannot commit, send again later")
    return None


def _set_aside(quarantine: Quarantine, meta: bytes, dataset: bytes | bytearray) -> None:
    try:
        quarantine(meta, dataset)
    except StoreError as error:
        log.warning("quarantine_failed", reason=str(error))


def _read(sent: Sent, meta: bytes) -> Received | Refusal:
    if not sent.dataset:
        return Refusal(status=StoreStatus.CANNOT_UNDERSTAND, comment="no data set")
    transfer_syntax = _uid(sent.transfer_syntax)
    if transfer_syntax is None:
        return Refusal(status=StoreStatus.CANNOT_UNDERSTAND, comment="the transfer syntax is no UID")
    try:
        found = wire.walk(sent.dataset, sent.transfer_syntax)
    except DamagedDataSet as error:
        return Refusal(status=StoreStatus.CANNOT_UNDERSTAND, comment=str(error))
    uids: dict[int, UID] = {}
    for tag, name in _IDENTITY.items():
        uid = _uid(found.get(tag))
        if uid is None:
            return Refusal(status=StoreStatus.MISSING_UID, comment=f"{name} is missing or no UID", offending=tag)
        uids[tag] = uid
    commanded = {wire.SOP_INSTANCE: sent.sop_instance, wire.SOP_CLASS: sent.sop_class}
    for tag, value in commanded.items():
        if uids[tag] != _uid(value):
            comment = f"{_IDENTITY[tag]} differs from the command's"
            return Refusal(status=StoreStatus.MISMATCH, comment=comment, offending=tag)
    return Received(
        study_uid=uids[wire.STUDY],
        series_uid=uids[wire.SERIES],
        sop_instance_uid=uids[wire.SOP_INSTANCE],
        sop_class_uid=uids[wire.SOP_CLASS],
        transfer_syntax_uid=transfer_syntax,
        calling_ae=sent.sender,
        num_frames=_number(found.get(wire.NUM_FRAMES)),
        meta=meta,
        dataset=sent.dataset,
        patient_id=_patient_id(found),
    )


def part10_header(sop_class: str, sop_instance: str, transfer_syntax: str, calling: str) -> bytes:
    """Return preamble, prefix and file meta information for a data set (PS3.10 section 7.1)."""
    meta = b"".join(
        (
            _META_VERSION,
            _meta(0x0002, b"UI", sop_class),
            _meta(0x0003, b"UI", sop_instance),
            _meta(0x0010, b"UI", transfer_syntax),
            _meta(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _meta(0x0013, b"SH", IMPLEMENTATION_VERSION),
            _meta(0x0016, b"AE", calling) if calling else b"",
        )
    )
    return b"\x00" * 128 + b"DICM" + struct.pack("<HH2sHL", 0x0002, 0x0000, b"UL", 4, len(meta)) + meta


def _meta(element: int, vr: bytes, value: str) -> bytes:
    """Return an element of group 2, of even length (PS3.5 section 6.2)."""
    encoded = value.encode("latin-1", "replace")
    if len(encoded) % 2:
        encoded += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 0x0002, element, vr, len(encoded)) + encoded


def answer(refusal: Refusal | None) -> Dataset:
    """Return the status of a C-STORE; None: Success."""
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


def _patient_id(found: Mapping[int, str]) -> str:
    value = found.get(wire.PATIENT_ID, "").encode("ascii", "surrogateescape")
    character_sets = found.get(wire.CHARACTER_SET, "").encode("ascii", "surrogateescape").decode("ascii", "replace")
    try:
        return decode_bytes(value, convert_encodings(character_sets.split("\\")), set()).strip()
    except (LookupError, ValueError):  # a character set that is no name of one, such as one with a null in it
        return value.decode("ascii", "replace").strip()


def _number(text: str | None) -> int | None:
    """Return an integer string as a number; None where it is none of 32 bits (PS3.5 table 6.2-1, IS)."""
    if text is None or not text.isdecimal() or len(text) > _INTEGER_MAX:
        return None
    number = int(text)
    return number if number < 1 << 31 else None

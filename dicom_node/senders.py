"""How a report goes out: C-STORE over an association, or STOW-RS over HTTP; both end in the same three outcomes.

Returned: the peer has it. Transient: try again. Refused: it will not take it. The bytes go out as they are stored,
unless the peer takes another transfer syntax only. What a peer says in its own words is not repeated: it may name
the patient.
"""

import email.utils
import io
import socket
import ssl
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

import httpx
import structlog
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.uid import UID as PydicomUID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dsutils import split_dataset
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation

from dicom_node.commitment import Reference
from dicom_node.errors import ClassRefused, ConfigurationError, InvalidUID, Refused, Transient, UnreadableReport
from dicom_node.identity import UID, parse_uid
from dicom_node.report.header import DAMAGE
from dicom_node.report.sr_class import WRITTEN_AS, candidates, in_class, uid_in_class
from dicom_node.services import SENT
from dicom_node.settings import Node, Peer
from dicom_node.tls import client_context

log = structlog.get_logger(__name__)

Send = Callable[[Path], Reference]
"""Sends one Part 10 file, a report in the first class that the peer takes, and returns what the peer then has; raises
Transient, Refused or UnreadableReport."""

_TIMEOUT = timedelta(seconds=30)
_STALL = timedelta(seconds=30)  # without a byte taken
_CONNECT_TIMEOUT = timedelta(seconds=10)
_LONGEST_RETRY_AFTER = timedelta(hours=1)
_SLOWEST_LINE = 100_000  # bytes a second: a picture has so much longer than a report

MAX_PLAIN_BYTES = 128 << 20
"""Of the pixels of a picture for a peer that takes no JPEG: they lie in memory."""

_META = ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
_CLASS_NOT_SUPPORTED = 0x0122
_NOT_AUTHORIZED = 0x0124
_HAS_IT = 0x0111  # duplicate SOP instance
LIST_WARNINGS = frozenset({0x0107, 0x0116})
"""Attribute list error, attribute value out of range: warnings (PS3.7 C.4)."""
_GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_TRANSIENT_HTTP = frozenset({408, 425, 429})


class Sender(Protocol):
    """A way to one peer."""

    def open(self) -> AbstractContextManager[Send]:
        """Give a channel for several files; entering it raises Transient or Refused."""
        ...


class StoreSender:
    """C-STORE SCU (PS3.4 annex B)."""

    def __init__(self, node: Node, peer: Peer) -> None:
        """Send as `node` to the peer's host and port."""
        self._node = node
        self._peer = peer
        self._classes = candidates(peer.sr_class)

    @contextmanager
    def open(self) -> Iterator[Send]:
        """Give an association; released at the end, aborted after an error."""
        association = self._associate()
        try:
            yield lambda path: self._store(association, path)
        except BaseException:
            association.abort()
            raise
        association.release()

    def _store(self, association: Association, path: Path) -> Reference:
        association.dimse_timeout = patience(path).total_seconds()
        return _in_some_class(path, self._classes, partial(_c_store, association))

    def _associate(self) -> Association:
        try:
            return associate(self._node, self._peer, SENT)
        except ConfigurationError as error:  # a certificate is being exchanged for a new one
            raise Transient(str(error)) from error


class StowSender:
    """STOW-RS (PS3.18 section 10.5)."""

    def __init__(self, peer: Peer) -> None:
        """Send to the peer's DICOMweb service."""
        self._url = f"{peer.stow_url.rstrip('/')}/studies"
        self._classes = candidates(peer.sr_class)

    @contextmanager
    def open(self) -> Iterator[Send]:
        """Give an HTTP client."""
        with httpx.Client(timeout=_TIMEOUT.total_seconds()) as client:
            yield lambda path: _in_some_class(path, self._classes, partial(self._stow, client))

    def _stow(self, client: httpx.Client, path: Path | Dataset) -> None:
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
        }
        with _damage():
            content = path.read_bytes() if isinstance(path, Path) else _part10(path)
        body = head + content + f"\r\n--{boundary}--\r\n".encode()
        try:
            answer = client.post(self._url, content=body, headers=headers)
        except httpx.TransportError as error:
            raise Transient(f"STOW-RS: {type(error).__name__}") from error
        _judge_http(answer, self._url)


def patience(path: Path) -> timedelta:
    """Return how long sending a file and the answer to it may take; of a file that is not there, as of a small one."""
    try:
        num_bytes = path.stat().st_size
    except OSError:
        num_bytes = 0
    # Plain pixels are up to twenty times as large; the largest that are sent bound what they take.
    return _TIMEOUT + timedelta(seconds=min(20 * num_bytes, MAX_PLAIN_BYTES) / _SLOWEST_LINE)


def associate(
    node: Node,
    peer: Peer,
    classes: Mapping[str, Sequence[str]],
    *,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[evt.EventHandlerType] = (),
    max_pdu: int | None = None,
) -> Association:
    """Return an established association with the peer.

    Args:
        node: who calls: its AE title, and its certificate where the peer speaks TLS.
        peer: who is called.
        classes: SOP class -> transfer syntaxes that are proposed for it.
        roles: proposed for classes in which we are not the user (PS3.7 D.3.3.4).
        handlers: of what happens on it.
        max_pdu: longest PDU that the peer may send, in bytes; None: pynetdicom's.

    Raises:
        Transient: it does not answer, or rejects for now.
        Refused: it rejects for good.
        ConfigurationError: a file of [node.tls] cannot be used.
    """
    ae = AE(ae_title=node.ae_title)
    ae.acse_timeout = ae.dimse_timeout = _TIMEOUT.total_seconds()
    # Later than those: whoever aborts second ends pynetdicom's thread with a traceback, and leaves the socket open.
    ae.network_timeout = 2 * _TIMEOUT.total_seconds()
    ae.connection_timeout = _CONNECT_TIMEOUT.total_seconds()
    for uid, syntaxes in classes.items():
        # One syntax a context: the peer says which it takes, not which of them it likes best.
        for syntax in syntaxes:
            ae.add_requested_context(uid, syntax)
    context = client_context(node.tls, peer) if peer.tls else None
    if max_pdu is not None:
        ae.maximum_pdu_size = max_pdu
    association = ae.associate(
        peer.host,
        peer.port,
        ae_title=peer.ae_title,
        tls_args=(context, peer.host) if context is not None else None,
        ext_neg=[*roles],
        evt_handlers=[(evt.EVT_CONN_OPEN, _prepare_socket), *handlers],
    )
    if association.is_established:
        return association
    answer = association.acceptor.primitive
    if association.is_rejected and answer is not None:
        reason = f"association rejected: {answer.result_str}, {answer.source_str}, {answer.reason_str}"
        raise (Refused if answer.result == 1 else Transient)(reason)
    if association.rejected_contexts:
        raise Refused("the peer accepted none of the presentation contexts")
    if context is not None and context.failure is not None:
        raise Transient(f"no TLS with {peer.host}:{peer.port}: {context.failure}")
    raise Transient(f"no association with {peer.host}:{peer.port} (refused, aborted or no answer)")


def _prepare_socket(event: evt.Event) -> None:
    wrapped = event.assoc.dul.socket
    if wrapped is not None and wrapped.socket is not None:
        # Nagle's algorithm and delayed acknowledgements would cost 40 ms for each small message.
        wrapped.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that stops reading in the middle of a picture would hold pynetdicom's thread, which has no time-out of
        # its own for sending, and with it every report to that peer.
        wrapped.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _STALL.seconds, 0))
        if isinstance(wrapped.socket, ssl.SSLSocket):
            # Python waits for the socket itself there, without end, in a read too: what pynetdicom takes for the begin
            # of an answer may be a message of TLS alone, such as a session ticket.
            wrapped.socket.settimeout(_STALL.total_seconds())


def _in_some_class(path: Path, classes: Sequence[str], send_one: Callable[[Path | Dataset], None]) -> Reference:
    """Send a file, a report in the first of the classes that the peer takes; return what was sent."""
    sop_class, sop_uid = _identity(path)
    if sop_class != WRITTEN_AS:
        send_one(path)
        return Reference(sop_class, sop_uid)
    refusal = None
    for one in classes:
        try:
            send_one(path if one == WRITTEN_AS else in_class(_read(path), one))
        except ClassRefused as error:
            refusal = error
        else:
            return Reference(UID(one), uid_in_class(sop_uid, one))
    assert refusal is not None  # there are classes
    raise refusal


def _c_store(association: Association, document: Path | Dataset) -> None:
    _config.STORE_SEND_CHUNKED_DATASET = True  # pynetdicom's way to send a file as it is
    sent = _in_accepted_syntax(association, document)
    with _damage():
        try:
            answer = association.send_c_store(sent)
        except RuntimeError as error:  # the association is gone
            raise Transient(f"C-STORE could not be sent: {type(error).__name__}") from error
    if "Status" not in answer:
        raise Transient("no answer to the C-STORE (aborted, lost or timed out)")
    _judge_status(int(answer.Status), f"C-STORE status 0x{answer.Status:04X}", str(association.acceptor.ae_title))


def _in_accepted_syntax(association: Association, document: Path | Dataset) -> Path | Dataset:
    """Return the file itself, to be sent byte for byte, or its data set for a peer that takes another syntax only."""
    meta = _meta(document) if isinstance(document, Path) else document.file_meta
    sop_class, syntax = PydicomUID(str(meta.MediaStorageSOPClassUID)), PydicomUID(str(meta.TransferSyntaxUID))
    contexts = [one for one in association.accepted_contexts if one.abstract_syntax == sop_class]
    if not contexts:
        raise ClassRefused(f"the peer accepted no presentation context for {sop_class.name}")
    if syntax in [one.transfer_syntax[0] for one in contexts]:
        return document
    dataset = _read(document) if isinstance(document, Path) else document
    with _damage():
        if syntax.is_compressed:
            _decompress(dataset)
    return dataset


def _decompress(image: Dataset) -> None:
    """Make the pixels of a picture plain; it stays the instance that its report refers to.

    Pillow, for GDCM ends the process on some damaged JPEG.
    """
    num_bytes = int(image.Rows) * int(image.Columns) * 3 * int(image.get("NumberOfFrames") or 1)
    if num_bytes > MAX_PLAIN_BYTES:
        raise ClassRefused(f"the peer takes no JPEG, and {num_bytes} bytes of plain pixels are too many to send")
    image.decompress(decoding_plugin="pillow", generate_instance_uid=False)


def _meta(path: Path) -> Dataset:
    with _damage():
        meta: Dataset = split_dataset(path)[0]
        if any(keyword not in meta for keyword in _META):
            raise UnreadableReport("the file of the report is damaged: group 2 is not whole")
        return meta


def _identity(path: Path) -> Reference:
    meta = _meta(path)
    with _damage():
        return Reference(parse_uid(meta.MediaStorageSOPClassUID), parse_uid(meta.MediaStorageSOPInstanceUID))


def _read(path: Path) -> Dataset:
    with _damage():
        return dcmread(path)


def _part10(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


@contextmanager
def _damage() -> Iterator[None]:
    """Raise what a file of ours does that is gone, damaged, or cannot be read now as what a delivery can act on."""
    try:
        yield
    except OSError as error:
        # pydicom's own, on bytes that end too early, has no number.
        kind = UnreadableReport if isinstance(error, _GONE) or error.errno is None else Transient
        raise kind(f"the file of the report cannot be read: {error.strerror or 'it ends too early'}") from error
    except (*DAMAGE, InvalidUID, RuntimeError) as error:
        raise UnreadableReport(f"the file of the report is damaged: {type(error).__name__}") from error


def _judge_status(status: int, text: str, peer: str) -> None:
    """Sort a C-STORE status (PS3.4 table B.2-1, PS3.7 annex C)."""
    if status in (0x0000, _HAS_IT):
        return
    if status in LIST_WARNINGS or status >> 12 == 0xB:
        log.warning("taken_with_warning", peer=peer, reason=text)
        return
    if status == _CLASS_NOT_SUPPORTED:
        raise ClassRefused(text)
    if status >> 8 == 0xA9 or status >> 12 == 0xC or status == _NOT_AUTHORIZED:
        raise Refused(text)
    raise Transient(text)


def _judge_http(answer: httpx.Response, url: str) -> None:
    """Sort a STOW-RS answer (PS3.18 table 10.5.3-1)."""
    text = f"STOW-RS status {answer.status_code}"
    failed = _failure_reason(answer)
    if failed is not None:
        _judge_status(failed, f"{text}, failure reason 0x{failed:04X}", url)
    elif answer.status_code in (200, 202):
        return
    elif answer.status_code >= 500 or answer.status_code in _TRANSIENT_HTTP:
        raise Transient(text, retry_after=_retry_after(answer))
    else:
        raise Refused(text)


def _failure_reason(answer: httpx.Response) -> int | None:
    """Return Failure Reason (0008,1197) of the first instance in Failed SOP Sequence (0008,1198), if there is one."""
    if answer.status_code not in (200, 202, 409):
        return None
    try:
        failed = answer.json()["00081198"]["Value"]
        return int(failed[0]["00081197"]["Value"][0])
    except (ValueError, KeyError, IndexError, TypeError):
        return None


def _retry_after(answer: httpx.Response) -> timedelta | None:
    """Return Retry-After, in seconds or as a date (RFC 9110 section 10.2.3), within reason."""
    value = answer.headers.get("Retry-After", "")
    if value.isdecimal():
        wait = timedelta(seconds=min(int(value), _LONGEST_RETRY_AFTER.total_seconds()))
    else:
        try:
            wait = email.utils.parsedate_to_datetime(value) - datetime.now(UTC)
        except (ValueError, TypeError):  # none, or nonsense
            return None
    return min(max(wait, timedelta(0)), _LONGEST_RETRY_AFTER)

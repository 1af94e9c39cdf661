"""How a report goes out: C-STORE over an association, or STOW-RS over HTTP; both end in the same three outcomes.

Returned: the peer has it. Transient: try again. Refused: it will not take it.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import httpx
import structlog
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association

from dicom_node.errors import Refused, Transient
from dicom_node.settings import Peer

log = structlog.get_logger(__name__)

Send = Callable[[Path], None]
"""Sends one file; raises Transient or Refused."""

_TIMEOUT = timedelta(seconds=30)
_PERMANENT = frozenset({0x0122, 0x0124})  # SOP class not supported, not authorized
_TRANSIENT_HTTP = frozenset({408, 425, 429})


class Sender(Protocol):
    """A way to one peer."""

    def open(self) -> AbstractContextManager[Send]:
        """Give a channel for several files; entering it raises Transient or Refused."""
        ...


class StoreSender:
    """C-STORE SCU (PS3.4 annex B)."""

    def __init__(self, calling_ae: str, peer: Peer) -> None:
        """Send as `calling_ae` to the peer's host and port."""
        self._calling_ae = calling_ae
        self._peer = peer

    @contextmanager
    def open(self) -> Iterator[Send]:
        """Give an association; released at the end, aborted after an error."""
        association = self._associate()
        try:
            yield lambda path: _c_store(association, path)
        except BaseException:
            association.abort()
            raise
        association.release()

    def _associate(self) -> Association:
        association = associate(self._calling_ae, self._peer, [ComprehensiveSRStorage])
        if not association.accepted_contexts:
            association.abort()
            raise Refused("the peer accepts no Comprehensive SR (presentation context rejected)")
        return association


class StowSender:
    """STOW-RS (PS3.18 section 10.5)."""

    def __init__(self, url: str) -> None:
        """Send to the DICOMweb service at `url`."""
        self._url = f"{url.rstrip('/')}/studies"

    @contextmanager
    def open(self) -> Iterator[Send]:
        """Give an HTTP client."""
        with httpx.Client(timeout=_TIMEOUT.total_seconds()) as client:
            yield lambda path: self._stow(client, path)

    def _stow(self, client: httpx.Client, path: Path) -> None:
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
        }
        try:
            body = head + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
            answer = client.post(self._url, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise Transient(f"STOW-RS: {type(error).__name__}") from error
        except OSError as error:
            raise Refused("the report's file cannot be read") from error
        _judge_http(answer)


def associate(calling_ae: str, peer: Peer, classes: list[str]) -> Association:
    """Return an established association with the peer.

    Raises:
        Transient: it does not answer, or rejects for now.
        Refused: it rejects for good.
    """
    ae = AE(ae_title=calling_ae)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = _TIMEOUT.total_seconds()
    ae.connection_timeout = 10
    for uid in classes:
        ae.add_requested_context(uid, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    association = ae.associate(peer.host, peer.port, ae_title=peer.ae_title)
    if association.is_established:
        return association
    if association.is_rejected:
        answer = association.acceptor.primitive
        assert answer is not None
        reason = f"association rejected: {answer.result_str}, {answer.source_str}, {answer.reason_str}"
        raise (Refused if answer.result == 1 else Transient)(reason)
    if not association.accepted_contexts and association.rejected_contexts:
        raise Refused("the peer accepts no presentation context of ours")
    raise Transient(f"no association with {peer.host}:{peer.port} (refused, aborted or no answer)")


def _c_store(association: Association, path: Path) -> None:
    try:
        report = dcmread(path)
    except (OSError, InvalidDicomError) as error:
        raise Refused("the report's file cannot be read") from error
    try:
        answer = association.send_c_store(report)
    except (RuntimeError, ValueError) as error:  # the association is gone, or took no context for this class
        raise Transient(f"C-STORE could not be sent: {type(error).__name__}") from error
    if "Status" not in answer:
        raise Transient("no answer to the C-STORE (aborted, lost or timed out)")
    _judge_status(int(answer.Status), str(answer.get("ErrorComment", "")))


def _judge_status(status: int, comment: str) -> None:
    """Sort a C-STORE status (PS3.4 table B.2-1, PS3.7 annex C)."""
    if status in (0x0000, 0x0111) or status >> 12 == 0xB:  # 0x0111: it has it already
        return
    text = f"C-STORE status 0x{status:04X}{f': {comment}' if comment else ''}"
    if status >> 8 == 0xA9 or status >> 12 == 0xC or status in _PERMANENT:
        raise Refused(text)
    raise Transient(text)


def _judge_http(answer: httpx.Response) -> None:
    """Sort a STOW-RS answer (PS3.18 table 10.5.3-1)."""
    if answer.status_code == 200:
        return
    text = f"STOW-RS status {answer.status_code}"
    if answer.status_code in (202, 409):
        failed = _failure_reason(answer)
        if failed is None and answer.status_code == 202:
            return
        if failed is not None:
            _judge_status(failed, text)
            return
        raise Refused(text)
    if answer.status_code >= 500 or answer.status_code in _TRANSIENT_HTTP:
        raise Transient(text, retry_after=_retry_after(answer))
    raise Refused(text)


def _failure_reason(answer: httpx.Response) -> int | None:
    """Return Failure Reason (0008,1197) of the first instance in Failed SOP Sequence (0008,1198), if there is one."""
    try:
        failed = answer.json()["00081198"]["Value"]
        return int(failed[0]["00081197"]["Value"][0])
    except (ValueError, KeyError, IndexError, TypeError):
        return None


def _retry_after(answer: httpx.Response) -> timedelta | None:
    value = answer.headers.get("Retry-After", "")
    return timedelta(seconds=min(int(value), 3600)) if value.isdecimal() else None

"""The upper layer of an association that the node accepted, without pynetdicom's polling; its state machine stays.

pynetdicom 3.0.4 makes several objects of every P-DATA fragment, and two threads of each association look a thousand
times a second whether there is something to do. Here the thread that reads sleeps until the socket or a sender has
something, puts fragments of data sets where pynetdicom would, and serves and answers a C-STORE itself (`store_turns`),
which saves the way to another thread and back. All else (negotiation, other command sets, the first and last fragment
of another message, every other PDU, request and answer) goes through pynetdicom as before.
What that leans on, none of it public, tests/node/test_scp_seams.py holds.
"""

import contextlib
import os
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from queue import Queue
from typing import Any, Protocol

import structlog
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.service_class import StorageServiceClass

from dicom_node.landing import Landing
from dicom_node.store_requests import Success, stored
from dicom_node.store_turns import FRAGMENT, IS_COMMAND, IS_LAST, Store, StoreTurns, p_data

log = structlog.get_logger(__name__)

_HEADER = struct.Struct(">BxL")  # PS3.8 9.3.1: type, length
_P_DATA_TF = 0x04
_IDLE, _TRANSFER, _CLOSING = "Sta1", "Sta6", "Sta13"  # PS3.8 9.2.1
_CLOSED, _INVALID = "Evt17", "Evt19"  # PS3.8 9.2.2: the connection was closed, an invalid PDU came
_LOOK_SECONDS = 0.05  # timers, and threads of pynetdicom that are told to end, tell nobody


class Line(Protocol):
    """What the peer's bytes come from, within limits; all but `complete` raise OSError where it is to end."""

    @property
    def raw(self) -> socket.socket:
        """Return the socket."""

    @property
    def has_ahead(self) -> bool:
        """Return whether bytes were read that nobody has asked for yet."""

    def read_ahead(self) -> None:
        """Read from now on more than is asked for, if it has come."""

    def recv(self, num_bytes: int) -> bytearray:
        """Return exactly so many bytes, or fewer if the peer closed."""

    def admit(self, num_bytes: int) -> None:
        """Return when so many bytes may be read into memory."""

    def fill(self, room: memoryview) -> int:
        """Read what was admitted, and return how many bytes came: fewer if the peer closed."""

    def complete(self, content: Landing) -> None:
        """Note that a data set has come, whole."""


def quicken(
    association: Association,
    line: Line,
    store: Store,
) -> Callable[[], None]:
    """Let an accepted association, before its threads begin, wait where it would poll.

    Args:
        association: that was just opened.
        line: what its peer's bytes come from.
        store: keeps what a C-STORE brings.

    Returns:
        What lets go of what it holds; to be called when the threads have ended.
    """
    dul, bell, serving = association.dul, _Bell(), threading.Lock()
    checkpoint = _Checkpoint(association)
    checkpoint.set()
    serve, send_msg = association._serve_request, association.dimse.send_msg
    queue_pdu, stop = dul.send_pdu, dul.stop_dul
    turns = StoreTurns(association, serving, store, line.complete)

    def serve_alone(request: Any, context_id: int) -> None:
        with serving:
            serve(request, context_id)

    def send(message: Any, context_id: int) -> None:
        if not isinstance(message, Success):
            send_msg(message, context_id)
        elif may_send() and dul.socket is not None:
            dul.socket.send(_pdu(context_id, stored(message.request)))
        else:
            send_pdu(p_data(context_id, IS_COMMAND | IS_LAST, stored(message.request)))

    def may_send() -> bool:
        return (
            threading.current_thread() is dul
            and dul.state_machine.current_state == _TRANSFER
            and dul.to_provider_queue.empty()
        )

    def send_pdu(primitive: Any) -> None:
        if isinstance(primitive, P_DATA) and may_send():
            dul._send(P_DATA_TF(primitive))  # what pynetdicom would do in the next turn of the loop
            return
        queue_pdu(primitive)
        bell.ring()

    def stop_dul() -> bool:
        if dul.state_machine.current_state == _IDLE:
            dul._kill_thread = True
            bell.ring()
        return stop()

    association._reactor_checkpoint = checkpoint
    association._serve_request = serve_alone  # type: ignore[assignment]
    association.dimse.msg_queue = _Requests(association, checkpoint, serving)
    association.dimse.send_msg = send  # type: ignore[assignment]
    dul.to_user_queue = _Heard(checkpoint)
    dul.send_pdu = send_pdu  # type: ignore[method-assign]
    dul.stop_dul = stop_dul  # type: ignore[method-assign]
    dul._run_loop_delay = 0  # the wait is the reader's
    dul._is_transport_event = _Reader(association, line, bell, turns).read  # type: ignore[method-assign]
    return bell.close


def _pdu(context_id: int, command: bytes) -> bytes:
    """Return a P-DATA-TF PDU with a whole command set (PS3.8 9.3.5)."""
    fragment = FRAGMENT.pack(len(command) + 2, context_id, IS_COMMAND | IS_LAST) + command
    return _HEADER.pack(_P_DATA_TF, len(fragment)) + fragment


class _Reader:
    """What pynetdicom's reading thread calls in each turn of its loop, to see whether something has come."""

    def __init__(
        self,
        association: Association,
        line: Line,
        bell: "_Bell",
        turns: StoreTurns,
    ) -> None:
        self._association = association
        self._dul, self._dimse = association.dul, association.dimse
        self._otherwise = self._dul._is_transport_event
        self._line, self._raw, self._bell, self._turns = line, line.raw, bell, turns
        self._header: bytearray | None = None
        line.read_ahead()
        self._poll = select.poll()
        self._poll.register(bell.descriptor, select.POLLIN)
        self._poll.register(line.raw, select.POLLIN)
        wrapped = self._dul.socket
        assert wrapped is not None
        wrapped.recv = self._recv_again  # type: ignore[assignment]

    def read(self) -> bool:
        """Wait until something has come, and read it; False: nothing has, but there may be something else to do."""
        state, wrapped = self._dul.state_machine.current_state, self._dul.socket
        if wrapped is None or wrapped.socket is None:
            self._bell.wait()
            return False
        if state != _TRANSFER and self._line.has_ahead:  # pynetdicom would ask the socket
            self._dul._read_pdu_data()
            return True
        if state == _CLOSING:
            return self._otherwise()
        if not self._is_ready():
            return False
        if state != _TRANSFER:
            return self._otherwise()
        try:
            self._read_pdu()
            while self._may_go_on() and self._is_ready():
                self._dul._idle_timer.restart()
                self._read_pdu()
        except OSError as error:
            log.warning("connection_broken", address=self._association.requestor.address, reason=type(error).__name__)
            self._dul.event_queue.put(_CLOSED)
        return True

    def _may_go_on(self) -> bool:
        """Return whether pynetdicom's loop, of which each turn costs more than reading, has nothing else to do."""
        dul = self._dul
        return dul.to_provider_queue.empty() and dul.event_queue.empty() and not dul._kill_thread

    def _is_ready(self) -> bool:
        if self._line.has_ahead or (isinstance(self._raw, ssl.SSLSocket) and self._raw.pending()):
            return True
        ready = [descriptor for descriptor, _ in self._poll.poll(_LOOK_SECONDS * 1000)]
        if self._bell.descriptor in ready:
            self._bell.hush()
            ready.remove(self._bell.descriptor)
        return bool(ready)

    def _recv_again(self, num_bytes: int) -> bytearray:
        """Return what pynetdicom reads: a header that was read already, once more, and then what follows it."""
        header, self._header = self._header, None
        return self._line.recv(num_bytes) if header is None else header

    def _read_pdu(self) -> None:
        header = self._line.recv(_HEADER.size)
        kind, length = _HEADER.unpack(header) if len(header) == _HEADER.size else (None, 0)
        if kind != _P_DATA_TF:
            self._header = header
            self._dul._read_pdu_data()
            return
        if self._turns.is_coming and length >= FRAGMENT.size:
            self._line.admit(length)
            content: bytes | bytearray = self._turns.read_pdu(length, self._fill)
        else:
            content = self._line.recv(length)
            self._need(length, len(content))
        if content:
            self._take(memoryview(content))

    def _fill(self, room: memoryview) -> None:
        self._need(len(room), self._line.fill(room))

    def _need(self, length: int, num_came: int) -> None:
        if num_came < length:
            raise ConnectionResetError("the connection was closed in the middle of a PDU")

    def _take(self, content: memoryview) -> None:
        position = 0
        while position < len(content):
            if position + FRAGMENT.size > len(content):
                return self._dul.event_queue.put(_INVALID)
            length, context_id, control = FRAGMENT.unpack_from(content, position)
            end = position + 4 + length
            if length < 2 or end > len(content):
                return self._dul.event_queue.put(_INVALID)
            self._take_fragment(context_id, control, content[position + FRAGMENT.size : end])
            position = end
        return None

    def _take_fragment(self, context_id: int, control: int, fragment: memoryview) -> None:
        if self._turns.take(control, fragment):
            return
        if control == IS_COMMAND | IS_LAST and self._turns.begin(context_id, fragment):
            return
        message = self._dimse.message
        if message is not None and message.data_set is not None and not control & (IS_COMMAND | IS_LAST):
            message.data_set.write(fragment)
            return
        self._dimse.receive_primitive(p_data(context_id, control, fragment))


class _Requests(Queue[Any]):
    """Requests that wait for the association's thread; a C-STORE that would be the next is served at once."""

    def __init__(self, association: Association, checkpoint: "_Checkpoint", serving: threading.Lock) -> None:
        super().__init__()
        self._association, self._checkpoint, self._serving = association, checkpoint, serving

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        context_id, request = item
        if self._is_next(context_id, request) and self._serving.acquire(blocking=False):
            try:
                self._store(context_id, request)
            finally:
                self._serving.release()
            return
        super().put(item, block, timeout)
        self._checkpoint.tell()

    def _is_next(self, context_id: int, request: Any) -> bool:
        association = self._association
        return (
            isinstance(request, C_STORE)
            and request.is_valid_request
            and context_id in association._accepted_cx
            and association.is_established
            and self.empty()
        )

    def _store(self, context_id: int, request: C_STORE) -> None:
        try:
            StorageServiceClass(self._association).SCP(request, self._association._accepted_cx[context_id])
        except Exception:
            log.exception("store_not_answered")
            self._association.abort(block=False)  # it would wait for this thread


class _Heard(Queue[Any]):
    """What the peer says of the association: its request, release or abort."""

    def __init__(self, checkpoint: "_Checkpoint") -> None:
        super().__init__()
        self._checkpoint = checkpoint

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._checkpoint.tell()


class _Checkpoint(threading.Event):
    """Where the association's thread passes in each turn of its loop: it stays there while there is nothing to do."""

    def __init__(self, association: Association) -> None:
        super().__init__()
        self._association = association
        self._news = threading.Event()

    def tell(self) -> None:
        """Let the thread look."""
        self._news.set()

    def set(self) -> None:
        super().set()
        self.tell()

    def wait(self, timeout: float | None = None) -> bool:
        super().wait(timeout)
        if self._association.dimse.msg_queue.empty() and self._association.dul.to_user_queue.empty():
            self._news.wait(_LOOK_SECONDS)
        self._news.clear()
        return super().wait(timeout)  # it may have been told to stay meanwhile


class _Bell:
    """Wakes the thread that waits for the socket."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_open = True
        self._lock = threading.Lock()

    def ring(self) -> None:
        with self._lock:
            if self._is_open:  # else the number may be another file's
                os.eventfd_write(self.descriptor, 1)

    def wait(self) -> None:
        waiting = select.poll()  # select() knows no descriptor above 1023
        waiting.register(self.descriptor, select.POLLIN)
        waiting.poll(_LOOK_SECONDS * 1000)
        self.hush()

    def hush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)

    def close(self) -> None:
        with self._lock:
            if self._is_open:
                os.close(self.descriptor)
            self._is_open = False

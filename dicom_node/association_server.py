"""A pynetdicom server that a bad peer cannot starve; what the node knows of pynetdicom's insides is here.

pynetdicom 3.0.4 (measured) buffers a PDU of any length before it looks at it, reads 4 KB at a time, holds an
association for ever when its peer stops in the middle of a PDU, and counts connections that never said a word as
associations. Here each connection reads through `Connection`, which has none of these faults. What it leans on, none of
it public, is held by tests/node/test_scp_seams.py: `AssociationSocket.recv` is called with 6 (a PDU's header) and then
with the PDU's length, by the thread that also appends to `dimse.message.data_set`.
"""

import contextlib
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from weakref import WeakKeyDictionary

import structlog
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.transport import ThreadedAssociationServer

from dicom_node.seats import Seats

log = structlog.get_logger(__name__)

_ABORT = b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x06"  # A-ABORT, service provider, invalid PDU parameter (PS3.8 9.3.8)
_PDU_HEADER = 6
_PDU_SLACK = 1024  # some peers count the PDV header apart
_LINGER = timedelta(seconds=1)
_FAREWELL = timedelta(milliseconds=200)
_LINGER_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one peer may cost."""

    max_pdu: int
    """Bytes of a P-DATA PDU, as offered in the negotiation."""
    max_request_pdu: int = 1 << 20
    """Bytes of an A-ASSOCIATE-RQ; 128 contexts with all transfer syntaxes need a tenth."""
    max_object: int = 2 << 30
    """Bytes of one data set; it is in memory until it is kept."""
    max_silent: int = 128
    """Connections that have not asked for an association yet."""
    acse: timedelta = timedelta(seconds=10)
    """A connection that has not asked for an association, whole, after so long is closed."""
    network: timedelta = timedelta(seconds=60)
    """An association that says nothing for so long is aborted."""
    stall: timedelta = timedelta(seconds=30)
    """A peer that stops in the middle of a PDU for so long is cut off."""
    drain: timedelta = timedelta(seconds=25)
    """How long running associations may go on when the acceptor is to end."""


class CutOff(OSError):
    """The node ended a connection; pynetdicom takes it for a broken one."""


class Connection:
    """Reads a peer's bytes, within limits."""

    def __init__(self, raw: socket.socket, association: Association, limits: Limits) -> None:
        self._raw = raw
        self._association = association
        self._limits = limits
        self._patience = limits.stall.total_seconds()
        raw.settimeout(self._patience)

    def recv(self, num_bytes: int) -> bytearray:
        """Return exactly `num_bytes`, or fewer if the peer closed.

        Raises:
            OSError: the peer stalls, sends more than was agreed, or is gone.
        """
        self._check(num_bytes)
        is_request = not self._association.is_established
        deadline = time.monotonic() + self._limits.acse.total_seconds()
        buffer = bytearray(num_bytes)
        filled = 0
        with memoryview(buffer) as view:
            while filled < num_bytes:
                # A request that comes drop by drop is a stall too; a slow association is only slow.
                self._wait_at_most(deadline - time.monotonic() if is_request else self._limits.stall.total_seconds())
                count = self._recv_into(view[filled:])
                if count == 0:
                    break
                filled += count
        del buffer[filled:]
        return buffer

    def cut(self) -> None:
        """End the connection and the threads that serve it, without waiting for them."""
        with contextlib.suppress(OSError):  # it is closed already
            self._raw.shutdown(socket.SHUT_RDWR)
        self._association._kill = True
        self._association.dul.kill_dul()
        _wake(self._association)

    def _wait_at_most(self, patience: float) -> None:
        if patience != self._patience:
            self._patience = max(patience, 0.001)
            self._raw.settimeout(self._patience)

    def _recv_into(self, view: memoryview) -> int:
        try:
            return self._raw.recv_into(view)
        except TimeoutError:
            log.warning("peer_stalled", address=self._association.requestor.address)
            raise

    def _check(self, num_bytes: int) -> None:
        limits = self._limits
        longest = limits.max_pdu + _PDU_SLACK
        if not self._association.is_established:
            longest = max(longest, limits.max_request_pdu)
        if num_bytes > longest:
            log.warning("pdu_too_long", bytes=num_bytes, limit=longest, address=self._association.requestor.address)
            self._abort()
        num_so_far = self._object_bytes() if num_bytes > _PDU_HEADER else 0
        if num_so_far + num_bytes > limits.max_object:
            log.warning("object_too_long", bytes=num_so_far, address=self._association.requestor.address)
            self._abort()

    def _object_bytes(self) -> int:
        message = self._association.dimse.message
        return 0 if message is None or message.data_set is None else message.data_set.tell()

    def _abort(self) -> None:
        self._raw.sendall(_ABORT)
        self._raw.shutdown(socket.SHUT_WR)
        self._linger()
        raise CutOff("the peer sends more than was agreed")

    def _linger(self) -> None:
        # With unread bytes the system would answer by a reset, which may overtake the abort.
        deadline, left = time.monotonic() + _LINGER.total_seconds(), _LINGER_BYTES
        while left > 0 and (patience := deadline - time.monotonic()) > 0:
            self._raw.settimeout(patience)
            try:
                piece = self._raw.recv(1 << 16)
            except OSError:
                return
            if not piece:
                return
            left -= len(piece)


class AssociationServer(ThreadedAssociationServer):
    """Serves associations, a thread each, on a socket that listens already and that other processes may share."""

    def __init__(
        self, listening: socket.socket, ae: AE, limits: Limits, seats: Seats, handlers: list[evt.EventHandlerType]
    ) -> None:
        self._listening = listening
        self._limits = limits
        self._seats = seats
        self._connections: WeakKeyDictionary[Association, Connection] = WeakKeyDictionary()
        ae.maximum_pdu_size = limits.max_pdu
        ae.acse_timeout = limits.acse.total_seconds()
        ae.dimse_timeout = limits.stall.total_seconds()
        ae.network_timeout = limits.network.total_seconds()
        ae.maximum_associations = 1 << 30  # pynetdicom counts silent connections; the doorkeeper counts associations
        super().__init__(
            ae,
            listening.getsockname(),
            ae_title=ae.ae_title,
            contexts=ae.supported_contexts,
            evt_handlers=[
                (evt.EVT_CONN_OPEN, partial(_guard, connections=self._connections, limits=limits)),
                *((ending, self._on_end) for ending in (evt.EVT_RELEASED, evt.EVT_ABORTED, evt.EVT_CONN_CLOSE)),
                *handlers,
            ],
        )
        ae._servers.append(self)  # where pynetdicom looks for it when it stops

    def server_bind(self) -> None:
        """Take the socket that listens instead of a new one."""
        assert self.socket is not None
        self.socket.close()
        # Another process may be quicker to accept: then accept must say so, not wait.
        self._listening.setblocking(False)
        self.socket = self._listening
        self.server_address = self._listening.getsockname()

    def server_activate(self) -> None:
        """Do nothing: it listens."""

    def server_close(self) -> None:
        """Close this process's hold on the socket; the other processes go on listening on it."""
        self._listening.close()

    def verify_request(self, _request: object, _client_address: object) -> bool:
        """Return whether another connection may wait to ask for an association."""
        self._threads.join()  # type: ignore[attr-defined]  # of those accepted before: until they end, nothing counts them
        silent = sum(1 for association in self.active_associations if _is_silent(association))
        if silent >= self._limits.max_silent:
            log.warning("connection_refused", silent=silent)
            return False
        return True

    def drain(self) -> None:
        """Accept nothing more, let running associations end, then cut the rest off."""
        self.shutdown()
        self._threads.join()  # type: ignore[attr-defined]  # of what was accepted last: its association is about to start
        self._wait_until_idle(self._limits.drain)
        for association in self.active_associations:
            log.warning("association_cut_off", address=association.requestor.address)
            association.abort(block=False)
        self._wait_until_idle(_FAREWELL)
        for association in self.active_associations:
            self._connections[association].cut()
        self._wait_until_idle(_LINGER)

    def service_actions(self) -> None:
        """Take back the seats of associations that ended without an event; called every tenth of a second."""
        super().service_actions()
        running = set(self.active_associations)
        for holder in self._seats.holders():
            if holder not in running:
                self._seats.leave(holder)

    def _on_end(self, event: evt.Event) -> None:
        self._seats.leave(event.assoc)
        if _is_silent(event.assoc):
            _wake(event.assoc)

    def _wait_until_idle(self, patience: timedelta) -> None:
        deadline = time.monotonic() + patience.total_seconds()
        while (running := self.active_associations) and time.monotonic() < deadline:
            for association in running:  # each time: the last that were accepted may not have had a thread before
                if _is_silent(association):
                    self._connections[association].cut()
            time.sleep(0.02)  # pynetdicom's threads tell nobody when they end


def _is_silent(association: Association) -> bool:
    return association.requestor.primitive is None


def _wake(association: Association) -> None:
    # Its thread waits for a request, for as long as the ACSE time-out, even when the connection is gone.
    association.dul.to_user_queue.put(None)  # type: ignore[arg-type]  # what a wait that times out returns


def _guard(event: evt.Event, connections: WeakKeyDictionary[Association, Connection], limits: Limits) -> None:
    """Bound what a connection may cost, as soon as it is open."""
    wrapped = event.assoc.dul.socket
    assert wrapped is not None
    raw = wrapped.socket
    assert raw is not None
    raw.settimeout(limits.stall.total_seconds())
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connections[event.assoc] = connection = Connection(raw, event.assoc, limits)
    wrapped.recv = connection.recv  # type: ignore[assignment,method-assign]  # the one seam that pynetdicom leaves

"""A pynetdicom server that a bad peer cannot starve; what the node knows of pynetdicom's insides is here.

pynetdicom 3.0.4 (measured) buffers a PDU of any length before it looks at it, reads 4 KB at a time, holds an
association for ever when its peer stops in the middle of a PDU, and counts connections that never said a word as
associations. It shakes hands (TLS) in the thread that accepts, and looks a thousand times a second whether a silent
connection has said something. Here each connection waits, with its handshake, in the lobby, in a thread of its own that
sleeps, and then reads through `Connection`. What that leans on, none of it public, tests/node/test_scp_seams.py holds:
`AssociationSocket.recv` is called with 6 (a PDU's header) and then with the PDU's length, by the thread that also
appends to `dimse.message.data_set`.
"""

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from typing import Any, Self
from weakref import WeakKeyDictionary

import structlog
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.transport import ThreadedAssociationServer

from dicom_node.budget import Budget, Room
from dicom_node.greeting import LINGER, TurnAway, greets, linger, shut_down
from dicom_node.landing import Landing
from dicom_node.lobby import Lobby
from dicom_node.metrics.acceptor import End
from dicom_node.seats import Seats
from dicom_node.settings import Node
from dicom_node.store_turns import Store
from dicom_node.upper_layer import quicken

log = structlog.get_logger(__name__)

_ABORT = b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x06"  # A-ABORT, service provider, invalid PDU parameter (PS3.8 9.3.8)
_AHEAD = 1 << 18  # bytes that an association may have in memory before anybody has asked for them
_PDU_HEADER = 6
_PDU_SLACK = 1024  # some peers count the PDV header apart
_IN_FLIGHT = 1 << 30
_TEND = timedelta(seconds=0.09)
_FAREWELL = timedelta(milliseconds=200)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one peer may cost."""

    max_pdu: int
    """Bytes of a P-DATA PDU, as offered in the negotiation."""
    max_request_pdu: int = 1 << 20
    """Bytes of an A-ASSOCIATE-RQ; 128 contexts with all transfer syntaxes need a tenth."""
    max_object: int = 1 << 30
    """Bytes of one data set; it is in memory until it is kept."""
    max_in_flight: int = _IN_FLIGHT
    """Bytes of the data sets of all associations of one process; who has no room waits. One that is longer than half of
    it gets through when little else comes at the time."""
    max_command: int = 1 << 16
    """Bytes of a command set."""
    max_waiting: int = 64
    """Requests of one association that wait for their answers; PS3.7 D.3.3.3 allows one."""
    max_silent: int = 128
    """Connections that have not asked for an association yet, in each process."""
    acse: timedelta = timedelta(seconds=10)
    """A connection is closed that has said nothing, or not ended its TLS handshake, after so long; or not its request,
    after so long again."""
    network: timedelta = timedelta(seconds=60)
    """An association that says nothing for so long is aborted."""
    stall: timedelta = timedelta(seconds=30)
    """A peer that stops in the middle of a PDU for so long is cut off; one for whose bytes there is no memory waits so
    long, and is aborted."""
    slowest_line: int = 1000
    """Bytes a second: a PDU that comes slower is a stall too."""
    slowest_object: int = 50_000
    """Bytes a second of a data set, beside `stall`."""
    drain: timedelta = timedelta(seconds=25)
    """How long running associations may go on when the acceptor is to end."""

    @classmethod
    def of(cls, node: Node) -> Self:
        """Return those of the configuration."""
        return cls(
            max_pdu=node.max_pdu,
            max_object=node.max_instance_bytes,
            max_in_flight=max(_IN_FLIGHT, node.max_instance_bytes),
            network=timedelta(seconds=node.idle_seconds),
        )


class CutOff(OSError):
    """The node ended a connection; pynetdicom takes it for a broken one."""


OnCut = Callable[[Association, End], None]
"""Hears of each association whose connection the node is about to end, and why."""


class Connection:
    """Reads a peer's bytes, within limits."""

    def __init__(self, raw: socket.socket, association: Association, limits: Limits, budget: Budget) -> None:
        self._raw = raw
        self._association = association
        self._limits = limits
        self._budget = budget
        self._patience = limits.stall.total_seconds()
        self._begun_at = time.monotonic()
        self.at_end: Callable[[], None] = lambda: None
        """Lets go of what else serves it."""
        self.on_cut: OnCut = lambda _association, _why: None
        self._reads_ahead = False
        self._spare = memoryview(b"")
        self._ahead = memoryview(b"")
        raw.settimeout(self._patience)

    @property
    def raw(self) -> socket.socket:
        """Return the socket."""
        return self._raw

    @property
    def has_ahead(self) -> bool:
        """Return whether bytes were read that nobody has asked for yet: the socket knows nothing of them."""
        return len(self._ahead) > 0

    def read_ahead(self) -> None:
        """Read from now on what has come already behind that which is asked for: a call of the system costs more than
        the bytes. Whoever waits for the socket asks `has_ahead` first."""
        self._reads_ahead = not isinstance(self._raw, ssl.SSLSocket)  # which has its records, of 16 KiB

    def recv(self, num_bytes: int) -> bytearray:
        """Return exactly `num_bytes`, or fewer if the peer closed.

        Raises:
            OSError: the peer stalls, sends more than was agreed, or is gone.
        """
        self.admit(num_bytes)
        buffer = bytearray(num_bytes)
        with memoryview(buffer) as view:
            filled = self.fill(view)
        del buffer[filled:]
        return buffer

    def fill(self, room: memoryview) -> int:
        """Read as many bytes as there is room for, and return how many came: fewer if the peer closed.

        They are to be admitted before room is made for them.

        Raises:
            OSError: the peer stalls or is gone.
        """
        num_bytes = len(room)
        filled = min(num_bytes, len(self._ahead))
        if filled:
            room[:filled], self._ahead = self._ahead[:filled], self._ahead[filled:]
            if filled == num_bytes:
                return filled
        stall = self._limits.stall.total_seconds()
        if self._association.is_established:
            deadline = time.monotonic() + stall + num_bytes / self._limits.slowest_line
        else:
            deadline = time.monotonic() + self._limits.acse.total_seconds()
        while filled < num_bytes:
            self._wait_at_most(min(stall, deadline - time.monotonic()))  # drop by drop is a stall too
            count = self._recv_into(room[filled:])
            if count == 0:
                break
            filled += count
        return filled

    def cut(self) -> None:
        """End the connection and the threads that serve it, without waiting for them."""
        shut_down(self._raw)
        self._budget.leave(self)
        self._association._kill = True
        self._association.dul.kill_dul()
        _wake(self._association)

    def forget(self) -> None:
        """Let go what an association that has ended still holds: the collector of cycles may be long in coming."""
        dimse = self._association.dimse
        dimse.message = None
        dimse.msg_queue.queue.clear()
        self._budget.leave(self)
        self._spare = self._ahead = memoryview(b"")
        self.at_end()
        self._raw.close()

    def complete(self, content: BytesIO | Landing) -> None:
        """Note that a message has come, whole, with this data set."""
        self._budget.complete(self, content)

    def _wait_at_most(self, patience: float) -> None:
        if patience != self._patience:
            self._patience = max(patience, 0.001)
            self._raw.settimeout(self._patience)

    def _recv_into(self, view: memoryview) -> int:
        try:
            if not self._reads_ahead or not self._association.is_established:
                return self._raw.recv_into(view)
            if not self._spare:
                self._spare = memoryview(bytearray(_AHEAD))
            count, *_ = self._raw.recvmsg_into((view, self._spare))
            self._ahead = self._spare[: max(count - len(view), 0)]
            return min(count, len(view))
        except TimeoutError:
            log.warning("peer_stalled", address=self._association.requestor.address)
            self.on_cut(self._association, End.STALLED)
            raise

    def admit(self, num_bytes: int) -> None:
        """Return when so many bytes may be read into memory.

        Raises:
            OSError: the peer sends more than was agreed, or there is no room in time.
        """
        limits = self._limits
        longest = limits.max_pdu + _PDU_SLACK
        if not self._association.is_established:
            longest = max(longest, limits.max_request_pdu)
        if num_bytes > longest:
            log.warning("pdu_too_long", bytes=num_bytes, limit=longest, address=self._association.requestor.address)
            self._abort()
        if num_bytes > _PDU_HEADER and self._association.is_established:
            self._check_message(num_bytes)

    def _check_message(self, num_bytes: int) -> None:
        limits, address = self._limits, self._association.requestor.address
        dimse = self._association.dimse
        message = dimse.message
        if message is not None and message.encoded_command_set.tell() > limits.max_command:
            log.warning("command_too_long", limit=limits.max_command, address=address)
            self._abort()
        if dimse.msg_queue.qsize() >= limits.max_waiting:
            log.warning("too_many_requests", limit=limits.max_waiting, address=address)
            self._abort()
        num_so_far = 0 if message is None or message.data_set is None else message.data_set.tell()
        self._check_pace(num_so_far)
        if num_so_far + num_bytes > limits.max_object:
            log.warning("object_too_long", bytes=num_so_far, address=address)
            self._abort()
        asked_at = time.monotonic()
        room = self._budget.ask(self, num_so_far, num_bytes, limits.stall)
        self._begun_at += time.monotonic() - asked_at  # that wait was ours
        if room is not Room.GRANTED:
            log.warning("no_memory_for_object", why=room.value, bytes=num_so_far, address=address)
            self._abort()

    def _check_pace(self, num_so_far: int) -> None:
        """End an association that sends an object piece by piece with long rests: its memory is not the others'."""
        now = time.monotonic()
        if num_so_far == 0:
            self._begun_at = now
        if now > self._begun_at + self._limits.stall.total_seconds() + num_so_far / self._limits.slowest_object:
            log.warning("object_too_slow", bytes=num_so_far, address=self._association.requestor.address)
            self._abort()

    def _abort(self) -> None:
        self.on_cut(self._association, End.CUT_OFF)
        self._raw.sendall(_ABORT)
        linger(self._raw)
        raise CutOff("the peer sends more than was agreed")


class AssociationServer(ThreadedAssociationServer):
    """Serves associations, a thread each, on a socket that listens already and that other processes may share."""

    def __init__(
        self,
        listening: socket.socket,
        ae: AE,
        limits: Limits,
        seats: Seats,
        handlers: list[evt.EventHandlerType],
        store: Store,
        settle: Callable[[Callable[[Association], bool]], None],
        turn_away: TurnAway,
        tls: ssl.SSLContext | None = None,
        on_cut: OnCut = lambda _association, _why: None,
    ) -> None:
        self._listening = listening
        self._store = store
        self._settle = settle
        self._turn_away = turn_away
        self._limits = limits
        self._seats = seats
        self._tls = tls
        self._on_cut = on_cut
        self.lobby = Lobby(limits.max_silent)
        self.budget = Budget(limits.max_in_flight)
        self._tended_at = 0.0
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
                (evt.EVT_CONN_OPEN, self._on_open),
                (evt.EVT_REQUESTED, self._on_requested),
                (evt.EVT_DIMSE_RECV, self._on_message),
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

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a connection; the handshake waits for its thread."""
        connection, address = super().get_request()
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Take the connection into the lobby."""
        self.lobby.enter(request, client_address[0])
        return True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Make an association of a connection as soon as it says something: the thread of a connection."""
        if greets(request, client_address[0], self._limits.acse, self._turn_away):
            super().process_request_thread(request, client_address)
        else:
            self.lobby.leave(request)
            self.shutdown_request(request)

    def drain(self) -> None:
        """Accept nothing more, let running associations end, then cut the rest off."""
        self.shutdown()
        self.lobby.end_all()
        self._threads.join()  # type: ignore[attr-defined]  # of what was accepted last: its association is about to start
        self._wait_until_idle(self._limits.drain)
        for association in self.active_associations:
            log.warning("association_cut_off", address=association.requestor.address)
            association.abort(block=False)
        self._wait_until_idle(_FAREWELL)
        for association in self.active_associations:
            self._connections[association].cut()
        self._wait_until_idle(LINGER)
        deadline = time.monotonic() + LINGER.total_seconds()
        while self._connections and time.monotonic() < deadline:
            self._take_back()  # nobody calls service_actions any more
            time.sleep(0.02)

    def service_actions(self) -> None:
        """Settle what ended, however, and take back all that it held; called every tenth of a second."""
        # And after each connection that is accepted: a flood must not make pynetdicom collect garbage all the time.
        if time.monotonic() - self._tended_at < _TEND.total_seconds():
            return
        self._tended_at = time.monotonic()
        super().service_actions()
        self.lobby.sweep()
        self._settle(Association.is_alive)
        self._take_back()

    def _take_back(self) -> None:
        """Let go all that associations hold which have ended."""
        for reference in self._connections.keyrefs():  # in one go: connections come while this looks
            association = reference()
            # Asked now, one by one: who began while this looked has just begun.
            if association is None or association.ident is None or association.is_alive():
                continue
            if association.dul.is_alive():
                # A request that pynetdicom fails at ends the one thread of two: nobody would look at the other again.
                self._connections[association].cut()
            else:
                self._connections.pop(association).forget()
        for holder in self._seats.holders():
            if isinstance(holder, Association) and holder.ident is not None and not holder.is_alive():
                self._seats.leave(holder)

    def _on_open(self, event: evt.Event) -> None:
        connection = guard(event, self._limits, self.budget)
        connection.on_cut = self._on_cut
        self._connections[event.assoc] = connection
        try:
            connection.at_end = quicken(event.assoc, connection, self._store)
        except OSError as error:  # no file descriptor is left
            log.warning("connection_not_served", address=event.assoc.requestor.address, reason=error.strerror)
            connection.cut()

    def _on_requested(self, event: evt.Event) -> None:
        connection = self._connections.get(event.assoc)
        if connection is not None:  # else it was forgotten before its end was told
            self.lobby.leave(connection.raw)

    def _on_message(self, event: evt.Event) -> None:
        if event.message.data_set is not None:
            self._connections[event.assoc].complete(event.message.data_set)

    def _on_end(self, event: evt.Event) -> None:
        self._on_requested(event)
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
    association.dul.to_user_queue.put(None)  # type: ignore[arg-type,unused-ignore]  # what a wait that times out returns


def guard(event: evt.Event, limits: Limits, budget: Budget) -> Connection:
    """Bound what a connection may cost, as soon as it is open; whoever asked for it, the peer's bytes are the same."""
    wrapped = event.assoc.dul.socket
    assert wrapped is not None
    raw = wrapped.socket
    assert raw is not None
    raw.settimeout(limits.stall.total_seconds())
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection = Connection(raw, event.assoc, limits, budget)
    wrapped.recv = connection.recv  # type: ignore[assignment,method-assign]  # the one seam that pynetdicom leaves
    return connection

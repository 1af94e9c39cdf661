"""One receiving process: pynetdicom's negotiation and services on a listening socket that the supervisor opened.

Several of them share the socket: the kernel gives each connection to one that waits, and the interpreter lock of one
process cannot starve the others' peers. What pynetdicom 3.0.4 does badly is replaced here, and only here:

- it reads 4 KB at a time and buffers a PDU of any length before it looks at it: `_bounded_recv` reads large pieces and
  ends the association at the first PDU that is longer than was agreed;
- a peer that stops in the middle of a PDU holds its association for ever: the socket has a time-out.
"""

import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import structlog
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import
from pynetdicom.transport import ThreadedAssociationServer

from dicom_node import scp
from dicom_node.clock import utc_now
from dicom_node.dispatch import Bell
from dicom_node.intake import Intake
from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.logs import configure_logs
from dicom_node.processes import die_with_parent
from dicom_node.settings import Settings
from dicom_node.store import InstanceStore

log = structlog.get_logger(__name__)

ACSE_TIMEOUT = timedelta(seconds=10)
"""A connection that asks for no association for so long is closed."""
DIMSE_TIMEOUT = timedelta(seconds=30)
NETWORK_TIMEOUT = timedelta(seconds=60)
"""An association that says nothing for so long is aborted."""
STALL_TIMEOUT = timedelta(seconds=30)
"""A peer that stops in the middle of a PDU for so long is cut off."""
DRAIN = timedelta(seconds=25)
"""How long running associations may go on after SIGTERM."""

MAX_REQUEST_PDU = 1 << 20
"""Bytes of an A-ASSOCIATE-RQ; 128 contexts with all transfer syntaxes need a tenth."""

_ABORT = b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x06"  # A-ABORT, service provider, invalid PDU parameter (PS3.8 9.3.8)
_PDU_SLACK = 1024  # some peers count the PDV header apart

# As acquired first, so that a cart need not decompress what the node keeps as it comes.
_PREFERRED = [
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.1",
]
TRANSFER_SYNTAXES = [*_PREFERRED, *(str(uid) for uid in ALL_TRANSFER_SYNTAXES if str(uid) not in _PREFERRED)]
"""Every transfer syntax, in the order in which the node prefers them; private ones come by the unrestricted service."""


class _Server(ThreadedAssociationServer):
    """An association server on a socket that listens already."""

    def __init__(self, listening: socket.socket, ae: AE, handlers: list[evt.EventHandlerType]) -> None:
        self._listening = listening
        super().__init__(
            ae, listening.getsockname(), ae_title=ae.ae_title, contexts=ae.supported_contexts, evt_handlers=handlers
        )

    def server_bind(self) -> None:
        """Take the inherited socket instead of a new one."""
        assert self.socket is not None
        self.socket.close()
        # Another process may be quicker to accept: then accept must say so, not wait.
        self._listening.setblocking(False)
        self.socket = self._listening
        self.server_address = self._listening.getsockname()

    def server_activate(self) -> None:
        """Do nothing: it listens."""

    def server_close(self) -> None:
        """Close this process's hold on the socket; the other acceptors go on listening on it."""
        self._listening.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptor:
    """A running server of this process."""

    server: _Server
    thread: threading.Thread

    def close(self) -> None:
        """Accept nothing more, let running associations end, abort the rest."""
        self.server.shutdown()
        deadline = threading.Event()
        for _ in range(int(DRAIN.total_seconds() * 10)):
            if not self.server.active_associations:
                break
            deadline.wait(0.1)
        for association in self.server.active_associations:
            association.abort()
        self.thread.join()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket for all acceptors.

    Raises:
        OSError: the address is taken or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except OSError:
        listening.close()
        raise
    return listening


def start_acceptor(
    listening: socket.socket,
    settings: Settings,
    receive: scp.Receive,
    store: InstanceStore,
) -> Acceptor:
    """Return a server that accepts associations in threads of this process."""
    # Retired ultrasound classes and private ones get an answer too, not an abort (pynetdicom #1006, dcm4che #957).
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    _config.LOG_HANDLER_LEVEL = "none"
    node = settings.node
    ae = AE(ae_title=node.ae_title)
    ae.maximum_pdu_size = node.max_pdu
    ae.maximum_associations = -(-node.max_associations // node.acceptors)
    ae.acse_timeout = ACSE_TIMEOUT.total_seconds()
    ae.dimse_timeout = DIMSE_TIMEOUT.total_seconds()
    ae.network_timeout = NETWORK_TIMEOUT.total_seconds()
    ae.implementation_class_uid = scp.IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = scp.IMPLEMENTATION_VERSION
    ae.add_supported_context(Verification)
    for context in AllStoragePresentationContexts:
        assert context.abstract_syntax is not None
        ae.add_supported_context(context.abstract_syntax, TRANSFER_SYNTAXES)
    doorkeeper = scp.Doorkeeper(
        node=node, peers=settings.peers, has_room=lambda: store.free_bytes() > node.min_free_bytes
    )
    handlers: list[evt.EventHandlerType] = [
        (evt.EVT_CONN_OPEN, partial(_guard, max_pdu=node.max_pdu)),
        (evt.EVT_REQUESTED, partial(scp.on_requested, doorkeeper=doorkeeper)),
        (evt.EVT_C_ECHO, scp.on_c_echo),
        (evt.EVT_C_STORE, partial(scp.on_c_store, receive=receive, quarantine=store.quarantine)),
        (evt.EVT_DIMSE_RECV, scp.on_dimse_message),
    ]
    server = _Server(listening, ae, handlers)
    ae._servers.append(server)  # where pynetdicom looks for it when it stops
    thread = threading.Thread(target=partial(server.serve_forever, 0.1), name="accept", daemon=True)
    thread.start()
    return Acceptor(server=server, thread=thread)


def run_acceptor(listening: socket.socket, settings: Settings) -> None:
    """Receive until SIGTERM: the body of an acceptor process."""
    die_with_parent()
    configure_logs()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides
    sessions = open_ledger(settings.database_url)
    store = InstanceStore(settings.node.data_dir, min_free_bytes=settings.node.min_free_bytes)
    bell = Bell(settings.broker.url.get_secret_value())
    acceptor = start_acceptor(listening, settings, Intake(sessions, store, utc_now, bell.ring).receive, store)
    log.info("acceptor_started")
    stop.wait()
    acceptor.close()
    bell.close()
    close_ledger(sessions)
    log.info("acceptor_stopped")


def _guard(event: evt.Event, max_pdu: int) -> None:
    """Bound what a connection may cost, as soon as it is open."""
    wrapped = event.assoc.dul.socket
    assert wrapped is not None
    raw = wrapped.socket
    assert raw is not None
    raw.settimeout(STALL_TIMEOUT.total_seconds())
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    association = event.assoc

    def is_established() -> bool:
        return association.is_established

    receive: Callable[[int], bytearray] = partial(_bounded_recv, raw, max_pdu + _PDU_SLACK, is_established)
    wrapped.recv = receive  # type: ignore[assignment,method-assign]  # the one seam that pynetdicom leaves


def _bounded_recv(raw: socket.socket, max_pdu: int, is_established: Callable[[], bool], num_bytes: int) -> bytearray:
    """Return exactly `num_bytes`, or fewer if the peer closed; a PDU that is too long ends the connection."""
    limit = max_pdu if is_established() else max(MAX_REQUEST_PDU, max_pdu)
    if num_bytes > limit:
        log.warning("pdu_too_long", bytes=num_bytes, limit=limit)
        raw.sendall(_ABORT)
        raise OSError("PDU too long")
    buffer = bytearray(num_bytes)
    view, filled = memoryview(buffer), 0
    while filled < num_bytes:
        count = raw.recv_into(view[filled:])
        if count == 0:
            break
        filled += count
    view.release()
    del buffer[filled:]
    return buffer

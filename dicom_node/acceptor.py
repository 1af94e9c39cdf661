"""One receiving process: the Storage, Verification and Storage Commitment SCP on a socket that the supervisor opened.

Several of them share the socket. The supervisor binds it once, so that port 0 works and a port that is taken stops the
start; the children get it by inheritance. The kernel wakes all and the first to come accepts: a process whose
interpreter is busy with a peer's loops comes late, so that connections spread by load. SO_REUSEPORT spreads them by a
hash of the address instead, and loses those that wait in the queue of a process that dies.
"""

import gc
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from pynetdicom import AE, _config, evt

from dicom_node import commitment_scu, scp
from dicom_node.association_server import AssociationServer, Limits
from dicom_node.audit import Application, Audit, peer_refused, unaudited
from dicom_node.audit_trail import AuditTrail, this_application
from dicom_node.clock import utc_now
from dicom_node.commitment_scp import Committer
from dicom_node.dispatch import Bell
from dicom_node.heap import keep_freed_memory
from dicom_node.intake import Intake
from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.logs import configure_logs, log_thread
from dicom_node.metrics.acceptor import AcceptorMetrics
from dicom_node.metrics.shared import count_in
from dicom_node.processes import EndSignal, die_with_parent
from dicom_node.requests import on_dimse_message
from dicom_node.seats import Seats
from dicom_node.services import STORAGE_COMMITMENT, UNCOMPRESSED, VERIFICATION
from dicom_node.settings import Settings
from dicom_node.store import InstanceStore
from dicom_node.tls import server_context
from dicom_node.transfers import Transfers

log = structlog.get_logger(__name__)

SEATS_FILE = "seats"
"""In data_dir: what the acceptors count their associations by."""


Settle = Callable[[Callable[[Any], bool]], None]
"""Does what is left to do for every association that is not running any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptor:
    """A running server of this process."""

    server: AssociationServer
    thread: threading.Thread
    seats: Seats
    settle: Settle

    def close(self) -> None:
        """Accept nothing more, let running associations end, cut off the rest."""
        self.server.drain()
        self.thread.join()
        self.settle(lambda _one: False)
        self.seats.close()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket for all acceptors.

    Raises:
        OSError: the address is taken or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only where the protocol is named does asyncio, which serves the page, turn Nagle's algorithm off: else the body of
    # an answer waits until the peer has acknowledged its head, 40 ms later.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
    limits: Limits | None = None,
    *,
    more_handlers: Sequence[evt.EventHandlerType] = (),
    audit: Audit = unaudited,
    metrics: AcceptorMetrics | None = None,
) -> Acceptor:
    """Return a server that accepts associations in threads of this process; `limits` are the settings' if None.

    Args:
        more_handlers: of Storage Commitment.
        audit: hears who was turned away, and what was received.
        metrics: counts all that comes; None: nobody will ask.
    """
    metrics = metrics or AcceptorMetrics()
    _config.UNRESTRICTED_STORAGE_SERVICE = True  # see sop_classes
    _config.LOG_HANDLER_LEVEL = "none"
    node = settings.node
    seats = Seats(store.path(SEATS_FILE), node.max_associations, node.max_associations_per_peer)
    doorkeeper = scp.Doorkeeper(
        node=node,
        peers=settings.peers,
        has_room=lambda: store.free_bytes() > node.min_free_bytes,
        take_seat=seats.take,
        audit=audit,
        count=metrics.rejected,
    )
    own = this_application(node)
    transfers = Transfers(own, audit)

    def turn_away(address: str, why: str) -> None:
        audit(peer_refused(own, Application(ae_title="", address=address), why))

    def settle(is_running: Callable[[Any], bool]) -> None:
        transfers.settle(is_running)
        metrics.settle(is_running)

    note = metrics.noting(transfers.note)
    on_c_store = partial(scp.on_c_store, receive=receive, quarantine=store.quarantine, note=note)
    handlers: list[evt.EventHandlerType] = [
        (evt.EVT_REQUESTED, partial(scp.on_requested, doorkeeper=doorkeeper)),
        (evt.EVT_ACCEPTED, scp.on_accepted),
        (evt.EVT_C_ECHO, scp.on_c_echo),
        (evt.EVT_C_STORE, metrics.timing(on_c_store)),
        (evt.EVT_DIMSE_RECV, partial(on_dimse_message, refused=metrics.refused)),
        *metrics.handlers,
        *more_handlers,
    ]
    ae = AE(ae_title=node.ae_title)
    ae.implementation_class_uid = scp.IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = scp.IMPLEMENTATION_VERSION
    ae.add_supported_context(VERIFICATION, UNCOMPRESSED)  # storage is unrestricted: listing it would change nothing
    # Peers ask the node to commit, and report to it what they commit to: both sides of one SOP class.
    ae.add_supported_context(STORAGE_COMMITMENT, UNCOMPRESSED, scu_role=True, scp_role=True)
    context = server_context(node.tls) if node.tls is not None else None
    on_store = partial(scp.on_store, receive=receive, quarantine=store.quarantine, note=note)
    server = AssociationServer(
        listening,
        ae,
        limits or Limits.of(node),
        seats,
        handlers,
        metrics.timing(on_store),
        settle,
        turn_away,
        context,
        metrics.ended,
    )
    thread = threading.Thread(target=partial(server.serve_forever, 0.1), name="accept", daemon=True)
    thread.start()
    return Acceptor(server=server, thread=thread, seats=seats, settle=settle)


def run_acceptor(listening: socket.socket, settings: Settings, counts: Path | None = None) -> None:
    """Receive until SIGTERM: the body of an acceptor process; `counts`: the folder that it counts in."""
    die_with_parent()
    count_in(counts)
    keep_freed_memory()
    configure_logs()
    threading.excepthook = log_thread
    end = EndSignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides
    sessions = open_ledger(settings.database_url)
    store = InstanceStore(settings.node.data_dir, min_free_bytes=settings.node.min_free_bytes)
    bell = Bell(settings.broker.url.get_secret_value())
    committer = Committer(
        commits=settings.node.storage_commitment, peers=settings.peers, sessions=sessions, store=store, clock=utc_now
    )
    answers = (evt.EVT_N_EVENT_REPORT, partial(commitment_scu.on_n_event_report, sessions=sessions, clock=utc_now))
    trail = AuditTrail(settings.audit, settings.node, utc_now)
    acceptor = start_acceptor(
        listening,
        settings,
        Intake(sessions, store, utc_now, bell.ring).receive,
        store,
        more_handlers=[*committer.handlers, answers],
        audit=trail.record,
        metrics=AcceptorMetrics(),
    )
    gc.collect()
    gc.freeze()  # what was loaded stays: looking through it again and again would stop all threads, and pynetdicom asks
    log.info("acceptor_started")
    end.wait()
    acceptor.close()
    committer.close()
    bell.close()
    close_ledger(sessions)
    log.info("acceptor_stopped")

"""One receiving process: the Storage and Verification SCP on a listening socket that the supervisor opened.

Several of them share the socket. The supervisor binds it once, so that port 0 works and a port that is taken stops the
start; the children get it by inheritance. The kernel wakes all and the first to come accepts: a process whose
interpreter is busy with a peer's loops comes late, so that connections spread by load. SO_REUSEPORT spreads them by a
hash of the address instead, and loses those that wait in the queue of a process that dies.
"""

import signal
import socket
import threading
from dataclasses import dataclass
from functools import partial

import structlog
from pynetdicom import AE, _config, evt

from dicom_node import scp
from dicom_node.association_server import AssociationServer, Limits
from dicom_node.clock import utc_now
from dicom_node.dispatch import Bell
from dicom_node.intake import Intake
from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.logs import configure_logs
from dicom_node.processes import EndSignal, die_with_parent
from dicom_node.seats import Seats
from dicom_node.settings import Settings
from dicom_node.sop_classes import VERIFICATION
from dicom_node.store import InstanceStore

log = structlog.get_logger(__name__)

SEATS_FILE = "seats"
"""In data_dir: what the acceptors count their associations by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptor:
    """A running server of this process."""

    server: AssociationServer
    thread: threading.Thread
    seats: Seats

    def close(self) -> None:
        """Accept nothing more, let running associations end, cut off the rest."""
        self.server.drain()
        self.thread.join()
        self.seats.close()


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
    limits: Limits | None = None,
) -> Acceptor:
    """Return a server that accepts associations in threads of this process; `limits` are the settings' if None."""
    _config.UNRESTRICTED_STORAGE_SERVICE = True  # see sop_classes
    _config.LOG_HANDLER_LEVEL = "none"
    node = settings.node
    seats = Seats(store.path(SEATS_FILE), node.max_associations)
    doorkeeper = scp.Doorkeeper(
        node=node,
        peers=settings.peers,
        has_room=lambda: store.free_bytes() > node.min_free_bytes,
        take_seat=seats.take,
    )
    handlers: list[evt.EventHandlerType] = [
        (evt.EVT_REQUESTED, partial(scp.on_requested, doorkeeper=doorkeeper)),
        (evt.EVT_ACCEPTED, scp.on_accepted),
        (evt.EVT_C_ECHO, scp.on_c_echo),
        (evt.EVT_C_STORE, partial(scp.on_c_store, receive=receive, quarantine=store.quarantine)),
        (evt.EVT_DIMSE_RECV, scp.on_dimse_message),
    ]
    ae = AE(ae_title=node.ae_title)
    ae.implementation_class_uid = scp.IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = scp.IMPLEMENTATION_VERSION
    ae.add_supported_context(VERIFICATION)  # storage is unrestricted: listing it would change nothing
    server = AssociationServer(listening, ae, limits or Limits(max_pdu=node.max_pdu), seats, handlers)
    thread = threading.Thread(target=partial(server.serve_forever, 0.1), name="accept", daemon=True)
    thread.start()
    return Acceptor(server=server, thread=thread, seats=seats)


def run_acceptor(listening: socket.socket, settings: Settings) -> None:
    """Receive until SIGTERM: the body of an acceptor process."""
    die_with_parent()
    configure_logs()
    end = EndSignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides
    sessions = open_ledger(settings.database_url)
    store = InstanceStore(settings.node.data_dir, min_free_bytes=settings.node.min_free_bytes)
    bell = Bell(settings.broker.url.get_secret_value())
    acceptor = start_acceptor(listening, settings, Intake(sessions, store, utc_now, bell.ring).receive, store)
    log.info("acceptor_started")
    end.wait()
    acceptor.close()
    bell.close()
    close_ledger(sessions)
    log.info("acceptor_stopped")

"""The process with the node's clock: it completes studies, takes back what was lost, delivers, purges, and shows."""

import signal
import socket
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dicom_node import completion, retention
from dicom_node.clock import utc_now
from dicom_node.delivery import Deliverer
from dicom_node.dispatch import Bell
from dicom_node.errors import StoreError
from dicom_node.ledger import future, outbox
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.logs import configure_logs
from dicom_node.processes import EndSignal, die_with_parent
from dicom_node.senders import StoreSender, StowSender
from dicom_node.settings import Peer, Settings
from dicom_node.store import InstanceStore
from dicom_node.web.app import make_app
from dicom_node.web.server import WebServer

log = structlog.get_logger(__name__)

TICK = timedelta(seconds=0.1)
"""How often the clock looks for studies that time has moved on."""

PURGE_EVERY = timedelta(hours=1)

_SET_BACK = timedelta(seconds=1)  # what is less is the machine keeping its clock right


def run_clockwork(settings: Settings, node_port: int, web_listening: socket.socket) -> None:
    """Tick until SIGTERM: the body of the clock's process."""
    die_with_parent()
    configure_logs()
    end = EndSignal(signal.SIGTERM)
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides
    sessions = open_ledger(settings.database_url)
    store = InstanceStore(settings.node.data_dir, min_free_bytes=settings.node.min_free_bytes)
    bell = Bell(settings.broker.url.get_secret_value())
    web = WebServer(make_app(settings, sessions, store, node_port), web_listening)
    web.start()
    _name_forgotten_peers(sessions, settings)
    threads = [
        _start("completion", lambda: _tick(sessions, settings, bell, stop)),
        _start("retention", lambda: _purge(sessions, store, settings, stop)),
        *(
            _start(f"deliver-{peer.name}", _deliverer(peer, settings, sessions, store, stop))
            for peer in settings.peers
            if peer.receives_reports
        ),
    ]
    log.info("clock_started")
    end.wait()
    stop.set()
    for thread in threads:
        thread.join()
    web.stop()
    bell.close()
    close_ledger(sessions)
    log.info("clock_stopped")


def _start(name: str, body: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    return thread


def _name_forgotten_peers(sessions: Sessions, settings: Settings) -> None:
    """Say whose reports nobody will deliver: their studies would stay in `delivering` without a word."""
    for name in sorted(outbox.owed_peers(sessions) - {peer.name for peer in settings.peers if peer.receives_reports}):
        log.error("delivery_without_peer", peer=name)


def _deliverer(
    peer: Peer, settings: Settings, sessions: Sessions, store: InstanceStore, stop: threading.Event
) -> Callable[[], None]:
    sender = StowSender(peer) if peer.stow_url else StoreSender(settings.node.ae_title, peer)
    deliverer = Deliverer(peer=peer, sender=sender, sessions=sessions, store=store, clock=utc_now)
    return lambda: deliverer.run(stop)


def _tick(sessions: Sessions, settings: Settings, bell: Bell, stop: threading.Event) -> None:
    last: datetime | None = None
    while not stop.wait(TICK.total_seconds()):
        try:
            now = utc_now()
            # At the start, and whenever the clock was set back.
            if (last is None or now < last - _SET_BACK) and (number := future.bring_back(sessions, now)):
                log.warning("clock_was_ahead", rows=number)
            last = now
            for study_id in completion.tick(sessions, utc_now, settings.study.quiet):
                bell.ring(study_id)
        except SQLAlchemyError as error:
            log.warning("ledger_not_ticked", reason=type(error).__name__)  # the next tick repeats it
        except Exception:  # the loop of a service: without it no study would ever be complete
            log.exception("tick_failed")


def _purge(sessions: Sessions, store: InstanceStore, settings: Settings, stop: threading.Event) -> None:
    while True:
        try:
            retention.purge(sessions, store, settings.retention, utc_now)
        except StoreError as error:
            log.error("purge_failed", reason=str(error))
        except SQLAlchemyError as error:
            log.error("purge_failed", reason=type(error).__name__)
        except Exception:  # the loop of a service: the disk would fill up
            log.exception("purge_failed")
        if stop.wait(PURGE_EVERY.total_seconds()):
            return

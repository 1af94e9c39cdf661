"""The process with the node's clock: it completes studies, takes back what was lost, delivers, purges, and shows."""

import signal
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.audit import Action, Application, Audit, Outcome, StudyContent, transferred
from dicom_node.audit_forwarder import Forwarder
from dicom_node.audit_trail import AuditTrail, tell_deleted, tell_login, this_application, trail_folder
from dicom_node.clock import utc_now
from dicom_node.commitment_report import Reporter
from dicom_node.commitment_scu import Requester
from dicom_node.delivery import GIVE_UP_AFTER, Deliverer
from dicom_node.dispatch import Bell
from dicom_node.housekeeping import EVERY_MINUTE, Housekeeper
from dicom_node.ledger import commitments, outbox, pledges
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.logs import configure_logs
from dicom_node.metrics.delivery import DeliveryMetrics
from dicom_node.metrics.shared import count_in
from dicom_node.objects import open_objects
from dicom_node.processes import EndSignal, die_with_parent
from dicom_node.senders import StoreSender, StowSender
from dicom_node.settings import Peer, Settings
from dicom_node.sharing import Sharer
from dicom_node.store import InstanceStore
from dicom_node.syslog import make_receiver
from dicom_node.ticker import Ticker
from dicom_node.web.app import make_app
from dicom_node.web.guard import log_login
from dicom_node.web.health import Pulse
from dicom_node.web.server import WebServer

log = structlog.get_logger(__name__)

COMMITMENT_POLL = timedelta(seconds=0.5)
GIVE_UP_EVERY = timedelta(minutes=10)


def run_clockwork(settings: Settings, node_port: int, web_listening: socket.socket, counts: Path | None = None) -> None:
    """Tick until SIGTERM: the body of the clock's process; `counts`: the folder that the node's processes count in."""
    die_with_parent()
    count_in(counts)
    configure_logs()
    end = EndSignal(signal.SIGTERM)
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides
    sessions = open_ledger(settings.database_url)
    store = InstanceStore(settings.node.data_dir, settings.node.min_free_bytes, open_objects(settings.objects))
    bell = Bell(settings.broker.url.get_secret_value())
    pulse = Pulse()
    trail = AuditTrail(settings.audit, settings.node, utc_now)

    def on_login(address: str, is_accepted: bool) -> None:
        log_login(address, is_accepted)
        tell_login(trail.record, settings.node, address, is_accepted)

    app = make_app(settings, sessions, store, node_port, pulse=pulse, ring=bell.ring, on_login=on_login, counts=counts)
    web = WebServer(app, web_listening, settings.web)
    web.start()
    _name_forgotten_peers(sessions, settings)
    housekeeper = Housekeeper(
        sessions=sessions,
        store=store,
        settings=settings.retention,
        room=settings.room,
        clock=utc_now,
        tell=partial(tell_deleted, trail.record, settings.node),
    )
    destinations = [peer for peer in settings.peers if peer.receives_reports]
    metrics = DeliveryMetrics(peer.name for peer in destinations)
    threads = [
        _start("completion", partial(Ticker(sessions, bell, settings.study, utc_now, pulse).run, stop)),
        _start("retention", lambda: _keep_house(housekeeper.tick, stop)),
        _start("orphans", lambda: _keep_house(housekeeper.sweep, stop)),
        *(
            _start(f"deliver-{peer.name}", _deliverer(peer, settings, sessions, store, trail.record, metrics, stop))
            for peer in destinations
        ),
        *_forwarding(settings, stop),
    ]
    if store.is_shared:
        threads.append(_start("sharing", partial(Sharer(sessions, store, bell.ring, utc_now).run, stop)))
    threads += commitment_threads(settings, sessions, store, stop)
    log.info("clock_started")
    end.wait()
    stop.set()
    for thread in threads:
        thread.join()
    web.stop()
    bell.close()
    close_ledger(sessions)
    log.info("clock_stopped")


def commitment_threads(
    settings: Settings, sessions: Sessions, store: InstanceStore, stop: threading.Event
) -> list[threading.Thread]:
    """Start a thread for each peer that hears of commitment or is asked for it, and one that gives up."""
    steps: dict[str, Callable[[], int]] = {}
    for peer in settings.peers:
        if settings.node.storage_commitment and peer.host:
            reporter = Reporter(node=settings.node, peer=peer, sessions=sessions, store=store, clock=utc_now)
            steps[f"commit-{peer.name}"] = reporter.report_due
        if peer.storage_commitment:
            requester = Requester(node=settings.node, peer=peer, sessions=sessions, clock=utc_now)
            steps[f"ask-{peer.name}"] = requester.ask_due
    threads = [_start(name, partial(_repeat, name, step, COMMITMENT_POLL, stop)) for name, step in steps.items()]
    give_up = partial(_give_up_commitments, sessions)
    return [*threads, _start("commitment", partial(_repeat, "give-up", give_up, GIVE_UP_EVERY, stop))]


def _give_up_commitments(sessions: Sessions) -> int:
    return sum(one.give_up(sessions, GIVE_UP_AFTER, utc_now) for one in (commitments, pledges))


def _repeat(name: str, step: Callable[[], int], pause: timedelta, stop: threading.Event) -> None:
    while True:
        try:
            step()
        except SQLAlchemyError as error:
            log.warning("commitment_waits", thread=name, reason=type(error).__name__)
        except Exception:  # the loop of a service: what was leased comes back
            log.exception("commitment_loop_failed", thread=name)
        if stop.wait(pause.total_seconds()):
            return


def _start(name: str, body: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    return thread


def _name_forgotten_peers(sessions: Sessions, settings: Settings) -> None:
    """Say whose reports nobody will deliver: their studies would stay in `delivering` without a word."""
    for name in sorted(outbox.owed_peers(sessions) - {peer.name for peer in settings.peers if peer.receives_reports}):
        log.error("delivery_without_peer", peer=name)


def _deliverer(
    peer: Peer,
    settings: Settings,
    sessions: Sessions,
    store: InstanceStore,
    audit: Audit,
    metrics: DeliveryMetrics,
    stop: threading.Event,
) -> Callable[[], None]:
    node, destination = this_application(settings.node), Application(ae_title=peer.ae_title, address=_host(peer))

    def tell(content: StudyContent, outcome: Outcome) -> None:
        audit(transferred(node, destination, content, Action.READ, outcome))

    sender = StowSender(peer) if peer.stow_url else StoreSender(settings.node, peer)
    deliverer = Deliverer(
        peer=peer, sender=sender, sessions=sessions, store=store, clock=utc_now, tell=tell, metrics=metrics
    )
    return lambda: deliverer.run(stop)


def _host(peer: Peer) -> str:
    return (urlsplit(peer.stow_url).hostname or "") if peer.stow_url else peer.host


def _forwarding(settings: Settings, stop: threading.Event) -> list[threading.Thread]:
    if not settings.audit.syslog:
        return []
    forwarder = Forwarder(trail_folder(settings.audit, settings.node), make_receiver(settings.audit))
    return [_start("audit", lambda: forwarder.run(stop))]


def _keep_house(do_what_is_due: Callable[[], None], stop: threading.Event) -> None:
    while True:
        try:
            do_what_is_due()
        except OSError as error:
            log.error("purge_failed", reason=f"{error.filename}: {error.strerror}")
        except SQLAlchemyError as error:
            log.error("purge_failed", reason=type(error).__name__)
        except Exception:  # the loop of a service: the disk would fill up
            log.exception("purge_failed")
        if stop.wait(EVERY_MINUTE.total_seconds()):
            return

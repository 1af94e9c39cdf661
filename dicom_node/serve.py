"""`dicom-node serve`: one command that supervises the node's processes.

Children: the receiving processes on one port, the clock (completion, delivery, page), and with the embedded broker also
the broker and one worker. A child that dies is started again, with growing pauses; SIGTERM ends all of it cleanly.
"""

import contextlib
import errno
import fcntl
import importlib.util
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog
from pydantic import SecretStr

from dicom_node import objects, syslog, tls
from dicom_node.acceptor import listen, run_acceptor
from dicom_node.audit import node_started, node_stopped
from dicom_node.audit_trail import AuditTrail, this_application
from dicom_node.broker import EmbeddedBroker, without_secrets
from dicom_node.clock import utc_now
from dicom_node.clockwork import run_clockwork
from dicom_node.dispatch import QUEUE
from dicom_node.errors import CannotServe
from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.metrics.shared import FOLDER_VARIABLE, counting_folder
from dicom_node.processes import Child, CommandProcess, EndSignal, Process, PythonProcess
from dicom_node.settings import CONFIG_VARIABLE, ENV_PREFIX, Settings
from dicom_node.store import InstanceStore, make_folder
from dicom_node.web.certificate import check_certificate

log = structlog.get_logger(__name__)

STATE_FILE = "serve.json"
"""In data_dir while the node runs: ports and process ids."""

_POLL_SECONDS = 0.1
_ADDRESS_SECONDS = 3.0
_STOP_SECONDS = {"worker": 20.0, "acceptor": 30.0, "clock": 15.0, "broker": 5.0}


def serve(settings: Settings, config: Path | None) -> None:
    """Run the node until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: the certificate of the page cannot be used.
        CannotServe: data_dir belongs to a running node, or an address cannot be listened on.
        ConfigurationError: a file of [node.tls] cannot be used.
        NodeError: the ledger or the broker cannot be started.
    """
    tls.check(settings, utc_now())
    end = EndSignal(signal.SIGTERM, signal.SIGINT)
    os.umask(0o077)  # whatever is written holds patients' data
    check_certificate(settings.web)
    syslog.check(settings.audit)
    objects.check(settings.objects)
    data_dir = settings.node.data_dir
    try:
        make_folder(data_dir)
    except OSError as error:
        raise CannotServe(f"node.data_dir: {data_dir} cannot be made: {error.strerror}") from error
    with (
        _exclusive(data_dir),
        _listening(settings.node.host, settings.node.port, "node.port") as dicom,
        _listening(settings.web.host, settings.web.port, "web.port") as web,
        counting_folder(str(data_dir)) as counts,
    ):
        close_ledger(open_ledger(settings.database_url))  # migrations once, before anybody needs them
        InstanceStore(data_dir, min_free_bytes=settings.node.min_free_bytes).sweep()
        children = []
        if not settings.broker.url.get_secret_value():
            broker = EmbeddedBroker(data_dir / "broker")
            settings = _with_broker(settings, broker.url)
            children = [_broker_child(broker), *_worker_child(settings, config, counts)]
        children += _own_children(settings, dicom, web, counts)
        trail, node = AuditTrail(settings.audit, settings.node, utc_now), this_application(settings.node)
        trail.record(node_started(node))
        try:
            _supervise(children, end.is_raised, lambda: _write_state(settings, children, dicom, web))
        finally:
            trail.record(node_stopped(node))  # while the clock's process is there to forward it
            _end(children)
            (data_dir / STATE_FILE).unlink(missing_ok=True)
    log.info("node_stopped")


def _with_broker(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"broker": settings.broker.model_copy(update={"url": SecretStr(url)})})


def _broker_child(broker: EmbeddedBroker) -> Child:
    """Return the broker, started: without it nothing else makes sense; later deaths are a child's."""
    broker.start()

    def again() -> Process:
        broker.start()
        return broker

    return Child(name="broker", start=again, stop_seconds=_STOP_SECONDS["broker"], process=broker)


def _worker_child(settings: Settings, config: Path | None, counts: Path | None) -> list[Child]:
    """Return the one worker of the embedded mode; none where its packages are missing: studies are kept and wait."""
    if importlib.util.find_spec("torch") is None:
        log.error("worker_not_installed", remedy="pip install 'echo-ai-node[worker]', or set broker.url")
        return []
    environment = _worker_environment(settings, config, counts)
    return [
        Child(
            name="worker",
            start=lambda: CommandProcess(_celery_command(), environment),
            stop_seconds=_STOP_SECONDS["worker"],
        )
    ]


def _own_children(settings: Settings, dicom: socket.socket, web: socket.socket, counts: Path | None) -> list[Child]:
    spawn = multiprocessing.get_context("spawn")
    port = int(dicom.getsockname()[1])

    def acceptor() -> Process:
        return PythonProcess(spawn.Process(target=run_acceptor, args=(dicom, settings, counts), name="acceptor"))

    def clock() -> Process:
        return PythonProcess(spawn.Process(target=run_clockwork, args=(settings, port, web, counts), name="clock"))

    starts = {"acceptor": acceptor, "clock": clock}
    names = [*["acceptor"] * settings.node.acceptors, "clock"]
    return [Child(name=name, start=starts[name], stop_seconds=_STOP_SECONDS[name]) for name in names]


def _supervise(children: list[Child], is_asked_to_end: Callable[[], bool], changed: Callable[[], None]) -> None:
    known: list[int | None] = []
    while not is_asked_to_end():
        for child in children:
            child.tend(time.monotonic())
        now = [child.process.pid if child.process else None for child in children]
        if now != known:
            try:
                changed()
                known = now
            except OSError as error:  # a full disk ends no node
                log.warning("state_not_written", reason=error.strerror)
        time.sleep(_POLL_SECONDS)
    log.info("node_stopping")


def _end(children: list[Child]) -> None:
    """End all children, each within its time; the broker last, so that nobody misses it."""
    brokers = [child for child in children if child.name == "broker"]
    others = [child for child in children if child.name != "broker"]
    for group in (others, brokers):
        for child in group:
            child.ask_to_end()
        for child in group:
            child.end()


def _celery_command() -> list[str]:
    return [
        sys.executable,
        *("-m", "celery", "-A", "worker.app", "worker", "-Q", QUEUE, "--pool=prefork", "--concurrency=1"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"),
    ]


def _worker_environment(settings: Settings, config: Path | None, counts: Path | None) -> dict[str, str]:
    """Return the environment of the worker: the same configuration, the broker that was started, where it counts."""
    environment = dict(os.environ)
    if counts is not None:
        environment[FOLDER_VARIABLE] = str(counts)
    if config is not None:
        environment[CONFIG_VARIABLE] = str(config.absolute())
    environment[f"{ENV_PREFIX}BROKER__URL"] = settings.broker.url.get_secret_value()
    environment[f"{ENV_PREFIX}NODE__DATA_DIR"] = str(settings.node.data_dir)
    return environment


@contextlib.contextmanager
def _exclusive(data_dir: Path) -> Iterator[None]:
    with (data_dir / "serve.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CannotServe(f"node.data_dir: {data_dir} belongs to a node that is running; stop it first") from error
        yield


@contextlib.contextmanager
def _listening(host: str, port: int, key: str) -> Iterator[socket.socket]:
    with _listen_soon(host, port, key) as listening:
        yield listening


def _listen_soon(host: str, port: int, key: str) -> socket.socket:
    """Return a listening socket; a node that was killed a moment ago may not have left the address yet."""
    deadline = time.monotonic() + _ADDRESS_SECONDS
    while True:
        try:
            return listen(host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                continue
            raise CannotServe(
                f"{key}: cannot listen on {host}:{port} ({error.strerror}); choose another address"
            ) from error


def _write_state(settings: Settings, children: list[Child], dicom: socket.socket, web: socket.socket) -> None:
    state = {
        "pid": os.getpid(),
        "port": int(dicom.getsockname()[1]),
        "web_port": int(web.getsockname()[1]),
        "broker": without_secrets(settings.broker.url.get_secret_value()),
        "children": [{"name": child.name, "pid": child.process.pid} for child in children if child.process],
    }
    path = settings.node.data_dir / STATE_FILE
    part = path.with_suffix(".part")
    part.write_text(json.dumps(state))
    part.replace(path)

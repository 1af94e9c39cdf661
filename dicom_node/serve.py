"""`dicom-node serve`: one command that supervises the node's processes.

Children: the receiving processes on one port, the clock (completion, delivery, page), and with the embedded broker also
the broker and one worker. A child that dies is started again, with growing pauses; SIGTERM ends all of it cleanly.
"""

import contextlib
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import structlog
from pydantic import SecretStr

from dicom_node.acceptor import listen, run_acceptor
from dicom_node.broker import EmbeddedBroker
from dicom_node.clockwork import run_clockwork
from dicom_node.dispatch import QUEUE
from dicom_node.errors import ConfigurationError, NodeError
from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.processes import die_with_parent
from dicom_node.settings import CONFIG_VARIABLE, ENV_PREFIX, Settings
from dicom_node.store import InstanceStore

log = structlog.get_logger(__name__)

STATE_FILE = "serve.json"
"""In data_dir while the node runs: ports and process ids."""

_STOP_SECONDS = {"worker": 20.0, "acceptor": 30.0, "clock": 15.0}
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 30.0
_STEADY = 30.0  # seconds after which a child counts as healthy again


class Process(Protocol):
    """A started child."""

    @property
    def pid(self) -> int | None:
        """Return its process id."""
        ...

    def is_alive(self) -> bool:
        """Return whether it runs."""
        ...

    def terminate(self) -> None:
        """Ask it to end."""
        ...

    def kill(self) -> None:
        """End it."""
        ...

    def wait(self, seconds: float) -> None:
        """Wait until it has ended, at most so long."""
        ...


class PythonProcess:
    """A function of this package in an interpreter of its own (spawned: nothing is inherited but the arguments)."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        process.start()

    @property
    def pid(self) -> int | None:
        """Return its process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Return whether it runs."""
        return self._process.is_alive()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def wait(self, seconds: float) -> None:
        """Wait for its end."""
        self._process.join(seconds)


class CommandProcess:
    """A command of its own, such as Celery."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent)

    @property
    def pid(self) -> int | None:
        """Return its process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Return whether it runs."""
        return self._process.poll() is None

    def terminate(self) -> None:
        """Send SIGTERM: Celery finishes its task first."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def wait(self, seconds: float) -> None:
        """Wait for its end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)


@dataclass(kw_only=True)
class Child:
    """A child that is kept alive."""

    name: str
    start: Callable[[], Process]
    process: Process | None = None
    started_at: float = 0.0
    pause: float = _FIRST_PAUSE
    not_before: float = field(default=0.0)

    def tend(self, now: float) -> None:
        """Start the child if it is due; note its death."""
        if self.process is not None and self.process.is_alive():
            return
        if self.process is not None:
            self.pause = _FIRST_PAUSE if now - self.started_at > _STEADY else min(self.pause * 2, _LONGEST_PAUSE)
            self.not_before = now + self.pause
            self.process = None
            log.error("child_died", child=self.name, restart_in=self.pause)
        if now >= self.not_before:
            self.process = self.start()
            self.started_at = now

    def stop(self, seconds: float) -> None:
        """Wait for the child that was asked to end, then end it."""
        if self.process is None:
            return
        self.process.wait(seconds)
        if self.process.is_alive():
            log.warning("child_killed", child=self.name)
            self.process.kill()
            self.process.wait(5)


def serve(settings: Settings, config: Path | None) -> None:
    """Run the node until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: data_dir belongs to a running node, or an address cannot be listened on.
        NodeError: the ledger or the broker cannot be started.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    data_dir = settings.node.data_dir
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _exclusive(data_dir), _listening(settings.node.host, settings.node.port, "node.port") as listening:
        web_port = settings.web.port or _free_port(settings.web.host)
        close_ledger(open_ledger(settings.database_url))  # migrations once, before anybody needs them
        InstanceStore(data_dir, min_free_bytes=settings.node.min_free_bytes).sweep()
        broker = None
        if not settings.broker.url.get_secret_value():
            broker = EmbeddedBroker(data_dir / "broker")
            broker.start()
            settings = settings.model_copy(
                update={"broker": settings.broker.model_copy(update={"url": SecretStr(broker.url)})}
            )
        children = _children(settings, config, listening, web_port, with_worker=broker is not None)
        try:
            _supervise(children, broker, stop, lambda: _write_state(data_dir, children, listening, web_port))
        finally:
            _stop(children)
            if broker is not None:
                broker.stop()
            (data_dir / STATE_FILE).unlink(missing_ok=True)
    log.info("node_stopped")


def _children(
    settings: Settings, config: Path | None, listening: socket.socket, web_port: int, *, with_worker: bool
) -> list[Child]:
    spawn = multiprocessing.get_context("spawn")
    port = int(listening.getsockname()[1])

    def acceptor() -> Process:
        return PythonProcess(spawn.Process(target=run_acceptor, args=(listening, settings), name="acceptor"))

    def clock() -> Process:
        return PythonProcess(spawn.Process(target=run_clockwork, args=(settings, port, web_port), name="clock"))

    def worker() -> Process:
        return CommandProcess(_celery_command(), _worker_environment(settings, config))

    children = [Child(name="acceptor", start=acceptor) for _ in range(settings.node.acceptors)]
    children.append(Child(name="clock", start=clock))
    if with_worker:
        children.append(Child(name="worker", start=worker))
    return children


def _supervise(
    children: list[Child], broker: EmbeddedBroker | None, stop: threading.Event, changed: Callable[[], None]
) -> None:
    known: list[int | None] = []
    while not stop.is_set():
        if broker is not None and not broker.is_running():
            log.error("child_died", child="broker", restart_in=0)
            broker.start()
        for child in children:
            child.tend(time.monotonic())
        now = [child.process.pid if child.process else None for child in children]
        if now != known:
            changed()
            known = now
        stop.wait(0.1)
    log.info("node_stopping")


def _stop(children: list[Child]) -> None:
    for child in children:
        if child.process is not None and child.process.is_alive():
            child.process.terminate()
    deadline = time.monotonic() + max(_STOP_SECONDS.values())
    for child in children:
        child.stop(min(_STOP_SECONDS[child.name], max(deadline - time.monotonic(), 0.1)))


def _celery_command() -> list[str]:
    return [
        sys.executable,
        *("-m", "celery", "-A", "worker.app", "worker", "-Q", QUEUE, "--pool=prefork", "--concurrency=1"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"),
    ]


def _worker_environment(settings: Settings, config: Path | None) -> dict[str, str]:
    """Return the environment of the worker: the same configuration, and the broker that was started."""
    environment = dict(os.environ)
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
            raise ConfigurationError(f"node.data_dir: {data_dir} belongs to a node that is running; stop it") from error
        yield


@contextlib.contextmanager
def _listening(host: str, port: int, key: str) -> Iterator[socket.socket]:
    try:
        listening = listen(host, port)
    except OSError as error:
        raise NodeError(f"{key}: cannot listen on {host}:{port} ({error.strerror}); choose another address") from error
    with listening:
        yield listening


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _write_state(data_dir: Path, children: list[Child], listening: socket.socket, web_port: int) -> None:
    state = {
        "pid": os.getpid(),
        "port": int(listening.getsockname()[1]),
        "web_port": web_port,
        "children": [{"name": child.name, "pid": child.process.pid} for child in children if child.process],
    }
    part = data_dir / f"{STATE_FILE}.part"
    part.write_text(json.dumps(state))
    part.replace(data_dir / STATE_FILE)

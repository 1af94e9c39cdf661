"""A node as a hospital runs it: `dicom-node serve` in a process of its own, asked and told over the network."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import redis
from pydicom import Dataset
from pynetdicom import AE
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.errors import LedgerUnavailable, UnknownStudy
from dicom_node.identity import parse_uid
from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.ledger.views import StudyJson, study_json
from dicom_node.metrics.shared import folder_of
from tests.binaries import free_port, require_binary
from tests.doubles.certificates import Credentials
from tests.system.machines import HERE, Machine

T = TypeVar("T")

DEADLINE = 240.0
"""Seconds that anything may take on a busy machine; nothing waits longer than it must."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A configured node; `running` runs it."""

    folder: Path
    port: int
    config: Path
    database_url: str
    broker_url: str
    """Empty: embedded."""
    tls: Credentials | None = None
    """What it shows; whoever calls it must have a certificate of the same authority."""
    machine: Machine = HERE
    """Where it runs."""

    @property
    def host(self) -> str:
        """Return where it listens."""
        return self.machine.address

    @property
    def state(self) -> dict[str, Any]:
        """Return what the running node says of its processes."""
        content: dict[str, Any] = json.loads((self.folder / "var" / "serve.json").read_text())
        return content

    @property
    def log(self) -> str:
        """Return the log of node and workers so far."""
        return (self.folder / "node.log").read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of this name in the log."""
        lines = [line for line in self.log.splitlines() if line.startswith("{") and f'"event": "{name}"' in line]
        return [json.loads(line) for line in lines]

    def study(self, uid: str) -> StudyJson | None:
        """Return the study as the ledger has it; None: not yet."""
        try:
            sessions = open_ledger(self.database_url)
        except LedgerUnavailable:
            return None
        try:
            return study_json(sessions, parse_uid(uid), data_dir=self.folder / "var")
        except (UnknownStudy, SQLAlchemyError):
            return None
        finally:
            close_ledger(sessions)

    def wait_for(self, uid: str, state: str = "delivered") -> StudyJson:
        """Return the study once it is in this state."""

        def reached() -> StudyJson | None:
            study = self.study(uid)
            assert study is None or study["state"] != "failed" or state == "failed", study["error"]
            return study if study is not None and study["state"] == state else None

        return wait_until(reached, f"study {state}", self)

    def send(self, instances: list[Dataset], calling: str = "SCANNER") -> list[int | None]:
        """Send instances over one association and return the statuses."""
        ae = AE(ae_title=calling)
        for sop_class, syntax in {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in instances}:
            ae.add_requested_context(sop_class, syntax)
        association = ae.associate(self.host, self.port, ae_title="ECHONODE")
        assert association.is_established
        statuses = [association.send_c_store(one).get("Status") for one in instances]
        association.release()
        return statuses


def wait_until(probe: Callable[[], T | None], what: str, node: Node, deadline: float = DEADLINE) -> T:
    """Return the probe's first answer; fail with the end of the node's log if there is none in time."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        answer = probe()
        if answer is not None:
            return answer
        time.sleep(0.1)
    raise AssertionError(f"not in {deadline:.0f} s: {what}\n{node.log[-4000:]}")


WITHOUT_PICTURES = "[report]\nsaliency = false\nsummary = false\nsummary_pdf = false"
"""`extra` of a node whose reports nobody looks at: drawing a study's pictures takes twelve seconds of a processor."""


def configured(
    folder: Path,
    *,
    pacs_port: int,
    pacs_ae: str = "ORTHANC",
    pacs_host: str = HERE.address,
    quiet: float = 2.0,
    database_url: str = "",
    broker_url: str = "",
    extra: str = "",
    tls: Credentials | None = None,
    machine: Machine = HERE,
) -> Node:
    """Return a node that sends its reports to a PACS on `pacs_port`; both with TLS, if it has a certificate."""
    folder.mkdir(parents=True, exist_ok=True)
    port, config = free_port(), folder / "node.toml"
    config.write_text(
        f"""
[node]
host = "{machine.address}"
port = {port}
data_dir = {json.dumps(str(folder / "var"))}
min_free_bytes = 1000000
[[peers]]
name = "pacs"
ae_title = {json.dumps(pacs_ae)}
host = "{pacs_host}"
port = {pacs_port}
receives_reports = true
tls = {"false" if tls is None else "true"}
[study]
quiet_seconds = {quiet}
[database]
url = {json.dumps(database_url)}
[broker]
url = {json.dumps(broker_url)}
[web]
port = {free_port()}
{_section(tls)}
{extra}
"""
    )
    return Node(
        folder=folder,
        port=port,
        config=config,
        database_url=database_url or f"sqlite:///{folder / 'var' / 'ledger.sqlite'}",
        broker_url=broker_url,
        tls=tls,
        machine=machine,
    )


def _section(tls: Credentials | None) -> str:
    if tls is None:
        return ""
    return "\n".join(["[node.tls]", *(f"{key} = {json.dumps(value)}" for key, value in tls.settings().items())])


@contextmanager
def running(node: Node, *, ends_with: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """Run `dicom-node serve` until the block ends; it must end by itself with 0, or as the block ends it."""
    process = start(node)
    try:
        yield process
        stop(node, process, ends_with)
    finally:
        _kill(process)
        shutil.rmtree(folder_of(str(node.folder / "var")), ignore_errors=True)  # of a node that was killed


def start(node: Node) -> subprocess.Popen[bytes]:
    """Start `dicom-node serve` and return it once it listens; `stop` it, or kill it."""
    command = [sys.executable, "-m", "dicom_node", "serve", "--config", str(node.config)]
    process = _logged(node, command, node.machine)
    wait_until(lambda: _listens(node, process), "the node listens", node)
    return process


def stop(node: Node, process: subprocess.Popen[bytes], ends_with: int = 0) -> None:
    """Ask it to end in good order: it must end by itself, with 0, or have ended as said."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == ends_with, node.log[-4000:]


@contextmanager
def running_worker(
    node: Node, name: str, app: str = "worker.app", machine: Machine = HERE
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker as on another machine, with the same configuration file, until the block ends."""
    command = [
        *(sys.executable, "-m", "celery", "-A", app, "worker", "-Q", "inference", "-n", f"{name}@%h"),
        *("--pool=prefork", "--concurrency=1", "--loglevel=WARNING", "--without-gossip", "--without-mingle"),
    ]
    process = _logged(node, command, machine)
    try:
        yield process
        process.terminate()
        process.wait(60)
    finally:
        _kill(process)


@contextmanager
def running_redis(folder: Path, password: str = "", machine: Machine = HERE) -> Iterator[str]:
    """Run a Redis server until the block ends; give its URL."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    options = (
        "--port",
        str(port),
        "--bind",
        machine.address,
        "--protected-mode",
        "no",
        "--save",
        "",
        "--dir",
        str(folder),
    )
    (folder / "redis.conf").write_text(f"requirepass {password}\n" if password else "")
    command = [*machine.prefix, require_binary("redis-server"), str(folder / "redis.conf"), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"redis://{f':{password}@' if password else ''}{machine.address}:{port}/0"
    try:
        _wait_for_redis(url)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _wait_for_redis(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        end = time.monotonic() + 30
        while True:
            try:
                client.ping()
            except redis.ConnectionError:
                assert time.monotonic() < end, "redis-server does not answer"
                time.sleep(0.05)
            else:
                return


def _logged(node: Node, command: list[str], machine: Machine) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ECHO_NODE")}
    environment["ECHO_NODE_CONFIG"] = str(node.config)
    with (node.folder / "node.log").open("ab") as log:
        return subprocess.Popen([*machine.prefix, *command], stdout=log, stderr=subprocess.STDOUT, env=environment)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait(30)


def _listens(node: Node, process: subprocess.Popen[bytes]) -> bool | None:
    assert process.poll() is None, node.log[-4000:]
    try:
        socket.create_connection((node.host, node.port), timeout=5).close()
    except ConnectionRefusedError:
        return None
    ae = AE(ae_title="PROBE")
    ae.connection_timeout = 5
    ae.acse_timeout = 60  # whoever gives up leaves a socket open, and processes take their time to start
    ae.add_requested_context("1.2.840.10008.1.1")
    association = ae.associate(
        node.host,
        node.port,
        ae_title="ECHONODE",
        tls_args=None if node.tls is None else (node.tls.client(), "127.0.0.1"),
    )
    if not association.is_established:
        return None
    association.release()
    return True

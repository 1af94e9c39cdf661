"""A node as a hospital runs it: `dicom-node serve` in a process of its own, asked and told over the network."""

import json
import os
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
from tests.binaries import free_port, require_binary

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
        association = ae.associate("127.0.0.1", self.port, ae_title="ECHONODE")
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


def configured(
    folder: Path,
    *,
    pacs_port: int,
    pacs_ae: str = "ORTHANC",
    quiet: float = 2.0,
    database_url: str = "",
    broker_url: str = "",
    extra: str = "",
) -> Node:
    """Return a node that sends its reports to a PACS on `pacs_port`."""
    folder.mkdir(parents=True, exist_ok=True)
    port, config = free_port(), folder / "node.toml"
    config.write_text(
        f"""
[node]
port = {port}
data_dir = {json.dumps(str(folder / "var"))}
min_free_bytes = 1000000
[[peers]]
name = "pacs"
ae_title = {json.dumps(pacs_ae)}
host = "127.0.0.1"
port = {pacs_port}
receives_reports = true
[study]
quiet_seconds = {quiet}
[database]
url = {json.dumps(database_url)}
[broker]
url = {json.dumps(broker_url)}
[web]
port = {free_port()}
{extra}
"""
    )
    return Node(
        folder=folder,
        port=port,
        config=config,
        database_url=database_url or f"sqlite:///{folder / 'var' / 'ledger.sqlite'}",
        broker_url=broker_url,
    )


@contextmanager
def running(node: Node) -> Iterator[subprocess.Popen[bytes]]:
    """Run `dicom-node serve` until the block ends; it must end by itself, with 0."""
    command = [sys.executable, "-m", "dicom_node", "serve", "--config", str(node.config)]
    with _logged(node, command) as process:
        wait_until(lambda: _listens(node, process), "the node listens", node)
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0, node.log[-4000:]


@contextmanager
def running_worker(node: Node, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker as on another machine, with the same configuration file, until the block ends."""
    command = [
        *(sys.executable, "-m", "celery", "-A", "worker.app", "worker", "-Q", "inference", "-n", f"{name}@%h"),
        *("--pool=prefork", "--concurrency=1", "--loglevel=WARNING", "--without-gossip", "--without-mingle"),
    ]
    with _logged(node, command) as process:
        yield process
        process.terminate()
        process.wait(60)


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """Run a Redis server until the block ends; give its URL."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder))
    process = subprocess.Popen([require_binary("redis-server"), *options], stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
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


@contextmanager
def _logged(node: Node, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ECHO_NODE")}
    environment["ECHO_NODE_CONFIG"] = str(node.config)
    with (node.folder / "node.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)


def _listens(node: Node, process: subprocess.Popen[bytes]) -> bool | None:
    assert process.poll() is None, node.log[-4000:]
    try:
        socket.create_connection(("127.0.0.1", node.port), timeout=5).close()
    except ConnectionRefusedError:
        return None
    ae = AE(ae_title="PROBE")
    ae.connection_timeout = ae.acse_timeout = 5
    ae.add_requested_context("1.2.840.10008.1.1")
    association = ae.associate("127.0.0.1", node.port, ae_title="ECHONODE")
    if not association.is_established:
        return None
    association.release()
    return True

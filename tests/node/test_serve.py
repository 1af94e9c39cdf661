"""`dicom-node serve` as a hospital runs it: a process of its own, asked and told over the network."""

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
from typing import Any

import httpx
import pytest
from pynetdicom import AE

from dicom_node.broker import EmbeddedBroker

_VERIFICATION = "1.2.840.10008.1.1"
_DEADLINE = 90.0


@dataclass(kw_only=True)
class Served:
    """A running node."""

    process: subprocess.Popen[str]
    data_dir: Path
    log: Path

    @property
    def state(self) -> dict[str, Any]:
        """Return what stands in serve.json."""
        content: dict[str, Any] = json.loads((self.data_dir / "serve.json").read_text())
        return content

    def pids(self, name: str) -> list[int]:
        """Return the process ids of the children of this name."""
        return [child["pid"] for child in self.state["children"] if child["name"] == name]

    def health(self) -> httpx.Response | None:
        """Return the answer of /healthz; None: there is none."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.state['web_port']}/healthz", timeout=10)
        except (httpx.TransportError, FileNotFoundError):
            return None

    def is_healthy(self) -> bool:
        """Return whether nothing is wrong."""
        answer = self.health()
        return answer is not None and answer.status_code == 200

    def descendants(self) -> list[int]:
        """Return every process that the node has started, however deep."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(path.parent.name)] = int(fields[1])
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found[1:]


def configure(folder: Path, **extra: str) -> Path:
    """Write a configuration with free ports and return its path."""
    path = folder / "node.toml"
    path.write_text(
        f"""
[node]
port = {extra.get("port", "0")}
data_dir = {json.dumps(str(folder / "var"))}
min_free_bytes = 0
[broker]
url = {json.dumps(extra.get("broker_url", ""))}
[web]
port = {extra.get("web_port", "0")}
"""
    )
    return path


def command(config: Path) -> list[str]:
    """Return the command line of the node."""
    return [sys.executable, "-m", "dicom_node", "serve", "--config", str(config)]


def environment() -> dict[str, str]:
    """Return an environment without settings of this machine's own node."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ECHO_NODE")}
    return kept | {"OMP_NUM_THREADS": "1"}


@contextmanager
def serving(folder: Path, **extra: str) -> Iterator[Served]:
    """Run a node until the block ends."""
    log = folder / "node.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(configure(folder, **extra)), stdout=output, stderr=output, env=environment(), text=True
        )
    node = Served(process=process, data_dir=folder / "var", log=log)
    try:
        wait_until(node.is_healthy, node)
        yield node
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Served]:
    """A running node with the embedded defaults, to be ended."""
    with serving(tmp_path) as served:
        yield served


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A broker that is not the node's."""
    broker = EmbeddedBroker(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, broker: EmbeddedBroker) -> Iterator[Served]:
    """A running node without a worker of its own, for all tests that leave it running."""
    with serving(tmp_path_factory.mktemp("lasting"), broker_url=broker.url) as served:
        yield served


@pytest.fixture
def bare(tmp_path: Path, broker: EmbeddedBroker) -> Iterator[Served]:
    """A running node without a worker of its own, to be ended."""
    with serving(tmp_path, broker_url=broker.url) as served:
        yield served


def wait_until(is_true: Callable[[], bool], node: Served) -> None:
    """Poll until it is true; the node's log says why it is not."""
    deadline = time.monotonic() + _DEADLINE
    while not is_true():
        assert node.process.poll() is None, node.log.read_text()[-3000:]
        assert time.monotonic() < deadline, node.log.read_text()[-3000:]
        time.sleep(0.05)


def answers_echo(port: int) -> bool:
    """Return whether a C-ECHO is answered with Success."""
    ae = AE(ae_title="SCANNER")
    ae.add_requested_context(_VERIFICATION)
    association = ae.associate("127.0.0.1", port, ae_title="ECHONODE")
    if not association.is_established:
        return False
    status = association.send_c_echo().get("Status")
    association.release()
    return bool(status == 0x0000)


def is_running(pid: int) -> bool:
    """Return whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_end(pids: list[int], seconds: float = 20.0) -> None:
    """Wait until none of these runs."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]
        time.sleep(0.05)


def test_it_answers_an_echo_and_ends_with_nothing_left(node: Served) -> None:
    is_answered = answers_echo(node.state["port"])
    children = node.descendants()
    node.process.send_signal(signal.SIGTERM)
    code = node.process.wait(60)

    assert is_answered
    assert len(children) >= 5  # broker, worker, two acceptors, clock
    assert code == 0, node.log.read_text()[-3000:]
    assert not (node.data_dir / "serve.json").exists()
    assert "Traceback" not in node.log.read_text()
    wait_for_end(children)


def test_killed_children_come_back(node: Served) -> None:
    killed = [*node.pids("acceptor"), *node.pids("clock"), *node.pids("broker"), *node.pids("worker")]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len({child["pid"] for child in node.state["children"]} - {*killed}) == 5, node)
    wait_until(node.is_healthy, node)

    assert answers_echo(node.state["port"])
    assert '"event": "child_died"' in node.log.read_text()


def test_when_the_node_itself_is_killed_nothing_is_left(node: Served) -> None:
    children = node.descendants()
    node.process.kill()
    node.process.wait(10)

    wait_for_end(children)


def test_an_association_that_runs_is_finished_first(bare: Served) -> None:
    ae = AE(ae_title="SCANNER")
    ae.add_requested_context(_VERIFICATION)
    association = ae.associate("127.0.0.1", bare.state["port"], ae_title="ECHONODE")
    bare.process.send_signal(signal.SIGTERM)
    wait_until(lambda: '"event": "node_stopping"' in bare.log.read_text(), bare)
    status = association.send_c_echo().get("Status")
    association.release()

    assert status == 0x0000
    assert bare.process.wait(60) == 0


def test_a_second_node_on_the_same_folder_is_refused(lasting: Served) -> None:
    config = lasting.data_dir.parent / "node.toml"
    second = subprocess.run(command(config), capture_output=True, text=True, env=environment(), timeout=60, check=False)

    assert second.returncode == 1
    assert "belongs to a node that is running" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    assert lasting.is_healthy()


@pytest.mark.parametrize(("key", "name"), [("port", "node.port"), ("web_port", "web.port")])
def test_a_port_that_is_taken_is_named(tmp_path: Path, key: str, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = configure(tmp_path, **{key: str(taken.getsockname()[1])})
        ended = subprocess.run(
            command(config), capture_output=True, text=True, env=environment(), timeout=60, check=False
        )

    assert ended.returncode == 1
    assert ended.stderr.startswith(f"dicom-node: {name}: cannot listen on 127.0.0.1:")
    assert len(ended.stderr.strip().splitlines()) == 1


def test_the_state_file_tells_ports_and_processes_but_no_secret(lasting: Served) -> None:
    state = lasting.state

    assert [child["name"] for child in state["children"]] == ["acceptor", "acceptor", "clock"]
    assert state["pid"] == lasting.process.pid
    assert state["broker"].startswith("redis://127.0.0.1:")
    assert "@" not in json.dumps(state)


def test_a_broker_that_is_gone_is_named_by_health_and_costs_no_echo(lasting: Served, broker: EmbeddedBroker) -> None:
    broker.stop()
    answer = lasting.health()
    is_answered = answers_echo(lasting.state["port"])
    broker.start()

    assert answer is not None
    assert answer.status_code == 503
    assert answer.json()["wrong"] == ["the broker does not answer"]
    assert is_answered
    wait_until(lasting.is_healthy, lasting)

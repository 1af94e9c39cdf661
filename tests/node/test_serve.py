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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from lxml import etree
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from sqlalchemy import update

from dicom_node.broker import EmbeddedBroker
from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.ledger.schema import Study, StudyState
from tests import patience
from tests.doubles.certificates import authority
from tests.doubles.datasets import loop
from tests.doubles.syslog_server import TlsSyslog
from tests.doubles.wire_peer import WirePeer

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
{extra.get("more", "")}
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

    try:
        wait_for_end(children)
    finally:
        for pid in filter(is_running, children):
            os.kill(pid, signal.SIGKILL)


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


def store_one_loop(port: int) -> int:
    """Return the status that a loop of a patient is answered with."""
    dataset = loop("1.2.826.0.1.7.1")
    dataset.PatientID = "4711"
    dataset.ensure_file_meta()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ae = AE(ae_title="SCANNER")
    ae.add_requested_context(dataset.SOPClassUID, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", port, ae_title="ECHONODE")
    status = association.send_c_store(dataset).Status
    association.release()
    return int(status)


def is_rejected(port: int) -> bool:
    """Return whether an association for another application is."""
    with WirePeer(port, called="ANYONE", calling="SCANNER") as peer:  # pynetdicom would leave its socket open
        return peer.associate().rejection is not None


def let_it_be_old(data_dir: Path) -> None:
    """Make the study one whose report was delivered long ago."""
    sessions = open_ledger(f"sqlite:///{data_dir / 'ledger.sqlite'}")
    with sessions.begin() as session:
        long_ago = datetime(2020, 1, 1, tzinfo=UTC)
        session.execute(
            update(Study).values(state=StudyState.DELIVERED, last_received_at=long_ago, delivered_at=long_ago)
        )
    close_ledger(sessions)


def audit_lines(node: Served) -> list[bytes]:
    """Return the lines of the audit trail."""
    files = sorted((node.data_dir / "audit").glob("audit-*.log"))
    return [line for path in files for line in path.read_bytes().splitlines()]


def audited(node: Served) -> list[etree._Element]:
    """Return the messages of the audit trail, each valid by the schema of the standard."""
    schema = etree.RelaxNG(etree.parse(Path(__file__).parents[1] / "data" / "audit" / "audit-message.rng"))
    messages = [etree.fromstring(line) for line in audit_lines(node)]
    for message in messages:
        schema.assertValid(message)
    return messages


def codes(node: Served) -> list[str]:
    """Return the type of each message where it has one, else its event."""
    found = [one.findall("EventIdentification/*") for one in audited(node)]
    return [next((one for one in head if one.tag == "EventTypeCode"), head[0]).get("csd-code") for head in found]


def test_what_happens_to_a_node_is_in_its_audit_trail_and_with_the_syslog_receiver(
    tmp_path: Path, broker: EmbeddedBroker
) -> None:
    """Start, instances, someone for another application, stop; start, images removed, stop."""
    ours = authority(tmp_path / "ca")
    with TlsSyslog(ours.issue("syslog")) as receiver:
        more = f'[audit]\nsyslog = "tls://127.0.0.1:{receiver.port}"\nca = {json.dumps(str(ours.certificate))}'
        with serving(tmp_path, broker_url=broker.url, more=more) as node:
            status = store_one_loop(node.state["port"])
            wait_until(lambda: "110104" in codes(node), node)
            was_rejected = is_rejected(node.state["port"])
        first = codes(node)
        let_it_be_old(node.data_dir)
        with serving(tmp_path, broker_url=broker.url, more=more) as node:
            wait_until(lambda: "110105" in codes(node), node)
        all_of_it = codes(node)
        patience.wait_until(lambda: len(receiver.messages) >= len(all_of_it))

    assert (status, was_rejected) == (0x0000, True)
    assert first == ["110120", "110102", "110104", "110126", "110121"]
    assert all_of_it[len(first) :] == ["110120", "110105", "110121"]
    assert [message.xml for message in receiver.messages] == audit_lines(node)
    deleted = audited(node)[-2].findall("ParticipantObjectIdentification")
    assert [one.get("ParticipantObjectID") for one in deleted] == ["1.2.826.0.1.5", "4711"]


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

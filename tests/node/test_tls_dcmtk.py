"""TLS with dcmtk, which shares no code with ours: storescu sends to the node, storescp gets what the node sends."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian

from dicom_node.errors import DeliveryError, Refused, Transient
from dicom_node.senders import StoreSender
from dicom_node.settings import Node, Peer, settings_from
from tests.binaries import free_port, require_binary
from tests.doubles.certificates import Authority, Credentials, authority
from tests.doubles.datasets import encoded, loop
from tests.doubles.receiver import Inbox, Receiver, running_receiver
from tests.doubles.wire_peer import DEADLINE
from tests.patience import eventually


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The hospital's authority."""
    return authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def cart(ours: Authority) -> Credentials:
    """What dcmtk shows, whichever end it plays."""
    return ours.issue("cart")


@pytest.fixture
def receiver(tmp_path: Path, inbox: Inbox, ours: Authority) -> Iterator[Receiver]:
    """A node that asks for certificates."""
    with running_receiver(tmp_path / "node", inbox.receive, node={"tls": ours.issue("node").settings()}) as running:
        yield running


@pytest.fixture(scope="module")
def node(ours: Authority) -> Node:
    """A node that sends."""
    return settings_from({"node": {"tls": ours.issue("sender").settings()}}).node


def test_storescu_sends_a_study(receiver: Receiver, inbox: Inbox, cart: Credentials, tmp_path: Path) -> None:
    """With its certificate."""
    folder = tmp_path / "study"
    folder.mkdir()
    contents = [_file(folder, f"1.2.3.{number}") for number in range(5)]

    run = _storescu(receiver.port, folder, *_shown(cart), "+cf", str(cart.ca))

    assert run.returncode == 0, run.stderr
    assert sorted(received.sop_instance_uid for received in inbox.received) == contents


@pytest.mark.parametrize("kind", ["another authority", "no certificate", "no TLS"])
def test_storescu_that_is_not_trusted_sends_nothing(
    receiver: Receiver, inbox: Inbox, cart: Credentials, tmp_path: Path, kind: str
) -> None:
    """And it is told so: its exit code says it."""
    stranger = authority(tmp_path / "theirs").issue("stranger")
    options = {"another authority": _shown(stranger), "no certificate": ("+tla",), "no TLS": ()}[kind]
    trust = ("+cf", str(cart.ca)) if options else ()
    folder = tmp_path / "study"
    folder.mkdir()
    _file(folder, "1.2.3.1")

    run = _storescu(receiver.port, folder, *options, *trust)

    assert run.returncode != 0
    assert inbox.received == []


def test_storescu_does_not_send_to_a_node_that_it_does_not_trust(
    receiver: Receiver, inbox: Inbox, cart: Credentials, tmp_path: Path
) -> None:
    """The trust is mutual."""
    folder = tmp_path / "study"
    folder.mkdir()
    _file(folder, "1.2.3.1")

    run = _storescu(receiver.port, folder, *_shown(cart), "+cf", str(authority(tmp_path / "theirs").certificate))

    assert run.returncode != 0
    assert inbox.received == []


@pytest.mark.parametrize("options", [(), ("--sleep-during", "1")], ids=["prompt", "slow"])
def test_storescp_gets_a_report(node: Node, cart: Credentials, tmp_path: Path, options: tuple[str, ...]) -> None:
    """A slow one too."""
    report = _report(tmp_path / "report.dcm")
    with _running_storescp(tmp_path / "pacs", cart, *options) as port:
        _send(node, port, report)

    (kept,) = (tmp_path / "pacs").iterdir()
    assert dcmread(kept).TextValue == dcmread(report).TextValue


@pytest.mark.parametrize(
    ("fault", "kind"), [("--refuse", Refused), ("--abort-after", Transient), ("--abort-during", Transient)]
)
def test_faults_of_storescp_are_what_they_are_without_tls(
    node: Node, cart: Credentials, tmp_path: Path, fault: str, kind: type[DeliveryError]
) -> None:
    """The delivery knows what to do; the next attempt arrives."""
    report = _report(tmp_path / "report.dcm")
    with _running_storescp(tmp_path / "faulty", cart, fault) as port, pytest.raises(kind):
        _send(node, port, report)
    with _running_storescp(tmp_path / "whole", cart) as port:
        _send(node, port, report)

    assert len(list((tmp_path / "whole").iterdir())) == 1


def _send(node: Node, port: int, report: Path) -> None:
    peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, tls=True)
    with StoreSender(node, peer).open() as send:
        send(report)


def _shown(credentials: Credentials) -> tuple[str, ...]:
    return ("+tls", str(credentials.key), str(credentials.certificate))


def _storescu(port: int, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [require_binary("storescu"), "-aec", "ECHONODE", "-aet", "CART", *options, "+sd", "127.0.0.1", str(port)]
    return subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def _running_storescp(folder: Path, credentials: Credentials, *options: str) -> Iterator[int]:
    port = free_port()
    folder.mkdir()
    secure = (*_shown(credentials), "+cf", str(credentials.ca))
    command = [require_binary("storescp"), *secure, *options, "--bit-preserving", "-od", str(folder), str(port)]
    process = subprocess.Popen(command, env={"TCP_NODELAY": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert eventually(lambda: _is_listening(port))
        yield port
    finally:
        process.terminate()
        process.wait(DEADLINE)


def _is_listening(port: int) -> bool:
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines)


def _file(folder: Path, sop_instance: str) -> str:
    dataset = loop(sop_instance)
    encoded(dataset)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dcmwrite(folder / f"{sop_instance}.dcm", dataset, enforce_file_format=True)
    return sop_instance


def _report(path: Path) -> Path:
    report = Dataset()
    report.SOPClassUID = ComprehensiveSRStorage
    report.SOPInstanceUID = "1.2.3.99"
    report.StudyInstanceUID = "1.2.3"
    report.TextValue = "x" * 40_000  # several PDUs, and records
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComprehensiveSRStorage
    meta.MediaStorageSOPInstanceUID = report.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    report.file_meta = meta
    dcmwrite(path, report, enforce_file_format=True)
    return path

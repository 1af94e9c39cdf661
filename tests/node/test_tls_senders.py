"""TLS to a peer: whom the node believes, what it shows, what it says when it fails."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from pydicom.uid import ComprehensiveSRStorage

from dicom_node.errors import Transient
from dicom_node.senders import StoreSender, associate
from dicom_node.services import PLAIN
from dicom_node.settings import Node, Peer, settings_from
from tests.doubles.certificates import Authority, Credentials, authority
from tests.doubles.pacs import running_pacs

CLASSES = {ComprehensiveSRStorage: PLAIN}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The hospital's authority."""
    return authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that nobody here trusts."""
    return authority(tmp_path_factory.mktemp("theirs"))


@pytest.fixture(scope="module")
def pacs(ours: Authority) -> Credentials:
    """What the PACS shows."""
    return ours.issue("pacs")


@pytest.fixture(scope="module")
def node(ours: Authority) -> Node:
    """A node with a certificate of the hospital's authority."""
    return settings_from({"node": {"tls": ours.issue("node").settings()}}).node


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_pacs_of_the_same_authority_is_talked_to(node: Node, pacs: Credentials, version: ssl.TLSVersion) -> None:
    """Each shows its certificate."""
    context = pacs.server()
    context.minimum_version = context.maximum_version = version
    with running_pacs(tls=context) as running:
        association = associate(node, _peer(running.port), CLASSES)
        association.release()

    assert association.is_released
    assert running.num_associations == 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("another authority", "self-signed certificate|unable to get local issuer"),
        ("another host", "IP address mismatch"),
        ("expired", "certificate has expired"),
        ("TLS 1.1", "protocol version|offers no TLS 1.2"),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_a_pacs_that_cannot_be_believed_gets_not_a_byte(
    node: Node, ours: Authority, theirs: Authority, kind: str, words: str
) -> None:
    """The reason is the delivery's."""
    with (
        running_pacs(tls=_server(kind, ours, theirs)) as running,
        pytest.raises(Transient, match=f"no TLS with 127.0.0.1:.*({words})"),
    ):
        associate(node, _peer(running.port), CLASSES)

    assert running.num_associations == 0


def test_a_pacs_may_be_known_by_its_certificate_instead_of_its_name(node: Node, ours: Authority) -> None:
    """Devices are often named by no host; another device of the same authority is refused all the same."""
    elsewhere, other = ours.issue("elsewhere", names="DNS:scanner-7"), ours.issue("other")
    answers = []
    for shown in (elsewhere, other):
        with running_pacs(tls=shown.server()) as running:
            try:
                associate(node, _peer(running.port, sha256=elsewhere.sha256), CLASSES).release()
                answers.append("taken")
            except Transient as error:
                answers.append(str(error))
            answers.append(str(running.num_associations))

    assert answers[:2] == ["taken", "1"]
    assert "another certificate than its certificate_sha256" in answers[2]
    assert answers[3] == "0"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_pacs_that_wants_a_certificate_of_ours_says_so(
    ours: Authority, pacs: Credentials, version: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TLS 1.3 after the handshake, with 1.2 in it."""
    # This node has no certificate; that the system's authorities do not know the PACS is another matter.
    monkeypatch.setenv("SSL_CERT_FILE", str(ours.certificate))
    context = pacs.server()
    context.minimum_version = context.maximum_version = version
    with (
        _refusing_server(context) as port,
        pytest.raises(Transient, match=r"no TLS with .*(handshake failure|required)"),
    ):
        associate(Node(), _peer(port), CLASSES)


def test_a_pacs_that_speaks_no_tls_is_said(node: Node) -> None:
    """It takes the begin of a handshake for a PDU and hangs up or aborts."""
    with running_pacs() as running, pytest.raises(Transient, match=r"no TLS with .*(does not speak TLS|hung up)"):
        associate(node, _peer(running.port), CLASSES)


def test_a_pacs_that_stops_in_the_handshake_is_left(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time for a connection."""
    monkeypatch.setattr("dicom_node.senders._CONNECT_TIMEOUT", timedelta(milliseconds=300))
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(Transient, match="did not finish its handshake in time"),
    ):
        associate(node, _peer(silent.getsockname()[1]), CLASSES)


def test_a_pacs_that_answers_nothing_after_the_handshake_leaves_no_thread_behind(
    node: Node, pacs: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session ticket of TLS 1.3 looks like the begin of an answer: pynetdicom would wait for the rest without end."""
    monkeypatch.setattr("dicom_node.senders._TIMEOUT", timedelta(milliseconds=300))
    monkeypatch.setattr("dicom_node.senders._STALL", timedelta(milliseconds=300))
    before = set(threading.enumerate())
    with _mute_server(pacs.server()) as port:
        with pytest.raises(Transient):
            associate(node, _peer(port), CLASSES)

        for thread in set(threading.enumerate()) - before:
            thread.join(20)
            assert not thread.is_alive() or thread.name == "mute"


def test_a_certificate_that_is_being_exchanged_is_waited_for(tmp_path: Path, ours: Authority) -> None:
    """The delivery is tried again, and says what is missing."""
    section = ours.issue("passing").settings()
    settings = settings_from({"node": {"tls": {**section, "key": str(tmp_path / "gone.key")}}})

    with (
        pytest.raises(Transient, match=r"node\.tls\.key: .*gone\.key cannot be read"),
        StoreSender(settings.node, _peer(1)).open(),
    ):
        pass


def _peer(port: int, sha256: str = "") -> Peer:
    return Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, tls=True, certificate_sha256=sha256)


def _server(kind: str, ours: Authority, theirs: Authority) -> ssl.SSLContext:
    match kind:
        case "another authority":
            return theirs.issue("stranger").server(asks=False)
        case "another host":
            return ours.issue("elsewhere", names="IP:127.0.0.2").server(asks=False)
        case "expired":
            return ours.issue("old", days=-1).server(asks=False)
    context = ours.issue("pacs").server(asks=False)
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    return context


@contextmanager
def _refusing_server(context: ssl.SSLContext) -> Iterator[int]:
    """Shake hands once and stay until the client has read why it failed; give the port."""

    def refuse(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            wrapped = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            with contextlib.suppress(ssl.SSLError):
                wrapped.do_handshake()
            socket.socket.recv(wrapped, 1 << 16)
            wrapped.close()

    with _serving("refusing", refuse) as port:
        yield port


@contextmanager
def _mute_server(context: ssl.SSLContext) -> Iterator[int]:
    """Shake hands once and never answer; give the port."""

    def be_mute(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with context.wrap_socket(connection, server_side=True) as wrapped, contextlib.suppress(OSError):
            while wrapped.recv(1 << 16):
                pass

    with _serving("mute", be_mute) as port:
        yield port


@contextmanager
def _serving(name: str, serve: Callable[[socket.socket], None]) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), name=name)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(20)

"""TLS on the node's port: who gets through the handshake, and what a bad one costs the others."""

import resource
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from datetime import timedelta
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from dicom_node.association_server import Limits
from tests.doubles.certificates import RSA_1024, RSA_2048, Authority, anonymous_client, authority
from tests.doubles.datasets import encoded, loop
from tests.doubles.receiver import Inbox, Receiver, running_receiver
from tests.doubles.wire_peer import ABORT, DEADLINE, IMPLICIT_LITTLE, P_DATA, VERIFICATION, WirePeer, p_data
from tests.patience import eventually

ECHO = (VERIFICATION, (IMPLICIT_LITTLE,))
LONG_HELLO = b"\x16\x03\x01\x40\x00\x01\x00\xff\xff"
"""Begins a ClientHello of 65535 bytes in records of 16384."""
IMPATIENT = Limits(
    max_pdu=131072,
    acse=timedelta(milliseconds=500),
    network=timedelta(seconds=20),
    stall=timedelta(milliseconds=500),
)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The hospital's authority."""
    return authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that nobody here trusts."""
    return authority(tmp_path_factory.mktemp("theirs"))


@pytest.fixture(scope="module")
def node_tls(ours: Authority) -> Mapping[str, Any]:
    """The [node] of a node that speaks TLS and asks for certificates."""
    return {"tls": ours.issue("node").settings()}


@pytest.fixture(scope="module")
def cart(ours: Authority) -> ssl.SSLContext:
    """What a cart of the hospital calls with."""
    return ours.issue("cart").client()


@pytest.fixture
def receiver(tmp_path: Path, inbox: Inbox, node_tls: Mapping[str, Any]) -> Iterator[Receiver]:
    """A node that asks for certificates."""
    with running_receiver(tmp_path, inbox.receive, node=node_tls) as running:
        yield running


@pytest.fixture
def impatient(tmp_path: Path, inbox: Inbox, node_tls: Mapping[str, Any]) -> Iterator[Receiver]:
    """One that waits for half a second only."""
    with running_receiver(tmp_path, inbox.receive, node=node_tls, limits=IMPATIENT) as running:
        yield running


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_cart_with_a_certificate_of_the_authority_stores(
    receiver: Receiver, inbox: Inbox, ours: Authority, version: ssl.TLSVersion
) -> None:
    """In both versions of TLS; what is kept is what was sent, over many records."""
    client = ours.issue("cart").client()
    client.minimum_version = client.maximum_version = version
    dataset = loop()
    dataset.add_new(0x7FE00010, "OW", bytes(range(256)) * 4000)
    content = encoded(dataset)

    with WirePeer(receiver.port, tls=client) as peer:
        peer.associate()
        status = peer.store(content).status
        peer.release()

    assert status == 0x0000
    assert [received.dataset for received in inbox.received] == [content]


def test_an_rsa_certificate_of_2048_bits_is_as_good(tmp_path: Path, ours: Authority) -> None:
    """Of the node and of the cart."""
    node = {"tls": ours.issue("rsa-node", key=RSA_2048).settings()}
    client = ours.issue("rsa-cart", key=RSA_2048).client()
    with running_receiver(tmp_path, Inbox().receive, node=node) as receiver:
        assert _associates(receiver.port, client)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no certificate", "the other side shows no certificate"),
        ("another authority", "unable to get local issuer certificate"),
        ("expired", "certificate has expired"),
        ("for servers only", "unsuitable certificate purpose"),
        ("weak key", "EE certificate key too weak"),
        ("TLS 1.1", "the other side offers no TLS 1.2 or 1.3"),
        ("no forward secrecy", "the other side offers no cipher suite of the profile"),
        ("CBC", "the other side offers no cipher suite of the profile"),
    ],
)
def test_who_is_not_trusted_does_not_get_through_the_handshake(
    receiver: Receiver, ours: Authority, theirs: Authority, kind: str, reason: str
) -> None:
    """And the log says who and why."""
    client = _client(kind, ours, theirs)

    with capture_logs() as logs:
        with pytest.raises(OSError, match=r"SSL|reset|TLS|EOF"):
            _shake_hands_and_ask(receiver.port, client)
        assert eventually(lambda: _refusals(logs) != [])

    (refusal,) = _refusals(logs)
    assert refusal["address"] == "127.0.0.1"
    assert reason in refusal["reason"]
    assert receiver.acceptor.server.active_associations == []


def test_a_node_without_an_authority_asks_nobody(tmp_path: Path, ours: Authority) -> None:
    """Encrypted alone."""
    node = {"tls": ours.issue("node").settings(asks=False)}
    with running_receiver(tmp_path, Inbox().receive, node=node) as receiver:
        assert _associates(receiver.port, anonymous_client(ours.certificate))


def test_a_peer_that_speaks_no_tls_is_shown_out(receiver: Receiver) -> None:
    """Its request is no record of TLS; it gets no association, and the log says why."""
    with capture_logs() as logs, WirePeer(receiver.port) as peer:
        assert peer.associate().is_closed

    assert [one["reason"] for one in _refusals(logs)] == ["the other side does not speak TLS"]


def test_a_peer_that_speaks_tls_to_a_plain_port_is_shown_out(tmp_path: Path, cart: ssl.SSLContext) -> None:
    """And so is the log."""
    with running_receiver(tmp_path, Inbox().receive) as receiver, capture_logs() as logs:
        with pytest.raises(OSError, match=r"EOF|reset"):
            WirePeer(receiver.port, tls=cart)
        assert eventually(lambda: _refusals(logs) != [])

    assert "[node.tls]" in _refusals(logs)[0]["reason"]


def test_probes_of_a_load_balancer_are_no_news(receiver: Receiver, cart: ssl.SSLContext) -> None:
    """They connect and close."""
    with capture_logs() as logs:
        for _ in range(5):
            socket.create_connection(("127.0.0.1", receiver.port)).close()
        assert _associates(receiver.port, cart)  # so they were accepted, for they came before
        assert eventually(lambda: len(receiver.acceptor.server.lobby) == 0)

    assert logs == []


def test_a_peer_s_certificate_is_its_own(tmp_path: Path, ours: Authority, node_tls: Mapping[str, Any]) -> None:
    """Another device of the same hospital cannot call by its AE title; nor can the cart without showing it."""
    cart, other = ours.issue("cart"), ours.issue("other")
    peers = (
        {"name": "cart", "ae_title": "CART", "certificate_sha256": cart.sha256},
        {"name": "free", "ae_title": "FREE"},
    )
    with running_receiver(tmp_path, Inbox().receive, node=node_tls, peers=peers) as receiver:
        answers = []
        for title, shown in [("CART", cart), ("CART", other), ("FREE", other)]:
            with WirePeer(receiver.port, calling=title, tls=shown.client()) as peer:
                answers.append(peer.associate(ECHO).rejection)

    assert answers == [None, (1, 1, 3), None]


def test_a_peer_with_a_certificate_of_its_own_cannot_call_without_tls(tmp_path: Path) -> None:
    """A port that speaks plain TCP cannot know who calls."""
    pinned = {"name": "cart", "ae_title": "CART", "certificate_sha256": "0" * 64, "tls": True, "host": "127.0.0.1"}
    with running_receiver(tmp_path, Inbox().receive, peers=(pinned,)) as receiver, WirePeer(receiver.port) as peer:
        assert peer.associate(ECHO).rejection == (1, 1, 3)


def test_peers_that_stop_in_their_handshake_keep_nobody_waiting(
    receiver: Receiver, inbox: Inbox, cart: ssl.SSLContext
) -> None:
    """Some said nothing, some half of a ClientHello, some sent their request in plain text or are gone."""
    hello = _client_hello()
    with ExitStack() as stack:
        for number in range(60):
            stalled = stack.enter_context(socket.create_connection(("127.0.0.1", receiver.port)))
            stalled.sendall(hello[: len(hello) * (number % 3) // 3])
        assert eventually(lambda: len(receiver.acceptor.server.lobby) == 60)

        with WirePeer(receiver.port, tls=cart) as peer:
            peer.associate()
            statuses = [
                peer.store(encoded(loop(f"1.2.3.{number}")), sop_instance=f"1.2.3.{number}").status
                for number in range(20)
            ]

    assert statuses == [0x0000] * 20
    assert len(inbox.received) == 20


@pytest.mark.parametrize("num_bytes", [0, 1, 5, 100])
def test_a_peer_that_stops_in_its_handshake_is_cut_off(impatient: Receiver, num_bytes: int) -> None:
    """After the time for a request; its place in the lobby is free."""
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=DEADLINE) as peer:
        peer.sendall(_client_hello()[:num_bytes])

        assert peer.recv(1) == b""
    assert eventually(lambda: len(impatient.acceptor.server.lobby) == 0)


def test_a_handshake_that_comes_drop_by_drop_is_cut_off(impatient: Receiver) -> None:
    """It never stalls, and never ends."""
    with socket.create_connection(("127.0.0.1", impatient.port)) as peer:
        drops = chain(LONG_HELLO, repeat(0))

        assert eventually(lambda: _is_closed_after(peer, bytes([next(drops)])))


def test_a_peer_that_ends_its_handshake_and_says_nothing_is_cut_off(impatient: Receiver, cart: ssl.SSLContext) -> None:
    """Silence is silence, however well it is encrypted; it costs no association."""
    with WirePeer(impatient.port, tls=cart) as peer:
        assert impatient.acceptor.server.active_associations == []
        assert peer.read_pdu() == (0, b"")


def test_handshakes_that_never_end_cost_little_memory(receiver: Receiver) -> None:
    """A record that claims to be long is read as it comes, and no further than its length; too many end the oldest."""
    places, before = Limits(max_pdu=131072).max_silent, _resident_bytes()
    with ExitStack() as stack:
        stalled = [
            stack.enter_context(socket.create_connection(("127.0.0.1", receiver.port), timeout=DEADLINE))
            for _ in range(places + 20)
        ]
        for peer in reversed(stalled):
            with suppress(ConnectionError):  # the oldest make room
                peer.sendall(LONG_HELLO + bytes(16000))
        assert eventually(lambda: len(receiver.acceptor.server.lobby) == places)

        assert all(map(_is_ended, stalled[:20]))
        assert _resident_bytes() - before < 30 << 20


def test_a_stall_in_a_message_ends_the_association(impatient: Receiver, cart: ssl.SSLContext) -> None:
    """In the middle of a record, and between two."""
    with WirePeer(impatient.port, tls=cart) as peer:
        peer.associate()
        peer.socket.sendall(p_data(bytes(100_000))[:40_000])

        assert peer.read_pdu()[0] in (0, ABORT)
    assert eventually(lambda: impatient.acceptor.seats.holders() == [])


def test_a_pdu_longer_than_agreed_is_aborted_and_the_peer_hears_it(receiver: Receiver, cart: ssl.SSLContext) -> None:
    """Although it goes on sending."""
    with WirePeer(receiver.port, tls=cart) as peer:
        peer.associate()
        peer.socket.sendall(bytes((P_DATA, 0)) + (1 << 30).to_bytes(4, "big") + bytes(1 << 16))

        assert peer.read_pdu()[0] == ABORT
    assert _associates(receiver.port, cart)


def test_the_end_of_the_node_waits_for_no_handshake(tmp_path: Path, node_tls: Mapping[str, Any]) -> None:
    """Whoever is in the lobby is shown out."""
    patient = Limits(max_pdu=131072, acse=timedelta(minutes=10))
    with ExitStack() as stack:
        receiver = stack.enter_context(running_receiver(tmp_path, Inbox().receive, node=node_tls, limits=patient))
        stalled = socket.create_connection(("127.0.0.1", receiver.port), timeout=DEADLINE)
        stalled.sendall(_client_hello()[:50])
        assert eventually(lambda: len(receiver.acceptor.server.lobby) == 1)
        stack.close()

        with suppress(ConnectionResetError):
            assert stalled.recv(1) == b""
        stalled.close()


def _client(kind: str, ours: Authority, theirs: Authority) -> ssl.SSLContext:
    match kind:
        case "no certificate":
            return anonymous_client(ours.certificate)
        case "another authority":
            return theirs.issue("stranger").client(trusted=ours.certificate)
        case "expired":
            return ours.issue("old", days=-1).client()
        case "for servers only":
            return ours.issue("server", usage="serverAuth").client()
        case "weak key":
            return ours.issue("weak", key=RSA_1024).client()
    client = ours.issue("cart", key=RSA_2048).client()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    if kind == "TLS 1.1":
        client.minimum_version, client.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    suites = {"no forward secrecy": "AES128-GCM-SHA256", "CBC": "ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA"}
    client.set_ciphers(f"{suites.get(kind, 'DEFAULT')}:@SECLEVEL=0")
    return client


def _shake_hands_and_ask(port: int, client: ssl.SSLContext) -> None:
    with WirePeer(port, tls=client) as peer:
        peer.socket.sendall(peer.request(ECHO))
        peer.socket.recv(1)  # in TLS 1.3 a client hears only here that its certificate was refused


def _client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


def _refusals(logs: list[EventDict]) -> list[EventDict]:
    return [one for one in logs if one["event"] == "tls_refused"]


def _is_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def _is_closed_after(connection: socket.socket, drop: bytes) -> bool:
    connection.settimeout(0.05)
    try:
        connection.sendall(drop)
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def _associates(port: int, client: ssl.SSLContext) -> bool:
    with WirePeer(port, tls=client) as peer:
        if peer.associate(ECHO).syntaxes != {1: IMPLICIT_LITTLE}:
            return False
        status = peer.echo()
        peer.release()
        return status == 0x0000


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()

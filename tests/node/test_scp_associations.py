"""Who may associate, and how many; what a bad peer costs the others."""

import resource
import shutil
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dicom_node.association_server import Limits
from dicom_node.scp import Doorkeeper, Rejection
from dicom_node.settings import Node, settings_from
from tests.doubles.datasets import encoded, loop
from tests.doubles.receiver import Inbox, Receiver, running_receiver
from tests.doubles.wire_peer import ABORT, DEADLINE, DEFLATED, IMPLICIT_LITTLE, P_DATA, VERIFICATION, WirePeer, p_data
from tests.patience import eventually

ECHO = (VERIFICATION, (IMPLICIT_LITTLE,))
KNOWN = {"name": "cart", "ae_title": "CART", "addresses": ["127.0.0.1"]}
STRICT = {"require_known_peer": True}
IMPATIENT = Limits(
    max_pdu=131072,
    acse=timedelta(milliseconds=300),
    network=timedelta(milliseconds=600),
    stall=timedelta(milliseconds=300),
)


@pytest.fixture
def impatient(tmp_path: Path, inbox: Inbox) -> Iterator[Receiver]:
    """A node that waits for tenths of seconds only."""
    with running_receiver(tmp_path, inbox.receive, limits=IMPATIENT) as running:
        yield running


def test_an_association_for_another_node_is_rejected(receiver: Receiver) -> None:
    """Called AE title not recognised (PS3.8 table 9-21)."""
    with WirePeer(receiver.port, called="OTHER") as peer:
        assert peer.associate().rejection == (1, 1, 7)


def test_an_application_that_is_not_dicom_is_rejected(receiver: Receiver) -> None:
    """Application context name not supported."""
    with WirePeer(receiver.port) as peer:
        assert peer.associate(application_context="1.2.840.10008.3.1.1.2").rejection == (1, 1, 2)


@pytest.mark.parametrize(
    ("peers", "rejection"),
    [
        ((KNOWN,), None),
        (({**KNOWN, "addresses": []},), None),
        (({**KNOWN, "addresses": ["10.0.0.0/8", "127.0.0.0/8"]},), None),
        ((), (1, 1, 3)),
        (({**KNOWN, "ae_title": "OTHER"},), (1, 1, 3)),
        (({**KNOWN, "addresses": ["10.0.0.0/8"]},), (1, 1, 3)),
    ],
)
def test_a_peer_is_known_by_title_and_address(
    tmp_path: Path, peers: tuple[Mapping[str, Any], ...], rejection: tuple[int, int, int] | None
) -> None:
    """Both must fit."""
    with (
        running_receiver(tmp_path, Inbox().receive, node=STRICT, peers=peers) as receiver,
        WirePeer(receiver.port) as peer,
    ):
        assert peer.associate().rejection == rejection


def test_a_peer_is_known_by_its_address_on_a_socket_for_both_protocols() -> None:
    """The system writes 10.1.2.3 as ::ffff:10.1.2.3 there."""
    settings = settings_from({"node": STRICT, "peers": [{**KNOWN, "addresses": ["10.0.0.0/8"]}]})
    door = Doorkeeper(node=settings.node, peers=settings.peers, has_room=lambda: True, take_seat=lambda *_: None)

    assert door.judge("ECHONODE", "CART", "::ffff:10.1.2.3", 1) is None
    assert door.judge("ECHONODE", "CART", "::ffff:11.1.2.3", 1) is Rejection.CALLING_AE


def test_who_is_not_let_in_takes_no_seat() -> None:
    """Strangers cannot keep the carts out."""
    asked: list[object] = []

    def take_seat(who: object, _peer: str) -> None:
        asked.append(who)

    door = Doorkeeper(node=Node(require_known_peer=True), peers=(), has_room=lambda: True, take_seat=take_seat)

    assert door.judge("ECHONODE", "CART", "127.0.0.1", 1) is Rejection.CALLING_AE
    assert asked == []


def test_a_full_disk_turns_associations_away_for_now(tmp_path: Path) -> None:
    """Temporary congestion: carts try again."""
    node = {"min_free_bytes": 1 << 60}
    with running_receiver(tmp_path, Inbox().receive, node=node) as receiver, WirePeer(receiver.port) as peer:
        assert peer.associate().rejection == (2, 3, 1)


def test_a_mistake_in_judging_lets_nobody_in(tmp_path: Path) -> None:
    """pynetdicom would go on with the negotiation."""
    with running_receiver(tmp_path / "gone", Inbox().receive) as receiver, WirePeer(receiver.port) as peer:
        shutil.rmtree(tmp_path / "gone")  # so that the free space cannot be asked for

        answer = peer.associate()

    assert answer.is_closed


def test_more_associations_than_there_are_seats_are_rejected_until_one_is_free(tmp_path: Path) -> None:
    """Local limit exceeded; a seat is free again when its association is released, aborted or lost."""
    with running_receiver(tmp_path, Inbox().receive, node={"max_associations": 2}) as receiver, ExitStack() as stack:
        first, second = (stack.enter_context(WirePeer(receiver.port)) for _ in range(2))
        assert first.associate().rejection is second.associate().rejection is None

        with WirePeer(receiver.port) as third:
            assert third.associate().rejection == (2, 3, 2)
        first.release()
        assert eventually(lambda: _associates(receiver.port))
        second.socket.close()
        with WirePeer(receiver.port) as fourth, WirePeer(receiver.port) as fifth:
            assert eventually(lambda: fourth.associate(ECHO).rejection is None or _reconnect(fourth, receiver.port))
            assert eventually(lambda: fifth.associate(ECHO).rejection is None or _reconnect(fifth, receiver.port))


def test_a_peer_has_seats_of_its_own_and_takes_none_of_the_others(tmp_path: Path) -> None:
    """Local limit exceeded for it alone."""
    node = {"max_associations": 4, "max_associations_per_peer": 2}
    with running_receiver(tmp_path, Inbox().receive, node=node) as receiver, ExitStack() as stack:
        greedy = [stack.enter_context(WirePeer(receiver.port, calling="GREEDY")) for _ in range(3)]
        cart = stack.enter_context(WirePeer(receiver.port))

        assert [peer.associate().rejection for peer in greedy] == [None, None, (2, 3, 2)]
        assert cart.associate().rejection is None


def test_the_limits_of_an_instance_and_of_silence_are_the_configuration_s(tmp_path: Path) -> None:
    """A data set that is too long ends its association, and so does silence."""
    node = {"max_instance_bytes": 1_000_000, "idle_seconds": 1}
    with running_receiver(tmp_path, Inbox().receive, node=node) as receiver:
        with WirePeer(receiver.port) as peer:
            peer.associate()
            with pytest.raises(ConnectionError):
                peer.store(bytes(1_500_000))
        with WirePeer(receiver.port) as idle:
            idle.associate()
            assert idle.read_pdu()[0] == ABORT


def test_connections_that_say_nothing_take_no_seat(tmp_path: Path) -> None:
    """pynetdicom counts them as associations."""
    with running_receiver(tmp_path, Inbox().receive, node={"max_associations": 1}) as receiver, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", receiver.port)))

        assert _associates(receiver.port)


def test_connections_that_say_nothing_are_bounded_and_the_oldest_makes_room(tmp_path: Path) -> None:
    """Each costs a thread; who asks for an association is let in all the same."""
    limits = Limits(max_pdu=131072, max_silent=3, acse=timedelta(seconds=60))
    with running_receiver(tmp_path, Inbox().receive, limits=limits) as receiver, ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", receiver.port), timeout=DEADLINE))
            for _ in range(4)
        ]

        assert silent[0].recv(1) == b""
        assert _associates(receiver.port)
        assert silent[1].recv(1) == b""


def test_a_hundred_silent_connections_cost_no_thread_that_is_awake(receiver: Receiver) -> None:
    """pynetdicom would look at each of them a thousand times a second, and the peers that send would wait for it."""
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", receiver.port)))
        assert eventually(lambda: len(receiver.acceptor.server.lobby) == 100)

        assert receiver.acceptor.server.active_associations == []
        assert _associates(receiver.port)
    assert eventually(lambda: len(receiver.acceptor.server.lobby) == 0)


def test_a_flood_of_connections_does_not_make_the_node_tidy_up_all_the_time(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pynetdicom would collect garbage at every 60th, with everybody waiting."""
    collected: list[int] = []
    monkeypatch.setattr("pynetdicom.transport.gc.collect", lambda: collected.append(1))
    began = time.monotonic()
    for _ in range(400):
        socket.create_connection(("127.0.0.1", receiver.port)).close()
    assert _associates(receiver.port)  # so all of them were accepted

    assert len(collected) <= 1 + (time.monotonic() - began) / 5


def test_a_connection_that_asks_for_nothing_is_closed(impatient: Receiver) -> None:
    """After the ACSE time-out."""
    with WirePeer(impatient.port) as peer:
        assert peer.read_pdu() == (0, b"")


@pytest.mark.parametrize("num_bytes", [1, 5, 6, 50, 120])
def test_a_peer_that_stops_in_its_request_is_cut_off(impatient: Receiver, num_bytes: int) -> None:
    """A cart that is unplugged."""
    with WirePeer(impatient.port) as peer:
        peer.socket.sendall(peer.request(ECHO)[:num_bytes])

        assert peer.read_pdu()[0] in (0, ABORT)
    assert _associates(impatient.port)


def test_a_request_that_comes_drop_by_drop_is_cut_off(impatient: Receiver) -> None:
    """It never stalls, and never ends."""
    with WirePeer(impatient.port) as peer:
        drops = iter(peer.request(ECHO))

        assert eventually(lambda: _is_closed_after(peer.socket, bytes([next(drops)])))


@pytest.mark.parametrize("num_bytes", [3, 6, 5000])
def test_a_peer_that_stops_in_a_message_frees_its_seat(tmp_path: Path, num_bytes: int) -> None:
    """pynetdicom keeps it for ever."""
    node = {"max_associations": 1}
    with (
        running_receiver(tmp_path, Inbox().receive, node=node, limits=IMPATIENT) as receiver,
        WirePeer(receiver.port) as stalled,
    ):
        stalled.associate()
        stalled.socket.sendall(p_data(bytes(100_000))[:num_bytes])

        assert eventually(lambda: _associates(receiver.port))
        assert stalled.read_pdu()[0] in (0, ABORT)


def test_an_association_that_says_nothing_is_aborted(tmp_path: Path) -> None:
    """After the network time-out."""
    node = {"max_associations": 1}
    with (
        running_receiver(tmp_path, Inbox().receive, node=node, limits=IMPATIENT) as receiver,
        WirePeer(receiver.port) as idle,
    ):
        idle.associate()

        assert idle.read_pdu()[0] == ABORT
        assert eventually(lambda: _associates(receiver.port))


def test_stalled_peers_do_not_keep_others_waiting(receiver: Receiver, inbox: Inbox) -> None:
    """In a request, in a message, before either."""
    with ExitStack() as stack:
        peers = [stack.enter_context(WirePeer(receiver.port)) for _ in range(9)]
        for peer in peers[:3]:
            peer.socket.sendall(peer.request(ECHO)[:40])
        for peer in peers[3:6]:
            peer.associate()
            peer.socket.sendall(p_data(bytes(9000))[:4000])
        healthy = stack.enter_context(WirePeer(receiver.port))
        began = time.monotonic()
        healthy.associate()
        status = healthy.store(encoded(loop())).status
        took = time.monotonic() - began

    assert status == 0x0000
    assert len(inbox.received) == 1
    assert took < 5  # far below every time-out; what it takes on an idle machine is 0.02


@pytest.mark.parametrize("claimed", [(1 << 20) + 1, 1 << 30, 0xFFFFFFFF])
def test_an_association_request_without_measure_is_aborted_not_buffered(receiver: Receiver, claimed: int) -> None:
    """pynetdicom grows with every byte that comes."""
    with WirePeer(receiver.port) as peer:
        peer.socket.sendall(struct.pack(">BBL", 1, 0, claimed))

        assert peer.read_pdu()[0] == ABORT
    assert _associates(receiver.port)


@pytest.mark.parametrize("where", ["at the begin", "in a data set"])
def test_a_pdu_longer_than_agreed_is_aborted_not_buffered(receiver: Receiver, where: str) -> None:
    """Although the peer goes on sending; the abort overtakes nothing and is not lost."""
    before = _resident_bytes()
    with WirePeer(receiver.port) as peer:
        peer.associate()
        if where == "in a data set":
            content = encoded(loop())
            peer.socket.sendall(peer.store_message(content).removesuffix(p_data(content)))
        peer.socket.sendall(struct.pack(">BBL", P_DATA, 0, 1 << 30) + bytes(1 << 20))

        assert peer.read_pdu()[0] == ABORT
    assert _resident_bytes() - before < 20 << 20
    assert _associates(receiver.port)


def test_a_pdu_as_long_as_agreed_is_taken(receiver: Receiver, inbox: Inbox) -> None:
    """131072 bytes, and what some peers count apart."""
    dataset = loop()
    dataset.add_new(0x7FE00010, "OW", bytes(200_000))
    content = encoded(dataset)
    with WirePeer(receiver.port) as peer:
        peer.associate()
        command = peer.store_message(content)[: -len(p_data(b"")) * 4 - len(content)]
        peer.socket.sendall(
            command + p_data(content[: 131072 - 6], is_last=False) + p_data(content[131072 - 6 :], is_last=True)
        )

        assert peer.response().status == 0x0000
    assert inbox.received[0].dataset == content


def test_a_data_set_without_end_is_aborted(tmp_path: Path) -> None:
    """It is in memory until it is kept."""
    limits = Limits(max_pdu=131072, max_object=1_000_000)
    with running_receiver(tmp_path, Inbox().receive, limits=limits) as receiver, WirePeer(receiver.port) as peer:
        peer.associate()
        with pytest.raises(ConnectionError):
            peer.store(bytes(1_500_000))
        assert _associates(receiver.port)


def test_a_deflated_bomb_is_refused(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte may inflate to a gigabyte."""
    monkeypatch.setattr("dicom_node.wire.MAX_INFLATED", 1 << 20)
    dataset = loop()
    dataset.add_new(0x7FE00010, "OW", bytes(2 << 20))
    with WirePeer(receiver.port) as peer:
        peer.associate((dataset.SOPClassUID, (DEFLATED,)))

        response = peer.store(encoded(dataset, DEFLATED))

    assert response.status == 0xC000
    assert "inflates to more" in response.comment


def test_many_associations_come_and_go_without_leaving_anything(receiver: Receiver) -> None:
    """Neither threads, nor files, nor seats."""
    assert _associates(receiver.port)
    before = _num_files()
    for _ in range(50):
        assert _associates(receiver.port)
        with socket.create_connection(("127.0.0.1", receiver.port)):  # a load balancer's probe
            pass

    assert eventually(lambda: receiver.acceptor.server.active_associations == [])
    assert eventually(lambda: receiver.acceptor.seats.holders() == [])
    assert eventually(lambda: len(receiver.acceptor.server.lobby) == 0)
    assert eventually(lambda: _num_files() <= before + 2)


def _is_closed_after(connection: socket.socket, drop: bytes) -> bool:
    connection.settimeout(0.05)
    try:
        connection.sendall(drop)
        return connection.recv(1) in (b"", bytes([ABORT]))
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def _associates(port: int) -> bool:
    with WirePeer(port) as peer:
        if peer.associate(ECHO).syntaxes != {1: IMPLICIT_LITTLE}:
            return False
        status = peer.echo()
        peer.release()
        return status == 0x0000


def _reconnect(peer: WirePeer, port: int) -> bool:
    peer.socket.close()
    peer.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
    return False


def _num_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()

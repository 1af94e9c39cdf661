"""What the node does in pynetdicom's place: it reads fragments, serves C-STORE where it is read, and answers it."""

import errno
import inspect
import os
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from pynetdicom import evt
from pynetdicom.dimse_messages import C_STORE_RSP
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dul import DULServiceProvider

from dicom_node.identity import UID
from dicom_node.intake import IntakeOutcome, Received
from dicom_node.store_requests import StoreRequest, stored
from tests.doubles.datasets import encoded, loop
from tests.doubles.receiver import Inbox, Receiver, running_receiver
from tests.doubles.wire_peer import (
    ABORT,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    RELEASE_RP,
    RELEASE_RQ,
    US_MULTIFRAME,
    VERIFICATION,
    WirePeer,
    p_data,
)
from tests.patience import wait_until


def command_of(peer: WirePeer, dataset: bytes) -> bytes:
    """Return the PDUs of a C-STORE request without those of its data set."""
    return peer.store_message(dataset).removesuffix(p_data(dataset))


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_data_set_in_many_fragments_is_kept_as_sent(receiver: Receiver, inbox: Inbox, size: int) -> None:
    content = encoded(loop())
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    with WirePeer(receiver.port) as peer:
        peer.associate()
        fragments = [p_data(piece, is_last=number == len(pieces)) for number, piece in enumerate(pieces, 1)]
        peer.socket.sendall(command_of(peer, content) + b"".join(fragments))
        status = peer.response().status

    assert status == 0x0000
    assert inbox.received[0].dataset == content


@pytest.mark.parametrize("size", [1 << 21, 262_150, 70_000, 997])
def test_all_that_comes_in_one_piece_is_served_though_the_socket_has_nothing_more(
    receiver: Receiver, inbox: Inbox, size: int
) -> None:
    """Three requests and a release, of which the node reads more than it has asked for."""
    dataset = loop()
    dataset.add_new(0x7FE00010, "OB", bytes(range(250)) * 1600)
    content = encoded(dataset)
    with WirePeer(receiver.port) as peer:
        peer.associate()
        whole = 3 * peer.store_message(content) + bytes((RELEASE_RQ, 0, 0, 0, 0, 4)) + bytes(4)
        for start in range(0, len(whole), size):
            peer.socket.sendall(whole[start : start + size])
        statuses = [peer.response().status for _ in range(3)]
        kind, _ = peer.read_pdu()

    assert statuses == [0x0000] * 3
    assert kind == RELEASE_RP
    assert [one.dataset for one in inbox.received] == [content] * 3


def test_several_fragments_in_one_pdu_are_taken_in_their_order(receiver: Receiver, inbox: Inbox) -> None:
    content = encoded(loop())
    pieces = (p_data(content[:10], is_last=False), p_data(content[10:90], is_last=False), p_data(content[90:]))
    together = b"".join(piece[6:] for piece in pieces)
    with WirePeer(receiver.port) as peer:
        peer.associate()
        peer.socket.sendall(command_of(peer, content) + b"\x04\x00" + len(together).to_bytes(4, "big") + together)
        status = peer.response().status

    assert status == 0x0000
    assert inbox.received[0].dataset == content


@pytest.mark.parametrize(
    "content",
    [b"\0\0\0\xff\x01\x00abc", b"\0\0\0\x00\x01\x00", b"\0\0\0\x01\x01", b"\0\0"],
    ids=["longer than its PDU", "of no length", "without its header", "cut off"],
)
def test_a_fragment_that_does_not_fit_its_pdu_ends_the_association(receiver: Receiver, content: bytes) -> None:
    with WirePeer(receiver.port) as peer:
        peer.associate()
        peer.socket.sendall(b"\x04\x00" + len(content).to_bytes(4, "big") + content)

        assert peer.read_pdu()[0] == ABORT


def test_an_instance_is_kept_by_the_thread_that_read_it(tmp_path: Path) -> None:
    """Two hand-overs from thread to thread would wait for the interpreter lock, and for the system."""
    threads: list[threading.Thread] = []

    def receive(received: Received) -> IntakeOutcome:
        threads.append(threading.current_thread())
        return inbox.receive(received)

    inbox = Inbox()
    with running_receiver(tmp_path, receive) as receiver, WirePeer(receiver.port) as peer:
        peer.associate()
        wait_until(lambda: receiver.acceptor.server.active_associations[0].is_established)
        peer.store(encoded(loop()))

    assert [type(thread) for thread in threads] == [DULServiceProvider]


def test_a_store_behind_another_request_is_answered_behind_it(receiver: Receiver, inbox: Inbox) -> None:
    content = encoded(loop())
    contexts = ((VERIFICATION, (IMPLICIT_LITTLE,)), (US_MULTIFRAME, (EXPLICIT_LITTLE,)))
    with WirePeer(receiver.port) as peer:
        peer.associate(*contexts)
        (association,) = receiver.acceptor.server.active_associations
        association._reactor_checkpoint.clear()  # its thread serves nothing for now
        peer.socket.sendall(peer.echo_message() + peer.store_message(content, context=3))
        wait_until(lambda: association.dimse.msg_queue.qsize() == 2)
        num_before = len(inbox.received)
        association._reactor_checkpoint.set()
        statuses = [peer.response().status, peer.response().status]

    assert num_before == 0
    assert statuses == [0x0000, 0x0000]
    assert len(inbox.received) == 1


def heard_by_pynetdicom(tmp_path: Path, inbox: Inbox, send: Callable[[WirePeer, Receiver], None]) -> list[str]:
    """Return which messages pynetdicom had to read when a peer sent something and had Success for it."""
    heard: list[str] = []
    handler = (evt.EVT_DIMSE_RECV, lambda event: heard.append(type(event.message).__name__))
    with (
        running_receiver(tmp_path, inbox.receive, more_handlers=[handler]) as receiver,
        WirePeer(receiver.port) as peer,
    ):
        peer.associate()
        (association,) = receiver.acceptor.server.active_associations
        wait_until(lambda: association.is_established)  # what comes a moment before is pynetdicom's
        send(peer, receiver)
        assert peer.response().status == 0x0000
    return heard


def test_a_usual_store_is_no_message_of_pynetdicom_s(tmp_path: Path, inbox: Inbox) -> None:
    content = encoded(loop())

    heard = heard_by_pynetdicom(tmp_path, inbox, lambda peer, _: peer.socket.sendall(peer.store_message(content)))

    assert heard == []
    assert inbox.received[0].dataset == content


def test_a_store_whose_command_comes_in_two_fragments_is_pynetdicom_s(tmp_path: Path, inbox: Inbox) -> None:
    content = encoded(loop())

    def send(peer: WirePeer, _receiver: Receiver) -> None:
        command = command_of(peer, content)[12:]
        pieces = p_data(command[:20], is_command=True, is_last=False) + p_data(command[20:], is_command=True)
        peer.socket.sendall(pieces + p_data(content))

    heard = heard_by_pynetdicom(tmp_path, inbox, send)

    assert heard == ["C_STORE_RQ"]
    assert inbox.received[0].dataset == content


def test_a_store_while_another_request_is_served_is_pynetdicom_s_with_all_that_came(
    tmp_path: Path, inbox: Inbox
) -> None:
    content = encoded(loop())

    def send(peer: WirePeer, receiver: Receiver) -> None:
        (association,) = receiver.acceptor.server.active_associations
        wait_until(lambda: association.is_established)
        association._reactor_checkpoint.clear()  # its thread takes nothing from the queue for now
        with inspect.getclosurevars(association._serve_request).nonlocals["serving"]:
            halves = p_data(content[:100], is_last=False) + p_data(content[100:])
            peer.socket.sendall(command_of(peer, content) + halves)
            wait_until(lambda: association.dimse.msg_queue.qsize() == 1)
        association._reactor_checkpoint.set()

    heard = heard_by_pynetdicom(tmp_path, inbox, send)

    assert heard == ["C_STORE_RQ"]
    assert inbox.received[0].dataset == content


@pytest.mark.parametrize("uid", ["2.25.123", "1.2.3.4"], ids=["even", "odd"])
def test_the_answer_to_a_stored_instance_is_what_pynetdicom_would_send(uid: str) -> None:
    response = C_STORE()
    response.MessageIDBeingRespondedTo = 7
    response.AffectedSOPClassUID, response.AffectedSOPInstanceUID = US_MULTIFRAME, uid
    response.Status = 0x0000
    request = StoreRequest(context_id=1, message_id=7, sop_class=UID(US_MULTIFRAME), sop_instance=UID(uid))
    message = C_STORE_RSP()
    message.primitive_to_message(response)

    (fragment,) = (value for one in message.encode_msg(1, 0) for value in one.presentation_data_value_list)

    assert b"\x03" + stored(request) == fragment[1]


def test_a_peer_of_small_pdus_is_answered_in_small_pdus(receiver: Receiver) -> None:
    with WirePeer(receiver.port, max_pdu=64) as peer:
        peer.associate()
        peer.socket.sendall(peer.store_message(encoded(loop())))
        first, last = peer.read_pdu()[1], peer.read_pdu()[1]

    assert max(len(first), len(last)) <= 64
    assert (first[5], last[5]) == (1, 3)  # of a command set, and the last of it


def test_an_association_leaves_no_open_file(receiver: Receiver) -> None:
    def num_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = num_open()
    for _ in range(5):
        with WirePeer(receiver.port) as peer:
            peer.associate()
            peer.store(encoded(loop()))
            peer.socket.sendall(b"\x05\x00\x00\x00\x00\x04" + bytes(4))
            assert peer.read_pdu()[0] == RELEASE_RP

    wait_until(lambda: num_open() <= before)


def test_a_connection_for_which_no_descriptor_is_left_is_closed(receiver: Receiver, inbox: Inbox) -> None:
    """Unguarded, it would have no limits."""
    with (
        mock.patch.object(os, "eventfd", side_effect=OSError(errno.EMFILE, os.strerror(errno.EMFILE))),
        WirePeer(receiver.port) as peer,
    ):
        closed = peer.associate()
    with WirePeer(receiver.port) as peer:
        peer.associate()
        status = peer.store(encoded(loop())).status

    assert closed.is_closed
    assert status == 0x0000

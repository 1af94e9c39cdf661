"""Peers that ask for what the node does not serve, for more than it has, or for nothing that makes sense.

The first tests are what tests/system/test_fuzz_socket.py found. A file has its number where the real files are.
"""

import socket
import struct
import threading
import zlib
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dicom_node import wire
from dicom_node.association_server import Limits
from dicom_node.intake import IntakeOutcome, Received
from dicom_node.wire import DamagedDataSet, walk
from tests.doubles.datasets import encoded, loop
from tests.doubles.receiver import Inbox, Receiver, running_receiver
from tests.doubles.wire_fuzz import conversation
from tests.doubles.wire_peer import (
    ABORT,
    DEADLINE,
    DEFLATED,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    US_MULTIFRAME,
    VERIFICATION,
    WirePeer,
    p_data,
)
from tests.patience import eventually

IMPATIENT = Limits(
    max_pdu=131072,
    acse=timedelta(milliseconds=300),
    network=timedelta(milliseconds=600),
    stall=timedelta(milliseconds=300),
    slowest_line=1_000_000,
)
ITEM = b"\xfe\xff\x00\xe0\0\0\0\0"
SEQUENCE = b"\x40\x00\x30\xa7SQ\0\0\xff\xff\xff\xff"
SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"


@pytest.mark.parametrize("field", [0x0020, 0x0010, 0x0021, 0x0130, 0x0100, 0x0140, 0x0110, 0x0120, 0x0150])
def test_what_the_node_does_not_serve_is_answered_and_the_association_goes_on(receiver: Receiver, field: int) -> None:
    """A C-FIND on a storage context reached the handler of C-STORE; an N-ACTION ended it all."""
    with WirePeer(receiver.port) as peer, capture_logs() as logs:
        peer.associate()
        peer.socket.sendall(p_data(_request(field), is_command=True))
        status = peer.response().status
        after = peer.store(encoded(loop())).status

    assert (status, after) == (0x0211, 0x0000)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == []


@pytest.mark.parametrize("field", [0x0140, 0x0100, 0x0020])
def test_a_request_of_two_numbers_is_one_of_the_first(receiver: Receiver, field: int) -> None:
    """As pynetdicom takes it: an N-CREATE of a storage class reached the C-STORE handler. Noise found it."""
    with WirePeer(receiver.port) as peer, capture_logs() as logs:
        peer.associate()
        peer.socket.sendall(p_data(_request(field, number=b"\x05\0\x06\0"), is_command=True))
        status = peer.response().status
        after = peer.store(encoded(loop())).status

    assert (status, after) == (0x0211, 0x0000)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == []


def test_an_echo_of_a_storage_class_is_answered_as_none_and_stores_nothing(receiver: Receiver) -> None:
    """pynetdicom serves a request by its SOP class: it reached the handler of C-STORE. Noise on the socket found it."""
    with WirePeer(receiver.port) as peer, capture_logs() as logs:
        peer.associate((US_MULTIFRAME, (EXPLICIT_LITTLE,)), (VERIFICATION, (IMPLICIT_LITTLE,)))
        peer.socket.sendall(p_data(_request(0x0030), is_command=True))
        answer = peer.response()
        after = peer.echo(context=3), peer.store(encoded(loop())).status

    assert answer.status == 0x0122
    assert after == (0x0000, 0x0000)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("element", [0x0110, 0x0700], ids=["message", "priority"])
def test_a_number_of_one_byte_in_a_command_ends_its_association_alone(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, element: int
) -> None:
    """The node's own handler failed at it first."""
    with WirePeer(receiver.port) as peer:
        peer.associate()
        message = peer.store_message(encoded(loop()))
        value = {0x0110: b"\x07\0", 0x0700: b"\0\0"}[element]
        whole = struct.pack("<HHL", 0, element, 2) + value
        assert whole in message
        peer.socket.sendall(_shorter(message, whole, struct.pack("<HHL", 0, element, 1) + value[:1]))

        assert peer.read_pdu()[0] in (0, ABORT)
    assert "on_dimse_message" not in caplog.text
    _assert_alive(receiver)


def test_a_transfer_syntax_that_is_no_uid_is_refused_for_good(receiver: Receiver) -> None:
    """It was answered 0xA700, send again: a mistake of ours."""
    syntax = "1.2.840.10008.1.2\\1.2.840.10008.1.2"
    with WirePeer(receiver.port) as peer:
        peer.associate((US_MULTIFRAME, (syntax,)))

        response = peer.store(encoded(loop(), IMPLICIT_LITTLE))

    assert (response.status, response.comment) == (0xC000, "the transfer syntax is no UID")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_request_that_pynetdicom_fails_at_leaves_nothing_though_the_peer_stays(receiver: Receiver) -> None:
    """A context without transfer syntax ended one of its two threads; the other and the connection stayed for ever."""
    before = threading.active_count()
    with WirePeer(receiver.port) as peer:
        peer.socket.sendall(peer.request((US_MULTIFRAME, ())))

        assert peer.read_pdu()[0] in (0, ABORT)
        assert eventually(lambda: threading.active_count() <= before)
    assert receiver.acceptor.seats.holders() == []
    _assert_alive(receiver)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_peer_that_talks_nonsense_and_never_closes_holds_nothing(tmp_path: Path) -> None:
    """Eighty damaged conversations, held open."""
    with running_receiver(tmp_path, Inbox().receive, limits=IMPATIENT) as receiver, ExitStack() as open_lines:
        before = threading.active_count()
        lines = [
            open_lines.enter_context(socket.create_connection(("127.0.0.1", receiver.port), DEADLINE))
            for _ in range(80)
        ]
        for number, line in enumerate(lines):
            try:
                line.sendall(conversation(number).sent)
            except ConnectionError:
                continue

        for line in lines:
            _read_to_the_end(line)
        assert eventually(lambda: threading.active_count() <= before)
        _assert_alive(receiver)


def test_a_pdu_that_comes_drop_by_drop_is_a_stall(tmp_path: Path) -> None:
    """A byte is enough to be heard of; it is not enough to go on for ever."""
    limits = Limits(max_pdu=131072, stall=timedelta(seconds=3), slowest_line=200_000)
    with running_receiver(tmp_path, Inbox().receive, limits=limits) as receiver, WirePeer(receiver.port) as peer:
        peer.associate()
        peer.socket.sendall(p_data(bytes(100_000))[:6])
        peer.socket.settimeout(0.05)

        assert eventually(lambda: _is_closed_after(peer.socket, b"\0"))


def test_a_command_without_end_is_aborted(tmp_path: Path, inbox: Inbox) -> None:
    limits = Limits(max_pdu=131072, max_command=10_000)
    with running_receiver(tmp_path, inbox.receive, limits=limits) as receiver, WirePeer(receiver.port) as peer:
        peer.associate()
        for _ in range(12):
            peer.socket.sendall(p_data(bytes(1000), is_command=True, is_last=False))

        assert peer.read_pdu()[0] == ABORT
        _assert_alive(receiver)


def test_of_a_peer_that_does_not_wait_for_its_answers_one_instance_is_in_memory(tmp_path: Path) -> None:
    """The others wait on the line, and are answered in turn."""
    inbox, spent = Inbox(), []

    def receive(received: Received) -> IntakeOutcome:
        spent.append(budget.spent())
        return inbox.receive(received)

    uids = [f"1.2.3.{number}" for number in range(6)]
    with running_receiver(tmp_path, receive) as receiver, WirePeer(receiver.port) as peer:
        budget = receiver.acceptor.server.budget
        peer.associate()
        peer.socket.sendall(b"".join(peer.store_message(encoded(loop(uid)), uid) for uid in uids))
        statuses = [peer.response().status for _ in uids]

    assert statuses == [0x0000] * 6
    assert [one.sop_instance_uid for one in inbox.received] == uids
    assert max(spent) == len(encoded(loop()))


def test_a_peer_whose_requests_wait_for_others_is_aborted(tmp_path: Path, inbox: Inbox) -> None:
    """Each request that waits is in memory."""
    limits = Limits(max_pdu=131072, max_waiting=3)
    with running_receiver(tmp_path, inbox.receive, limits=limits) as receiver, WirePeer(receiver.port) as peer:
        peer.associate((VERIFICATION, (IMPLICIT_LITTLE,)))
        (association,) = receiver.acceptor.server.active_associations
        association._reactor_checkpoint.clear()  # its thread serves nothing for now
        with capture_logs() as logs:
            peer.socket.sendall(peer.echo_message() * 6)
            kind = peer.read_pdu()[0]
        association._reactor_checkpoint.set()

    assert kind == ABORT
    assert "too_many_requests" in [line["event"] for line in logs]


def test_many_large_objects_at_once_all_arrive_and_never_are_in_memory_at_once(tmp_path: Path) -> None:
    """Sixteen times a megabyte where six are allowed: some wait, nobody is refused."""
    most = 6 << 20
    seen: list[int] = []

    def receive(received: Received) -> IntakeOutcome:
        is_last.wait(0.3)  # were there room for all, all would be here
        seen.append(budget.spent())
        if len(seen) == 16:
            is_last.set()
        return inbox.receive(replace(received, dataset=b""))

    inbox, is_last = Inbox(), threading.Event()
    dataset = loop()
    dataset.add_new(0x7FE00010, "OW", bytes(1 << 20))
    content = encoded(dataset)
    limits = Limits(max_pdu=131072, max_in_flight=most)
    with running_receiver(tmp_path, receive, limits=limits) as receiver:
        budget = receiver.acceptor.server.budget
        statuses: list[int] = []
        peers = [threading.Thread(target=lambda: statuses.append(_store(receiver, content))) for _ in range(16)]
        for peer in peers:
            peer.start()
        for peer in peers:
            peer.join()

    assert statuses == [0x0000] * 16
    assert max(seen) <= most
    assert len(inbox.received) == 16


def test_what_a_peer_left_behind_in_an_object_is_room_again(tmp_path: Path, inbox: Inbox) -> None:
    """Without a thread that would say so."""
    limits = Limits(max_pdu=131072, max_in_flight=1 << 20)
    with running_receiver(tmp_path, inbox.receive, limits=limits) as receiver:
        for _ in range(8):
            with WirePeer(receiver.port) as peer:
                peer.associate()
                peer.socket.sendall(peer.store_message(bytes(600_000))[:-10])

        assert eventually(lambda: receiver.acceptor.server.budget.spent() == 0)
        _assert_alive(receiver)


def test_a_sequence_of_a_hundred_thousand_items_is_kept(receiver: Receiver) -> None:
    with WirePeer(receiver.port) as peer:
        peer.associate()

        assert peer.store(encoded(loop()) + SEQUENCE + ITEM * 100_000 + SEQUENCE_END).status == 0x0000


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        (SEQUENCE + ITEM * 200_001 + SEQUENCE_END, "more than 200000 items or fragments"),
        (b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + ITEM * 200_001 + SEQUENCE_END, "more than 200000 items"),
        (b"\x41\x00\x01\x10SH\0\0" * 1_000_001, "more than 1000000 elements"),
    ],
    ids=["items", "fragments", "elements"],
)
def test_a_data_set_of_more_parts_than_a_reader_stands_is_refused(tail: bytes, words: str) -> None:
    with pytest.raises(DamagedDataSet, match=words):
        walk(encoded(loop()) + tail, EXPLICIT_LITTLE)


@pytest.mark.parametrize("num_bytes", [*range((1 << 20) + 1, (1 << 20) + 258, 8), 3 << 20])
def test_what_ends_where_a_piece_of_the_inflated_ends_is_whole(num_bytes: int) -> None:
    """zlib may hold the end of its output back when all its input is gone."""
    content = encoded(loop()) + b"\x11\x00\x20\x10OB\0\0"
    num_more = num_bytes - len(content) - 4
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    deflated = deflater.compress(content + struct.pack("<L", num_more)) + deflater.flush(zlib.Z_FULL_FLUSH)
    deflated += deflater.compress(bytes(num_more)) + deflater.flush()

    assert walk(deflated, DEFLATED)[wire.STUDY]


@pytest.mark.parametrize("number", ["99999999999999999999", "2147483648", "9" * 5000, "-1", "1e9", "16\\16"])
def test_a_number_of_frames_that_no_column_holds_is_none(receiver: Receiver, inbox: Inbox, number: str) -> None:
    """File 710 of tests/system/test_fuzz_files.py: it was answered 0xA700, send again: a mistake of ours."""
    content = encoded(loop()).replace(b"\x28\x00\x08\x00IS\x02\x0030", b"\x28\x00\x08\x00IS" + _counted(number))
    with WirePeer(receiver.port) as peer:
        peer.associate()

        assert peer.store(content).status == 0x0000
    assert inbox.received[0].num_frames is None


def _counted(number: str) -> bytes:
    value = number.encode() + b" " * (len(number) % 2)
    return struct.pack("<H", len(value)) + value


def _shorter(message: bytes, whole: bytes, part: bytes) -> bytes:
    """Return a message whose first PDU holds a part in the place of a whole, its lengths corrected."""
    length = 6 + int.from_bytes(message[2:6], "big")
    content = message[12:length].replace(whole, part)
    return p_data(content, is_command=True) + message[length:]


def _store(receiver: Receiver, content: bytes) -> int:
    with WirePeer(receiver.port) as peer:
        peer.associate()
        return peer.store(content).status


def _request(field: int, number: bytes = b"\x05\0") -> bytes:
    has_requested = field in (0x0110, 0x0120, 0x0130, 0x0150)
    uid = US_MULTIFRAME.encode() + b"\0" * (len(US_MULTIFRAME) % 2)
    elements = {0x0003 if has_requested else 0x0002: uid, 0x0100: struct.pack("<H", field)}
    elements |= {0x0110: number, 0x0800: b"\x01\x01"}
    body = b"".join(struct.pack("<HHL", 0, tag, len(value)) + value for tag, value in sorted(elements.items()))
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def _assert_alive(receiver: Receiver) -> None:
    with WirePeer(receiver.port) as peer:
        peer.associate((VERIFICATION, (IMPLICIT_LITTLE,)), (US_MULTIFRAME, (EXPLICIT_LITTLE,)))
        assert peer.echo() == 0x0000
        assert peer.store(encoded(loop()), context=3).status == 0x0000


def _read_to_the_end(line: socket.socket) -> None:
    line.settimeout(DEADLINE)
    try:
        while line.recv(65536):
            pass
    except ConnectionError:
        return


def _is_closed_after(line: socket.socket, drop: bytes) -> bool:
    try:
        line.sendall(drop)
        return line.recv(1) in (b"", bytes([ABORT]))
    except TimeoutError:
        return False
    except ConnectionError:
        return True

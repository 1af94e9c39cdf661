"""The command of a C-STORE is read as pynetdicom would, or left to it."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.dsutils import encode

from dicom_node.store_requests import StoreRequest, store_request
from tests.doubles.wire_peer import US_MULTIFRAME

_FROM_A_MOVE = {"MoveOriginatorApplicationEntityTitle": "ARCHIVE", "MoveOriginatorMessageID": 3}


def command(uid: str = "1.2.3.4", *, dataset: int = 1, **more: object) -> bytes:
    """Return a command set as pynetdicom encodes it."""
    request = C_STORE()
    request.MessageID, request.Priority = 7, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = US_MULTIFRAME, uid
    for name, value in more.items():
        setattr(request, name, value)
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    message.command_set.CommandDataSetType = dataset
    encoded = encode(message.command_set, True, True)
    assert encoded is not None
    return encoded


def element(number: int, value: bytes, group: int = 0) -> bytes:
    return struct.pack("<HHL", group, number, len(value)) + value


def with_length(elements: bytes) -> bytes:
    return element(0x0000, struct.pack("<L", len(elements))) + elements


USUAL = command()
ELEMENTS = USUAL[12:]
MESSAGE_ID = element(0x0110, b"\x07\0")


@pytest.mark.parametrize("uid", ["2.25.123", "1.2.3.4"], ids=["even", "odd"])
@pytest.mark.parametrize("more", [{}, _FROM_A_MOVE], ids=["", "from a C-MOVE"])
def test_a_request_as_pynetdicom_sends_it_is_read(uid: str, more: dict[str, object]) -> None:
    read = store_request(5, command(uid, **more))

    assert read is not None
    assert read == StoreRequest(context_id=5, message_id=7, sop_class=read.sop_class, sop_instance=read.sop_instance)
    assert (read.sop_class, read.sop_instance) == (US_MULTIFRAME, uid)


def echo() -> bytes:
    request = C_ECHO()
    request.MessageID = 7
    message = C_ECHO_RQ()
    message.primitive_to_message(request)
    return encode(message.command_set, True, True) or b""


UNUSUAL = {
    "nothing": b"",
    "another request": echo(),
    "a response": USUAL.replace(element(0x0100, b"\x01\0"), element(0x0100, b"\x01\x80")),
    "no data set": command(dataset=0x0101),
    "without its message ID": with_length(ELEMENTS.replace(MESSAGE_ID, b"")),
    "a message ID of four bytes": with_length(ELEMENTS.replace(MESSAGE_ID, element(0x0110, b"\x07\0\0\0"))),
    "a wrong group length": element(0x0000, struct.pack("<L", len(ELEMENTS) + 2)) + ELEMENTS,
    "a group length of two bytes": element(0x0000, b"\0\0") + ELEMENTS,
    "an element twice": with_length(ELEMENTS + ELEMENTS[-16:]),
    "one that is not known": with_length(ELEMENTS + element(0x5010, b"\0\0")),
    "one of another group": with_length(ELEMENTS + element(0x1031, b"\0\0", group=8)),
    "cut off in a value": USUAL[:-2],
    "cut off in a header": USUAL + b"\0\0\0\0",
    "a UID with leading zeros": command("1.2.3").replace(b"1.2.3\0", b"1.02.3"),
    "a UID of other characters": USUAL.replace(b"1.2.3.4", b"1.2.\xe9.4"),
}


@pytest.mark.parametrize("encoded", UNUSUAL.values(), ids=UNUSUAL)
def test_what_is_not_of_the_usual_shape_is_left_to_pynetdicom(encoded: bytes) -> None:
    assert store_request(1, encoded) is None


@given(st.binary(max_size=200) | st.binary(max_size=40).map(lambda tail: USUAL + tail))
def test_no_bytes_are_more_than_a_request_or_none(encoded: bytes) -> None:
    read = store_request(1, encoded)

    assert read is None or read.message_id == 7

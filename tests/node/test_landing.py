"""However a data set comes in, it is what was sent."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.landing import Landing

PIECES = st.lists(st.tuples(st.binary(max_size=300), st.sampled_from(["pdu", "written", "other pdu"])), max_size=20)


def pdu(fragment: bytes) -> bytes:
    return struct.pack(">LBB", len(fragment) + 2, 1, 0) + fragment


def land(landing: Landing, content: bytes, *, is_fragment: bool) -> bytes:
    def read(room: memoryview) -> None:
        assert len(room) == len(content)
        room[:] = content

    def says(ahead: bytes) -> bool:
        assert ahead == content[:6]
        return is_fragment

    return landing.read_pdu(len(content), read, says)


@given(pieces=PIECES, expected=st.integers(min_value=0, max_value=3000))
def test_a_data_set_is_all_its_fragments_in_their_order(pieces: list[tuple[bytes, str]], expected: int) -> None:
    landing = Landing(expected)
    sent = b""
    for fragment, how in pieces:
        if how == "pdu":
            assert land(landing, pdu(fragment), is_fragment=True) == b""
        elif how == "written":
            landing.write(fragment)
        else:
            assert land(landing, pdu(fragment), is_fragment=False) == pdu(fragment)
            continue
        sent += fragment
        assert landing.tell() == len(sent)

    assert landing.take() == sent


def test_a_line_that_breaks_leaves_what_came_before(tmp_path: object) -> None:
    landing = Landing(0)
    land(landing, pdu(b"before"), is_fragment=True)

    def broken(room: memoryview) -> None:
        room[:3] = b"aft"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        landing.read_pdu(20, broken, lambda _ahead: True)

    assert landing.take() == b"before"


def test_room_is_made_for_what_was_expected_and_not_for_more_than_is_common() -> None:
    def reserved(expected: int) -> int:
        return len(Landing(expected)._buffer)

    assert 3_000_000 <= reserved(3_000_000) < 3_001_000
    assert reserved(1 << 40) <= 5 << 20

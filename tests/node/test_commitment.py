"""What one side asks and the other reports, as bytes; and which settings go together."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.commitment import Reference, Report, Request, encode_report, encode_request, read_report, read_request
from dicom_node.errors import ConfigurationError, MalformedCommitment
from dicom_node.identity import UID
from dicom_node.settings import settings_from

ONE = Reference(UID("1.2.840.10008.5.1.4.1.1.3.1"), UID("1.2.3.1"))
TWO = Reference(UID("1.2.840.10008.5.1.4.1.1.3.1"), UID("1.2.3.2"))
REQUEST = Request(transaction_uid=UID("1.2.3"), references=(ONE, TWO))
REPORT = Report(transaction_uid=UID("1.2.3"), committed=(ONE,), failed={TWO: 0x0112})
SYNTAXES = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_what_is_written_is_read_again(syntax: str) -> None:
    assert read_request(encode_request(REQUEST, syntax).getvalue(), syntax) == REQUEST
    assert read_report(encode_report(REPORT, syntax).getvalue(), syntax) == REPORT


def test_an_instance_that_is_named_twice_is_asked_for_once() -> None:
    twice = Request(transaction_uid=UID("1.2.3"), references=(ONE, TWO, ONE))

    assert read_request(encode_request(twice, SYNTAXES[0]).getvalue(), SYNTAXES[0]) == REQUEST


@settings(deadline=None, max_examples=300)
@given(position=st.integers(0, 200), value=st.integers(0, 255), syntax=st.sampled_from(SYNTAXES[:2]), cut=st.booleans())
def test_any_byte_may_be_wrong(position: int, value: int, syntax: str, cut: bool) -> None:
    """What a peer sends is read, or refused in words; nothing else happens."""
    content = bytearray(encode_report(REPORT, syntax).getvalue())
    position %= len(content)
    content[position] = value

    said = outcome(bytes(content[:position] if cut else content), syntax)

    assert 0 < len(said) <= 64


def outcome(content: bytes, syntax: str) -> str:
    """Return the transaction that is read, or why none is."""
    try:
        return read_report(content, syntax).transaction_uid
    except MalformedCommitment as error:
        return str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"peers": [{"storage_commitment": True, "stow_url": "http://x/dicom-web"}]}, "not with stow_url"),
        ({"peers": [{"storage_commitment": True, "receives_reports": False}]}, "needs receives_reports"),
        ({"node": {"storage_commitment": True}, "retention": {"days": 6}}, "retention.days must be 0"),
    ],
)
def test_what_does_not_go_together_stops_the_start(content: dict[str, Any], message: str) -> None:
    peer = {"name": "pacs", "ae_title": "PACS", "host": "h", "receives_reports": True}
    peers = [{**peer, **one} for one in content.get("peers", [])]

    with pytest.raises(ConfigurationError, match=message):
        settings_from({**content, "peers": peers})


@pytest.mark.parametrize("days", [0, 7, 30])
def test_a_node_that_keeps_its_images_for_a_week_may_commit(days: int) -> None:
    assert settings_from({"node": {"storage_commitment": True}, "retention": {"days": days}}).node.storage_commitment

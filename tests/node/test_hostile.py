"""Damaged and hostile data sets over the wire: each gets a status, and the node lives on."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicom_node.wire import NUM_FRAMES, SERIES, SOP_CLASS, SOP_INSTANCE, STUDY, DamagedDataSet, walk
from tests.doubles.datasets import encoded, loop
from tests.doubles.receiver import Inbox, Receiver, running_receiver
from tests.doubles.wire_peer import (
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    JPEG_BASELINE,
    US_MULTIFRAME,
    WirePeer,
    p_data,
)

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "hostile"
NAMES = sorted(path.name for path in FOLDER.iterdir()) if FOLDER.is_dir() else ["none here"]
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"  # of a DICOMDIR: no storage class, its context is refused
SYNTAXES = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED, JPEG_BASELINE)

EXPECTED = {
    "dcm4che__no_preamble_dicm_in_data": 0xC000,
    "dicognito__bad.dcm": 0xC000,
    "dicom__a_associate_ac.bin": 0xC000,
    "fo-dicom__GH1146.dcm": 0xA900,
    "fo-dicom__GH1339.dcm": 0xC000,
    "fo-dicom__GH179A.dcm": 0x0000,
    "fo-dicom__GH220.dcm": 0xC001,
    "fo-dicom__GH626.dcm": 0xC000,
    "fo-dicom__Issue1097_FailToOpenDeflatedFileWithSQ.dcm": 0x0000,
    "orthanc-tests__2026-05-06-Deeply-Nested-Sequence.dcm": 0xC000,
    "orthanc-tests__2026-05-26-oob-monochrome-65535.dcm": 0x0000,
    "orthanc-tests__Issue195.dcm": 0xC001,
    "orthanc-tests__LenaTwiceWithFragments.dcm": 0x0000,
    "orthanc-tests__UnknownSopClassUid.dcm": 0x0000,
    "pydicom__MR_truncated.dcm": 0xC000,
    "pydicom__nested_priv_SQ.dcm": 0xC001,
}
"""What is answered where it is known what is wrong: bytes that are whole but cannot be decoded are kept."""


@pytest.fixture(scope="module")
def inbox() -> Inbox:
    """An intake that remembers."""
    return Inbox()


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory, inbox: Inbox) -> Iterator[Receiver]:
    """One node for all of it: whatever was sent, it must live."""
    with running_receiver(tmp_path_factory.mktemp("node"), inbox.receive) as running:
        yield running


@pytest.mark.parametrize("name", NAMES)
def test_every_hostile_file_gets_a_status_and_the_association_goes_on(
    shared_data: Path, receiver: Receiver, inbox: Inbox, name: str
) -> None:
    """Success only for bytes that were kept as they are; identity and transfer syntax are the file's, if it has any."""
    file = (shared_data / "hostile" / name).read_bytes()
    sop_class, sop_instance, syntax, dataset = _parts(file)
    sop_class = US_MULTIFRAME if sop_class == MEDIA_DIRECTORY else sop_class
    inbox.received.clear()

    with WirePeer(receiver.port) as peer:
        peer.associate((sop_class, (syntax,)))
        response = peer.store(dataset, sop_instance, sop_class)
        after = peer.store(encoded(loop(sop_class=sop_class), _plain(syntax)), sop_class=sop_class)

    assert response.status in (0x0000, 0xA900, 0xC000, 0xC001)
    assert response.status == EXPECTED.get(name, response.status)
    assert [received.dataset for received in inbox.received][:-1] == ([dataset] if response.status == 0 else [])
    assert after.status == 0x0000


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("name", NAMES)
def test_every_hostile_file_is_answered_in_any_transfer_syntax(
    shared_data: Path, receiver: Receiver, name: str, syntax: str
) -> None:
    """A peer may say one and send another; the whole file, header and all, is no data set either."""
    file = (shared_data / "hostile" / name).read_bytes()

    with WirePeer(receiver.port) as peer:
        peer.associate((US_MULTIFRAME, (syntax,)))
        statuses = [peer.store(content).status for content in (_parts(file)[3], file)]

    assert set(statuses) <= {0xA900, 0xC000, 0xC001}


@pytest.mark.parametrize("depth", [50, 5000])
@pytest.mark.parametrize("syntax", [EXPLICIT_LITTLE, IMPLICIT_LITTLE])
def test_sequences_in_sequences_are_followed_so_far_and_no_further(receiver: Receiver, depth: int, syntax: str) -> None:
    """Readers fail at some hundreds; real reports have a dozen."""
    head = b"\x40\x00\x30\xa7" + (b"SQ\0\0" if syntax == EXPLICIT_LITTLE else b"") + b"\xff\xff\xff\xff"
    nest = (head + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * depth
    nest += (b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0") * depth

    with WirePeer(receiver.port) as peer:
        peer.associate((US_MULTIFRAME, (syntax,)))
        status = peer.store(encoded(loop(), syntax) + nest).status

    assert status == (0x0000 if depth == 50 else 0xC000)


@pytest.mark.parametrize(
    "command",
    [
        b"",
        b"\0",
        bytes(100),
        b"\xff" * 100,
        b"\0\0\0\0\x04\0\0\0\x08\0\0\0" + b"\0\0\0\x01\x02\0\0\0\x01\0",
        b"\0\0\0\0\x04\0\0\0\x0a\0\0\0" + b"\0\0\0\x01\x02\0\0\0\xee\xee",
    ],
    ids=["empty", "one byte", "zeros", "ones", "no data set type", "unknown command"],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_command_that_is_none_ends_its_association_alone(receiver: Receiver, command: bytes) -> None:
    """The peer does not speak DICOM; the next one does."""
    with WirePeer(receiver.port) as peer:
        peer.associate()
        peer.socket.sendall(p_data(command, is_command=True))
        kind, _ = peer.read_pdu()

    assert kind in (0, 7)
    _assert_alive(receiver)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("seed", range(20))
def test_noise_instead_of_a_request_ends_its_connection_alone(receiver: Receiver, seed: int) -> None:
    """A port scanner, or a web browser."""
    noise = random.Random(seed)
    with WirePeer(receiver.port) as peer:
        content = noise.randbytes(200)
        kind = 1 if seed % 2 else noise.randrange(2, 256)
        peer.socket.sendall(bytes((kind, 0)) + len(content).to_bytes(4, "big") + content)

        assert peer.read_pdu()[0] in (0, 3, 7)
    _assert_alive(receiver)


@given(cut=st.integers(min_value=1, max_value=1990))
@pytest.mark.parametrize("syntax", [*SYNTAXES, "1.2.840.10008.1.2.5"])
def test_a_data_set_cut_off_inside_an_element_is_never_taken_for_whole(syntax: str, cut: int) -> None:
    """Cut off between two elements it lacks its pixel data only, which no length tells; that is the reader's part."""
    dataset = loop()
    is_compressed = syntax in (JPEG_BASELINE, "1.2.840.10008.1.2.5")
    if not is_compressed:
        dataset.add_new(0x7FE00010, "OW", bytes(2000))
    content = encoded(dataset, syntax, (bytes(1000), bytes(980)) if is_compressed else ())
    num_left = max(len(content) - cut - (syntax == DEFLATED), 1)  # its last byte may be padding

    with pytest.raises(DamagedDataSet):
        walk(content[:num_left], syntax)


@given(noise=st.binary(max_size=400), syntax=st.sampled_from([*SYNTAXES, "1.2.3"]))
def test_the_walk_raises_nothing_but_its_own_error(noise: bytes, syntax: str) -> None:
    """Whatever comes."""
    try:
        found = walk(noise, syntax)
    except DamagedDataSet:
        return
    assert set(found) <= {SOP_CLASS, SOP_INSTANCE, STUDY, SERIES, NUM_FRAMES}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), syntax=st.sampled_from(SYNTAXES[:3]))
def test_a_damaged_byte_is_answered_by_the_walk_or_changes_no_length(data: st.DataObject, syntax: str) -> None:
    """Nothing loops, nothing overruns."""
    content = bytearray(encoded(loop(), syntax))
    position = data.draw(st.integers(min_value=0, max_value=len(content) - 1))
    content[position] = data.draw(st.integers(min_value=0, max_value=255))

    try:
        found = walk(bytes(content), syntax)
    except DamagedDataSet:
        return
    assert set(found) <= {SOP_CLASS, SOP_INSTANCE, STUDY, SERIES, NUM_FRAMES}


def test_every_real_file_is_walked_to_its_end(shared_data: Path) -> None:
    """A walk that is too strict would keep real images out."""
    files = [path.read_bytes() for name in ("us", "sr", "echo_other") for path in (shared_data / name).rglob("*.dcm")]
    refused = []
    for file in files:
        _, sop_instance, syntax, dataset = _parts(file)
        try:
            found = walk(dataset, syntax)
        except DamagedDataSet as error:
            refused.append(str(error))
        else:
            assert found.get(SOP_INSTANCE, sop_instance) == sop_instance

    assert len(files) > 30
    assert refused == []


def _assert_alive(receiver: Receiver) -> None:
    with WirePeer(receiver.port) as peer:
        peer.associate()
        assert peer.store(encoded(loop())).status == 0x0000


def _plain(syntax: str) -> str:
    return syntax if syntax in (IMPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED) else EXPLICIT_LITTLE


def _parts(file: bytes) -> tuple[str, str, str, bytes]:
    """Return class, instance and transfer syntax of a file's header as far as it has one, and all that follows it."""
    position, values = 132, {0x0002: US_MULTIFRAME, 0x0003: "1.2.3.4", 0x0010: EXPLICIT_LITTLE}
    if file[128:132] != b"DICM":
        return values[0x0002], values[0x0003], values[0x0010], file
    while file[position : position + 2] == b"\x02\0":
        element = int.from_bytes(file[position + 2 : position + 4], "little")
        is_long = file[position + 4 : position + 6] in (b"OB", b"UN")
        start = position + (12 if is_long else 8)
        length = int.from_bytes(file[start - (4 if is_long else 2) : start], "little")
        if element in values and length:
            values[element] = file[start : start + length].decode("ascii").rstrip("\0 ")
        position = start + length
    return values[0x0002], values[0x0003], values[0x0010], file[position:]

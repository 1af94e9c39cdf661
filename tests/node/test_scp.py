"""What a peer is told of each C-STORE, and what is on the disk by then."""

import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlalchemy import select

from dicom_node.clock import utc_now
from dicom_node.errors import IntakeError, LedgerUnavailable, OtherStudy, OutOfSpace, StoreError, UidConflict
from dicom_node.intake import Intake
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.ledger.schema import Instance
from dicom_node.sop_classes import STORED, TRANSFER_SYNTAXES
from dicom_node.store import InstanceStore
from tests.doubles.datasets import STUDY, data_part, encoded, loop
from tests.doubles.receiver import Inbox, Receiver, running_receiver
from tests.doubles.wire_peer import (
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    JPEG_BASELINE,
    US_MULTIFRAME,
    VERIFICATION,
    WirePeer,
)

PRIVATE_SYNTAX = "1.2.840.113619.5.2"
UNKNOWN_SYNTAX = "1.2.826.0.1.3680043.9.9"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A receiver with a real store and ledger behind it."""

    receiver: Receiver
    sessions: Sessions
    rung: list[int]

    @property
    def port(self) -> int:
        """Return where it listens."""
        return self.receiver.port

    def rows(self) -> list[Instance]:
        """Return the instances in the ledger."""
        with self.sessions() as session:
            return list(session.scalars(select(Instance).order_by(Instance.id)))

    def files(self) -> list[bytes]:
        """Return the files of the instances in the ledger."""
        return [self.receiver.store.path(row.path).read_bytes() for row in self.rows()]


@pytest.fixture(scope="module")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a ledger with the newest schema and no rows."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    close_ledger(open_ledger(f"sqlite:///{path}"))
    return path


@pytest.fixture
def node(tmp_path: Path, empty_ledger: Path) -> Iterator[Node]:
    """A running node with an empty ledger."""
    sessions = open_ledger(f"sqlite:///{shutil.copy(empty_ledger, tmp_path)}")
    rung: list[int] = []
    intake = Intake(sessions, InstanceStore(tmp_path, min_free_bytes=0), utc_now, rung.append)
    with running_receiver(tmp_path, intake.receive) as receiver:
        yield Node(receiver=receiver, sessions=sessions, rung=rung)
    close_ledger(sessions)


@pytest.fixture
def peer(node: Node) -> Iterator[WirePeer]:
    """A cart with an association for loops in Explicit VR Little Endian."""
    with WirePeer(node.port) as opened:
        assert opened.associate().syntaxes == {1: EXPLICIT_LITTLE}
        yield opened


def test_an_instance_is_on_the_disk_in_the_ledger_and_rung_for_when_the_peer_hears_success(
    node: Node, peer: WirePeer
) -> None:
    """Success is a promise."""
    response = peer.store(encoded(loop()))

    assert (response.status, response.comment) == (0x0000, "")
    (row,) = node.rows()
    assert (row.sop_instance_uid, row.num_frames, row.calling_ae) == ("1.2.3.4", 30, "CART")
    assert len(node.files()) == len(node.rung) == 1


@pytest.mark.parametrize("syntax", [syntax.uid for syntax in TRANSFER_SYNTAXES])
def test_the_bytes_of_a_data_set_are_kept_as_they_were_sent(node: Node, syntax: str) -> None:
    """In every transfer syntax that the node knows, in front of them a readable header."""
    is_plain = syntax in (IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED, PRIVATE_SYNTAX)
    is_deflated = next(known for known in TRANSFER_SYNTAXES if known.uid == syntax).encoding.name == "DEFLATED"
    written_as = IMPLICIT_LITTLE if syntax == PRIVATE_SYNTAX else DEFLATED if is_deflated else syntax
    dataset = encoded(loop(), written_as, () if is_plain or is_deflated else (b"one frame!", b"another!"))

    with WirePeer(node.port) as peer:
        accepted = peer.associate((US_MULTIFRAME, (syntax,))).syntaxes
        response = peer.store(dataset)

    assert accepted == {1: syntax}
    assert (response.status, response.comment) == (0x0000, "")
    (file,) = node.files()
    assert data_part(file) == dataset
    meta = dcmread(node.receiver.store.path(node.rows()[0].path), specific_tags=["SOPClassUID"], force=False).file_meta
    assert meta.TransferSyntaxUID == syntax
    assert meta.MediaStorageSOPInstanceUID == "1.2.3.4"
    assert meta.SourceApplicationEntityTitle == "CART"


def test_an_unknown_transfer_syntax_is_kept_when_its_elements_can_be_walked(node: Node) -> None:
    """Nobody can decode it, but it is not lost."""
    dataset = encoded(loop(), IMPLICIT_LITTLE)

    with WirePeer(node.port) as peer:
        peer.associate((US_MULTIFRAME, (UNKNOWN_SYNTAX,)))
        response = peer.store(dataset)

    assert response.status == 0x0000
    assert data_part(node.files()[0]) == dataset


@pytest.mark.parametrize("sop_class", [*(known.uid for known in STORED), "1.3.46.670589.2.5.1.1", "1.2.840.113619.4.2"])
def test_every_storage_class_is_stored_retired_and_private_ones_too(node: Node, sop_class: str) -> None:
    """pynetdicom by itself would abort for the retired and the private ones."""
    with WirePeer(node.port) as peer:
        accepted = peer.associate((sop_class, (EXPLICIT_LITTLE,))).syntaxes
        response = peer.store(encoded(loop(sop_class=sop_class)), sop_class=sop_class)

    assert accepted == {1: EXPLICIT_LITTLE}
    assert response.status == 0x0000
    assert [row.sop_class_uid for row in node.rows()] == [sop_class]


def test_the_requestor_s_first_transfer_syntax_is_accepted(node: Node) -> None:
    """It knows in which one it holds the image."""
    with WirePeer(node.port) as peer:
        answer = peer.associate(
            (US_MULTIFRAME, (JPEG_BASELINE, IMPLICIT_LITTLE)), (US_MULTIFRAME, (IMPLICIT_LITTLE, JPEG_BASELINE))
        )

    assert answer.syntaxes == {1: JPEG_BASELINE, 3: IMPLICIT_LITTLE}


def test_other_services_are_refused_beside_storage(node: Node) -> None:
    """Without ending the association, and the instance goes through."""
    other = (STUDY_ROOT_FIND, "1.2.840.10008.5.1.1.9", "1.2.840.10008.3.1.2.3.3")  # query, printing, MPPS
    with WirePeer(node.port) as peer:
        answer = peer.associate(
            *((uid, (IMPLICIT_LITTLE,)) for uid in other),
            (US_MULTIFRAME, (EXPLICIT_LITTLE,)),
            (VERIFICATION, (IMPLICIT_LITTLE,)),
        )
        status = peer.store(encoded(loop()), context=7).status

    assert answer.syntaxes == {7: EXPLICIT_LITTLE, 9: IMPLICIT_LITTLE}
    assert status == 0x0000


def test_verification_is_answered(node: Node) -> None:
    """A C-ECHO is how an engineer finds out whether the node is there."""
    with WirePeer(node.port) as peer:
        peer.associate((VERIFICATION, (IMPLICIT_LITTLE,)))

        assert peer.echo() == 0x0000
        peer.release()


@pytest.mark.parametrize(
    ("keyword", "status", "offending"),
    [
        ("StudyInstanceUID", 0xC001, 0x0020000D),
        ("SeriesInstanceUID", 0xC001, 0x0020000E),
        ("SOPInstanceUID", 0xC001, 0x00080018),
        ("SOPClassUID", 0xC001, 0x00080016),
    ],
)
@pytest.mark.parametrize("value", [None, "", "../../etc/passwd", "1." + "2" * 70])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_instance_without_its_identity_is_refused_and_set_aside(
    node: Node, peer: WirePeer, keyword: str, status: int, offending: int, value: str | None
) -> None:
    """Nobody could say later to which study it belongs; the answer names the element, and never its value."""
    dataset = loop()
    del dataset[keyword]
    if value is not None:
        dataset.add_new(keyword, "UI", value)
    content = encoded(dataset)

    response = peer.store(content)

    assert (response.status, response.offending) == (status, offending)
    assert response.comment.endswith("is missing or no UID")
    assert [data_part(file) for file in node.receiver.quarantined] == [content]
    assert node.rows() == []


def test_a_data_set_that_is_another_instance_than_the_command_says_is_refused(node: Node, peer: WirePeer) -> None:
    """Its sender mixes up its files."""
    response = peer.store(encoded(loop("1.2.3.5")), sop_instance="1.2.3.4")

    assert (response.status, response.offending) == (0xA900, 0x00080018)
    assert len(node.receiver.quarantined) == 1
    assert node.rows() == []


@pytest.mark.parametrize("character_set", [b"\xff\xff\x00\x1b", b"rot13 ", b"undefined "])
def test_a_character_set_that_is_none_costs_no_instance(node: Node, peer: WirePeer, character_set: bytes) -> None:
    """It is asked for the Patient ID of the audit trail alone; noise on the files found it."""
    content = encoded(loop())
    header = struct.pack("<HH2sH", 0x0008, 0x0005, b"CS", len(character_set)) + character_set
    before = content.index(struct.pack("<HH2s", 0x0008, 0x0016, b"UI"))

    response = peer.store(content[:before] + header + content[before:])

    assert response.status == 0x0000
    assert len(node.rows()) == 1


def test_a_data_set_of_another_class_than_the_command_says_is_refused(node: Node, peer: WirePeer) -> None:
    """As above."""
    response = peer.store(encoded(loop(sop_class="1.2.840.10008.5.1.4.1.1.6.1")))

    assert (response.status, response.offending) == (0xA900, 0x00080016)


def test_a_sop_instance_uid_of_another_study_is_refused(node: Node, peer: WirePeer) -> None:
    """The study that had it first keeps it."""
    peer.store(encoded(loop()))

    response = peer.store(encoded(loop(study=STUDY + ".1")))

    assert response.status == 0xC010
    assert "another study" in response.comment
    assert len(node.receiver.quarantined) == len(node.rows()) == 1


def test_the_same_instance_again_is_success_and_changes_nothing(node: Node, peer: WirePeer) -> None:
    """Carts send again after a lost answer."""
    peer.store(encoded(loop()))

    assert peer.store(encoded(loop())).status == 0x0000
    assert len(node.rows()) == len(node.rung) == 1


@pytest.mark.parametrize(
    ("damage", "comment"),
    [
        (lambda content: content[:-1], "longer than the data set"),
        (lambda content: content[: len(content) // 2], ""),
        (lambda content: content + b"\0", "data set ends"),
        (lambda content: b"\x02\x00\x10\x00UI\x02\x001\x00" + content, "group 2 inside the data set"),
        (lambda content: b"\x1f\x8b\x08\x00" + bytes(500), ""),
        (lambda content: b"", "no data set"),
        (lambda content: None, "no data set"),
    ],
    ids=["one byte less", "half", "one byte more", "group 2", "gzip", "empty", "none"],
)
def test_what_is_no_whole_data_set_is_refused_once_and_the_association_goes_on(
    node: Node, peer: WirePeer, damage: Callable[[bytes], bytes | None], comment: str
) -> None:
    """The sender still has it; pynetdicom's own server answers most of these with Success."""
    refused = peer.store(damage(encoded(loop())))
    stored = peer.store(encoded(loop()))

    assert refused.status == 0xC000
    assert comment in refused.comment
    assert 0 < len(refused.comment) <= 64
    assert stored.status == 0x0000
    assert len(node.rows()) == 1


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("sop_instance", "sop_class"),
    [(None, US_MULTIFRAME), ("1.2.3.4", None), ("1." * 40 + "1", US_MULTIFRAME), ("a/b", US_MULTIFRAME)],
)
def test_a_command_without_its_uids_is_answered_too(
    node: Node, peer: WirePeer, sop_instance: str | None, sop_class: str | None
) -> None:
    """pynetdicom keeps silent, or ends the association."""
    refused = peer.store(encoded(loop()), sop_instance=sop_instance, sop_class=sop_class)
    stored = peer.store(encoded(loop()))

    assert refused.status == 0xC000
    assert "of the command is missing or no UID" in refused.comment
    assert stored.status == 0x0000
    assert len(node.rows()) == 1


@pytest.mark.parametrize("priority", [None, 7])
def test_a_command_without_a_proper_priority_is_served(peer: WirePeer, priority: int | None) -> None:
    """Nothing depends on it."""
    assert peer.store(encoded(loop()), priority=priority).status == 0x0000


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OutOfSpace("/secret/path"), 0xA700),
        (StoreError("/secret/path"), 0xA700),
        (LedgerUnavailable("locked"), 0xA700),
        (RuntimeError("a mistake of ours"), 0xA700),
        (RecursionError("deep"), 0xA700),
    ],
)
def test_what_cannot_be_kept_now_is_to_be_sent_again(tmp_path: Path, error: Exception, status: int) -> None:
    """And the association goes on: the next one may fit."""
    inbox = Inbox(error=error)
    with running_receiver(tmp_path, inbox.receive) as receiver, WirePeer(receiver.port) as peer:
        peer.associate()
        refused = peer.store(encoded(loop()))
        inbox.error = None
        stored = peer.store(encoded(loop()))

    assert refused.status == status
    assert 0 < len(refused.comment) <= 64
    assert "secret" not in refused.comment
    assert stored.status == 0x0000


def test_a_full_quarantine_changes_no_answer(tmp_path: Path) -> None:
    """The peer is told what is wrong with its data, not with our disk."""
    with running_receiver(tmp_path, Inbox().receive) as receiver, WirePeer(receiver.port) as peer:
        peer.associate()
        receiver.store.path("quarantine").rmdir()
        receiver.store.path("quarantine").write_bytes(b"")

        assert peer.store(encoded(loop())[:-1]).status == 0xC000


def test_every_intake_error_has_a_status_of_its_own_kind() -> None:
    """A new error would be answered as a mistake of ours."""
    assert set(IntakeError.__subclasses__()) == {StoreError, LedgerUnavailable, OtherStudy, UidConflict}


def test_pixel_data_in_many_fragments_of_the_wire_is_put_together(node: Node, peer: WirePeer) -> None:
    """A loop is longer than a PDU."""
    dataset = loop()
    dataset.add_new(0x7FE00010, "OW", bytes(range(256)) * 4000)
    content = encoded(dataset)

    assert peer.store(content).status == 0x0000
    assert data_part(node.files()[0]) == content

"""Delivery: over real associations to a PACS that answers as told, and over real HTTP."""

import dataclasses
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filereader import read_dataset as read_dataset_of
from pydicom.uid import (
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
)
from structlog.testing import capture_logs

from dicom_node import completion
from dicom_node.audit import Outcome, StudyContent
from dicom_node.delivery import Deliverer, backoff
from dicom_node.identity import UID
from dicom_node.ledger import outbox, views
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.reports import WrittenPicture
from dicom_node.ledger.studies import retry
from dicom_node.report.findings import PictureKind
from dicom_node.report.pictures import Picture
from dicom_node.report.sr_class import SR_CLASSES, SrClass, uid_in_class
from dicom_node.senders import Send, Sender, StoreSender, StowSender
from dicom_node.settings import Node as NodeSection
from dicom_node.settings import Peer
from dicom_node.store import InstanceStore
from tests.binaries import require_binary
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock
from tests.doubles.pacs import DOCUMENTS, Conduct, running_pacs
from tests.doubles.proxy import running_line
from tests.node.report.samples import COLUMNS, ROWS, origin, pictures
from tests.patience import wait_until

OTHER = UID("1.2.826.0.1.77")

# pynetdicom 3.0.4 leaves a socket that did not connect to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(params=["sqlite"])
def ledger_url(tmp_path: Path) -> str:
    """SQLite alone: what the outbox does on each engine has its own tests."""
    return f"sqlite:///{tmp_path / 'ledger' / 'ledger.sqlite'}"


@dataclass(kw_only=True)
class Node:
    """The part of a node that writes reports and delivers them."""

    sessions: Sessions
    store: InstanceStore
    clock: ManualClock
    arrivals: Arrivals
    analyst: Analyst

    def write_report(self, study_uid: UID = STUDY, text: str = "one", kinds: Sequence[PictureKind] = ()) -> bytes:
        """Promise a report of a new study, with pictures, to `pacs` and return its data set's bytes."""
        study_id = self.arrivals.send(study_uid)
        self.clock.pass_by(60)
        self.complete()
        made = pictures(kinds, origin(study_uid=study_uid)) if kinds else []
        job = self.analyst.report(study_id, ["pacs"], [self._keep(study_uid, one) for one in made])
        document = views.study_json(self.sessions, study_uid)
        report_uid = document["reports"][-1]["sop_instance_uid"]
        part10, dataset = make_report(UID(report_uid), text)
        self.store.keep_report(UID(report_uid), part10)
        assert job.study_instance_uid == study_uid
        return dataset

    def _keep(self, study_uid: UID, one: Picture) -> WrittenPicture:
        return WrittenPicture(
            kind=one.kind,
            sop_instance_uid=one.sop_instance_uid,
            sop_class_uid=one.sop_class_uid,
            path=self.store.keep_picture(study_uid, one.sop_instance_uid, one.part10),
        )

    def complete(self) -> None:
        """Let the quiet period pass."""
        completion.tick(self.sessions, self.clock, timedelta(seconds=30))

    def deliverer(self, port: int, sr_class: SrClass = "comprehensive") -> Deliverer:
        """Return the delivery to the peer `pacs` at this port."""
        peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, receives_reports=True, sr_class=sr_class)
        return self._deliverer(peer, StoreSender(NodeSection(), peer))

    def stow_deliverer(self, url: str, sr_class: SrClass = "comprehensive") -> Deliverer:
        """Return the delivery to `pacs` by STOW-RS."""
        peer = Peer(name="pacs", ae_title="PACS", receives_reports=True, stow_url=url, sr_class=sr_class)
        return self._deliverer(peer, StowSender(peer))

    def _deliverer(self, peer: Peer, sender: StoreSender | StowSender) -> Deliverer:
        return Deliverer(
            peer=peer,
            sender=sender,
            sessions=self.sessions,
            store=self.store,
            clock=self.clock,
            jitter=random.Random(7),
        )

    def delivery(self, study_uid: UID = STUDY) -> tuple[str, int, str | None]:
        """Return state, attempts and error of the newest delivery of a study."""
        last = views.study_json(self.sessions, study_uid)["deliveries"][-1]
        return last["state"], last["attempts"], last["error"]

    def state(self, study_uid: UID = STUDY) -> str:
        """Return the state of a study."""
        return views.study_json(self.sessions, study_uid)["state"]


@pytest.fixture
def node(sessions: Sessions, store: InstanceStore, clock: ManualClock, arrivals: Arrivals, analyst: Analyst) -> Node:
    """A node without a network."""
    return Node(sessions=sessions, store=store, clock=clock, arrivals=arrivals, analyst=analyst)


def make_report(sop_uid: UID, text: str) -> tuple[bytes, bytes]:
    """Return a small SR as Part 10 bytes and its data set's bytes alone."""
    report = Dataset()
    report.SOPClassUID = ComprehensiveSRStorage
    report.SOPInstanceUID = sop_uid
    report.StudyInstanceUID = STUDY
    report.PatientID = "4711"
    report.TextValue = text
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComprehensiveSRStorage
    meta.MediaStorageSOPInstanceUID = sop_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    alone, whole = BytesIO(), BytesIO()
    report.save_as(alone, implicit_vr=False, little_endian=True)
    report.file_meta = meta
    report.save_as(whole, enforce_file_format=True)
    return whole.getvalue(), alone.getvalue()


def closed_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_report_arrives_byte_for_byte_and_the_study_is_delivered(node: Node) -> None:
    dataset = node.write_report()
    with running_pacs() as pacs:
        node.deliverer(pacs.port).deliver_due()

    assert pacs.stored == [dataset]
    assert pacs.calling_ae == "ECHONODE"
    assert node.delivery() == ("delivered", 1, None)
    assert node.state() == "delivered"


def test_a_peer_that_takes_implicit_vr_alone_gets_the_report_in_it(node: Node) -> None:
    node.write_report(text="Befund")
    with running_pacs(syntaxes=[ImplicitVRLittleEndian]) as pacs:
        node.deliverer(pacs.port).deliver_due()

    received = dcmread(BytesIO(pacs.stored[0]), force=True)
    assert received.TextValue == "Befund"
    assert node.state() == "delivered"


def test_reports_of_several_studies_go_over_one_association(node: Node) -> None:
    for number in range(3):
        node.write_report(UID(f"1.2.826.0.5.{number}"))
    with running_pacs() as pacs:
        node.deliverer(pacs.port).deliver_due()

    assert len(pacs.stored) == 3
    assert pacs.num_associations == 1


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB006, 0xB007, 0x0107, 0x0111, 0x0116])
def test_success_warnings_and_known_already_count_as_delivered(node: Node, status: int) -> None:
    node.write_report()
    with running_pacs(status) as pacs:
        node.deliverer(pacs.port).deliver_due()

    assert node.delivery() == ("delivered", 1, None)


@pytest.mark.parametrize("status", [0x0107, 0x0116, 0xB007])
def test_a_warning_of_the_peer_is_said(node: Node, status: int) -> None:
    node.write_report()
    with running_pacs(status) as pacs, capture_logs() as logs:
        node.deliverer(pacs.port).deliver_due()

    assert node.delivery() == ("delivered", 1, None)
    (said,) = [entry for entry in logs if entry["event"] == "taken_with_warning"]
    assert (said["log_level"], said["peer"]) == ("warning", "PACS")
    assert f"0x{status:04X}" in said["reason"]


@pytest.mark.parametrize("way", ["C-STORE", "STOW-RS"])
def test_a_report_that_the_disk_does_not_give_now_is_tried_again(node: Node, way: str) -> None:
    node.write_report()
    report = node.store.path(views.study_json(node.sessions, STUDY)["reports"][0]["path"])
    aside = report.rename(report.with_suffix(".aside"))
    report.symlink_to(report)  # ELOOP: neither gone nor damaged
    with running_pacs() as pacs, running_dicomweb() as service:
        deliverer = node.deliverer(pacs.port) if way == "C-STORE" else node.stow_deliverer(service.url)
        deliverer.deliver_due()
        state, attempts, error = node.delivery()
        aside.rename(report)
        node.clock.pass_by(20)
        deliverer.deliver_due()

    assert (state, attempts) == ("waiting", 1)
    assert "cannot be read" in (error or "")
    assert node.delivery() == ("delivered", 2, None)


@pytest.mark.parametrize("answer", [0xA700, 0x0110, Conduct.ABORT, Conduct.REJECT_TRANSIENT])
def test_what_may_pass_is_tried_again_after_a_wait(node: Node, answer: int | Conduct) -> None:
    node.write_report()
    with running_pacs(answer) as pacs:
        deliverer = node.deliverer(pacs.port)
        deliverer.deliver_due()
        state, attempts, error = node.delivery()
        at_once = deliverer.deliver_due()
        node.clock.pass_by(18.1)  # 15 s and a fifth
        deliverer.deliver_due()

    assert (state, attempts) == ("waiting", 1)
    assert error
    assert at_once == 0
    assert node.delivery() == ("delivered", 2, None)


@pytest.mark.parametrize("answer", [0xA900, 0xC000, 0xC123, 0x0122, 0x0124, Conduct.REJECT_PERMANENT])
def test_a_refusal_is_a_dead_letter_the_second_time(node: Node, answer: int | Conduct) -> None:
    node.write_report()
    with running_pacs(answer, answer) as pacs:
        deliverer = node.deliverer(pacs.port)
        deliverer.deliver_due()
        first = node.delivery()[0]
        node.clock.pass_by(20)
        deliverer.deliver_due()

    assert first == "waiting"
    assert node.delivery()[:2] == ("dead", 2)
    assert node.state() == "failed"
    assert "pacs" in (views.study_json(node.sessions, STUDY)["error"] or "")


def test_a_peer_that_takes_no_reports_at_all_refuses(node: Node) -> None:
    node.write_report()
    with running_pacs(classes=[UltrasoundImageStorage]) as pacs:
        deliverer = node.deliverer(pacs.port)
        deliverer.deliver_due()
        node.clock.pass_by(20)
        deliverer.deliver_due()

    state, _, error = node.delivery()
    assert state == "dead"
    assert "presentation context" in (error or "")


def test_a_peer_that_is_down_for_48_hours_is_given_up(node: Node) -> None:
    node.write_report()
    deliverer = node.deliverer(closed_port())
    states = []
    for _ in range(50):  # an hour each
        deliverer.deliver_due()
        states.append(node.delivery()[0])
        node.clock.pass_by(3600)

    assert states == ["waiting"] * 49 + ["dead"]
    assert "no association" in (node.delivery()[2] or "")


def test_a_clock_that_is_set_forward_costs_no_report(node: Node) -> None:
    node.write_report()
    node.clock.pass_by(30 * 86400)
    node.deliverer(closed_port()).deliver_due()
    after_the_leap = node.delivery()
    node.clock.pass_by(20)
    with running_pacs() as pacs:
        node.deliverer(pacs.port).deliver_due()

    assert after_the_leap[:2] == ("waiting", 1)
    assert node.delivery() == ("delivered", 2, None)


def test_a_lease_that_lapses_as_the_clock_is_set_forward_costs_one_attempt(node: Node) -> None:
    node.write_report()
    (held,) = outbox.due(node.sessions, "pacs", limit=1, lease=timedelta(seconds=120), clock=node.clock)
    node.clock.pass_by(30 * 86400)
    with running_pacs() as pacs:
        node.deliverer(pacs.port).deliver_due()
    is_taken_twice = outbox.delivered(node.sessions, held, node.clock)

    assert node.delivery() == ("delivered", 2, None)
    assert not is_taken_twice


def test_a_dead_letter_that_is_retried_by_hand_is_delivered(node: Node) -> None:
    node.write_report()
    with running_pacs(0xC000, 0xC000) as pacs:
        deliverer = node.deliverer(pacs.port)
        deliverer.deliver_due()
        node.clock.pass_by(20)
        deliverer.deliver_due()
        retry(node.sessions, STUDY, node.clock)
        deliverer.deliver_due()

    assert node.state() == "delivered"
    assert len(pacs.stored) == 1


def test_an_abort_costs_the_other_reports_of_the_batch_nothing(node: Node) -> None:
    studies = [UID(f"1.2.826.0.5.{number}") for number in range(3)]
    for study_uid in studies:
        node.write_report(study_uid)
    with running_pacs(Conduct.ABORT) as pacs:
        deliverer = node.deliverer(pacs.port)
        deliverer.deliver_due()
        deliverer.deliver_due()

    assert [node.delivery(study_uid)[:2] for study_uid in studies] == [
        ("waiting", 1),
        ("delivered", 1),
        ("delivered", 1),
    ]
    assert pacs.num_associations == 2


def test_a_missing_report_file_is_a_dead_letter_and_its_neighbour_arrives(node: Node) -> None:
    lost, whole = UID("1.2.826.0.5.1"), UID("1.2.826.0.5.2")
    node.write_report(lost)
    node.write_report(whole)
    report_path = views.study_json(node.sessions, lost)["reports"][0]["path"]
    node.store.path(report_path).unlink()
    with running_pacs() as pacs:
        node.deliverer(pacs.port).deliver_due()

    assert node.delivery(lost)[0] == "dead"
    assert "file of the report" in (node.delivery(lost)[2] or "")
    assert node.delivery(whole)[0] == "delivered"


@pytest.mark.parametrize("content", [b"", b"no DICOM", b"\0" * 128 + b"DICM" + b"\x02\x00"])
def test_a_damaged_report_file_is_a_dead_letter(node: Node, content: bytes) -> None:
    node.write_report()
    report_path = views.study_json(node.sessions, STUDY)["reports"][0]["path"]
    node.store.path(report_path).write_bytes(content)
    with running_pacs() as pacs:
        node.deliverer(pacs.port).deliver_due()

    assert node.delivery()[0] == "dead"


def test_a_running_delivery_finds_a_new_promise_by_itself(node: Node) -> None:
    with running_pacs() as pacs, running(node.deliverer(pacs.port)):
        node.write_report()
        wait_until(lambda: bool(pacs.stored))

    assert len(pacs.stored) == 1


def test_a_silent_peer_does_not_hold_up_another(node: Node) -> None:
    study_id = node.arrivals.send()
    node.clock.pass_by(60)
    node.complete()
    node.analyst.report(study_id, ["silent", "pacs"])
    report_uid = UID(views.study_json(node.sessions, STUDY)["reports"][0]["sop_instance_uid"])
    node.store.keep_report(report_uid, make_report(report_uid, "one")[0])
    with socket.create_server(("127.0.0.1", 0)) as silent, running_pacs() as pacs:
        peer = Peer(name="silent", ae_title="SILENT", host="127.0.0.1", port=silent.getsockname()[1])
        blocked = Deliverer(
            peer=peer,
            sender=StoreSender(NodeSection(), peer),
            sessions=node.sessions,
            store=node.store,
            clock=node.clock,
        )
        thread = threading.Thread(target=blocked.deliver_due)
        thread.start()
        wait_until(lambda: views.study_json(node.sessions, STUDY)["deliveries"][0]["state"] == "sending")
        node.deliverer(pacs.port).deliver_due()
        is_waited_for = thread.is_alive()
    thread.join(60)

    assert is_waited_for  # still, when the other had its report
    assert len(pacs.stored) == 1


def test_waits_double_to_a_quarter_of_an_hour_and_spread_by_a_fifth() -> None:
    assert [backoff(attempt, 0.0).total_seconds() for attempt in (1, 2, 3, 7, 8, 500)] == [15, 30, 60, 900, 900, 900]
    assert backoff(1, 1.0) == timedelta(seconds=18)
    assert backoff(1, -1.0) == timedelta(seconds=12)


def test_what_cannot_be_foreseen_ends_neither_the_thread_nor_the_delivery(node: Node) -> None:
    node.write_report()
    with running_pacs() as pacs:
        deliverer = node.deliverer(pacs.port)
        broken = Deliverer(
            peer=deliverer.peer,
            sender=FailsOnce(deliverer.sender),
            sessions=node.sessions,
            store=node.store,
            clock=node.clock,
        )
        with running(broken):
            wait_until(lambda: node.delivery()[:2] == ("waiting", 1))
            node.clock.pass_by(20)
            wait_until(lambda: node.delivery()[0] == "delivered")

    assert len(pacs.stored) == 1


class FailsOnce:
    """A sender with a mistake of ours in it."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._has_failed = False

    @contextmanager
    def open(self) -> Iterator[Send]:
        """Fail the first time."""
        if not self._has_failed:
            self._has_failed = True
            raise ZeroDivisionError
        with self._sender.open() as send:
            yield send


def test_peers_that_are_owed_a_report_are_known_by_name(node: Node) -> None:
    node.write_report()
    before = outbox.owed_peers(node.sessions)
    with running_pacs() as pacs:
        node.deliverer(pacs.port).deliver_due()

    assert before == {"pacs"}
    assert outbox.owed_peers(node.sessions) == set()


# --- Pictures ---

PICTURES = pictures(whence=origin(study_uid=STUDY))


def test_pictures_arrive_byte_for_byte_before_their_report_over_one_association(node: Node) -> None:
    dataset = node.write_report(kinds=[*PictureKind])
    with running_pacs(classes=DOCUMENTS, syntaxes=[JPEGBaseline8Bit, ExplicitVRLittleEndian]) as pacs:
        node.deliverer(pacs.port).deliver_due()

    assert pacs.classes == [*DOCUMENTS]
    assert all(one.part10.endswith(sent) for one, sent in zip(PICTURES, pacs.stored, strict=False))
    assert pacs.stored[-1] == dataset
    assert pacs.num_associations == 1
    assert node.state() == "delivered"


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_peer_that_decodes_no_jpeg_gets_the_pixels(node: Node, syntax: str) -> None:
    node.write_report(kinds=[PictureKind.SALIENCY])
    with running_pacs(classes=DOCUMENTS, syntaxes=[syntax]) as pacs:
        node.deliverer(pacs.port).deliver_due()

    image = read_dataset(pacs.stored[0], implicit=syntax == ImplicitVRLittleEndian)
    assert (image.PhotometricInterpretation, len(image.PixelData)) == ("RGB", 3 * ROWS * COLUMNS * 3)
    assert [image.PixelData[place * ROWS * COLUMNS * 3] for place in range(3)] == [0, 60, 120]
    assert image.LossyImageCompression == "01"
    assert image.SOPInstanceUID == PICTURES[0].sop_instance_uid
    assert node.state() == "delivered"


def test_plain_pixels_that_would_fill_the_memory_are_not_sent(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.write_report(kinds=[PictureKind.SALIENCY])
    monkeypatch.setattr("dicom_node.senders.MAX_PLAIN_BYTES", 3 * ROWS * COLUMNS * 3 - 1)
    with running_pacs(classes=DOCUMENTS) as pacs:
        node.deliverer(pacs.port).deliver_due()

    assert pacs.classes == [ComprehensiveSRStorage]
    assert node.state() == "delivered"


def read_dataset(content: bytes, *, implicit: bool) -> Dataset:
    """Return a data set as it came over the network."""
    return read_dataset_of(BytesIO(content), is_implicit_VR=implicit, is_little_endian=True)


@pytest.mark.parametrize("taken", [(ComprehensiveSRStorage,), (SecondaryCaptureImageStorage, ComprehensiveSRStorage)])
def test_a_peer_gets_the_report_without_the_pictures_that_it_does_not_take(node: Node, taken: Sequence[str]) -> None:
    node.write_report(kinds=[*PictureKind])
    with running_pacs(classes=taken) as pacs:
        node.deliverer(pacs.port).deliver_due()

    history = views.study_json(node.sessions, STUDY)["history"]
    (line,) = [one["detail"] for one in history if one["event"] == "report_delivered"]
    assert pacs.classes == [*taken]
    assert node.delivery() == ("delivered", 1, None)
    assert line.count("without ") == 4 - len(taken)
    assert "no presentation context for Encapsulated PDF Storage" in line


def test_a_refused_picture_costs_itself_alone(node: Node) -> None:
    node.write_report(kinds=[*PictureKind])
    with running_pacs(0x0000, 0xC000, classes=DOCUMENTS) as pacs:
        node.deliverer(pacs.port).deliver_due()

    assert len(pacs.stored) == 3
    assert node.delivery() == ("delivered", 1, None)


@pytest.mark.parametrize("answer", [0xA700, 0x0110, Conduct.ABORT])
def test_a_report_that_its_picture_held_up_three_times_goes_first(node: Node, answer: int | Conduct) -> None:
    node.write_report(kinds=[PictureKind.SALIENCY, PictureKind.SUMMARY])
    with running_pacs(answer, answer, answer, 0x0000, 0x0000, answer, classes=DOCUMENTS) as pacs:
        deliverer = node.deliverer(pacs.port)
        states = []
        for _ in range(4):
            deliverer.deliver_due()
            states.append(node.delivery()[0])
            node.clock.pass_by(80)

    assert states == ["waiting", "waiting", "waiting", "delivered"]
    assert pacs.classes == [ComprehensiveSRStorage, DOCUMENTS[0]]
    history = views.study_json(node.sessions, STUDY)["history"]
    (line,) = [one["detail"] for one in history if one["event"] == "report_delivered"]
    assert line.count("without ") == line.count("without summary ") == 1


def test_a_peer_that_was_ill_for_a_while_gets_the_pictures_too(node: Node) -> None:
    node.write_report(kinds=[*PictureKind])
    with running_pacs(*[0xA700] * 5, classes=DOCUMENTS) as pacs:
        deliverer = node.deliverer(pacs.port)
        for _ in range(6):
            deliverer.deliver_due()
            node.clock.pass_by(900)

    assert sorted(pacs.classes) == sorted(DOCUMENTS)
    assert node.delivery()[0] == "delivered"


def test_a_refusal_after_a_picture_failed_is_the_first_one(node: Node) -> None:
    node.write_report(kinds=[PictureKind.SUMMARY])
    with running_pacs(0xA700, 0x0000, 0xC000, classes=DOCUMENTS) as pacs:
        deliverer = node.deliverer(pacs.port)
        states = []
        for _ in range(3):
            deliverer.deliver_due()
            states.append(node.delivery()[0])
            node.clock.pass_by(80)

    assert states == ["waiting", "waiting", "delivered"]


@given(place=st.integers(132, 900), length=st.integers(1, 4), byte=st.integers(0, 255))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_picture_never_holds_up_its_report(node: Node, place: int, length: int, byte: int) -> None:
    study_uid = UID(f"1.2.826.0.5.{uuid4().int}")
    node.write_report(study_uid, kinds=[PictureKind.SALIENCY])
    (report,) = views.study_json(node.sessions, study_uid)["reports"]
    file = node.store.path(report["pictures"][0]["path"])
    content = bytearray(file.read_bytes())
    content[place : place + length] = bytes([byte]) * length
    file.write_bytes(content)
    with running_pacs(classes=DOCUMENTS, syntaxes=[ExplicitVRLittleEndian]) as pacs:
        node.deliverer(pacs.port).deliver_due()

    assert node.delivery(study_uid) == ("delivered", 1, None)
    assert pacs.classes[-1] == ComprehensiveSRStorage


def test_a_mistake_of_ours_in_one_report_does_not_last_for_ever(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.write_report()
    monkeypatch.setattr("dicom_node.senders._c_store", lambda *_: 1 / 0)
    monkeypatch.setattr("dicom_node.delivery.GIVE_UP_ATTEMPTS", 3)
    with running_pacs() as pacs:
        deliverer = node.deliverer(pacs.port)
        states = []
        for hours in (1, 50):
            with pytest.raises(ZeroDivisionError):
                deliverer.deliver_due()
            states.append(node.delivery()[0])
            node.clock.pass_by(hours * 3600)
        with pytest.raises(ZeroDivisionError):
            deliverer.deliver_due()
        states.append(node.delivery()[0])

    assert states == ["waiting", "waiting", "dead"]


def test_a_picture_whose_file_is_gone_costs_itself_alone(node: Node) -> None:
    node.write_report(kinds=[*PictureKind])
    (report,) = views.study_json(node.sessions, STUDY)["reports"]
    node.store.path(report["pictures"][0]["path"]).unlink()
    with running_pacs(classes=DOCUMENTS) as pacs:
        node.deliverer(pacs.port).deliver_due()

    assert pacs.classes == [*DOCUMENTS[1:]]
    assert node.state() == "delivered"


def test_a_peer_that_is_down_gets_the_pictures_when_it_is_back(node: Node) -> None:
    node.write_report(kinds=[*PictureKind])
    deliverer = node.deliverer(closed_port())
    for _ in range(5):
        deliverer.deliver_due()
        node.clock.pass_by(900)
    with running_pacs(classes=DOCUMENTS) as pacs:
        node.deliverer(pacs.port).deliver_due()

    assert pacs.classes == [*DOCUMENTS]


FREEZES = """
import os, signal, sys
from pynetdicom import AE, evt
from pynetdicom.pdu import A_ASSOCIATE_AC
ae = AE(ae_title="PACS")
for uid in sys.argv[1:]:
    ae.add_supported_context(uid, ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.1"])
def accepted(event):
    if isinstance(event.pdu, A_ASSOCIATE_AC):
        os.kill(os.getpid(), signal.SIGSTOP)
server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_PDU_SENT, accepted)])
print(server.server_address[1], flush=True)
signal.pause()
"""


def test_a_peer_that_stops_reading_in_a_picture_is_left(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_node.senders._STALL", timedelta(seconds=1))
    node.write_report(kinds=[PictureKind.SALIENCY])
    (report,) = views.study_json(node.sessions, STUDY)["reports"]
    picture = dcmread(node.store.path(report["pictures"][0]["path"]))
    picture.PixelData = encapsulate([bytes(30 << 20)])  # more than the buffers of both sockets hold
    picture.save_as(node.store.path(report["pictures"][0]["path"]))
    command = [sys.executable, "-c", FREEZES, *DOCUMENTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdout is not None
        deliverer = node.deliverer(int(peer.stdout.readline()))
        thread = threading.Thread(target=deliverer.deliver_due)
        thread.start()
        thread.join(60)
        is_free = not thread.is_alive()
        peer.kill()
    thread.join(60)

    assert is_free
    assert node.delivery()[:2] == ("waiting", 1)


@pytest.mark.parametrize("answers", [0, 1, 2], ids=["no association", "no answer to the report", "no release"])
def test_a_peer_whose_line_falls_silent_is_left_and_gets_its_report_later(
    node: Node, monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    monkeypatch.setattr("dicom_node.senders._TIMEOUT", timedelta(seconds=1))
    node.write_report()
    with running_pacs() as pacs:
        with running_line(("127.0.0.1", pacs.port), answers_left=answers) as line:
            thread = threading.Thread(target=node.deliverer(line.port).deliver_due)
            thread.start()
            thread.join(60)
            is_free = not thread.is_alive()
        silent = node.delivery()
        node.clock.pass_by(20)
        node.deliverer(pacs.port).deliver_due()

    assert is_free
    assert silent[:2] == (("waiting", 1) if answers < 2 else ("delivered", 1))
    assert node.delivery()[0] == "delivered"
    assert len(set(pacs.stored)) == 1


def test_a_service_whose_line_falls_silent_is_left(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_node.senders._TIMEOUT", timedelta(seconds=1))
    node.write_report()
    with running_dicomweb((200, {}, "")) as service:
        port = int(service.url.rpartition(":")[2].partition("/")[0])
        with running_line(("127.0.0.1", port), answers_left=0) as line:
            deliverer = node.stow_deliverer(service.url.replace(str(port), str(line.port)))
            thread = threading.Thread(target=deliverer.deliver_due)
            thread.start()
            thread.join(60)
            is_free = not thread.is_alive()

    assert is_free
    assert node.delivery()[:2] == ("waiting", 1)


# --- Classes of the report ---


@pytest.mark.parametrize(
    ("wanted", "taken", "got"),
    [
        ("comprehensive3d", SR_CLASSES.values(), "comprehensive3d"),
        ("comprehensive", SR_CLASSES.values(), "comprehensive"),
        ("enhanced", SR_CLASSES.values(), "enhanced"),
        ("comprehensive3d", [SR_CLASSES["comprehensive"], SR_CLASSES["enhanced"]], "comprehensive"),
        ("comprehensive3d", [SR_CLASSES["enhanced"]], "enhanced"),
        ("comprehensive", [SR_CLASSES["comprehensive3d"], SR_CLASSES["enhanced"]], "comprehensive3d"),
        ("enhanced", [SR_CLASSES["comprehensive"]], "comprehensive"),
    ],
)
def test_a_peer_gets_the_report_in_the_class_that_it_wants_or_takes(
    node: Node, wanted: SrClass, taken: Sequence[str], got: SrClass
) -> None:
    node.write_report(text="Befund")
    with running_pacs(classes=[*taken]) as pacs:
        node.deliverer(pacs.port, wanted).deliver_due()

    stored = views.study_json(node.sessions, STUDY)["reports"][0]["sop_instance_uid"]
    report = read_dataset(pacs.stored[0], implicit=False)
    assert (report.SOPClassUID, report.TextValue) == (SR_CLASSES[got], "Befund")
    assert report.SOPInstanceUID == uid_in_class(UID(stored), SR_CLASSES[got])
    assert (report.SOPInstanceUID == stored) == (got == "comprehensive")
    assert node.state() == "delivered"


def test_a_class_that_is_refused_by_status_is_followed_by_the_next(node: Node) -> None:
    node.write_report()
    with running_pacs(0x0122, 0x0122, classes=[*SR_CLASSES.values()]) as pacs:
        node.deliverer(pacs.port).deliver_due()

    assert pacs.classes == [SR_CLASSES["enhanced"]]
    assert node.delivery() == ("delivered", 1, None)


# --- dcmtk's storescp ---


@contextmanager
def running_storescp(folder: Path, *options: str) -> Iterator[int]:
    """Run storescp until the block ends; give its port."""
    port = closed_port()
    folder.mkdir()
    command = [require_binary("storescp"), *options, "--bit-preserving", "-od", str(folder), str(port)]
    process = subprocess.Popen(command, env={"TCP_NODELAY": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_listening(port))
        yield port
    finally:
        process.terminate()
        process.wait(10)


def is_listening(port: int) -> bool:
    """Return whether somebody listens there, without connecting: storescp would count it."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines)


def test_storescp_gets_the_bytes_as_stored(node: Node, tmp_path: Path) -> None:
    dataset = node.write_report()
    with running_storescp(tmp_path / "pacs") as port:
        node.deliverer(port).deliver_due()
    files = [path.read_bytes() for path in (tmp_path / "pacs").iterdir()]

    assert node.delivery() == ("delivered", 1, None)
    assert [content.endswith(dataset) for content in files] == [True]


def test_storescp_that_takes_implicit_vr_alone_gets_the_report(node: Node, tmp_path: Path) -> None:
    node.write_report()
    with running_storescp(tmp_path / "pacs", "+xi") as port:
        node.deliverer(port).deliver_due()

    assert node.delivery() == ("delivered", 1, None)


@pytest.mark.parametrize("fault", ["--refuse", "--abort-after", "--abort-during"])
def test_faults_of_storescp_lose_no_report(node: Node, tmp_path: Path, fault: str) -> None:
    node.write_report()
    with running_storescp(tmp_path / "faulty", fault) as port:
        node.deliverer(port).deliver_due()
    before = node.delivery()
    node.clock.pass_by(20)
    with running_storescp(tmp_path / "whole") as port:
        node.deliverer(port).deliver_due()

    assert before[:2] == ("waiting", 1)
    assert before[2]
    assert node.delivery() == ("delivered", 2, None)


# --- STOW-RS ---


@dataclass(kw_only=True)
class Dicomweb:
    """A DICOMweb service that answers as told."""

    url: str = ""
    answers: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Path, content type and body."""


@contextmanager
def running_dicomweb(*answers: tuple[int, dict[str, str], str]) -> Iterator[Dicomweb]:
    """Run it until the block ends; it answers 200 when its answers are used up."""
    service = Dicomweb(answers=list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            service.requests.append((self.path, self.headers["Content-Type"], body))
            status, headers, content = service.answers.pop(0) if service.answers else (200, {}, "{}")
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_port}/dicom-web"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def failed_sop(reason: int) -> str:
    """Return a STOW-RS answer that names one failure."""
    return f'{{"00081198": {{"vr": "SQ", "Value": [{{"00081197": {{"vr": "US", "Value": [{reason}]}}}}]}}}}'


def test_stow_carries_the_stored_file_as_one_part(node: Node) -> None:
    dataset = node.write_report()
    with running_dicomweb() as service:
        node.stow_deliverer(service.url).deliver_due()

    path, content_type, body = service.requests[0]
    assert path == "/dicom-web/studies"
    assert content_type.startswith('multipart/related; type="application/dicom"; boundary=')
    assert dataset in body
    assert node.state() == "delivered"


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ((200, {}, "{}"), "delivered"),
        ((202, {}, "{}"), "delivered"),
        ((202, {}, failed_sop(0xA700)), "waiting"),
        ((409, {}, failed_sop(0x0111)), "delivered"),
        ((409, {}, failed_sop(0xC000)), "waiting"),
        ((408, {}, ""), "waiting"),
        ((429, {}, ""), "waiting"),
        ((503, {}, ""), "waiting"),
        ((400, {}, ""), "waiting"),
    ],
)
def test_stow_answers_are_sorted(node: Node, answer: tuple[int, dict[str, str], str], state: str) -> None:
    node.write_report()
    with running_dicomweb(answer) as service:
        node.stow_deliverer(service.url).deliver_due()

    assert node.delivery()[:2] == (state, 1)


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ((409, {}, failed_sop(0xC000)), "dead"),
        ((409, {}, "not JSON"), "dead"),
        ((400, {}, ""), "dead"),
        ((202, {}, failed_sop(0xA700)), "waiting"),
        ((503, {}, ""), "waiting"),
    ],
)
def test_stow_refusals_are_dead_letters_the_second_time(
    node: Node, answer: tuple[int, dict[str, str], str], state: str
) -> None:
    node.write_report()
    with running_dicomweb(answer, answer) as service:
        deliverer = node.stow_deliverer(service.url)
        deliverer.deliver_due()
        node.clock.pass_by(20)
        deliverer.deliver_due()

    assert node.delivery()[:2] == (state, 2)


def test_stow_waits_as_long_as_the_service_asks(node: Node) -> None:
    node.write_report()
    with running_dicomweb((503, {"Retry-After": "120"}, "")) as service:
        deliverer = node.stow_deliverer(service.url)
        deliverer.deliver_due()
        node.clock.pass_by(119)
        before = deliverer.deliver_due()
        node.clock.pass_by(2)
        after = deliverer.deliver_due()

    assert (before, after) == (0, 1)
    assert node.state() == "delivered"


def test_a_service_that_is_down_is_tried_again(node: Node) -> None:
    node.write_report()
    node.stow_deliverer(f"http://127.0.0.1:{closed_port()}").deliver_due()

    assert node.delivery()[:2] == ("waiting", 1)


def test_what_another_process_holds_is_not_sent_twice(node: Node) -> None:
    node.write_report()
    with running_pacs() as pacs:
        held = outbox.due(node.sessions, "pacs", limit=1, lease=timedelta(seconds=30), clock=node.clock)
        meanwhile = node.deliverer(pacs.port).deliver_due()

    assert len(held) == 1
    assert meanwhile == 0


@contextmanager
def running(deliverer: Deliverer) -> Iterator[None]:
    """Run a deliverer's thread until the block ends."""
    stop = threading.Event()
    thread = threading.Thread(target=deliverer.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def test_what_a_peer_has_and_what_it_will_not_have_is_told(node: Node) -> None:
    """To the audit trail: the report with the pictures that arrived, each once."""
    node.write_report(kinds=[PictureKind.SUMMARY, PictureKind.SUMMARY_PDF])
    told: list[tuple[StudyContent, Outcome]] = []
    with running_pacs(classes=[EncapsulatedPDFStorage, ComprehensiveSRStorage]) as pacs:
        _telling(node, pacs.port, told).deliver_due()
    node.write_report(OTHER)
    with running_pacs(0xC000, 0xC000) as refusing:
        deliverer = _telling(node, refusing.port, told)
        deliverer.deliver_due()
        node.clock.pass_by(20)
        deliverer.deliver_due()

    (delivered, done), (refused, given_up) = told
    assert (delivered.study_uid, delivered.patient_id, done) == (STUDY, "4711", Outcome.SUCCESS)
    assert dict(delivered.num_instances) == {str(EncapsulatedPDFStorage): 1, str(ComprehensiveSRStorage): 1}
    assert (refused.study_uid, refused.patient_id, given_up) == (OTHER, "4711", Outcome.SERIOUS_FAILURE)


def _telling(node: Node, port: int, told: list[tuple[StudyContent, Outcome]]) -> Deliverer:
    return dataclasses.replace(node.deliverer(port), tell=lambda content, outcome: told.append((content, outcome)))

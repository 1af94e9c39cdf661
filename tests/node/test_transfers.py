"""What associations bring stands in the audit trail: a message a study, with what became of it."""

import dataclasses
import threading
import time
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association

from dicom_node.audit import Action, Application, Event, Outcome
from dicom_node.audit_trail import AuditTrail, this_application
from dicom_node.clock import utc_now
from dicom_node.errors import StoreError
from dicom_node.identity import UID
from dicom_node.intake import IntakeKind, IntakeOutcome, Received
from dicom_node.scp import Receive
from dicom_node.settings import AuditSection, Node
from dicom_node.transfers import ACTIONS, Transfers, patient_id_of
from tests.doubles.arrivals import instance
from tests.doubles.datasets import encoded, loop
from tests.doubles.receiver import Inbox, running_receiver
from tests.doubles.wire_peer import US_MULTIFRAME, WirePeer

US_IMAGE = "1.2.840.10008.5.1.4.1.1.6.1"
NODE = this_application(Node())


def patient_loop(
    sop_instance: str, patient_id: str | None, sop_class: str = US_MULTIFRAME, study: str = "1.2.5"
) -> Dataset:
    """Return a loop of a patient."""
    dataset = loop(sop_instance, sop_class, study)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    if patient_id is not None:
        dataset.PatientID = patient_id
    return dataset


def associate(port: int, calling: str = "CART", called: str = "ECHONODE") -> Association:
    ae = AE(ae_title=calling)
    ae.add_requested_context(US_MULTIFRAME, ExplicitVRLittleEndian)
    ae.add_requested_context(US_IMAGE, ExplicitVRLittleEndian)
    return ae.associate("127.0.0.1", port, ae_title=called)


def send(port: int, *datasets: Dataset, aborts: bool = False) -> None:
    """Send over one association."""
    association = associate(port)
    for dataset in datasets:
        dataset.ensure_file_meta()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        association.send_c_store(dataset)
    association.abort() if aborts else association.release()


def wait_for(events: list[Event], number: int) -> list[Event]:
    """Return the events once there are so many."""
    deadline = time.monotonic() + 30
    while len(events) < number:
        assert time.monotonic() < deadline, events
        time.sleep(0.02)
    return events


def told(event: Event) -> tuple[str, str, Outcome, str, str, dict[str, int]]:
    """Return code, action, outcome, study, patient and instances of a transfer."""
    study, patient = event.objects
    return event.id.value, event.action, event.outcome, study.id, patient.id, dict(study.num_instances)


@pytest.mark.parametrize("aborts", [False, True])
def test_an_association_is_a_message_a_study_when_it_ends(tmp_path: Path, aborts: bool) -> None:
    """And one at the first instance of each, so that a node that is killed leaves a trace."""
    events: list[Event] = []
    with running_receiver(tmp_path, Inbox().receive, audit=events.append) as receiver:
        send(
            receiver.port,
            patient_loop("1.2.1", "4711"),
            patient_loop("1.2.2", "4711"),
            patient_loop("1.2.3", "4711", US_IMAGE),
            patient_loop("1.2.4", None, study="1.2.6"),
            aborts=aborts,
        )
        wait_for(events, 4)

    assert [told(event) for event in events] == [
        ("110102", Action.EXECUTE, Outcome.SUCCESS, "1.2.5", "4711", {}),
        ("110102", Action.EXECUTE, Outcome.SUCCESS, "1.2.6", "<none>", {}),
        ("110104", Action.CREATE, Outcome.SUCCESS, "1.2.5", "4711", {US_MULTIFRAME: 2, US_IMAGE: 1}),
        ("110104", Action.CREATE, Outcome.SUCCESS, "1.2.6", "<none>", {US_MULTIFRAME: 1}),
    ]
    source, destination = events[2].participants
    assert (source.who, source.is_requestor) == (Application(ae_title="CART", address="127.0.0.1"), True)
    assert (destination.who, destination.is_requestor) == (NODE, False)


def test_an_acceptor_that_ends_tells_what_it_still_had(tmp_path: Path) -> None:
    """Its associations are cut off, and nobody looks for ended ones any more."""
    events: list[Event] = []
    with running_receiver(tmp_path, Inbox().receive, audit=events.append) as receiver:
        association = associate(receiver.port)
        dataset = patient_loop("1.2.1", "4711")
        dataset.ensure_file_meta()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        association.send_c_store(dataset)
        leaving = threading.Timer(0.5, association.release)  # while the acceptor waits for it
        leaving.start()
    leaving.join()

    assert [event.id.value for event in events] == ["110102", "110104"]


def test_instances_that_could_not_be_kept_are_a_message_of_their_own(tmp_path: Path) -> None:
    """PS3.15 A.5.2: never what succeeded and what failed in one."""
    events: list[Event] = []
    with running_receiver(tmp_path, _failing_second(), audit=events.append) as receiver:
        send(receiver.port, patient_loop("1.2.1", "4711"), patient_loop("1.2.2", "4711"))
        wait_for(events, 3)

    assert [told(event)[:3] for event in events[1:]] == [
        ("110104", Action.CREATE, Outcome.SUCCESS),
        ("110104", Action.CREATE, Outcome.MINOR_FAILURE),
    ]


def _failing_second() -> Receive:
    inbox = Inbox()

    def receive(received: Received) -> IntakeOutcome:
        if inbox.received:
            raise StoreError("no space")
        return inbox.receive(received)

    return receive


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        (IntakeKind.KEPT, Action.CREATE),
        (IntakeKind.VERSION, Action.UPDATE),
        (IntakeKind.IDENTICAL, Action.READ),
        (IntakeKind.OWN_REPORT, Action.READ),
    ],
)
def test_the_action_says_what_the_node_had_before(kind: IntakeKind, action: Action) -> None:
    """PS3.15 table A.5.3.7-1."""
    events: list[Event] = []
    transfers = Transfers(NODE, events.append)

    transfers.note("association", "10.0.0.7", instance(UID("1.2.5"), UID("1.2.1")), kind)
    transfers.settle(lambda _one: False)

    assert events[-1].action is action


def test_an_association_that_goes_on_is_not_told_yet() -> None:
    events: list[Event] = []
    transfers = Transfers(NODE, events.append)
    for association in ("one", "two"):
        transfers.note(association, "10.0.0.7", instance(UID("1.2.5"), UID("1.2.1")), IntakeKind.KEPT)

    transfers.settle(lambda one: one == "one")
    num_told = len(events)
    transfers.settle(lambda one: one == "one")

    assert (num_told, len(events)) == (3, 3)  # two begun, one ended


def test_a_message_is_of_one_patient() -> None:
    """A.5.3.7; also where a cart mixes two into one study."""
    events: list[Event] = []
    transfers = Transfers(NODE, events.append)
    for patient_id in ("A", "B", "A"):
        received = dataclasses.replace(instance(UID("1.2.5"), UID("1.2.1")), patient_id=patient_id)
        transfers.note("association", "10.0.0.7", received, IntakeKind.KEPT)
    transfers.settle(lambda _one: False)

    assert [told(event)[4:] for event in events[1:]] == [("A", {US_MULTIFRAME: 2}), ("B", {US_MULTIFRAME: 1})]


@pytest.mark.parametrize(
    ("calling", "called", "is_alert"),
    [("STRANGER", "ECHONODE", True), ("CART", "OTHER", True), ("CART", "ECHONODE", False)],
)
def test_who_may_not_come_in_is_an_alert(tmp_path: Path, calling: str, called: str, is_alert: bool) -> None:
    """An AE title that is not known, and someone who tries names."""
    events: list[Event] = []
    node, peers = {"require_known_peer": True}, ({"name": "cart", "ae_title": "CART"},)
    with running_receiver(tmp_path, Inbox().receive, node=node, peers=peers, audit=events.append) as receiver:
        association = associate(receiver.port, calling, called)
        if association.is_established:
            association.release()

    assert [(event.id.value, event.participants[1].who) for event in events] == (
        [("110113", Application(ae_title=calling, address="127.0.0.1"))] if is_alert else []
    )


def test_a_node_that_has_no_room_raises_no_alert(tmp_path: Path) -> None:
    """It is nothing that the peer did."""
    events: list[Event] = []
    with running_receiver(tmp_path, Inbox().receive, node={"max_associations": 1}, audit=events.append) as receiver:
        first = associate(receiver.port)
        second = associate(receiver.port)
        first.release()

    assert second.is_rejected
    assert events == []


@pytest.mark.parametrize(
    ("character_set", "value", "patient_id"),
    [
        (b"ISO_IR 100", b"M\xfcller ", "M\u00fcller"),
        (b"ISO_IR 192", "M\u00fcller\u6f22".encode(), "M\u00fcller\u6f22"),
        (b"\\ISO 2022 IR 87", b"\x1b$B4A;z\x1b(B", "\u6f22\u5b57"),
        (b"", b" 47 11\0", "47 11"),
    ],
)
def test_a_patient_id_is_read_in_the_character_set_of_its_data_set(
    tmp_path: Path, character_set: bytes, value: bytes, patient_id: str
) -> None:
    """PS3.5 6.1."""
    inbox = Inbox()
    dataset = loop("1.2.1")
    dataset.add_new(0x00080005, "CS", character_set.decode())
    dataset.add_new(0x00100020, "UN", value + b" " * (len(value) % 2))
    with running_receiver(tmp_path, inbox.receive) as receiver:
        send(receiver.port, dataset)
    (received,) = inbox.received

    assert received.patient_id == patient_id


@pytest.mark.parametrize("content", [b"", b"\0" * 132, b"\0" * 128 + b"DICM\xff\xff"])
def test_a_file_that_cannot_be_read_has_no_patient_id(tmp_path: Path, content: bytes) -> None:
    """The study is deleted, the message goes out."""
    path = tmp_path / "file.dcm"
    path.write_bytes(content)

    assert patient_id_of(path) == ""
    assert patient_id_of(tmp_path / "missing.dcm") == ""


def test_whatever_becomes_of_an_instance_has_its_action() -> None:
    assert ACTIONS.keys() == set(IntakeKind)


def test_carts_that_send_each_image_on_an_association_of_its_own_lose_none(tmp_path: Path) -> None:
    """While what the last one brought is written to the trail, the next one begins."""
    trail = AuditTrail(AuditSection(), Node(data_dir=tmp_path), utc_now)
    statuses: list[int | None] = []

    def send(port: int) -> None:
        for number in range(40):
            with WirePeer(port) as peer:
                peer.associate()
                statuses.append(peer.store(encoded(loop(UID(f"1.2.3.{number}"))), f"1.2.3.{number}").status)

    with running_receiver(tmp_path, Inbox().receive, audit=trail.record) as receiver:
        carts = [threading.Thread(target=send, args=(receiver.port,)) for _ in range(3)]
        for cart in carts:
            cart.start()
        for cart in carts:
            cart.join()

    assert statuses == [0x0000] * 120

"""Peers are asked to commit to reports, and what they answer is in the ledger, on whichever way it comes."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import evt
from structlog.testing import capture_logs

from dicom_node import commitment_scp, commitment_scu, completion
from dicom_node.commitment_scu import ASK_AGAIN_AFTER, Requester
from dicom_node.delivery import GIVE_UP_AFTER, Deliverer
from dicom_node.identity import UID
from dicom_node.ledger import pledges, studies
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.reports import WrittenPicture
from dicom_node.ledger.views import DeliveryJson, study_json
from dicom_node.report.findings import PictureKind
from dicom_node.report.sr_class import SR_CLASSES, SrClass, uid_in_class
from dicom_node.senders import StoreSender
from dicom_node.settings import Node as NodeSection
from dicom_node.settings import Peer
from dicom_node.store import InstanceStore
from tests.binaries import free_port
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock
from tests.doubles.committers import Archive, running_archive
from tests.doubles.pacs import DOCUMENTS, running_pacs
from tests.doubles.receiver import Inbox, running_receiver
from tests.node.report.samples import origin, pictures
from tests.node.test_delivery import make_report

pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(params=["sqlite"])
def ledger_url(tmp_path: Path) -> str:
    """SQLite alone: what the ledger does on each engine has its own tests."""
    return f"sqlite:///{tmp_path / 'ledger' / 'ledger.sqlite'}"


@dataclass(kw_only=True)
class Node:
    """The part of a node that delivers reports and asks for them."""

    sessions: Sessions
    store: InstanceStore
    clock: ManualClock
    arrivals: Arrivals
    analyst: Analyst
    folder: Path

    def write_report(self, kinds: tuple[PictureKind, ...] = ()) -> None:
        """Promise a report to `pacs`."""
        study_id = self.arrivals.send()
        self.clock.pass_by(60)
        completion.tick(self.sessions, self.clock, timedelta(seconds=30))
        made = pictures(kinds, origin(study_uid=STUDY)) if kinds else []
        kept = [
            WrittenPicture(
                kind=one.kind,
                sop_instance_uid=one.sop_instance_uid,
                sop_class_uid=one.sop_class_uid,
                path=self.store.keep_picture(STUDY, one.sop_instance_uid, one.part10),
            )
            for one in made
        ]
        self.analyst.report(study_id, ["pacs"], kept)
        self.store.keep_report(self.report_uid(), make_report(self.report_uid(), "one")[0])

    def deliver(self, sr_class: SrClass = "comprehensive", classes: tuple[str, ...] = DOCUMENTS) -> None:
        """Deliver what is due to a PACS that takes these classes."""
        with running_pacs(classes=classes) as pacs:
            peer = self.peer(pacs.port, sr_class)
            sender = StoreSender(NodeSection(), peer)
            deliverer = Deliverer(peer=peer, sender=sender, sessions=self.sessions, store=self.store, clock=self.clock)
            assert deliverer.deliver_due() == 1

    def deliver_report(self) -> None:
        """Write a report, and deliver it."""
        self.write_report()
        self.deliver()

    def peer(self, port: int, sr_class: SrClass = "comprehensive") -> Peer:
        """Return the PACS as the configuration names it."""
        return Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=port, receives_reports=True,
                    storage_commitment=True, sr_class=sr_class)  # fmt: skip

    def requester(self, port: int, seconds: float = 0.1) -> Requester:
        """Return who asks it, and waits so long for a report on the same association."""
        return Requester(node=NodeSection(), peer=self.peer(port), sessions=self.sessions, clock=self.clock,
                         jitter=random.Random(7), report_seconds=seconds)  # fmt: skip

    @contextmanager
    def receiving(self) -> Iterator[int]:
        """Run an acceptor that takes reports; give its port."""
        heard: Any = partial(commitment_scu.on_n_event_report, sessions=self.sessions, clock=self.clock)
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_REQUESTED, commitment_scp.grant_role),
            (evt.EVT_DIMSE_RECV, commitment_scp.on_message),
            (evt.EVT_N_EVENT_REPORT, heard),
        ]
        with running_receiver(self.folder, Inbox().receive, more_handlers=handlers) as receiver:
            yield receiver.port

    def report_uid(self) -> UID:
        """Return the UID of the newest report."""
        return UID(study_json(self.sessions, STUDY)["reports"][-1]["sop_instance_uid"])

    def delivery(self) -> DeliveryJson:
        """Return the newest delivery."""
        return study_json(self.sessions, STUDY)["deliveries"][-1]

    def commitment(self) -> str | None:
        """Return whether it is committed to."""
        return self.delivery()["commitment"]

    def state(self) -> str:
        """Return the state of the study."""
        return study_json(self.sessions, STUDY)["state"]

    def history(self, event: str) -> list[str]:
        """Return what the study's history says of an event."""
        return [line["detail"] for line in study_json(self.sessions, STUDY)["history"] if line["event"] == event]


@pytest.fixture
def node(
    sessions: Sessions, store: InstanceStore, clock: ManualClock, arrivals: Arrivals, analyst: Analyst, tmp_path: Path
) -> Node:
    """A node without a worker."""
    return Node(
        sessions=sessions, store=store, clock=clock, arrivals=arrivals, analyst=analyst, folder=tmp_path / "data"
    )


def test_a_report_that_was_delivered_is_asked_for_with_its_pictures_as_they_were_sent(node: Node) -> None:
    """In the class that the peer took, and in the order in which they went out."""
    wanted = SR_CLASSES["comprehensive3d"]
    node.write_report((PictureKind.SUMMARY,))
    node.deliver("comprehensive3d", (*DOCUMENTS, wanted))
    (picture,) = study_json(node.sessions, STUDY)["reports"][0]["pictures"]
    before = node.commitment()
    with running_archive() as archive:
        node.requester(archive.port).ask_due()

    ((_, first), (sop_class, last)) = asked(archive)
    assert first == picture["sop_instance_uid"]
    assert (sop_class, last) == (wanted, uid_in_class(node.report_uid(), wanted))
    assert (before, node.commitment(), node.state()) == ("wanted", "requested", "delivered")


def test_a_peer_that_is_not_asked_has_no_commitment(node: Node) -> None:
    node.write_report()
    with running_pacs() as pacs:
        peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=pacs.port, receives_reports=True)
        sender = StoreSender(NodeSection(), peer)
        Deliverer(peer=peer, sender=sender, sessions=node.sessions, store=node.store, clock=node.clock).deliver_due()
    with running_archive() as archive:
        num_asked = node.requester(archive.port).ask_due()

    assert (node.commitment(), num_asked, archive.asked) == (None, 0, [])


def test_a_report_on_the_same_association_commits(node: Node) -> None:
    node.deliver_report()
    with running_archive(reports_besides=True) as archive:
        node.requester(archive.port, seconds=30.0).ask_due()

        assert archive.answers.get(timeout=30) == 0x0000
    assert node.commitment() == "committed"
    assert node.history("report_committed") == [f"pacs: {node.report_uid()}"]


@pytest.mark.parametrize("with_role", [True, False])
def test_a_report_on_an_association_of_the_peer_commits(node: Node, with_role: bool) -> None:
    """Whether it asks for its role (PS3.7 D.3.3.4) or not."""
    node.deliver_report()
    with running_archive() as archive, node.receiving() as port:
        node.requester(archive.port).ask_due()
        answers = [archive.report(port, with_role=with_role) for _ in range(2)]  # told twice is told once

    assert answers == [0x0000, 0x0000]
    assert node.commitment() == "committed"
    assert len(node.history("report_committed")) == 1


def test_a_picture_that_the_peer_has_not_costs_no_report(node: Node) -> None:
    node.write_report((PictureKind.SUMMARY,))
    node.deliver()
    (picture,) = study_json(node.sessions, STUDY)["reports"][0]["pictures"]
    uid = picture["sop_instance_uid"]
    with running_archive() as archive, node.receiving() as port:
        archive.judge = lambda one: 0x0112 if one == uid else None
        node.requester(archive.port).ask_due()
        archive.report(port)

    assert (node.commitment(), node.state()) == ("committed", "delivered")
    assert node.history("report_committed") == [f"pacs: {node.report_uid()}; without {uid}: failure reason 0x0112"]


def test_a_report_that_the_peer_has_not_is_delivered_once_more_and_then_a_person_is_told(node: Node) -> None:
    node.deliver_report()
    with running_archive() as archive, node.receiving() as port:
        archive.judge = lambda _one: 0x0112
        node.requester(archive.port).ask_due()
        archive.report(port)
        first = node.delivery(), node.state()
        archive.report(port)  # the same again
        node.deliver()
        node.requester(archive.port).ask_due()
        between = node.delivery(), node.state()
        archive.report(port, archive.asked[0])  # of before it was sent again
        with capture_logs() as logs:
            archive.report(port)

    assert (first[0]["state"], first[0]["commitment"], first[1]) == ("waiting", "failed", "delivering")
    assert (between[0]["state"], between[0]["commitment"], between[1]) == ("delivered", "requested", "delivered")
    error = "the peer does not commit to the report (failure reason 0x0112)"
    assert (node.delivery()["state"], node.delivery()["error"], node.state()) == ("dead", error, "failed")
    assert "delivery_dead" in [line["event"] for line in logs if line["log_level"] == "error"]


def test_a_dead_letter_that_is_retried_by_hand_is_asked_for_again(node: Node) -> None:
    node.deliver_report()
    with running_archive() as archive, node.receiving() as port:
        archive.judge = lambda _one: 0x0112
        for number in range(2):
            if number:
                node.deliver()
            node.requester(archive.port).ask_due()
            archive.report(port)
        assert node.state() == "failed"
        studies.retry(node.sessions, STUDY, node.clock)
        node.deliver()
        archive.judge = lambda _one: None
        node.requester(archive.port).ask_due()
        archive.report(port)

    assert (node.commitment(), node.state()) == ("committed", "delivered")


def test_a_peer_that_does_not_answer_is_asked_again_and_may_answer_either(node: Node) -> None:
    node.deliver_report()
    with running_archive() as archive, node.receiving() as port:
        requester = node.requester(archive.port)
        requester.ask_due()
        node.clock.pass_by(ASK_AGAIN_AFTER.total_seconds() - 1)
        early = requester.ask_due()
        node.clock.pass_by(1)
        again = requester.ask_due()
        archive.report(port, archive.asked[0])

    assert (early, again) == (0, 1)
    assert archive.asked[0].TransactionUID != archive.asked[1].TransactionUID
    assert node.commitment() == "committed"


def test_a_peer_that_never_answers_is_given_up_after_48_hours_with_an_error(node: Node) -> None:
    node.deliver_report()
    with running_archive() as archive, node.receiving() as port:
        node.requester(archive.port).ask_due()
        node.clock.pass_by(4 * GIVE_UP_AFTER.total_seconds())
        before = pledges.give_up(node.sessions, GIVE_UP_AFTER, node.clock)
        node.clock.pass_by(1)
        with capture_logs() as logs:
            pledges.give_up(node.sessions, GIVE_UP_AFTER, node.clock)
        given_up = node.commitment(), node.state()
        archive.report(port)

    reason = "the peer takes the request and never answers it"
    assert (before, given_up) == (0, ("unanswered", "delivered"))
    assert [(line["event"], line["log_level"], line["reason"]) for line in logs] == [
        ("commitment_not_answered", "error", reason)
    ]
    assert node.history("commitment_not_answered") == [f"pacs: {node.report_uid()}: {reason}"]
    assert node.commitment() == "committed"  # better late than never


def test_a_peer_that_is_down_is_asked_when_it_is_back(node: Node) -> None:
    node.deliver_report()
    node.requester(free_port()).ask_due()
    down = node.commitment()
    with running_archive() as archive:
        at_once = node.requester(archive.port).ask_due()
        node.clock.pass_by(20)
        later = node.requester(archive.port).ask_due()

    assert (down, at_once, later, node.commitment()) == ("wanted", 0, 1, "requested")


def test_a_request_that_fails_for_now_is_made_again(node: Node) -> None:
    node.deliver_report()
    with running_archive(0x0213) as archive:
        node.requester(archive.port).ask_due()
        failed = node.commitment()
        node.clock.pass_by(20)
        node.requester(archive.port).ask_due()

    assert (failed, node.commitment(), len(archive.asked)) == ("wanted", "requested", 1)


@pytest.mark.parametrize("service", ["refuses", "is not there"])
def test_a_peer_that_commits_to_nothing_is_an_error_the_second_time(node: Node, service: str) -> None:
    node.deliver_report()
    running = running_archive(0x0124, 0x0124) if service == "refuses" else running_pacs()
    with running as peer, capture_logs() as logs:
        requester = node.requester(peer.port)
        requester.ask_due()
        first = node.commitment()
        node.clock.pass_by(20)
        requester.ask_due()

    assert (first, node.commitment(), node.state()) == ("wanted", "unanswered", "delivered")
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["commitment_not_answered"]


def test_a_process_that_is_lost_while_it_asks_leaves_the_report_to_be_asked_for(node: Node) -> None:
    node.deliver_report()
    (lost,) = pledges.due(node.sessions, "pacs", limit=1, lease=timedelta(minutes=5), clock=node.clock)
    node.clock.pass_by(301)
    with running_archive() as archive:
        assert node.requester(archive.port).ask_due() == 1

    assert archive.asked[0].TransactionUID != lost.request.transaction_uid
    assert node.commitment() == "requested"


def test_answers_that_are_none_are_refused_and_change_nothing(node: Node) -> None:
    node.deliver_report()
    with running_archive() as archive, node.receiving() as port:
        node.requester(archive.port).ask_due()
        asked_of = archive.asked[0]
        other_event = archive.report(port, event_type=3)
        no_failure = archive.report(port, event_type=2)
        real, asked_of.TransactionUID = asked_of.TransactionUID, "1.2.3"
        unknown = archive.report(port)
        meanwhile = node.commitment()
        asked_of.TransactionUID = real
        whole = archive.report(port)

    assert (other_event, no_failure, unknown) == (0x0113, 0x0115, 0x0115)
    assert (meanwhile, whole, node.commitment()) == ("requested", 0x0000, "committed")


def test_a_peer_that_names_other_instances_has_not_committed_to_the_report(node: Node) -> None:
    node.deliver_report()
    with running_archive() as archive, node.receiving() as port:
        node.requester(archive.port).ask_due()
        archive.asked[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"
        archive.report(port)

    assert node.commitment() == "failed"


def asked(archive: Archive) -> list[tuple[str, str]]:
    """Return the classes and instances of the last request."""
    items = archive.asked[-1].ReferencedSOPSequence
    return [(str(one.ReferencedSOPClassUID), str(one.ReferencedSOPInstanceUID)) for one in items]

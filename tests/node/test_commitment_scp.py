"""The node commits to what it keeps, and to nothing else; a real scanner's services ask and listen."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from pydicom import Dataset
from sqlalchemy import select, text, update
from structlog.testing import capture_logs

from dicom_node import commitment_scp
from dicom_node.commitment import Reference, Request, encode_request
from dicom_node.commitment_report import LEASE, Reporter
from dicom_node.commitment_scp import Committer
from dicom_node.delivery import GIVE_UP_AFTER
from dicom_node.identity import UID
from dicom_node.ledger import commitments
from dicom_node.ledger.engine import Sessions, close_ledger, open_ledger
from dicom_node.ledger.schema import Commitment, Study
from dicom_node.ledger.views import study_json
from dicom_node.retention import purge
from dicom_node.settings import Node as NodeSection
from dicom_node.settings import Peer, Retention
from dicom_node.store import InstanceStore
from tests.binaries import free_port
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock
from tests.doubles.committers import US_MULTIFRAME, Cart, asked_for, listening
from tests.doubles.datasets import loop
from tests.doubles.receiver import running_receiver
from tests.doubles.wire_peer import COMMITMENT, IMPLICIT_LITTLE, WirePeer
from tests.patience import eventually

# pynetdicom 3.0.4 leaves a socket that did not connect to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")

ONE, TWO, GONE = (US_MULTIFRAME, "1.2.826.0.1.9.1"), (US_MULTIFRAME, "1.2.826.0.1.9.2"), (US_MULTIFRAME, "1.2.3.404")


@pytest.fixture(params=["sqlite"])
def ledger_url(tmp_path: Path) -> str:
    """SQLite alone: what the ledger does on each engine has its own tests."""
    return f"sqlite:///{tmp_path / 'ledger' / 'ledger.sqlite'}"


@dataclass(kw_only=True)
class Node:
    """A node that receives, and the part of its clock that reports."""

    sessions: Sessions
    store: InstanceStore
    clock: ManualClock
    arrivals: Arrivals
    folder: Path
    url: str

    @contextmanager
    def receiving(self, *, commits: bool = True, cart_port: int | None = None) -> Iterator[Cart]:
        """Run its acceptor; give a scanner, which the node can reach if it has a port."""
        peers = [] if cart_port is None else [self.peer(cart_port)]
        committer = Committer(commits=commits, peers=peers, sessions=self.sessions, store=self.store, clock=self.clock)
        receive = self.arrivals.intake.receive
        with running_receiver(self.folder, receive, more_handlers=committer.handlers) as receiver:
            yield Cart(node_port=receiver.port)
        committer.close()

    def peer(self, port: int) -> Peer:
        """Return the scanner as the configuration names it."""
        return Peer(name="cart", ae_title="CART", host="127.0.0.1", port=port)

    def report(self, port: int) -> int:
        """Report what is due on an association of its own."""
        reporter = Reporter(node=NodeSection(), peer=self.peer(port), sessions=self.sessions, store=self.store,
                            clock=self.clock, jitter=random.Random(7))  # fmt: skip
        return reporter.report_due()

    def rows(self) -> list[Commitment]:
        """Return what the ledger has of requests."""
        with self.sessions() as session:
            return list(session.scalars(select(Commitment).order_by(Commitment.id)))

    def states(self) -> list[str]:
        """Return where they stand."""
        return [row.state for row in self.rows()]

    def history(self, event: str) -> list[str]:
        """Return what the study's history says of an event."""
        return [line["detail"] for line in study_json(self.sessions, STUDY)["history"] if line["event"] == event]

    def file(self, number: int) -> Path:
        """Return the file of an instance."""
        (path,) = (self.folder / "instances" / STUDY).glob(f"1.2.826.0.1.9.{number}-*.dcm")
        return path


@pytest.fixture
def node(
    sessions: Sessions, store: InstanceStore, clock: ManualClock, arrivals: Arrivals, tmp_path: Path, ledger_url: str
) -> Node:
    """A node that holds two instances of a study."""
    arrivals.send()
    arrivals.send()
    return Node(
        sessions=sessions, store=store, clock=clock, arrivals=arrivals, folder=tmp_path / "data", url=ledger_url
    )


def test_a_scanner_that_waits_hears_on_its_association_that_all_is_kept(node: Node) -> None:
    with node.receiving() as cart, cart.association() as association:
        answer = cart.ask(association, [ONE, TWO], "1.2.3.1")
        told = cart.hear()
        assert eventually(lambda: node.states() == ["reported"])

    assert answer == (0x0000, "")
    assert (told.event_type, told.transaction, told.is_on_own_server) == (1, "1.2.3.1", False)
    assert told.committed == [ONE[1], TWO[1]]
    assert told.failed == {}
    assert node.history("commitment_reported") == ["CART: 2 of 2 instances"]


def test_a_scanner_that_has_left_hears_it_on_a_new_association(node: Node) -> None:
    with ExitStack() as stack:
        cart = stack.enter_context(node.receiving(cart_port=104))
        with cart.association() as association:
            cart.ask(association, [ONE, TWO])
        assert eventually(lambda: node.states() == ["waiting"])
        stack.enter_context(listening(cart))

        num_reported = node.report(cart.port)
        told = cart.hear()

    assert num_reported == 1
    assert (told.event_type, told.is_on_own_server) == (1, True)
    assert node.states() == ["reported"]


@pytest.mark.parametrize("roles", [(True, True), None, (False, True), (True, False), (False, False)])
def test_a_report_needs_no_role_from_the_scanner(node: Node, roles: tuple[bool, bool] | None) -> None:
    """Granted, unanswered, granted alone, not granted, and refused at all (PS3.7 D.3.3.4)."""
    with node.receiving(cart_port=104) as cart:
        with cart.association() as association:
            cart.ask(association, [ONE])
        assert eventually(lambda: node.states() == ["waiting"])
        with listening(cart, roles=roles):
            node.report(cart.port)

            assert cart.hear().committed == [ONE[1]]
    assert node.states() == ["reported"]


def test_each_instance_that_is_not_kept_as_it_was_sent_is_named_with_its_reason(node: Node) -> None:
    damaged = node.file(2)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    node.arrivals.send()  # the third, kept, asked for as another class
    other = ("1.2.840.10008.5.1.4.1.1.6.1", "1.2.826.0.1.9.3")
    with node.receiving() as cart, cart.association() as association, capture_logs() as logs:
        cart.ask(association, [ONE, TWO, other, GONE])
        told = cart.hear()

    assert told.event_type == 2
    assert told.committed == [ONE[1]]
    assert told.failed == {TWO[1]: 0x0110, other[1]: 0x0119, GONE[1]: 0x0112}
    assert [line["instance"] for line in logs if line["event"] == "instance_damaged"] == [TWO[1]]


def test_a_disk_that_does_not_give_an_instance_now_moves_none(node: Node) -> None:
    path = node.file(1)
    kept = path.rename(node.folder / "kept")
    path.symlink_to("/proc/self/mem")  # opens, and its first byte is an input/output error
    with node.receiving() as cart, cart.association() as association:
        cart.ask(association, [ONE])
        told = cart.hear()
    still_there = path.is_symlink()
    path.unlink(missing_ok=True)
    kept.rename(path)

    assert told.failed == {ONE[1]: 0x0110}
    assert still_there
    assert list((node.folder / "quarantine").iterdir()) == []


def test_what_retention_is_about_to_remove_is_not_committed_to(node: Node) -> None:
    """Its file is there still: a crash, or a disk that refused, between the word and the deed."""
    with node.sessions.begin() as session:
        session.execute(text("UPDATE study SET purged_at = :at"), {"at": node.clock().isoformat()})
    with node.receiving() as cart, cart.association() as association:
        cart.ask(association, [ONE])
        told = cart.hear()

    assert told.failed == {ONE[1]: 0x0112}


def test_a_damaged_instance_that_is_sent_again_is_kept_again_and_committed_to(node: Node) -> None:
    """Its file is out of the way: known by its digest, it would be answered with Success and stay damaged."""
    whole = node.file(2).read_bytes()
    node.file(2).write_bytes(b"nonsense")
    with node.receiving() as cart, cart.association() as association:
        cart.ask(association, [TWO])
        first = cart.hear()
        node.arrivals.send(sop_uid=UID(TWO[1]))
        cart.ask(association, [TWO])
        second = cart.hear()

    assert (first.failed, second.committed) == ({TWO[1]: 0x0110}, [TWO[1]])
    assert node.file(2).read_bytes() == whole
    assert [path.read_bytes() for path in (node.folder / "quarantine").iterdir()] == [b"nonsense"]


def test_a_file_that_is_gone_is_no_commitment(node: Node) -> None:
    node.file(1).unlink()
    with node.receiving() as cart, cart.association() as association:
        cart.ask(association, [ONE])

        assert cart.hear().failed == {ONE[1]: 0x0110}


def test_a_scanner_that_goes_on_sending_hears_of_each_request(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests, images and reports cross on one association; none is taken for another's answer."""
    monkeypatch.setattr(commitment_scp, "_GRACE_SECONDS", 0.0)  # else all is sent before the first report
    images = [loop(f"1.2.826.0.2.{number}") for number in range(6)]
    with node.receiving() as cart, cart.association(US_MULTIFRAME) as association:
        cart.thinks = 0.2  # and sends the next image before it answers
        for image in images:
            assert association.send_c_store(as_file(image)).Status == 0x0000
            assert cart.ask(association, [(US_MULTIFRAME, image.SOPInstanceUID)]) == (0x0000, "")
        told = [cart.hear() for _ in images]
        assert association.is_established

    assert sorted(uid for one in told for uid in one.committed) == sorted(one.SOPInstanceUID for one in images)
    assert not any(one.is_on_own_server for one in told)


def test_a_scanner_that_is_silent_on_its_association_hears_it_on_a_new_one(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commitment_scp, "_ANSWER_SECONDS", 0.2)
    with node.receiving(cart_port=104) as cart:
        cart.is_silent = True
        with cart.association() as association:
            cart.ask(association, [ONE])
            assert eventually(lambda: node.states() == ["waiting"])
            cart.is_silent = False
            association.abort()
        assert cart.hear().committed == [ONE[1]]
        with listening(cart):
            node.report(cart.port)

            assert cart.hear().is_on_own_server
    assert node.states() == ["reported"]


def test_a_scanner_that_is_down_is_told_when_it_is_back(node: Node) -> None:
    port = free_port()
    with node.receiving(cart_port=port) as cart:
        with cart.association() as association:
            cart.ask(association, [ONE])
        assert eventually(lambda: node.states() == ["waiting"])
        node.report(port)
        down = node.rows()[0]
        at_once = node.report(port)
        node.clock.pass_by(20)
        with listening(cart, port=port):
            later = node.report(port)

            assert cart.hear().committed == [ONE[1]]
    assert (down.state, at_once, later) == ("waiting", 0, 1)
    assert timedelta(seconds=12) <= down.next_attempt_at - (node.clock() - timedelta(seconds=20))
    assert node.states() == ["reported"]


def test_a_report_that_the_scanner_does_not_accept_is_tried_again(node: Node) -> None:
    with node.receiving(cart_port=104) as cart:
        with cart.association() as association:
            cart.ask(association, [ONE])
        assert eventually(lambda: node.states() == ["waiting"])
        cart.answers = [0x0110]
        with listening(cart):
            node.report(cart.port)
            refused = node.rows()[0]
            node.clock.pass_by(20)
            node.report(cart.port)

    assert (refused.state, refused.error) == ("waiting", "the peer answered the report with status 0x0110")
    assert node.states() == ["reported"]


def test_a_request_outlives_the_process_that_took_it(node: Node) -> None:
    """It is in the ledger before it is answered; nobody holds it once its lease has ended."""
    with node.receiving(cart_port=104) as cart:
        with cart.association() as association:
            cart.ask(association, [ONE])
            row = node.rows()[0]
        assert row.transaction_uid
        assert eventually(lambda: node.states() == ["waiting"])
    with node.sessions.begin() as session:  # as a killed acceptor leaves it
        session.execute(
            update(Commitment).values(state="reporting", lease_token="dead", lease_until=node.clock() + LEASE)
        )
    close_ledger(node.sessions)
    node.sessions = open_ledger(node.url)
    with listening(cart):
        at_once = node.report(cart.port)
        node.clock.pass_by(LEASE.total_seconds() + 1)
        later = node.report(cart.port)

        assert cart.hear().committed == [ONE[1]]
    close_ledger(node.sessions)
    assert (at_once, later) == (0, 1)


def test_a_request_that_is_repeated_is_reported_again_and_kept_once(node: Node) -> None:
    with node.receiving() as cart, cart.association() as association:
        answers = [cart.ask(association, [ONE, TWO], "1.2.3.1")]
        first = cart.hear()
        assert eventually(lambda: node.states() == ["reported"])
        answers.append(cart.ask(association, [ONE, TWO], "1.2.3.1"))
        second = cart.hear()

    assert answers == [(0x0000, "")] * 2
    assert first == second
    assert len(node.rows()) == 1


def test_a_transaction_uid_for_other_instances_is_refused(node: Node) -> None:
    with node.receiving() as cart, cart.association() as association:
        cart.ask(association, [ONE], "1.2.3.1")
        cart.hear()

        assert cart.ask(association, [TWO], "1.2.3.1") == (0x0115, "Transaction UID is in use for other instances")


def test_requests_that_are_no_requests_are_answered_and_cost_no_association(node: Node) -> None:
    empty, no_transaction, no_uid, no_class = (asked_for([ONE], "1.2.3") for _ in range(4))
    empty.ReferencedSOPSequence = []
    del no_transaction.TransactionUID
    no_uid.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.x"
    del no_class.ReferencedSOPSequence[0].ReferencedSOPClassUID
    with node.receiving() as cart, cart.association() as association:
        answers = [cart.send(association, one) for one in (empty, no_transaction, no_uid, no_class, None)]
        other_action = cart.send(association, asked_for([ONE], "1.2.3"), action=2)
        other_instance = cart.send(association, asked_for([ONE], "1.2.3"), instance="1.2.3")
        after = cart.ask(association, [ONE])
        cart.hear()

    assert answers == [
        (0x0115, "Referenced SOP Sequence is missing or empty"),
        (0x0115, "Transaction UID is missing or no UID"),
        (0x0115, "Referenced SOP Instance UID is missing or no UID"),
        (0x0115, "Referenced SOP Class UID is missing or no UID"),
        (0x0115, "Referenced SOP Sequence is missing or empty"),
    ]
    assert other_action == (0x0123, "the one Action Type ID is 1")
    assert other_instance == (0x0112, "the one instance is 1.2.840.10008.1.20.1.1")
    assert after == (0x0000, "")
    assert len(node.rows()) == 1


def test_requests_that_no_library_sends_are_answered_too(node: Node) -> None:
    """pynetdicom would be silent on what lacks a part, and end the association on another class."""
    whole = encode_request(Request(transaction_uid=UID("1.2.3"), references=[Reference(*map(UID, ONE))]),
                           IMPLICIT_LITTLE).getvalue()  # fmt: skip
    with node.receiving() as cart, WirePeer(cart.node_port) as peer:
        assert peer.associate((COMMITMENT, (IMPLICIT_LITTLE,))).syntaxes == {1: IMPLICIT_LITTLE}
        statuses = [
            peer.action(whole, sop_class=None).status,
            peer.action(whole, sop_class="1.2.3").status,
            peer.action(whole, sop_class="1.2." + "3" * 70).status,
            peer.action(whole, sop_instance=None).status,
            peer.action(whole, action_type=None).status,
            peer.action(whole[:-3]).status,
            peer.action(b"").status,
            peer.action(whole).status,
        ]

    assert statuses == [0x0118, 0x0118, 0x0118, 0x0112, 0x0123, 0x0115, 0x0115, 0x0000]


def test_a_node_that_commits_to_nothing_says_so_and_notes_what_is_named(node: Node) -> None:
    """Also when a scanner asks again and again."""
    with node.receiving(commits=False) as cart, cart.association() as association:
        answers = [cart.ask(association, [ONE, TWO, GONE]) for _ in range(3)]

    assert answers == [(0x0124, "this node is no archive: node.storage_commitment is off")] * 3
    assert node.rows() == []
    assert cart.has_heard_nothing()
    assert node.history("manifest") == [
        f"CART names 2 instances that are here; manifest names 1 instances that did not arrive: {GONE[1]}"
    ]


def test_a_ledger_that_cannot_commit_is_no_success(node: Node) -> None:
    with node.receiving() as cart, cart.association() as association, capture_logs() as logs:
        with node.sessions.begin() as session:
            session.connection().exec_driver_sql("DROP TABLE commitment")
        answer = cart.ask(association, [ONE])

    assert answer == (0x0213, "the ledger cannot commit, ask again later")
    assert "ledger_unavailable" in [line["event"] for line in logs]


def test_a_scanner_that_cannot_be_reached_is_an_error_that_names_the_remedy(node: Node) -> None:
    with node.receiving() as cart, capture_logs() as logs:
        with cart.association() as association:
            cart.ask(association, [ONE])
        assert eventually(lambda: node.states() == ["waiting"])

    (error,) = [line for line in logs if line["event"] == "commitment_not_reported"]
    assert error["log_level"] == "error"
    assert "name it under [[peers]]" in error["reason"]


def test_a_scanner_that_is_not_back_in_48_hours_is_given_up_with_an_error(node: Node) -> None:
    port = free_port()
    with node.receiving(cart_port=port) as cart:
        with cart.association() as association:
            cart.ask(association, [ONE])
        assert eventually(lambda: node.states() == ["waiting"])
    node.report(port)
    node.clock.pass_by(4 * GIVE_UP_AFTER.total_seconds())
    before = commitments.give_up(node.sessions, GIVE_UP_AFTER, node.clock)
    node.clock.pass_by(1)
    with capture_logs() as logs:
        after = commitments.give_up(node.sessions, GIVE_UP_AFTER, node.clock)

    assert (before, after, node.states()) == (0, 1, ["given_up"])
    assert [(line["event"], line["peer"]) for line in logs] == [("commitment_not_reported", "CART")]
    assert "no association with" in logs[0]["reason"]


def test_who_lost_the_lease_reports_nothing(node: Node) -> None:
    with node.receiving(cart_port=104) as cart:
        with cart.association() as association:
            cart.ask(association, [ONE])
        assert eventually(lambda: node.states() == ["waiting"])
    (lost,) = commitments.due(node.sessions, "CART", limit=1, lease=LEASE, clock=node.clock)
    node.clock.pass_by(LEASE.total_seconds() + 1)
    (held,) = commitments.due(node.sessions, "CART", limit=1, lease=LEASE, clock=node.clock)

    assert not commitments.renew(node.sessions, lost, LEASE, node.clock)
    assert not commitments.retry_later(node.sessions, lost, "", node.clock())
    assert commitments.renew(node.sessions, held, LEASE, node.clock)
    assert commitments.due(node.sessions, "OTHER", limit=1, lease=LEASE, clock=node.clock) == []


def test_what_was_committed_to_is_kept_as_long_from_then_on_as_the_policy_says(node: Node) -> None:
    node.clock.pass_by(60)
    with node.sessions.begin() as session:
        session.execute(update(Study).values(state="delivered", delivered_at=node.clock()))
    node.clock.pass_by(6 * 86400)
    with node.receiving() as cart, cart.association() as association:
        cart.ask(association, [ONE])
        cart.hear()
    node.clock.pass_by(6 * 86400)
    meanwhile = purge(node.sessions, node.store, Retention(days=7), node.clock)
    node.clock.pass_by(2 * 86400)

    assert meanwhile == []
    assert len(purge(node.sessions, node.store, Retention(days=7), node.clock)) == 1


def test_what_retention_has_removed_is_not_committed_to(node: Node) -> None:
    with node.sessions.begin() as session:
        session.execute(update(Study).values(state="delivered", delivered_at=node.clock()))
    node.clock.pass_by(8 * 86400)
    purge(node.sessions, node.store, Retention(days=7), node.clock)
    with node.receiving() as cart, cart.association() as association, capture_logs() as logs:
        cart.ask(association, [ONE])
        told = cart.hear()

    assert told.failed == {ONE[1]: 0x0112}
    assert "instance_damaged" not in [line["event"] for line in logs]


def as_file(image: Dataset) -> Dataset:
    """Return a data set that pynetdicom sends."""
    image.file_meta = Dataset()  # type: ignore[assignment]
    image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    return image

"""What acceptor and delivery count, and what a scrape of the node costs."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from dicom_node.association_server import Limits
from dicom_node.completion import tick
from dicom_node.errors import StoreError
from dicom_node.ledger import outbox
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.outbox import Passage
from dicom_node.ledger.studies import reprocess
from dicom_node.metrics.acceptor import AcceptorMetrics
from dicom_node.metrics.delivery import DeliveryMetrics
from dicom_node.seats import Seats, num_taken
from dicom_node.settings import Settings
from dicom_node.store import InstanceStore
from dicom_node.web.health import Pulse
from dicom_node.web.metrics import NodeCollector
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock
from tests.doubles.datasets import encoded, loop
from tests.doubles.receiver import Inbox, Receiver, running_receiver
from tests.doubles.wire_peer import WirePeer, p_data
from tests.node.sites import page_settings
from tests.node.test_ledger_scale import noted, plans
from tests.patience import wait_until
from tests.scrape import Scrape, parsed

LEASE = timedelta(minutes=2)
QUIET = timedelta(seconds=30)
LIMITS = Limits(max_pdu=131072, stall=timedelta(milliseconds=300), max_object=5000)


@pytest.fixture
def registry() -> CollectorRegistry:
    """Where one process counts."""
    return CollectorRegistry()


@pytest.fixture
def counted(registry: CollectorRegistry) -> Callable[[], Scrape]:
    """What it has counted."""
    return lambda: parsed(generate_latest(registry).decode())


@pytest.fixture
def receiver(tmp_path: Path, inbox: Inbox, registry: CollectorRegistry) -> Iterator[Receiver]:
    """A node that is soon out of patience, and counts."""
    node = {"max_associations": 1}
    metrics = AcceptorMetrics(registry)
    with running_receiver(tmp_path, inbox.receive, node=node, limits=LIMITS, metrics=metrics) as running:
        yield running


def test_instances_are_counted_by_what_became_of_them_refused_ones_by_status(
    receiver: Receiver, inbox: Inbox, counted: Callable[[], Scrape]
) -> None:
    content = encoded(loop())
    with WirePeer(receiver.port) as peer:
        peer.associate()
        assert peer.store(content).status == 0x0000
        assert peer.store(content, sop_instance="1.2.3.5").status == 0xA900  # another than the command says
        assert peer.store(b"no data set").status == 0xC000
        assert peer.store(content, sop_instance="no UID").status == 0xC000  # answered before pynetdicom sees it
        inbox.error = StoreError("full")
        assert peer.store(content).status == 0xA700
    found = counted()

    assert found.of("echo_node_received_instances_total") == {
        **dict.fromkeys(("identical", "taken_up", "version", "own_report"), 0.0),
        "kept": 1.0,
    }
    assert found("echo_node_received_bytes_total", outcome="kept") == len(content)
    refused = found.of("echo_node_refused_instances_total")
    assert {status: number for status, number in refused.items() if number} == {
        "0xA700": 1.0,
        "0xA900": 1.0,
        "0xC000": 2.0,
    }
    assert found("echo_node_store_seconds_count") == 4


def release(peer: WirePeer) -> None:
    """End in good order."""
    peer.release()


def abort(peer: WirePeer) -> None:
    """Send an A-ABORT."""
    peer.socket.sendall(b"\x07\0\0\0\0\x04\0\0\0\0")


def hang_up(peer: WirePeer) -> None:
    """Close without a word."""
    peer.socket.close()


def stop(peer: WirePeer) -> None:
    """Stop in the middle of a PDU."""
    peer.socket.sendall(p_data(bytes(1000))[:100])


def send_too_much(peer: WirePeer) -> None:
    """Send more than an object may have."""
    peer.socket.sendall(peer.store_message(bytes(9000), "1.2.3"))


@pytest.mark.parametrize(
    ("finish", "end"),
    [(release, "released"), (abort, "aborted"), (hang_up, "lost"), (stop, "stalled"), (send_too_much, "cut_off")],
)
def test_an_association_is_counted_once_at_its_begin_and_once_by_its_end(
    receiver: Receiver, counted: Callable[[], Scrape], finish: Callable[[WirePeer], None], end: str
) -> None:
    with WirePeer(receiver.port) as peer:
        peer.associate()
        finish(peer)
        wait_until(lambda: sum(counted().of("echo_node_associations_ended_total").values()))
        wait_until(lambda: not receiver.acceptor.server.active_associations)
        receiver.acceptor.settle(lambda _one: False)

    assert {key: one for key, one in counted().of("echo_node_associations_ended_total").items() if one} == {end: 1.0}
    assert counted()("echo_node_associations_total", outcome="accepted") == 1


def test_an_association_of_which_no_end_is_told_is_lost(
    registry: CollectorRegistry, counted: Callable[[], Scrape]
) -> None:
    """A thread of pynetdicom's may fail."""

    class Event:
        assoc = object()

    metrics = AcceptorMetrics(registry)
    metrics._on_accepted(Event())  # type: ignore[arg-type]
    metrics.settle(lambda _one: True)
    running = counted()
    metrics.settle(lambda _one: False)
    metrics.settle(lambda _one: False)

    assert sum(running.of("echo_node_associations_ended_total").values()) == 0
    assert counted()("echo_node_associations_ended_total", end="lost") == 1


def test_rejections_are_counted_by_their_reason(receiver: Receiver, counted: Callable[[], Scrape]) -> None:
    with WirePeer(receiver.port, called="OTHER") as peer:
        peer.associate()
    with WirePeer(receiver.port) as peer, WirePeer(receiver.port) as other:
        peer.associate()
        other.associate()
    found = counted().of("echo_node_associations_total")

    assert {key: one for key, one in found.items() if one} == {
        "accepted": 1.0,
        "rejected_called_ae": 1.0,
        "rejected_local_limit": 1.0,
    }


class Deliveries:
    """Both peers of a study, told to take its report; remembers what was said to have passed."""

    def __init__(self, sessions: Sessions, arrivals: Arrivals, analyst: Analyst, clock: ManualClock) -> None:
        self.sessions, self.arrivals, self.analyst, self.clock = sessions, arrivals, analyst, clock
        self.passed: list[Passage] = []

    def complete(self) -> None:
        """Let the quiet period pass."""
        self.clock.pass_by(31)
        tick(self.sessions, self.clock, QUIET)

    def report(self, study_id: int) -> None:
        """Write the report, 2 s after the study is complete."""
        self.clock.pass_by(2)
        self.analyst.report(study_id, ["pacs", "archive"])

    def deliver(self, peer: str) -> None:
        """Let a peer take it, 3 s after what was before."""
        self.clock.pass_by(3)
        (item,) = outbox.due(self.sessions, peer, limit=9, lease=LEASE, clock=self.clock)
        assert outbox.delivered(self.sessions, item, self.clock, passed=self.passed.append)


@pytest.fixture
def deliveries(sessions: Sessions, arrivals: Arrivals, analyst: Analyst, clock: ManualClock) -> Deliveries:
    """A node without a network."""
    return Deliveries(sessions, arrivals, analyst, clock)


def seconds(passage: Passage) -> tuple[float | None, float, float]:
    """Return how long ago, at delivery: the last image, the end of the quiet period, the report."""
    assert passage.completed_at is not None
    end = passage.delivered_at
    last = passage.last_image_at
    return (
        None if last is None else (end - last).total_seconds(),
        (end - passage.completed_at).total_seconds(),
        (end - passage.reported_at).total_seconds(),
    )


def test_a_study_has_passed_once_a_revision_when_its_last_peer_has_it(deliveries: Deliveries) -> None:
    study_id = deliveries.arrivals.send()
    deliveries.complete()
    deliveries.report(study_id)
    deliveries.deliver("pacs")
    assert deliveries.passed == []
    deliveries.deliver("archive")
    assert list(map(seconds, deliveries.passed)) == [(39.0, 8.0, 6.0)]

    deliveries.arrivals.send()  # late
    deliveries.complete()
    deliveries.report(study_id)
    deliveries.deliver("archive")
    deliveries.deliver("pacs")
    assert list(map(seconds, deliveries.passed[1:])) == [(39.0, 8.0, 6.0)]

    deliveries.clock.pass_by(9000)
    reprocess(deliveries.sessions, STUDY, deliveries.clock)
    deliveries.report(study_id)
    deliveries.deliver("archive")
    deliveries.deliver("pacs")
    assert [seconds(one)[0::2] for one in deliveries.passed[2:]] == [(None, 6.0)]


def test_a_report_that_is_sent_again_has_not_passed_again(deliveries: Deliveries, sessions: Sessions) -> None:
    """As when a peer says that it has not got it after all: storage commitment."""
    study_id = deliveries.arrivals.send()
    deliveries.complete()
    deliveries.report(study_id)
    deliveries.deliver("pacs")
    deliveries.deliver("archive")
    with sessions.begin() as session:
        run = session.connection().exec_driver_sql
        run("UPDATE study SET state='delivering'")
        run("UPDATE delivery SET state='waiting' WHERE peer='pacs'")
    deliveries.deliver("pacs")

    assert len(deliveries.passed) == 1


def test_what_passed_is_observed_and_what_was_analysed_again_by_hand_has_no_last_image(
    deliveries: Deliveries, registry: CollectorRegistry, counted: Callable[[], Scrape]
) -> None:
    metrics = DeliveryMetrics(["pacs"], registry)
    now = deliveries.clock()
    known = Passage(
        last_image_at=now - timedelta(seconds=33),
        completed_at=now - timedelta(seconds=3),
        reported_at=now - timedelta(seconds=1),
        delivered_at=now,
    )
    again = Passage(
        last_image_at=None, completed_at=now - timedelta(days=9), reported_at=now + timedelta(1), delivered_at=now
    )
    metrics.passed(known)
    metrics.passed(again)
    found = counted()

    assert found("echo_node_last_image_to_delivered_seconds_sum") == 33
    assert found("echo_node_last_image_to_delivered_seconds_bucket", le="32.0") == 0
    assert found("echo_node_last_image_to_delivered_seconds_bucket", le="34.0") == 1
    assert found("echo_node_complete_to_report_seconds_sum") == 2
    assert found("echo_node_report_to_delivered_seconds_count") == 2
    assert found("echo_node_report_to_delivered_seconds_sum") == 1  # the other's clock was set back


def collector(folder: Path, sessions: Sessions, store: InstanceStore, clock: ManualClock) -> NodeCollector:
    """Return what asks for the state of a node whose broker is away."""
    settings: Settings = page_settings(folder, "redis://127.0.0.1:1/0", min_free_bytes=7)
    return NodeCollector(settings, sessions, store, Pulse(now=lambda: 5.0), clock)


def state_of(node: NodeCollector) -> Scrape:
    """Return what is asked at a scrape."""
    registry = CollectorRegistry()
    registry.register(node)
    return parsed(generate_latest(registry).decode())


def test_a_scrape_says_what_waits_and_for_how_long(
    tmp_path: Path, deliveries: Deliveries, sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    study_id = deliveries.arrivals.send()
    twice = deliveries.arrivals.new_uid()
    deliveries.arrivals.send(sop_uid=twice)
    deliveries.arrivals.send(sop_uid=twice, dataset=b"a later version: the one before waits for nobody")
    held = deliveries.analyst.claim(study_id, limit=1)
    clock.pass_by(5)
    node = collector(tmp_path, sessions, store, clock)
    early = state_of(node)
    deliveries.analyst.answer(held[0])
    deliveries.complete()
    deliveries.report(study_id)
    deliveries.deliver("pacs")
    late = state_of(node)

    assert early.of("echo_node_instances") == {"pending": 1.0, "leased": 1.0, "failed": 0.0}
    assert early("echo_node_oldest_study_seconds", state="receiving") == 5
    assert early("echo_node_oldest_delivery_seconds") == 0
    assert late.of("echo_node_instances") == {"pending": 0.0, "leased": 0.0, "failed": 0.0}
    assert late("echo_node_studies", state="delivering") == 1
    assert late("echo_node_oldest_study_seconds", state="receiving") == 0
    assert late("echo_node_oldest_study_seconds", state="delivering") == 41
    assert late("echo_node_deliveries", state="waiting") == 1
    assert late("echo_node_oldest_delivery_seconds") == 3
    assert (late("echo_node_ledger_up"), late("echo_node_broker_up")) == (1, 0)
    assert (late("echo_node_disk_reserve_bytes"), late("echo_node_clock_tick_age_seconds")) == (7, 0)


def test_without_the_ledger_the_rest_is_still_said(
    tmp_path: Path, sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    with sessions.begin() as session:
        session.connection().exec_driver_sql("ALTER TABLE delivery RENAME TO gone")
    found = state_of(collector(tmp_path, sessions, store, clock))

    assert found("echo_node_ledger_up") == 0
    assert found.of("echo_node_studies") == {}
    assert found("echo_node_disk_free_bytes") > 0


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_scrape_reads_no_table_however_many_studies_are_done(
    tmp_path: Path, sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    """It counts in indexes, and of the instances those alone that are not done."""
    node = collector(tmp_path, sessions, store, clock)
    with noted(sessions) as statements:
        state_of(node)
    steps = [step for _, step in plans(sessions, statements)]

    assert len(statements) == 8
    assert [step for step in steps if step.startswith("SCAN ") and "USING COVERING INDEX" not in step] == []
    assert [step for step in steps if "instance" in step] == ["SEARCH instance USING INDEX instance_leases (state=?)"]


def test_open_associations_are_the_seats_that_living_processes_hold(tmp_path: Path) -> None:
    """No file, no association; one's own are not seen, the kernel tells of others' alone."""
    assert num_taken(tmp_path / "seats", 3) == 0
    seats = Seats(tmp_path / "seats", 3, 2)
    assert seats.take("a", "CART") is None
    assert num_taken(tmp_path / "seats", 3) == 0
    seats.close()

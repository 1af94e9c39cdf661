"""The object store, against a real S3 server: what goes there, what is waited for, and what is said of an outage."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import select
from structlog.testing import capture_logs

from dicom_node import completion, orphans
from dicom_node.commitment import Reference
from dicom_node.delivery import Deliverer
from dicom_node.errors import ConfigurationError, ObjectDiffers, ObjectLost, ObjectsUnavailable, StoreError
from dicom_node.fetched import FetchedStore
from dicom_node.identity import UID
from dicom_node.ledger import claims, shares
from dicom_node.ledger.claims import Claimed
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.schema import Instance
from dicom_node.ledger.views import study_json
from dicom_node.objects import ObjectStore, check, try_out
from dicom_node.retention import purge
from dicom_node.senders import Send
from dicom_node.settings import Objects, Peer, Retention, settings_from
from dicom_node.sharing import Sharer
from dicom_node.store import Content, InstanceStore, dataset_digest
from dicom_node.web.health import LATE, Health, Pulse
from dicom_node.web.metrics import NodeCollector
from tests.doubles.analyst import LEASE, Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.certificates import authority
from tests.doubles.clock import ManualClock
from tests.doubles.object_server import ObjectServer, running_objects
from tests.scrape import parsed

SOP = UID("1.2.826.0.1.9.1000")
PIXELS = b"pixels" * 1000
AWAY = "the object store does not answer"
WEEK = Retention(days=7)


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    """SQLite alone: what `ledger.shares` does on each engine has its own tests."""
    return f"sqlite:///{tmp_path / 'ledger' / 'ledger.sqlite'}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ObjectServer]:
    """An object store."""
    with running_objects(tmp_path / "s3") as running:
        yield running


@pytest.fixture
def store(tmp_path: Path, server: ObjectServer) -> InstanceStore:
    """The node's store."""
    return InstanceStore(tmp_path / "node", 0, server.connect())


@pytest.fixture
def elsewhere(tmp_path: Path, server: ObjectServer) -> FetchedStore:
    """The store of a worker on another machine."""
    return FetchedStore(tmp_path / "worker", 0, server.connect(), 1 << 30)


@pytest.fixture
def sharer(sessions: Sessions, store: InstanceStore, clock: ManualClock, arrivals: Arrivals) -> Sharer:
    """The node's copier."""
    return Sharer(sessions, store, arrivals.rung.append, clock)


def claim(sessions: Sessions, study_id: int, clock: ManualClock) -> list[Claimed]:
    """Claim as a worker does where there is an object store."""
    return claims.claim(sessions, study_id, "elsewhere", 8, LEASE, clock, only_shared=True)


def instance_of(sessions: Sessions) -> Instance:
    """Return the one instance."""
    with sessions() as session:
        return session.scalars(select(Instance)).one()


def deliver(study_id: int, sessions: Sessions, analyst: Analyst, clock: ManualClock) -> None:
    """Let a study be complete, reported and delivered."""
    clock.pass_by(31)
    completion.tick(sessions, clock, timedelta(seconds=30))
    analyst.report(study_id)


# --- what goes there and comes from there ---


def test_an_instance_comes_to_another_machine_as_it_was_received(
    arrivals: Arrivals,
    sharer: Sharer,
    sessions: Sessions,
    store: InstanceStore,
    elsewhere: FetchedStore,
    clock: ManualClock,
) -> None:
    study_id = arrivals.send(sop_uid=SOP, dataset=PIXELS)

    assert sharer.share_due() == 1
    (claimed,) = claim(sessions, study_id, clock)
    with elsewhere.borrowing() as borrow:
        there = borrow(claimed.path, claimed.content)
        content = there.read_bytes()

    assert there != store.path(claimed.path)
    assert content == store.path(claimed.path).read_bytes()
    assert claimed.content == Content(sha256=dataset_digest(PIXELS), num_bytes=len(PIXELS))
    assert [*elsewhere.files("incoming")] == []
    assert sharer.share_due() == 0


def test_an_instance_is_kept_while_the_object_store_is_down_and_goes_there_once_it_is_back(
    arrivals: Arrivals, sharer: Sharer, sessions: Sessions, server: ObjectServer, clock: ManualClock
) -> None:
    server.stop()

    with capture_logs() as lines:
        study_id = arrivals.send(sop_uid=SOP, dataset=PIXELS)
        for _ in range(3):
            with pytest.raises(ObjectsUnavailable):
                sharer.share_due()
        waiting = claim(sessions, study_id, clock)
        server.start()
        num_shared = sharer.share_due()

    assert waiting == []
    assert num_shared == 1
    assert [one.path for one in claim(sessions, study_id, clock)] == [*server.objects()]
    assert arrivals.rung == [study_id, study_id]  # as it came, and once a worker could have it
    assert [(one["log_level"], one["event"]) for one in lines if one["event"].startswith("objects_")] == [
        ("warning", "objects_away"),
        ("info", "objects_back"),
    ]


def test_a_file_that_the_disk_does_not_give_keeps_no_other_waiting(
    arrivals: Arrivals, sharer: Sharer, store: InstanceStore, server: ObjectServer, sessions: Sessions
) -> None:
    arrivals.send(sop_uid=SOP, dataset=PIXELS)
    refused = store.path(instance_of(sessions).path)
    refused.unlink()
    refused.symlink_to(refused)  # which no disk gives
    arrivals.send()

    with capture_logs() as lines:
        counts = [sharer.share_due(), sharer.share_due()]

    assert counts == [1, 0]
    assert len(server.objects()) == 1
    assert [one["event"] for one in lines if one["log_level"] == "error"] == ["instance_not_shared"]


def test_an_instance_whose_file_is_gone_everywhere_is_given_up_with_its_reason(
    arrivals: Arrivals, sharer: Sharer, store: InstanceStore, sessions: Sessions
) -> None:
    study_id = arrivals.send(sop_uid=SOP, dataset=PIXELS)
    store.remove(instance_of(sessions).path)

    sharer.share_due()
    lost = instance_of(sessions)
    arrivals.send(sop_uid=SOP, dataset=PIXELS)
    taken_up = instance_of(sessions)

    assert (lost.state, lost.reason_code) == ("failed", "lost")
    assert arrivals.rung[1] == study_id
    assert (taken_up.state, taken_up.shared_at) == ("pending", None)
    assert sharer.share_due() == 1


def test_a_file_that_the_disk_lost_after_it_was_put_there_is_there(
    arrivals: Arrivals, sharer: Sharer, store: InstanceStore, sessions: Sessions
) -> None:
    arrivals.send(sop_uid=SOP, dataset=PIXELS)
    path = instance_of(sessions).path
    assert store.share(path)  # and the node was killed before it said so
    store.remove(path)

    assert sharer.share_due() == 1
    assert instance_of(sessions).state == "pending"


def test_what_a_worker_writes_is_in_the_object_store_before_anybody_hears_of_it(
    elsewhere: FetchedStore, store: InstanceStore, server: ObjectServer
) -> None:
    written = [
        elsewhere.keep_report(UID("1.2.6"), b"report"),
        elsewhere.keep_picture(STUDY, UID("1.2.5"), b"picture"),
        elsewhere.keep_preview(f"instances/{STUDY}/1.dcm", b"preview"),
    ]

    assert server.objects() == {*written}
    assert [store.fetch(one).read_bytes() for one in written] == [b"report", b"picture", b"preview"]
    assert all(store.exists(one) for one in written)


def test_what_the_object_store_does_not_take_a_worker_has_not_kept(
    elsewhere: FetchedStore, server: ObjectServer
) -> None:
    server.stop()

    with pytest.raises(ObjectsUnavailable):
        elsewhere.keep_report(UID("1.2.6"), b"report")

    assert [*elsewhere.files("reports"), *elsewhere.files("incoming")] == []


# --- delivery ---


@dataclass
class Line:
    """A peer that takes everything."""

    sent: list[bytes] = field(default_factory=list)

    @contextmanager
    def open(self) -> Iterator[Send]:
        """Give a channel."""
        yield self._send

    def _send(self, path: Path) -> Reference:
        self.sent.append(path.read_bytes())
        return Reference(UID("1.2"), UID("1.2.3"))


@pytest.fixture
def line() -> Line:
    """The way to the peer."""
    return Line()


@pytest.fixture
def deliverer(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, store: InstanceStore, clock: ManualClock, line: Line
) -> Deliverer:
    """The delivery of a report that a worker elsewhere has promised, and not yet written."""
    study_id = arrivals.send(sop_uid=SOP, dataset=PIXELS)
    clock.pass_by(31)
    completion.tick(sessions, clock, timedelta(seconds=30))
    analyst.report(study_id, ["pacs"])
    peer = Peer(name="pacs", ae_title="PACS", host="127.0.0.1", receives_reports=True)
    return Deliverer(peer=peer, sender=line, sessions=sessions, store=store, clock=clock)


def report_uid(sessions: Sessions) -> UID:
    """Return the SOP Instance UID of the one report."""
    return UID(study_json(sessions, STUDY)["reports"][0]["sop_instance_uid"])


def test_a_report_that_cannot_be_fetched_now_is_delivered_later(
    deliverer: Deliverer,
    line: Line,
    elsewhere: FetchedStore,
    server: ObjectServer,
    sessions: Sessions,
    clock: ManualClock,
) -> None:
    elsewhere.keep_report(report_uid(sessions), b"report")
    server.stop()
    deliverer.deliver_due()
    (waiting,) = study_json(sessions, STUDY)["deliveries"]
    server.start()
    clock.pass_by(60)

    deliverer.deliver_due()

    assert waiting["state"] == "waiting"
    assert "the object store" in waiting["error"]
    assert line.sent == [b"report"]
    assert study_json(sessions, STUDY)["state"] == "delivered"


@pytest.mark.usefixtures("server")
def test_a_report_that_the_object_store_lost_is_a_dead_letter(deliverer: Deliverer, sessions: Sessions) -> None:
    deliverer.deliver_due()

    (dead,) = study_json(sessions, STUDY)["deliveries"]
    assert dead["state"] == "dead"
    assert dead["error"].endswith("not in the object store")


# --- what is not there, or not as it was ---


def test_what_the_object_store_lost_counts_no_attempt_and_is_put_there_again(
    arrivals: Arrivals,
    sharer: Sharer,
    sessions: Sessions,
    server: ObjectServer,
    elsewhere: FetchedStore,
    clock: ManualClock,
) -> None:
    study_id = arrivals.send(sop_uid=SOP, dataset=PIXELS)
    sharer.share_due()
    (claimed,) = claim(sessions, study_id, clock)
    server.connect().remove_folder(f"instances/{STUDY}")

    with pytest.raises(ObjectLost):
        elsewhere.fetch(claimed.path, claimed.content)
    given_up = shares.give_back(sessions, claimed, clock, counts=False)

    assert not given_up
    assert claim(sessions, study_id, clock) == []
    assert sharer.share_due() == 1
    (again,) = claim(sessions, study_id, clock)
    assert again.attempt == 1
    assert elsewhere.fetch(again.path, again.content).exists()


def test_other_bytes_in_the_object_store_are_never_looked_at_and_count_as_attempts(
    arrivals: Arrivals,
    sharer: Sharer,
    sessions: Sessions,
    server: ObjectServer,
    elsewhere: FetchedStore,
    tmp_path: Path,
    clock: ManualClock,
) -> None:
    study_id = arrivals.send(sop_uid=SOP, dataset=PIXELS)
    damaged = tmp_path / "damaged"
    attempts = []
    for _ in range(3):
        sharer.share_due()
        (claimed,) = claim(sessions, study_id, clock)
        damaged.write_bytes(bytes(132) + PIXELS[:-1] + b"!")
        server.connect().put(claimed.path, damaged)
        with pytest.raises(ObjectDiffers):
            elsewhere.fetch(claimed.path, claimed.content)
        attempts.append((claimed.attempt, shares.give_back(sessions, claimed, clock, counts=True)))

    assert attempts == [(1, False), (2, False), (3, True)]
    assert [*elsewhere.files("instances"), *elsewhere.files("incoming")] == []
    assert (instance_of(sessions).state, instance_of(sessions).reason_code) == ("failed", "object_differs")


# --- what is wrong with it ---


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        pytest.param({"secret": "wrong"}, "signature", id="secret"),
        pytest.param({"url": "s3://nobody/here"}, "bucket does not exist", id="bucket"),
        pytest.param({"endpoint": "http://127.0.0.1:1"}, "Could not connect", id="endpoint"),
    ],
)
def test_an_object_store_that_cannot_be_used_is_said_in_one_line(
    server: ObjectServer, tmp_path: Path, wrong: dict[str, str], said: str
) -> None:
    settings = {**server.settings, **wrong}
    config = tmp_path / "node.toml"
    config.write_text("[objects]\n" + "".join(f'{key} = "{value}"\n' for key, value in settings.items()))
    command = [sys.executable, "-m", "dicom_node", "check-config", "--config", str(config)]

    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    assert ended.returncode == 2
    assert said in ended.stderr
    assert ended.stderr.startswith(f"dicom-node: objects: {settings['url']} at ")
    assert ended.stderr.count("\n") == 1
    assert settings["secret"] not in ended.stderr


def test_an_https_endpoint_is_known_by_its_authority(tmp_path: Path) -> None:
    ours, other = authority(tmp_path / "ours"), authority(tmp_path / "other", "other")
    with running_objects(tmp_path / "s3", ours.issue("s3")) as server:
        settings = server.settings
        try_out(Objects(**settings, ca=ours.certificate))
        for ca in (other.certificate, None):
            with pytest.raises(
                ConfigurationError, match=r"objects: s3://.* cannot be used: .*certificate verify failed"
            ):
                try_out(Objects(**settings, ca=ca))
        with pytest.raises(ConfigurationError, match=r"^objects\.ca: .* cannot be read: No such file"):
            check(Objects(**settings, ca=tmp_path / "gone.pem"))
        with pytest.raises(ConfigurationError, match=r"^objects\.ca: .* holds no certificate"):
            check(Objects(**settings, ca=Path(__file__)))


def test_how_long_the_object_store_is_away_is_measured_and_after_five_minutes_the_node_is_failing(
    tmp_path: Path, sessions: Sessions, server: ObjectServer, clock: ManualClock
) -> None:
    now = [50.0]
    store = InstanceStore(tmp_path / "node", 0, ObjectStore(Objects(**server.settings), lambda: now[0]))
    arrivals = Arrivals(sessions, store, clock)
    sharer = Sharer(sessions, store, arrivals.rung.append, clock)
    settings = settings_from(
        {
            "node": {"data_dir": str(tmp_path / "data"), "min_free_bytes": 0},
            "broker": {"url": "redis://127.0.0.1:1/0"},
            "objects": server.settings,
        }
    )

    def waiting() -> tuple[float, float]:
        registry = CollectorRegistry()
        registry.register(NodeCollector(settings, sessions, store, Pulse(), clock))
        found = parsed(generate_latest(registry).decode())
        return found("echo_node_unshared_instances"), found("echo_node_objects_away_seconds")

    with socket.create_server(("127.0.0.1", 0), backlog=20) as door:
        health = Health(settings, sessions, store, door.getsockname()[1], Pulse())
        server.stop()
        arrivals.send(sop_uid=SOP, dataset=PIXELS)
        said: list[tuple[tuple[float, float], bool]] = []
        for passed in (0.0, LATE.total_seconds(), 1.0):
            now[0] += passed
            with pytest.raises(ObjectsUnavailable):
                sharer.share_due()
            said.append((waiting(), AWAY in health.wrong()))
        now[0] += 3600
        server.start()
        sharer.share_due()
        said.append((waiting(), AWAY in health.wrong()))

    assert said == [((1, 0), False), ((1, 300), False), ((1, 301), True), ((0, 0), False)]


def test_an_object_store_that_can_be_used_is_left_as_it_was(server: ObjectServer) -> None:
    try_out(Objects(**server.settings))
    try_out(Objects())

    assert server.objects() == set()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"url": "http://bucket"}, "objects.url: use s3://BUCKET"),
        ({"url": "s3://echo", "endpoint": "127.0.0.1:9000"}, "objects.endpoint: use http://HOST:PORT"),
        ({"url": "s3://echo", "key": "a"}, "objects: key and secret belong together"),
        ({"endpoint": "http://127.0.0.1:9000"}, "objects: endpoint: has an effect only with url"),
        ({"url": "s3://echo", "ca": "ca.pem"}, "objects: ca: has an effect only with an https endpoint"),
    ],
)
def test_a_mistake_in_the_section_is_named(section: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        settings_from({"objects": section})

    assert str(raised.value).startswith(said)


def test_without_an_object_store_nothing_is_imported_for_it() -> None:
    program = (
        "import sys, dicom_node.clockwork, dicom_node.cli, dicom_node.fetched\n"
        "print([name for name in ('s3fs', 'fsspec.asyn', 'botocore', 'aiohttp') if name in sys.modules])"
    )

    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert said == "[]\n"


def test_without_its_package_the_setting_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ConfigurationError, match=r"pip install 'echo-ai-node\[s3\]'"):
        check(Objects(url="s3://echo"))
    check(Objects())


# --- retention ---


def test_the_objects_of_a_study_go_with_its_images(
    arrivals: Arrivals,
    analyst: Analyst,
    sharer: Sharer,
    sessions: Sessions,
    store: InstanceStore,
    server: ObjectServer,
    clock: ManualClock,
) -> None:
    study_id = arrivals.send(sop_uid=SOP, dataset=PIXELS)
    sharer.share_due()
    store.keep_picture(STUDY, UID("1.2.5"), b"picture")
    store.keep_preview(instance_of(sessions).path, b"preview")
    report = store.keep_report(UID("1.2.6"), b"report")
    deliver(study_id, sessions, analyst, clock)
    clock.pass_by(8 * 86400)

    (purged,) = purge(sessions, store, WEEK, clock)

    assert purged.error == ""
    assert server.objects() == {report}
    arrivals.send(sop_uid=SOP, dataset=PIXELS)
    assert sharer.share_due() == 1
    assert server.objects() == {report, instance_of(sessions).path}


def test_objects_that_could_not_be_removed_are_said_and_removed_later(
    arrivals: Arrivals,
    analyst: Analyst,
    sharer: Sharer,
    sessions: Sessions,
    store: InstanceStore,
    server: ObjectServer,
    clock: ManualClock,
) -> None:
    other = UID("1.2.826.0.1.2")
    study_id = arrivals.send(sop_uid=SOP, dataset=PIXELS)
    arrivals.send(study_uid=other)
    sharer.share_due()
    deliver(study_id, sessions, analyst, clock)
    clock.pass_by(8 * 86400)
    server.stop()

    with capture_logs() as lines:
        (purged,) = purge(sessions, store, WEEK, clock)
    server.start()
    would_be_swept = [one.path for one in orphans.sweep(sessions, store, clock, dry_run=True)]
    left = server.objects()
    swept = [one.path for one in orphans.sweep(sessions, store, clock)]

    assert "the object store" in purged.error
    assert [one["event"] for one in lines if one["log_level"] == "error"] == ["purge_failed"]
    assert study_json(sessions, STUDY)["purged_at"] is not None
    assert len(left) == 2
    assert would_be_swept == swept == [f"instances/{STUDY}"]
    assert [one.split("/")[1] for one in server.objects()] == [other]


def test_an_outage_makes_retention_remove_no_more_than_there_is_room_wanted(
    arrivals: Arrivals,
    analyst: Analyst,
    sharer: Sharer,
    sessions: Sessions,
    store: InstanceStore,
    server: ObjectServer,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(3):
        deliver(arrivals.send(study_uid=UID(f"1.2.{number}"), dataset=PIXELS), sessions, analyst, clock)
    sharer.share_due()
    monkeypatch.setattr(store, "free_bytes", lambda: 0)
    server.stop()

    purged = purge(sessions, store, WEEK, clock, room=len(PIXELS))

    assert [one.study_instance_uid for one in purged] == ["1.2.0"]
    assert purged[0].error


def test_an_image_that_was_purged_before_it_was_shared_is_not_looked_for(
    arrivals: Arrivals,
    analyst: Analyst,
    sharer: Sharer,
    sessions: Sessions,
    store: InstanceStore,
    server: ObjectServer,
    clock: ManualClock,
) -> None:
    """As of a node that had no object store before."""
    deliver(arrivals.send(sop_uid=SOP, dataset=PIXELS), sessions, analyst, clock)
    clock.pass_by(8 * 86400)
    purge(sessions, store, WEEK, clock)

    counts = [sharer.share_due(), sharer.share_due()]

    assert counts == [1, 0]
    assert server.objects() == set()
    assert instance_of(sessions).state == "analysed"


# --- what a worker keeps ---


def in_order(store: InstanceStore, names: list[str]) -> None:
    """Let files have been used one after the other."""
    for number, name in enumerate(names):
        unit = store.path("/".join(Path(name).parts[:2]))
        os.utime(unit, (time.time() - 1000 + number,) * 2)


def test_what_was_fetched_is_bounded_and_the_least_recently_used_goes_first(
    store: InstanceStore, server: ObjectServer, tmp_path: Path
) -> None:
    names = [store.keep_picture(UID(f"1.2.{number}"), UID("1.2.5"), bytes(1000)) for number in range(5)]
    small = FetchedStore(tmp_path / "worker", 0, server.connect(), 3500)
    for name in names[:3]:
        with small.borrowing() as borrow:
            borrow(name)
    in_order(small, [names[1], names[0], names[2]])

    with small.borrowing() as borrow:
        borrow(names[3])
        left = [small.exists(name) for name in names]

    assert left == [True, False, True, True, False]
    assert all(store.exists(name) for name in names)


def test_what_is_in_use_is_never_removed(store: InstanceStore, server: ObjectServer, tmp_path: Path) -> None:
    names = [store.keep_picture(UID(f"1.2.{number}"), UID("1.2.5"), bytes(1000)) for number in range(3)]
    report = store.keep_report(UID("1.2.6"), bytes(1000))
    small = FetchedStore(tmp_path / "worker", 0, server.connect(), 0)
    neighbour = FetchedStore(tmp_path / "worker", 0, server.connect(), 0)

    with small.borrowing() as borrow:
        mine = [borrow(names[0]), borrow(report)]
        with neighbour.borrowing() as borrow_too:
            borrow_too(names[1])
        in_use = [path.exists() for path in mine]
    afterwards = [path.exists() for path in mine]

    assert in_use == [True, True]
    assert afterwards == [False, False]
    assert not small.exists(names[1])


def test_what_was_fetched_makes_room_on_a_disk_that_is_too_small_for_so_much(
    store: InstanceStore, server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [store.keep_picture(UID(f"1.2.{number}"), UID("1.2.5"), bytes(1000)) for number in range(3)]
    small = FetchedStore(tmp_path / "worker", 500, server.connect(), 1 << 30)
    monkeypatch.setattr(small, "free_bytes", lambda: 2500 - sum(found.st_size for _, found in small.files("pictures")))

    for name in names:
        with small.borrowing() as borrow:
            borrow(name, Content(sha256=dataset_digest(bytes(1000)), num_bytes=1000))
        in_order(small, [name])

    assert [small.exists(name) for name in names] == [False, True, True]


def test_what_nobody_used_for_a_day_goes(store: InstanceStore, server: ObjectServer, tmp_path: Path) -> None:
    """Retention is the node's: it does not come to the machine of a worker."""
    names = [store.keep_picture(UID(f"1.2.{number}"), UID("1.2.5"), bytes(1000)) for number in range(2)]
    large = FetchedStore(tmp_path / "worker", 0, server.connect(), 1 << 30)
    with large.borrowing() as borrow:
        borrow(names[0])
        borrow(names[1])
    unit = large.path(names[0]).parent
    os.utime(unit, (unit.stat().st_mtime - 86401,) * 2)

    FetchedStore(tmp_path / "worker", 0, server.connect(), 1 << 30)

    assert [large.exists(name) for name in names] == [False, True]


def test_a_worker_that_shares_the_folder_of_the_node_reads_there_and_removes_nothing_of_it(
    arrivals: Arrivals, sharer: Sharer, sessions: Sessions, store: InstanceStore, server: ObjectServer
) -> None:
    arrivals.send(sop_uid=SOP, dataset=PIXELS)
    sharer.share_due()
    path = instance_of(sessions).path
    beside = FetchedStore(store.path(""), 0, server.connect(), 0)

    with beside.borrowing() as borrow:
        assert borrow(path) == store.path(path)

    assert store.exists(path)
    assert [*beside.files("instances")] == []


def test_a_full_disk_of_a_worker_is_no_fault_of_an_instance(
    store: InstanceStore, server: ObjectServer, tmp_path: Path
) -> None:
    name = store.keep_picture(STUDY, UID("1.2.5"), bytes(1000))
    full = FetchedStore(tmp_path / "worker", 1 << 60, server.connect(), 1 << 30)

    with pytest.raises(StoreError, match=r"node\.min_free_bytes"):
        full.fetch(name)

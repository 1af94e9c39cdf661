"""There is room each minute, or somebody is told; the old goes each hour."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dicom_node.completion import tick
from dicom_node.errors import ConfigurationError, OutOfSpace
from dicom_node.housekeeping import Housekeeper
from dicom_node.identity import UID
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.views import studies_json, study_json
from dicom_node.settings import Retention, settings_from
from dicom_node.store import InstanceStore
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock
from tests.doubles.datasets import encoded, loop
from tests.doubles.disk import small_disk
from tests.doubles.receiver import running_receiver
from tests.doubles.wire_peer import WirePeer

KIB = 1024
RESERVE, ROOM, DISK = 256 * KIB, 512 * KIB, 2048 * KIB
IMAGE = b"x" * 200 * KIB


@pytest.fixture(params=["sqlite"])
def ledger_url(tmp_path: Path) -> str:
    """SQLite alone: what retention asks of each engine has its own tests."""
    return f"sqlite:///{tmp_path / 'ledger' / 'ledger.sqlite'}"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[InstanceStore]:
    """A store on a disk of 2 MiB."""
    with small_disk(tmp_path / "disk", DISK, RESERVE) as store:
        yield store


@pytest.fixture
def scanner(sessions: Sessions, disk: InstanceStore, clock: ManualClock) -> Arrivals:
    """A scanner that fills it."""
    return Arrivals(sessions, disk, clock)


@pytest.fixture
def housekeeper(sessions: Sessions, disk: InstanceStore, clock: ManualClock) -> Housekeeper:
    """The service, which wants 512 KiB free."""
    return Housekeeper(sessions=sessions, store=disk, settings=Retention(days=7), room=ROOM, clock=clock)


def fill(scanner: Arrivals, after_each: Callable[[int], object] = lambda _study_id: None) -> list[UID]:
    """Receive a study of 200 KiB after the other until one is refused; return those that were kept."""
    kept: list[UID] = []
    while True:
        uid = UID(f"1.2.826.0.1.77.{len(kept) + 1}")
        try:
            after_each(scanner.send(uid, dataset=IMAGE))
        except OutOfSpace:
            return kept
        kept.append(uid)
        assert len(kept) < 20


def test_a_disk_that_is_full_of_delivered_studies_receives_again_within_a_minute(
    scanner: Arrivals, analyst: Analyst, sessions: Sessions, disk: InstanceStore, clock: ManualClock,
    housekeeper: Housekeeper,
) -> None:  # fmt: skip
    def deliver(study_id: int) -> None:
        clock.pass_by(60)
        tick(sessions, clock, timedelta(seconds=30))
        analyst.report(study_id)

    kept = fill(scanner, deliver)
    node = {"min_free_bytes": RESERVE}

    def receive(received: object) -> object:
        return scanner.intake.receive(received)  # type: ignore[arg-type]

    data = encoded(loop("1.2.3.1"), fragments=(IMAGE,))
    with running_receiver(disk.path(""), receive, node=node) as running, WirePeer(running.port) as peer:  # type: ignore[arg-type]
        running.store.free_bytes = disk.free_bytes  # type: ignore[method-assign]  # the same disk, mounted or counted
        peer.associate()
        before = peer.store(data, sop_instance="1.2.3.1").status
        housekeeper.tick()
        after = peer.store(data, sop_instance="1.2.3.1").status

    gone = [one["study_instance_uid"] for one in studies_json(sessions) if one["purged_at"]]
    assert (before, after) == (0xA700, 0x0000)
    assert 0 < len(gone) < len(kept)
    assert sorted(gone) == sorted(kept[: len(gone)])


def test_what_is_not_delivered_stays_and_somebody_is_told_each_hour(
    scanner: Arrivals, sessions: Sessions, disk: InstanceStore, clock: ManualClock, housekeeper: Housekeeper
) -> None:
    kept = fill(scanner)
    with capture_logs() as logs:
        for _ in range(121):  # two hours
            housekeeper.tick()
            clock.pass_by(60)

    said = [entry["log_level"] for entry in logs if entry["event"] == "disk_low"]
    assert said == ["error"] * 3
    assert {one["purged_at"] for one in studies_json(sessions)} == {None}
    assert sum(path.stat().st_size >= len(IMAGE) for path in disk.path("instances").rglob("*.dcm")) == len(kept)


def test_a_study_goes_within_the_hour_after_its_days(
    scanner: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock, housekeeper: Housekeeper
) -> None:
    study_id = scanner.send()
    clock.pass_by(31)
    tick(sessions, clock, timedelta(seconds=30))
    analyst.report(study_id)
    housekeeper.tick()
    clock.pass_by(7 * 86400 - 60)
    housekeeper.tick()
    before = study_json(sessions, STUDY)["purged_at"]
    clock.pass_by(3600)
    housekeeper.tick()

    assert before is None
    assert study_json(sessions, STUDY)["purged_at"] is not None


@pytest.mark.parametrize(
    ("node", "retention", "room"),
    [
        ({}, {}, 4_000_000_000),
        ({"min_free_bytes": 10}, {}, 20),
        ({"min_free_bytes": 0}, {}, 0),
        ({}, {"days": 0}, 0),
        ({}, {"days": 0, "min_free_bytes": 3_000_000_000}, 3_000_000_000),
        ({}, {"min_free_bytes": 0}, 0),
    ],
)
def test_room_is_twice_the_reserve_unless_told_otherwise(
    node: dict[str, int], retention: dict[str, int], room: int
) -> None:
    assert settings_from({"node": node, "retention": retention}).room == room


def test_room_that_is_made_only_after_instances_are_refused_is_a_mistake() -> None:
    with pytest.raises(ConfigurationError, match=r"retention\.min_free_bytes"):
        settings_from({"node": {"min_free_bytes": 100}, "retention": {"min_free_bytes": 100}})

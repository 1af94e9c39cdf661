"""Only images of studies that were delivered long ago are removed."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from itertools import chain, repeat
from pathlib import Path

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from dicom_node.audit import StudyContent
from dicom_node.completion import tick
from dicom_node.errors import StoreError
from dicom_node.identity import UID
from dicom_node.ledger import commitments
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.reports import WrittenPicture
from dicom_node.ledger.schema import Instance, Study, StudyState
from dicom_node.ledger.views import study_json
from dicom_node.orphans import missing, sweep
from dicom_node.retention import Purged, purge, purge_quarantine
from dicom_node.settings import Retention
from dicom_node.store import InstanceStore
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, US_MULTIFRAME, Arrivals, instance
from tests.doubles.clock import ManualClock
from tests.doubles.datasets import encoded, loop
from tests.doubles.disk import SmallStore

WEEK = Retention(days=7)
SOP = UID("1.2.826.0.1.9.1000")
DAY = 86400


@pytest.fixture
def delivered(arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock) -> int:
    """A study that was delivered a moment ago."""
    study_id = arrivals.send(sop_uid=SOP, dataset=b"pixels")
    clock.pass_by(31)
    tick(sessions, clock, timedelta(seconds=30))
    analyst.report(study_id)
    return study_id


def num_images(store: InstanceStore) -> int:
    return sum(path.is_file() for path in store.path("instances").rglob("*"))


@pytest.mark.usefixtures("delivered")
def test_images_of_an_old_delivered_study_go_and_its_row_stays(
    sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    clock.pass_by(7 * DAY + 1)

    purged = purge(sessions, store, WEEK, clock)

    study = study_json(sessions, STUDY)
    assert [(one.study_instance_uid, one.num_bytes, one.error) for one in purged] == [(STUDY, 138, "")]
    assert num_images(store) == 0
    assert (study["state"], study["purged_at"]) == ("delivered", "2026-03-08T12:00:32.000Z")
    assert purge(sessions, store, WEEK, clock) == []


def test_pictures_of_a_report_go_with_the_images_and_the_report_stays(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    study_id = arrivals.send(sop_uid=SOP, dataset=b"pixels")
    clock.pass_by(31)
    tick(sessions, clock, timedelta(seconds=30))
    picture, report = store.keep_picture(STUDY, UID("1.2.5"), b"picture"), store.keep_report(UID("1.2.6"), b"report")
    analyst.report(
        study_id,
        pictures=[WrittenPicture(kind="summary", sop_instance_uid="1.2.5", sop_class_uid="1.2", path=picture)],
    )
    clock.pass_by(8 * DAY)

    (purged,) = purge(sessions, store, WEEK, clock)

    assert purged.num_bytes == 138 + len(b"picture")
    assert not store.exists(picture)
    assert store.exists(report)
    assert [one["path"] for one in study_json(sessions, STUDY)["reports"][0]["pictures"]] == [picture]


@pytest.mark.usefixtures("delivered")
def test_previews_of_loops_go_with_the_images(sessions: Sessions, store: InstanceStore, clock: ManualClock) -> None:
    ((loop, _),) = store.files("instances")
    preview = store.keep_preview(loop, b"seen")
    clock.pass_by(8 * DAY)

    (purged,) = purge(sessions, store, WEEK, clock)

    assert purged.num_bytes == 138 + len(b"seen")
    assert not store.exists(preview)


@pytest.mark.usefixtures("delivered")
@pytest.mark.parametrize(("days", "passed"), [(7, 7 * DAY), (0, 1000 * DAY)])
def test_images_within_the_policy_stay(
    sessions: Sessions, store: InstanceStore, clock: ManualClock, days: int, passed: int
) -> None:
    clock.pass_by(passed)

    assert purge(sessions, store, Retention(days=days), clock) == []
    assert num_images(store) == 1


@pytest.mark.usefixtures("delivered")
@pytest.mark.parametrize("state", sorted(set(StudyState) - {StudyState.DELIVERED}))
def test_what_was_not_delivered_is_never_purged(
    sessions: Sessions, store: InstanceStore, clock: ManualClock, state: StudyState
) -> None:
    with sessions.begin() as session:
        session.execute(text("UPDATE study SET state = :state"), {"state": str(state)})
    clock.pass_by(1000 * DAY)

    assert purge(sessions, store, WEEK, clock) == []
    assert num_images(store) == 1


@pytest.mark.usefixtures("delivered")
def test_a_dry_run_names_the_studies_and_removes_nothing(
    sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    clock.pass_by(8 * DAY)

    purged = purge(sessions, store, WEEK, clock, dry_run=True)

    assert [one.study_instance_uid for one in purged] == [STUDY]
    assert num_images(store) == 1
    assert study_json(sessions, STUDY)["purged_at"] is None


@pytest.mark.usefixtures("delivered")
@pytest.mark.parametrize("dataset", [b"pixels", b"other"])
def test_an_instance_that_comes_after_the_purge_is_kept(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore, clock: ManualClock, dataset: bytes
) -> None:
    clock.pass_by(8 * DAY)
    purge(sessions, store, WEEK, clock)

    arrivals.send(sop_uid=SOP, dataset=dataset)

    assert num_images(store) == 1
    assert study_json(sessions, STUDY)["purged_at"] is None


def test_what_was_removed_is_told_with_its_patient(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    """To the audit trail; the Patient ID is read while there is a file."""
    header = loop(SOP)
    header.PatientID = "4711"
    study_id = arrivals.send(sop_uid=SOP, dataset=encoded(header))
    arrivals.send(dataset=b"no header at all")
    clock.pass_by(31)
    tick(sessions, clock, timedelta(seconds=30))
    analyst.report(study_id)
    clock.pass_by(8 * DAY)
    told: list[StudyContent] = []

    purge(sessions, store, WEEK, clock, dry_run=True, tell=told.append)
    num_told_dry = len(told)
    purge(sessions, store, WEEK, clock, tell=told.append)

    assert num_told_dry == 0
    assert told == [StudyContent(study_uid=STUDY, patient_id="4711", num_instances={US_MULTIFRAME: 2})]


def deliver(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock, name: int, peers: Sequence[str] = ()
) -> UID:
    """Receive, report and deliver another study of 1000 bytes, an hour later."""
    study_uid = UID(f"1.2.826.0.1.77.{name}")
    study_id = arrivals.send(study_uid, dataset=b"x" * (1000 - 132))
    clock.pass_by(3600)
    tick(sessions, clock, timedelta(seconds=30))
    analyst.report(study_id, peers)
    return study_uid


def study_instances(sessions: Sessions, study_uid: UID) -> list[str]:
    """Return the SOP Instance UIDs of a study."""
    with sessions() as session:
        study = select(Study.id).where(Study.study_instance_uid == study_uid).scalar_subquery()
        return [*session.scalars(select(Instance.sop_instance_uid).where(Instance.study_id == study))]


def uids(purged: Sequence[Purged]) -> list[str]:
    return [one.study_instance_uid for one in purged]


@pytest.fixture
def small(tmp_path: Path) -> SmallStore:
    """A store on a disk of 10 000 bytes."""
    return SmallStore(tmp_path / "small", num_bytes=10_000, min_free_bytes=1000)


@pytest.fixture
def scanner(sessions: Sessions, small: SmallStore, clock: ManualClock) -> Arrivals:
    """A scanner that fills it."""
    return Arrivals(sessions, small, clock)


def test_where_the_disk_runs_full_the_longest_delivered_go_first_until_there_is_room(
    scanner: Arrivals, analyst: Analyst, sessions: Sessions, small: SmallStore, clock: ManualClock
) -> None:
    first, second, third, *_ = [deliver(scanner, analyst, sessions, clock, number) for number in range(6)]

    named = purge(sessions, small, WEEK, clock, room=6500, dry_run=True)
    purged = purge(sessions, small, WEEK, clock, room=6500)
    again = purge(sessions, small, WEEK, clock, room=6500)

    assert uids(named) == uids(purged) == [first, second, third]
    assert again == []
    assert small.free_bytes() == 7000


def test_images_that_were_sent_again_go_last(
    scanner: Arrivals, analyst: Analyst, sessions: Sessions, small: SmallStore, clock: ManualClock
) -> None:
    first, second = [deliver(scanner, analyst, sessions, clock, number) for number in range(2)]
    purge(sessions, small, WEEK, clock, room=8500)  # the first
    clock.pass_by(60)
    scanner.intake.receive(instance(first, UID("1.2.826.0.1.9.1"), b"x" * (1000 - 132)))

    assert uids(purge(sessions, small, WEEK, clock, room=8500)) == [second]
    assert study_json(sessions, first)["purged_at"] is None


@pytest.mark.parametrize("state", ["waiting", "sending", "dead"])
def test_a_study_with_a_report_that_a_peer_has_not_is_never_purged(
    scanner: Arrivals, analyst: Analyst, sessions: Sessions, small: SmallStore, clock: ManualClock, state: str
) -> None:
    """Such as one of an earlier revision, promised to a peer that receives none any more."""
    deliver(scanner, analyst, sessions, clock, 1, ["former"])
    with sessions.begin() as session:
        session.execute(text("UPDATE delivery SET state = :state"), {"state": state})
        session.execute(update(Study).values(state="delivered", delivered_at=clock()))  # as the node writes moments
    clock.pass_by(8 * DAY)

    assert purge(sessions, small, WEEK, clock, room=9999) == []
    assert num_images(small) == 1


def test_images_that_cannot_be_removed_are_said_and_the_next_study_goes(
    scanner: Arrivals,
    analyst: Analyst,
    sessions: Sessions,
    small: SmallStore,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = [deliver(scanner, analyst, sessions, clock, number) for number in range(2)]
    clock.pass_by(8 * DAY)
    remove = small.remove_study

    def refuse(study_uid: UID) -> None:
        if study_uid == first:
            raise StoreError("no rights")
        remove(study_uid)

    monkeypatch.setattr(small, "remove_study", refuse)
    with capture_logs() as logs:
        purged = purge(sessions, small, WEEK, clock)

    assert {one.study_instance_uid: one.error for one in purged} == {first: "no rights", second: ""}
    assert "purge_failed" in [entry["event"] for entry in logs]
    assert num_images(small) == 1


class Between:
    """Sessions of a ledger, between whose first and second transaction something else happens."""

    def __init__(self, sessions: Sessions, happens: Callable[[], object]) -> None:
        self._sessions = sessions
        self._happens = chain([lambda: None, happens], repeat(lambda: None))

    def __call__(self) -> Session:
        """Give one that reads."""
        return self._sessions()

    def begin(self) -> AbstractContextManager[Session]:
        """Give one that writes."""
        next(self._happens)()
        return self._sessions.begin()


def test_an_image_that_comes_while_its_study_is_purged_is_kept(
    scanner: Arrivals, analyst: Analyst, sessions: Sessions, small: SmallStore, clock: ManualClock
) -> None:
    """Between the word and the deed: nothing of the study is removed."""
    study_uid = deliver(scanner, analyst, sessions, clock, 1)
    clock.pass_by(8 * DAY)

    purged = purge(Between(sessions, lambda: scanner.send(study_uid)), small, WEEK, clock)  # type: ignore[arg-type]

    study = study_json(sessions, study_uid)
    assert purged == []
    assert (num_images(small), study["purged_at"], study["state"]) == (2, None, "receiving")
    assert [path for path in missing(sessions, small) if path.startswith("instances")] == []


@pytest.mark.parametrize(("days", "removed"), [(30, 1), (0, 0)])
def test_what_was_set_aside_long_ago_is_removed(
    store: InstanceStore, clock: ManualClock, days: int, removed: int
) -> None:
    old, young = (store.quarantine(b"", content).path for content in (b"old", b"young"))
    for path, age in ((old, 31), (young, 29)):
        at = clock().timestamp() - age * DAY
        os.utime(store.path(path), (at, at))

    named = purge_quarantine(store, Retention(quarantine_days=days), clock, dry_run=True)
    purge_quarantine(store, Retention(quarantine_days=days), clock)

    assert [one.path for one in named] == [old][:removed]
    assert store.exists(old) is not bool(removed)
    assert store.exists(young)


@pytest.mark.usefixtures("delivered")
def test_an_image_that_was_removed_and_is_sent_again_after_another_is_kept(
    arrivals: Arrivals, sessions: Sessions, store: InstanceStore, clock: ManualClock
) -> None:
    clock.pass_by(8 * DAY)
    purge(sessions, store, WEEK, clock)

    arrivals.send()
    arrivals.send(sop_uid=SOP, dataset=b"pixels")

    assert num_images(store) == 2
    assert sorted(path.name for path in store.path("instances").rglob("*.dcm")) == sorted(
        Path(path).name for path in instance_paths(sessions)
    )


@pytest.mark.usefixtures("delivered")
def test_an_image_that_comes_again_before_a_crashed_purge_is_finished_is_kept(
    arrivals: Arrivals,
    sessions: Sessions,
    store: InstanceStore,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock.pass_by(8 * DAY)
    with monkeypatch.context() as patched:
        patched.setattr(store, "remove_study", lambda _study_uid: None)  # killed before the first file
        purge(sessions, store, WEEK, clock)

    arrivals.send(sop_uid=SOP, dataset=b"pixels")
    sweep(sessions, store, clock, timedelta(days=-10_000))

    assert num_images(store) == 1
    assert study_json(sessions, STUDY)["purged_at"] is None


def instance_paths(sessions: Sessions) -> list[str]:
    with sessions() as session:
        return [*session.scalars(text("SELECT path FROM instance"))]


def test_a_study_of_which_a_report_is_owed_keeps_no_other(
    scanner: Arrivals, analyst: Analyst, sessions: Sessions, small: SmallStore, clock: ManualClock
) -> None:
    deliver(scanner, analyst, sessions, clock, 1, ["down"])  # waits in the outbox
    done = deliver(scanner, analyst, sessions, clock, 2)
    clock.pass_by(8 * DAY)

    assert uids(purge(sessions, small, WEEK, clock)) == [done]


def test_what_a_peer_was_promised_since_it_was_listed_is_not_removed(
    scanner: Arrivals, analyst: Analyst, sessions: Sessions, small: SmallStore, clock: ManualClock
) -> None:
    first, second = [deliver(scanner, analyst, sessions, clock, number) for number in range(2)]
    clock.pass_by(8 * DAY)
    promise = UID(study_instances(sessions, second)[0])

    held: list[object] = []
    between = Between(sessions, lambda: held.append(commitments.hold(sessions, [promise], clock)))
    purged = purge(between, small, WEEK, clock)  # type: ignore[arg-type]  # after the first study's first transaction

    assert held
    assert uids(purged) == [first]
    assert study_json(sessions, second)["purged_at"] is None

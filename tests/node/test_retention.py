"""Only images of studies that were delivered long ago are removed."""

from datetime import timedelta

import pytest
from sqlalchemy import text

from dicom_node.completion import tick
from dicom_node.identity import UID
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.reports import WrittenPicture
from dicom_node.ledger.schema import StudyState
from dicom_node.ledger.views import study_json
from dicom_node.retention import Purged, purge
from dicom_node.settings import Retention
from dicom_node.store import InstanceStore
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock

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
    assert purged == [Purged(study_instance_uid=STUDY, num_bytes=138)]
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

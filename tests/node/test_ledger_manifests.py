"""A scanner's list of what it sent completes a study early if it is whole, and says what is missing if it is not."""

from datetime import timedelta

import pytest

from dicom_node import completion
from dicom_node.completion import MANIFEST_QUIET
from dicom_node.identity import UID
from dicom_node.ledger import manifests
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.views import study_json
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock

QUIET = timedelta(seconds=30)
SHORT = MANIFEST_QUIET.total_seconds()


def name(sessions: Sessions, clock: ManualClock, *uids: UID) -> None:
    """Record a list."""
    with sessions.begin() as session:
        manifests.record(session, "CART", uids, clock())


def state(sessions: Sessions, study_uid: UID = STUDY) -> str:
    """Return the state of a study."""
    return study_json(sessions, study_uid)["state"]


def history(sessions: Sessions) -> list[str]:
    """Return what the history says of lists."""
    return [line["detail"] for line in study_json(sessions, STUDY)["history"] if line["event"] == "manifest"]


@pytest.fixture
def uids(arrivals: Arrivals) -> list[UID]:
    """The instances of a study that has arrived."""
    found = [arrivals.new_uid() for _ in range(3)]
    for uid in found:
        arrivals.send(sop_uid=uid)
    return found


def test_a_whole_list_completes_the_study_after_a_few_seconds(
    sessions: Sessions, clock: ManualClock, uids: list[UID]
) -> None:
    name(sessions, clock, *uids)
    clock.pass_by(SHORT - 0.1)
    completion.tick(sessions, clock, QUIET)
    before = state(sessions)
    clock.pass_by(0.1)
    completion.tick(sessions, clock, QUIET)

    assert (before, state(sessions)) == ("receiving", "analysing")
    assert history(sessions) == ["CART names 3 instances that are here"]


@pytest.mark.parametrize("named", [slice(0, 1), slice(0, 2)], ids=["image by image", "series by series"])
def test_a_list_of_a_part_completes_nothing(
    sessions: Sessions, clock: ManualClock, uids: list[UID], named: slice
) -> None:
    """The scanner goes on sending."""
    name(sessions, clock, *uids[named])
    clock.pass_by(SHORT + 1)
    completion.tick(sessions, clock, QUIET)

    assert state(sessions) == "receiving"


def test_a_list_of_one_completes_nothing_though_it_names_all_that_is_here(
    sessions: Sessions, clock: ManualClock, arrivals: Arrivals
) -> None:
    """The first of a scanner that asks image by image."""
    uid = arrivals.new_uid()
    arrivals.send(sop_uid=uid)
    name(sessions, clock, uid)
    clock.pass_by(SHORT + 1)
    completion.tick(sessions, clock, QUIET)

    assert state(sessions) == "receiving"
    assert history(sessions) == []


def test_a_list_with_instances_that_did_not_arrive_names_them_and_completes_nothing(
    sessions: Sessions, clock: ManualClock, uids: list[UID]
) -> None:
    name(sessions, clock, *uids, UID("1.2.3.404"))
    clock.pass_by(SHORT + 1)
    completion.tick(sessions, clock, QUIET)

    assert state(sessions) == "receiving"
    assert history(sessions) == [
        "CART names 3 instances that are here; manifest names 1 instances that did not arrive: 1.2.3.404"
    ]


def test_a_list_over_two_studies_completes_neither(
    sessions: Sessions, clock: ManualClock, arrivals: Arrivals, uids: list[UID]
) -> None:
    other, study_uid = arrivals.new_uid(), UID("1.2.826.0.1.77")
    arrivals.send(study_uid, sop_uid=other)
    name(sessions, clock, *uids, other)
    clock.pass_by(SHORT + 1)
    completion.tick(sessions, clock, QUIET)

    assert (state(sessions), state(sessions, study_uid)) == ("receiving", "receiving")


def test_an_instance_after_the_list_makes_it_void(
    sessions: Sessions, clock: ManualClock, arrivals: Arrivals, uids: list[UID]
) -> None:
    name(sessions, clock, *uids)
    clock.pass_by(1)
    arrivals.send()
    clock.pass_by(SHORT + 1)
    completion.tick(sessions, clock, QUIET)
    before = state(sessions)
    clock.pass_by(QUIET.total_seconds())
    completion.tick(sessions, clock, QUIET)

    assert (before, state(sessions)) == ("receiving", "analysing")


def test_a_late_instance_opens_a_study_that_its_list_completed(
    sessions: Sessions, clock: ManualClock, arrivals: Arrivals, analyst: Analyst, uids: list[UID]
) -> None:
    """And the list of before does not complete it again."""
    name(sessions, clock, *uids)
    clock.pass_by(SHORT)
    (study_id,) = completion.tick(sessions, clock, QUIET)
    analyst.report(study_id)
    clock.pass_by(1)
    arrivals.send()
    clock.pass_by(SHORT)
    completion.tick(sessions, clock, QUIET)

    assert state(sessions) == "receiving"
    assert study_json(sessions, STUDY)["revision"] == 2

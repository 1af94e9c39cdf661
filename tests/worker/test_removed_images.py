"""A study goes on after retention removed its images: what was found in them stands, and nothing false is said."""

from copy import copy, deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from pydicom import Dataset, dcmread
from sqlalchemy import text

from dicom_node.clock import utc_now
from dicom_node.identity import UID
from dicom_node.ledger.engine import Sessions, close_ledger
from dicom_node.ledger.views import StudyJson, study_json
from dicom_node.report.library import read_library
from dicom_node.report.text import render_text
from dicom_node.retention import purge
from dicom_node.settings import Report as ReportSection
from dicom_node.settings import Retention
from dicom_node.store import InstanceStore
from model.phantom.heart import Heart
from model.tasks import View
from tests.doubles.incoming import arrive
from tests.node.report.carts import CART_REPORT, LVEF, PERCENT, cart_report, number, section
from tests.system.validators import assert_valid_report, evidence
from tests.worker.test_analyse import complete
from worker.analyse import Analyst
from worker.engine import Engine
from worker.phantom_study import Shot, make_study

SHOTS = tuple(Shot(view=view, num_frames=24) for view in (View.A4C, View.A2C, View.PLAX))


@pytest.fixture(scope="module")
def loops() -> list[Dataset]:
    """Three loops of a study."""
    heart = Heart(edv_ml=120.0, esv_ml=50.0)
    return [*make_study(heart, seed=1, at=datetime(2026, 11, 24, tzinfo=UTC), shots=SHOTS)]


@pytest.fixture
def early(loops: list[Dataset]) -> list[Dataset]:
    """What comes first: two loops, and what the cart measured."""
    cart = cart_report(
        section(number(LVEF, "54", PERCENT)),
        StudyInstanceUID=loops[0].StudyInstanceUID,
        PatientID=loops[0].PatientID,
        PatientName=loops[0].PatientName,
    )
    return [*loops[:2], cart]


@pytest.fixture
def analyst(analyst: Analyst) -> Analyst:
    """A worker of a node that sends its reports to nobody."""
    return replace(analyst, destinations=())


@pytest.fixture
def purged(
    analyst: Analyst, early: list[Dataset], loops: list[Dataset], sessions: Sessions, store: InstanceStore
) -> StudyJson:
    """The study that was reported a week ago, as people see it: its images are gone."""
    study_id = arrive(early, sessions, store, lambda _study_id: None)
    complete(sessions)
    analyst.drain(study_id)
    assert purge(sessions, store, Retention(days=7), lambda: utc_now() + timedelta(days=8))
    assert [*store.files("instances")] == []
    return shown(loops, sessions)


def shown(loops: list[Dataset], sessions: Sessions) -> StudyJson:
    return study_json(sessions, UID(loops[0].StudyInstanceUID))


def go_on(analyst: Analyst, late: Dataset) -> None:
    """Let an instance come, and the study be reported again."""
    study_id = arrive([late], analyst.sessions, analyst.store, lambda _study_id: None)
    complete(analyst.sessions)
    analyst.drain(study_id)


def test_a_late_loop_of_a_purged_study_is_reported_with_what_was_found_before(
    analyst: Analyst, early: list[Dataset], loops: list[Dataset], purged: StudyJson, store: InstanceStore
) -> None:
    go_on(analyst, loops[2])

    seen = shown(loops, analyst.sessions)
    first, second = (dcmread(store.path(one["path"])) for one in seen["reports"])
    of_lvef = next(one for one in seen["results"] if one["task"] == "lvef")
    assert (seen["state"], seen["loops_analysed"], seen["error"]) == ("delivered", 3, None)
    assert of_lvef == next(one for one in purged["results"] if one["task"] == "lvef")
    assert seen["cart"] == purged["cart"] != []
    assert evidence(second) >= {one.SOPInstanceUID for one in [*early, loops[2]]}
    assert (second.PatientID, second.PatientName) == (first.PatientID, first.PatientName)
    assert second.CompletionFlag == "COMPLETE"
    assert "Images of 3 instances were removed after an earlier report" in render_text(second)
    assert_valid_report(store.path(seen["reports"][1]["path"]).read_bytes(), pixelmed=False)
    sizes = [read_library(store.path(one["path"])) for one in seen["reports"]]
    assert sizes[1] == {**sizes[0], loops[2].SOPInstanceUID: (loops[2].Rows, loops[2].Columns)}
    close_ledger(analyst.sessions)


@pytest.mark.usefixtures("purged")
def test_only_loops_that_are_there_have_pictures_and_a_part_of_the_stills_gives_no_grade(
    analyst: Analyst, loops: list[Dataset]
) -> None:
    go_on(replace(analyst, report=ReportSection()), loops[2])

    seen = shown(loops, analyst.sessions)
    assert [one["kind"] for one in seen["reports"][1]["pictures"]] == ["summary", "summary_pdf"]
    assert {one["task"]: one["reason"] for one in seen["not_measured"]}["aortic_stenosis"] == (
        "the stills of the study were not analysed"
    )
    close_ledger(analyst.sessions)


@pytest.mark.usefixtures("purged")
def test_an_image_of_another_patient_that_comes_after_the_purge_gets_no_numbers_of_the_first(
    analyst: Analyst, loops: list[Dataset]
) -> None:
    stranger = deepcopy(loops[2])
    stranger.PatientID = "SOMEBODY ELSE"
    go_on(analyst, stranger)

    seen = shown(loops, analyst.sessions)
    assert (seen["state"], len(seen["reports"])) == ("failed", 1)
    assert "mixes 2 patients" in (seen["error"] or "")
    close_ledger(analyst.sessions)


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_without_the_earlier_report_nobody_knows_whose_the_removed_images_were(
    analyst: Analyst, loops: list[Dataset], purged: StudyJson, store: InstanceStore, damage: str
) -> None:
    report = store.path(purged["reports"][0]["path"])
    report.unlink()
    if damage == "damaged":
        report.write_bytes(b"not DICOM")
    go_on(analyst, loops[2])

    seen = shown(loops, analyst.sessions)
    assert (seen["state"], len(seen["reports"])) == ("failed", 1)
    assert "earlier report" in (seen["error"] or "")
    close_ledger(analyst.sessions)


@pytest.mark.usefixtures("purged")
def test_a_removed_loop_that_the_present_networks_never_saw_is_named_and_the_report_is_partial(
    analyst: Analyst, loops: list[Dataset], engine: Engine, store: InstanceStore
) -> None:
    ensemble = copy(engine.ensemble)
    ensemble.info = replace(engine.info, digest="f" * 64)
    other = replace(engine, ensemble=ensemble)
    go_on(replace(analyst, current_engine=lambda: other), loops[2])

    seen = shown(loops, analyst.sessions)
    report = dcmread(store.path(seen["reports"][1]["path"]))
    assert (seen["state"], report.CompletionFlag) == ("delivered", "PARTIAL")
    assert render_text(report).count("its images were removed before the present networks saw it") == 2
    assert {"lvef", "lvedv", "lvesv"}.isdisjoint(one["task"] for one in seen["results"])
    close_ledger(analyst.sessions)


@pytest.mark.usefixtures("purged")
def test_a_file_that_is_missing_although_retention_left_it_is_an_error(
    analyst: Analyst, loops: list[Dataset], sessions: Sessions, store: InstanceStore
) -> None:
    study_id = arrive([loops[2]], sessions, store, lambda _study_id: None)
    analyst.drain(study_id)
    complete(sessions)
    with sessions() as session:
        lost = session.execute(text("SELECT path FROM instance WHERE path != ''")).scalar_one()
    store.remove(lost)
    analyst.drain(study_id)

    seen = shown(loops, sessions)
    assert (seen["state"], seen["error"]) == ("failed", "an instance of the study cannot be read again")
    assert CART_REPORT in {one["sop_instance_uid"] for one in seen["not_analysed"]}
    close_ledger(sessions)

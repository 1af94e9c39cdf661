"""A study that comes with the cart's own report: its numbers stand beside ours and change none of them."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread, dcmwrite

from dicom_node.report.text import render_text
from dicom_node.settings import Report as ReportSection
from model.phantom.heart import Heart
from model.tasks import View
from tests.doubles.subjects import looked_at, material_of
from tests.node.report.carts import (
    BIPLANE,
    CART_REPORT,
    EDV,
    ESV,
    LVEF,
    METHOD_SRT,
    ML,
    PERCENT,
    SELECTION,
    TEICHHOLZ,
    USER_CHOSEN,
    cart_report,
    number,
    section,
    write,
)
from tests.system.validators import assert_valid_report
from worker import offline
from worker.compose import Composed, Subject, compose
from worker.engine import Engine
from worker.loops import RefusedLoop
from worker.phantom_study import Shot, make_study

MOMENT = datetime(2026, 11, 24, tzinfo=UTC)
SHOTS = (Shot(view=View.A4C, num_frames=40), Shot(view=View.PLAX, num_frames=40))
COMMENT = "Cart: EF 54 % (biplane), EDV 120 mL (biplane), ESV 55 mL. Not used for the values of this report."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two loops and the report that the cart made of them."""
    folder = tmp_path_factory.mktemp("study")
    loops = [*make_study(Heart(edv_ml=120.0, esv_ml=50.0), seed=1, at=MOMENT, shots=SHOTS)]
    for position, loop in enumerate(loops):
        dcmwrite(folder / f"{position}.dcm", loop, enforce_file_format=True)
    report = cart_report(
        section(
            number(LVEF, "54", PERCENT, (METHOD_SRT, BIPLANE), (SELECTION, USER_CHOSEN)),
            number(LVEF, "49", PERCENT, (METHOD_SRT, BIPLANE)),
            number(EDV, "119.6", ML, (METHOD_SRT, BIPLANE)),
            number(ESV, "55", ML),
        ),
        StudyInstanceUID=loops[0].StudyInstanceUID,
        PatientID=loops[0].PatientID,
        PatientName=loops[0].PatientName,
    )
    write(folder / "report.dcm", report)
    return folder


@pytest.fixture(scope="module")
def subjects(folder: Path, engine: Engine) -> tuple[Subject, ...]:
    """The instances of the study with the verdict on each."""
    return looked_at(folder, engine)


def composed(subjects: Sequence[Subject], engine: Engine) -> Composed:
    """Return the report of these instances."""
    return compose(material_of(tuple(subjects)), engine, MOMENT, ReportSection().without_pictures)


def document(one: Composed) -> Dataset:
    """Return the report as others read it."""
    return dcmread(io.BytesIO(one.document.part10))


def test_the_carts_numbers_stand_in_one_comment_of_a_valid_report(
    subjects: tuple[Subject, ...], engine: Engine
) -> None:
    one = composed(subjects, engine)

    assert_valid_report(one.document.part10)
    assert render_text(document(one)).count(COMMENT) == 1


def test_the_carts_numbers_change_none_of_ours(subjects: tuple[Subject, ...], engine: Engine) -> None:
    loops = [one for one in subjects if one.sop_instance_uid != CART_REPORT]

    alone, beside = composed(loops, engine), composed(subjects, engine)

    assert [one.task for one in alone.prediction.results] != []
    assert beside.prediction == alone.prediction
    assert {**beside.ledger, "cart": []} == alone.ledger
    lines, added = render_text(document(beside)).splitlines(), ("Cart:", CART_REPORT)
    assert sum(any(word in line for word in added) for line in lines) == 2
    assert [line for line in lines if not any(word in line for word in added)] == render_text(
        document(alone)
    ).splitlines()


def test_the_ledger_keeps_the_carts_numbers_with_their_report(subjects: tuple[Subject, ...], engine: Engine) -> None:
    kept = composed(subjects, engine).ledger["cart"]

    assert kept == [
        {"task": "lvef", "value": 54.0, "unit": "%", "method": "biplane", "sop_instance_uid": CART_REPORT},
        {"task": "lvedv", "value": 119.6, "unit": "mL", "method": "biplane", "sop_instance_uid": CART_REPORT},
        {"task": "lvesv", "value": 55.0, "unit": "mL", "method": "", "sop_instance_uid": CART_REPORT},
    ]


def test_the_carts_report_is_listed_as_no_image(subjects: tuple[Subject, ...]) -> None:
    verdict = next(one.verdict for one in subjects if one.sop_instance_uid == CART_REPORT)

    assert isinstance(verdict, RefusedLoop)
    assert "no image" in verdict.reason


def test_two_reports_of_a_cart_are_both_said_and_what_they_share_once(
    subjects: tuple[Subject, ...], engine: Engine, tmp_path: Path
) -> None:
    first = next(one for one in subjects if one.sop_instance_uid == CART_REPORT)
    later = dcmread(first.path)
    later.SOPInstanceUID = later.file_meta.MediaStorageSOPInstanceUID = f"{CART_REPORT}.1"
    group = later.ContentSequence[0].ContentSequence[1]
    group.ContentSequence.append(number(LVEF, "61", PERCENT, (METHOD_SRT, TEICHHOLZ)))
    path = write(tmp_path / "later.dcm", later)

    one = composed([*subjects, replace(first, path=path, sop_instance_uid=f"{CART_REPORT}.1")], engine)

    said = "Cart: EF 54 % (biplane), EDV 120 mL (biplane), ESV 55 mL, EF 61 % (Teichholz). Not used"
    assert said in render_text(document(one))
    assert len(one.ledger["cart"]) == 7


@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_a_damaged_report_of_a_cart_costs_no_report_of_ours(
    subjects: tuple[Subject, ...], engine: Engine, tmp_path: Path, damage: str
) -> None:
    cart = next(one for one in subjects if one.sop_instance_uid == CART_REPORT)
    content = cart.path.read_bytes()
    path = tmp_path / "damaged.dcm"
    path.write_bytes(content[:900] if damage == "cut" else content[:400] + b"\xff" * (len(content) - 400))
    rest = [one for one in subjects if one is not cart]

    one = composed([*rest, replace(cart, path=path)], engine)

    assert one.ledger["cart"] == []
    assert "Cart:" not in render_text(document(one))


def test_analyse_shows_them_without_a_network(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert offline.run([folder], tmp_path / "json", None, True, None) == 0
    text = capsys.readouterr().out
    study = json.loads(text[text.index("{\n") :])["studies"][0]  # after the lines of the log
    assert [(one["task"], one["value"]) for one in study["cart"]] == [("lvef", 54.0), ("lvedv", 119.6), ("lvesv", 55.0)]
    assert [one["sop_instance_uid"] for one in study["not_analysed"]] == [CART_REPORT]

    assert offline.run([folder], tmp_path / "table", None, False, None) == 0
    assert "cart: lvef" in capsys.readouterr().out


@pytest.mark.parametrize("is_terminal", [True, False])
def test_analyse_shows_on_a_terminal_how_far_it_is(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    is_terminal: bool,
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", str(int(is_terminal)))
    assert offline.run([folder], tmp_path / "out", None, False, None) == 0
    said = capsys.readouterr().err

    assert ("analysed" in said, "100%" in said) == (is_terminal, is_terminal)

"""The pictures of a real phantom study: what they show, where the heat lies, and that they cost no report."""

import io
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from pydicom import Dataset, dcmread, dcmwrite

from dicom_node.report.findings import PictureKind
from dicom_node.report.pictures import Picture
from dicom_node.settings import Report as ReportSection
from model.attention import Attention
from model.clip.sector import Sector, Side
from model.clip.spec import ClipSpec
from model.phantom.heart import Heart
from model.tasks import View
from tests.binaries import require_binary
from tests.doubles.subjects import looked_at, material_of
from tests.node.report.carts import LVEF, PERCENT, cart_report, number, section, write
from tests.node.report.samples import EMPTY, MEASURED, patient
from tests.system.validators import assert_valid_report
from worker.compose import Composed, Subject, compose
from worker.engine import Engine
from worker.illustration import MAX_FRAMES, SIDES, Illustration, open_illustration
from worker.lettering import printable, wrap
from worker.loops import AnalysedLoop
from worker.phantom_study import Shot, make_study
from worker.summary import draw

MONDAY, TUESDAY = (datetime(2026, 11, day, tzinfo=UTC) for day in (23, 24))
SHOTS = (
    Shot(view=View.A4C, num_frames=40),
    Shot(view=View.PLAX, num_frames=40),
    Shot(view=View.A2C, num_frames=40),
)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> tuple[Subject, ...]:
    """A study of three loops and the cart's report, and the verdict on each."""
    folder = tmp_path_factory.mktemp("study")
    loops = [*make_study(Heart(edv_ml=120.0, esv_ml=50.0), seed=1, at=MONDAY, shots=SHOTS)]
    for place, loop in enumerate(loops):
        loop.PatientBirthDate, loop.PatientSex, loop.PatientName = "19600102", "F", "Иванова^Анна"
        loop.SpecificCharacterSet = "ISO_IR 192"
        dcmwrite(folder / f"{place}.dcm", loop, enforce_file_format=True)
    cart = cart_report(
        section(number(LVEF, "54", PERCENT)),
        **{
            name: loops[0].get(name)
            for name in ("StudyInstanceUID", "PatientID", "PatientName", "SpecificCharacterSet")
        },
    )
    write(folder / "cart.dcm", cart)
    return looked_at(folder, engine, with_attention=True)


def composed(
    subjects: Sequence[Subject],
    engine: Engine,
    kinds: Collection[PictureKind] = tuple(PictureKind),
    at: datetime = MONDAY,
) -> Composed:
    """Return the report of these instances with these pictures."""
    section = ReportSection(**{kind.value: kind in kinds for kind in PictureKind})
    return compose(material_of(tuple(subjects)), engine, at, section)


@pytest.fixture(scope="module")
def whole(subjects: tuple[Subject, ...], engine: Engine) -> Composed:
    """The report of the study with all of its pictures."""
    return composed(subjects, engine)


def document(picture: Picture) -> Dataset:
    """Return the picture as others read it."""
    return dcmread(io.BytesIO(picture.part10))


def of_kind(one: Composed, kind: PictureKind) -> list[Picture]:
    """Return the pictures of a kind."""
    return [picture for picture in one.pictures if picture.kind is kind]


def test_each_loop_that_carried_a_number_is_shown_and_no_other(whole: Composed) -> None:
    carriers = {key for result in whole.prediction.results for key in result.per_loop}

    shown = [one.loop for one in of_kind(whole, PictureKind.SALIENCY)]

    assert len(shown) == 2
    assert set(shown) == carriers
    assert [one.kind for one in whole.pictures][-2:] == [PictureKind.SUMMARY, PictureKind.SUMMARY_PDF]
    assert_valid_report(whole.document.part10)


def test_the_moving_picture_has_the_loop_s_frames_and_pace(whole: Composed, subjects: tuple[Subject, ...]) -> None:
    for one in of_kind(whole, PictureKind.SALIENCY):
        (loop,) = [subject for subject in subjects if subject.sop_instance_uid == one.loop]
        header, image = dcmread(loop.path, stop_before_pixels=True), document(one)
        assert isinstance(loop.verdict, AnalysedLoop)
        frames = loop.verdict.frames
        assert image.NumberOfFrames == frames[-1] - frames[0] + 1
        assert float(image.FrameTime) == pytest.approx(float(header.FrameTime), rel=1e-4)
        assert image.SourceImageSequence[0].ReferencedSOPInstanceUID == loop.sop_instance_uid
        assert image.pixel_array.shape == (image.NumberOfFrames, image.Rows, image.Columns, 3)


def test_two_runs_give_the_same_bytes_but_for_their_dates(
    whole: Composed, subjects: tuple[Subject, ...], engine: Engine
) -> None:
    later = composed(subjects, engine, at=TUESDAY)

    for one, other in zip(whole.pictures, later.pictures, strict=True):
        first, second = document(one), document(other)
        assert {each.keyword for each in first if each != second[each.tag]} == {"ContentDate", "InstanceCreationDate"}


def test_what_nobody_wants_is_not_drawn(subjects: tuple[Subject, ...], engine: Engine) -> None:
    assert composed(subjects, engine, []).pictures == ()
    assert [one.kind for one in composed(subjects, engine, [PictureKind.SUMMARY]).pictures] == [PictureKind.SUMMARY]


def test_attention_that_was_not_kept_is_found_again(
    whole: Composed, subjects: tuple[Subject, ...], engine: Engine
) -> None:
    forgotten = [
        replace(one, verdict=replace(one.verdict, attention=None)) if isinstance(one.verdict, AnalysedLoop) else one
        for one in subjects
    ]

    assert composed(forgotten, engine).pictures == whole.pictures


def test_a_loop_that_cannot_be_read_again_costs_its_picture_alone(
    whole: Composed, subjects: tuple[Subject, ...], engine: Engine, tmp_path: Path
) -> None:
    shown = of_kind(whole, PictureKind.SALIENCY)
    first = next(one for one in subjects if one.sop_instance_uid == shown[0].loop)
    content = first.path.read_bytes()
    damaged = tmp_path / "damaged.dcm"
    damaged.write_bytes(content[: len(content) // 2])

    one = composed([replace(each, path=damaged) if each is first else each for each in subjects], engine)

    assert [each.loop for each in of_kind(one, PictureKind.SALIENCY)] == [shown[1].loop]
    assert [result.value for result in one.prediction.results if result.per_loop] == [
        result.value for result in whole.prediction.results if result.per_loop
    ]
    assert_valid_report(one.document.part10, pixelmed=False)


def test_the_page_says_what_the_report_says(whole: Composed, tmp_path: Path) -> None:
    (paper,) = of_kind(whole, PictureKind.SUMMARY_PDF)

    text = words(document(paper).EncapsulatedDocument, tmp_path)

    for result in whole.prediction.results:
        if result.unit:
            assert f"{result.value:.0f} ± {result.sd:.0f} {result.unit}" in text, text
    assert "Иванова Анна" in text
    assert "Cart: EF 54 %" in text
    assert "54-74 % women" in text
    assert "men" not in text.replace("women", "").split()
    assert "J Am Soc Echocardiogr 2015;28:1-39" in text
    assert "not for clinical use" in text
    statement = whole.prediction.ensemble.statement
    assert f"{statement[:1].upper()}{statement[1:]}." in text


# --- Where the heat lies ---

GRID = (2, 4, 4)


def hot(*cell: int) -> Attention:
    """Return the attention of one clip that one cell drew alone."""
    shares = np.full((1, *GRID), 1e-6, np.float32)
    shares[(0, *cell)] = 1.0
    return Attention.of(shares / shares.sum())


def warmth(picture_HWC: np.ndarray) -> np.ndarray:
    """Return how much more red than blue there is."""
    return picture_HWC[..., 0].astype(int) - picture_HWC[..., 2]


def loop_file(folder: Path, num_frames: int) -> Path:
    """Return the file of a grey loop."""
    (loop,) = make_study(
        Heart(edv_ml=120.0, esv_ml=50.0), seed=1, at=MONDAY, shots=(Shot(view=View.A4C, num_frames=num_frames),)
    )
    file = folder / "loop.dcm"
    dcmwrite(file, loop, enforce_file_format=True)
    return file


def illustration(
    folder: Path, attention: Attention, frames: tuple[int, ...] = (0, 39), num_frames: int = 40, **loop: Any
) -> Illustration:
    """Return the illustration of a loop that was looked at by a recipe of eight frames."""
    spec = loop.pop("spec", ClipSpec(num_frames=8, size=32))
    found = AnalysedLoop(outputs={}, frames=frames, **loop)
    return open_illustration(loop_file(folder, num_frames), found, attention, spec)


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("column", [0, 3])
def test_the_heat_lies_over_its_cell(tmp_path: Path, row: int, column: int) -> None:
    heat_HW = warmth(illustration(tmp_path, hot(1, row, column)).still())  # it lies in the second slice

    height, width = heat_HW.shape
    y, x = np.unravel_index(int(np.convolve(heat_HW.ravel(), np.ones(9), "same").argmax()), heat_HW.shape)
    assert abs(y - (row + 0.5) * height / 4) < height / 6
    assert abs(x - (column + 0.5) * width / 4) < width / 6


def test_the_heat_lies_over_its_cell_of_the_sector_s_box_and_of_a_picture_that_was_fitted_in(tmp_path: Path) -> None:
    # A box that stands out of the screen to the left, and that fills a part of the clip's height.
    sector = Sector(
        rows=480,
        columns=640,
        step=1,
        sides=(Side(0.0, 1.0, 100.0), Side(0.0, -1.0, -300.0), Side(1.0, 0.0, 0.0), Side(-1.0, 0.0, -200.0)),
        arc=None,
    )
    assert sector.box[1] < 0
    spec = ClipSpec(num_frames=8, size=32, crop="sector", resize="fit")

    picture_HWC = illustration(tmp_path, hot(1, 1, 2), sector=sector, spec=spec).still()

    heat_HW = warmth(picture_HWC)
    y, x = np.unravel_index(int(heat_HW.argmax()), heat_HW.shape)
    top, left, height, width = sector.box
    # cell (1, 2) of 4 x 4: rows 8 to 16 and columns 16 to 24 of the clip, in which the box takes `rows` of 32
    rows = round(32 * height / width)
    middle = (top + (12 - (32 - rows) // 2) * height / rows, left + 20 * width / 32)
    scale = SIDES[0] / 201  # the part of the box that lies on the screen is 201 x 201 pixels, drawn larger
    assert y / scale + max(top, 0) == pytest.approx(middle[0], abs=height / 10)
    assert x / scale + max(left, 0) == pytest.approx(middle[1], abs=width / 10)


def test_each_slice_of_time_has_its_own_heat(tmp_path: Path) -> None:
    drawn = illustration(tmp_path, hot(0, 2, 2))

    frames = [decoded(frame) for frame in drawn.cine([]).frames]
    warm = [int(warmth(frame).max()) > 60 for frame in frames]
    half = warm.index(False)
    assert warm == [True] * half + [False] * (40 - half)
    assert half == pytest.approx(22, abs=1)  # clip frames 0, 5, 11, 16, 22, ...: the second slice begins at 22
    assert drawn.trace == pytest.approx((1.0, 0.0), abs=1e-3)


@pytest.mark.parametrize("time", [0, 1])
def test_a_frame_that_fills_several_slices_of_a_short_loop_shows_them_all(tmp_path: Path, time: int) -> None:
    attention = hot(time, 2, 2)
    spec = ClipSpec(num_frames=16, size=32)  # of 8 frames: 0, 0, 0, 1, 1, 2, 2, 3, 3, ...

    drawn = illustration(
        tmp_path, Attention(**{**fields(attention), "grid": GRID}), tuple(range(8)), num_frames=8, spec=spec
    )

    warm = [int(warmth(decoded(frame)).max()) > 60 for frame in drawn.cine([]).frames]
    assert any(warm)
    assert warm == sorted(warm, reverse=time == 0)


def fields(attention: Attention) -> dict[str, Any]:
    """Return what an attention is made of."""
    return {name: getattr(attention, name) for name in ("grid", "cells", "slices")}


def decoded(frame: bytes) -> np.ndarray:
    """Return a JPEG's pixels."""
    pixels: np.ndarray = simplejpeg.decode_jpeg(frame)
    return pixels


def test_a_long_loop_is_shown_in_steps_at_its_own_pace(tmp_path: Path) -> None:
    frames = MAX_FRAMES + 20
    drawn = illustration(tmp_path, hot(0, 0, 0), (0, frames - 1), num_frames=frames)

    cine = drawn.cine([])

    assert cine.source_frames == tuple(range(1, frames + 1, 2))
    assert drawn.source.header.frame_time_ms is not None
    assert cine.frame_time_ms == pytest.approx(2 * drawn.source.header.frame_time_ms)


def test_the_words_under_the_picture_are_never_cut(tmp_path: Path) -> None:
    drawn = illustration(tmp_path, hot(0, 0, 0), (0, 7))

    few, many = drawn.cine(["research"]), drawn.cine(["research " * 60, "x" * 400, "größer ≥ Иванова"])

    assert many.rows > few.rows + 9 * 18
    assert many.columns == few.columns


def test_letters_that_the_font_has_not_are_question_marks() -> None:
    assert printable("größer ≥ Иванова Ω") == "größer ≥ Иванова Ω"
    assert printable("山田") == "??"
    assert wrap("  ", 100, 12) == []
    assert "".join(wrap("x" * 400, 100, 12)) == "x" * 400


# --- The page ---


def words(pdf: bytes, folder: Path) -> str:
    """Return what stands on a page, as a program that reads PDF finds it."""
    file = folder / "page.pdf"
    file.write_bytes(pdf)
    done = subprocess.run([require_binary("pdftotext"), "-layout", str(file), "-"], capture_output=True, check=True)
    return " ".join(done.stdout.decode().split())


def test_a_statement_of_any_length_stands_whole_on_the_page(tmp_path: Path) -> None:
    statement = f"{'TRAINED ON SYNTHETIC PHANTOMS ALONE AND ON NOTHING ELSE, ' * 4}NOT FOR PATIENTS UNDER 18"
    findings = replace(MEASURED, algorithm=replace(MEASURED.algorithm, statement=statement))

    assert statement in words(draw(findings, patient(PatientName="W" * 64), {}).pdf, tmp_path)


@pytest.mark.parametrize(
    ("attributes", "said", "unsaid"),
    [
        ({"PatientSex": "M", "PatientBirthDate": "19600102", "StudyDate": "20261124"}, "52-72 % men", "women"),
        ({"PatientSex": "F", "PatientBirthDate": "20081125", "StudyDate": "20261124"}, "patient is a child", "54-74"),
        (
            {"PatientSex": "F", "PatientBirthDate": "20081124", "StudyDate": "20261124"},
            "adult women",
            "age is not known",
        ),
        ({"PatientSex": "F", "PatientBirthDate": "20150101"}, "The patient's age is not known", " men"),
        ({"PatientSex": "O", "PatientBirthDate": "19600102", "StudyDate": "20261124"}, "adult men and women", "known"),
    ],
)
def test_ranges_are_those_of_the_patient(tmp_path: Path, attributes: dict[str, str], said: str, unsaid: str) -> None:
    text = words(draw(MEASURED, patient(**attributes), {}).pdf, tmp_path)

    assert said in text
    assert unsaid not in text


def test_what_is_almost_nothing_or_almost_sure_is_not_said_to_be_so(tmp_path: Path) -> None:
    lvef, reduced = (
        replace(MEASURED.measurements[0], sd=0.2),
        replace(MEASURED.evaluations[0], probabilities={"reduced": 0.001}),
    )

    text = words(draw(replace(MEASURED, measurements=(lvef,), evaluations=(reduced,)), patient(), {}).pdf, tmp_path)

    assert "57 ± <1 %" in text
    assert "probability over 99 %" in text


def test_what_does_not_fit_on_the_page_is_said_to_be_elsewhere(tmp_path: Path) -> None:
    notes = tuple(f"Note {number}: {'a long story ' * 20}" for number in range(20))

    text = words(draw(replace(MEASURED, notes=notes), patient(), {}).pdf, tmp_path)

    assert "the rest is in the Structured Report" in text


def test_a_study_in_which_nothing_was_measured_has_a_page_with_the_reasons(tmp_path: Path) -> None:
    text = words(draw(EMPTY, patient(), {}).pdf, tmp_path)

    assert text.count("not measured") == 3
    assert text.count("no apical loop was found") == 5

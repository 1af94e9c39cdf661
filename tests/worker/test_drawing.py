"""The pictures of a real phantom study: what they show, where the heat lies, and that they cost no report."""

import io
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

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
from model.ensemble import SHIPPED
from model.phantom.heart import Heart
from model.tasks import View
from tests.binaries import require_binary
from tests.node.report.carts import LVEF, PERCENT, cart_report, number, section, write
from tests.system.validators import assert_valid_report
from worker.compose import Composed, Material, Subject, compose
from worker.engine import Engine, load_engine
from worker.illustration import MAX_FRAMES, illustrate
from worker.loops import AnalysedLoop, analyse_files
from worker.phantom_study import Shot, make_study

MONDAY, TUESDAY = (datetime(2026, 11, day, tzinfo=UTC) for day in (23, 24))
SHOTS = (
    Shot(view=View.A4C, num_frames=40),
    Shot(view=View.PLAX, num_frames=40),
    Shot(view=View.A2C, num_frames=40),
)


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The shipped networks."""
    return load_engine(SHIPPED, device="cpu", precision="fp32")


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
    files = sorted(folder.iterdir())
    headers = [dcmread(file, stop_before_pixels=True) for file in files]
    return tuple(
        Subject(
            sop_instance_uid=header.SOPInstanceUID,
            sop_class_uid=header.SOPClassUID,
            series_instance_uid=header.SeriesInstanceUID,
            path=file,
            verdict=verdict,
        )
        for file, header, verdict in zip(files, headers, analyse_files(files, engine, with_attention=True), strict=True)
    )


def composed(
    subjects: Sequence[Subject],
    engine: Engine,
    kinds: Collection[PictureKind] = tuple(PictureKind),
    at: datetime = MONDAY,
) -> Composed:
    """Return the report of these instances with these pictures."""
    study_uid = dcmread(subjects[0].path, stop_before_pixels=True).StudyInstanceUID
    material = Material(study_instance_uid=study_uid, revision=1, predecessor=None, subjects=tuple(subjects))
    return compose(material, engine, at, ReportSection(**{kind.value: kind in kinds for kind in PictureKind}))


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
    file = tmp_path / "page.pdf"
    file.write_bytes(document(paper).EncapsulatedDocument)

    done = subprocess.run([require_binary("pdftotext"), "-layout", str(file), "-"], capture_output=True, check=True)
    text = " ".join(done.stdout.decode().split())

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


def loop_file(folder: Path, num_frames: int = 40) -> Path:
    """Return the file of a grey loop."""
    (loop,) = make_study(
        Heart(edv_ml=120.0, esv_ml=50.0), seed=1, at=MONDAY, shots=(Shot(view=View.A4C, num_frames=num_frames),)
    )
    file = folder / "loop.dcm"
    dcmwrite(file, loop, enforce_file_format=True)
    return file


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("column", [0, 3])
def test_the_heat_lies_over_its_cell(tmp_path: Path, row: int, column: int) -> None:
    spec = ClipSpec(num_frames=8, size=32)
    loop = AnalysedLoop(outputs={}, frames=(0, 39))

    drawn = illustrate(loop_file(tmp_path), loop, hot(1, row, column), spec, [])

    heat_HW = warmth(drawn.still_HWC)  # the middle of the clip lies in its second slice
    height, width = heat_HW.shape
    y, x = np.unravel_index(int(np.convolve(heat_HW.ravel(), np.ones(9), "same").argmax()), heat_HW.shape)
    assert abs(y - (row + 0.5) * height / 4) < height / 6
    assert abs(x - (column + 0.5) * width / 4) < width / 6


def test_the_heat_lies_over_its_cell_of_the_sector_s_box_and_of_a_picture_that_was_fitted_in(tmp_path: Path) -> None:
    # A box that stands out of the screen to the left, and that fills half the height of the clip.
    sector = Sector(
        rows=480,
        columns=640,
        step=1,
        sides=(Side(0.0, 1.0, 100.0), Side(0.0, -1.0, -300.0), Side(1.0, 0.0, 0.0), Side(-1.0, 0.0, -200.0)),
        arc=None,
    )
    assert sector.box[1] < 0
    loop = AnalysedLoop(outputs={}, frames=(0, 39), sector=sector)
    spec = ClipSpec(num_frames=8, size=32, crop="sector", resize="fit")

    drawn = illustrate(loop_file(tmp_path), loop, hot(1, 1, 2), spec, [])

    heat_HW = warmth(drawn.still_HWC)
    y, x = np.unravel_index(int(heat_HW.argmax()), heat_HW.shape)
    top, left, height, width = sector.box
    # cell (1, 2) of 4 x 4: rows 8 to 16 and columns 16 to 24 of the clip, in which the box takes `rows` of 32
    rows = round(32 * height / width)
    first = (32 - rows) // 2
    middle = (top + (12 - first) * height / rows, left + 20 * width / 32)
    seen = (max(top, 0), max(left, 0))
    assert y + seen[0] == pytest.approx(middle[0], abs=height / 10)
    assert x + seen[1] == pytest.approx(middle[1], abs=width / 10)


def test_each_slice_of_time_has_its_own_heat(tmp_path: Path) -> None:
    spec = ClipSpec(num_frames=8, size=32)
    loop = AnalysedLoop(outputs={}, frames=(0, 39))

    drawn = illustrate(loop_file(tmp_path), loop, hot(0, 2, 2), spec, [])

    frames = [decoded(frame) for frame in drawn.cine.frames]
    warm = [int(warmth(frame).max()) > 60 for frame in frames]
    half = warm.index(False)
    assert warm == [True] * half + [False] * (40 - half)
    assert half == pytest.approx(22, abs=1)  # clip frames 0, 5, 11, 16, 22, ...: the second slice begins at 22
    assert drawn.trace == pytest.approx((1.0, 0.0), abs=0.07)  # no cell is said to draw less than a 16th


def decoded(frame: bytes) -> np.ndarray:
    """Return a JPEG's pixels."""
    pixels: np.ndarray = simplejpeg.decode_jpeg(frame)
    return pixels


def test_a_long_loop_is_shown_in_steps_at_its_own_pace(tmp_path: Path) -> None:
    spec = ClipSpec(num_frames=8, size=32)
    frames = MAX_FRAMES + 20
    file = loop_file(tmp_path, num_frames=frames)
    frame_time_ms = float(dcmread(file, stop_before_pixels=True).FrameTime)

    drawn = illustrate(file, AnalysedLoop(outputs={}, frames=(0, frames - 1)), hot(0, 0, 0), spec, [])

    assert drawn.cine.source_frames == tuple(range(1, frames + 1, 2))
    assert drawn.cine.frame_time_ms == pytest.approx(2 * frame_time_ms)


def test_the_words_under_the_picture_are_never_cut(tmp_path: Path) -> None:
    spec = ClipSpec(num_frames=8, size=32)
    file, loop = loop_file(tmp_path), AnalysedLoop(outputs={}, frames=(0, 7))

    few = illustrate(file, loop, hot(0, 0, 0), spec, ["research"])
    many = illustrate(file, loop, hot(0, 0, 0), spec, ["research " * 60, "x" * 400])

    assert many.cine.rows > few.cine.rows + 8 * 18
    assert many.cine.columns == few.cine.columns

"""The contact sheet: what people look for is there, in its place, and nothing of the patient."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmwrite
from pydicom.uid import ComprehensiveSRStorage
from structlog.testing import capture_logs

from model.clip.dicom import open_loop
from model.clip.source import Frames
from model.clip.spec import ClipSpec
from model.clip.transform import cut_out, locate
from model.phantom.heart import Heart
from model.phantom.scan import render
from model.phantom.screen import Screen
from model.tasks import Task, View
from tests.doubles import ensembles
from tests.doubles.loops import picture, write, write_native
from tests.system.studies import phantom_study
from worker.contact_sheet import (
    ACCEPTED,
    MAX_HEIGHT,
    OUTLINE,
    REFUSED,
    ROW_HEIGHT,
    TILE,
    WIDTH,
    Chapter,
    Row,
    draw,
    judged,
    thumbnail,
)
from worker.loops import AnalysedLoop, RefusedLoop
from worker.offline import run
from worker.phantom_study import Shot

SPEC = ClipSpec(size=112)
SECTOR = ClipSpec(size=112, crop="sector")
SHOTS = (Shot(view=View.A4C, num_frames=24), Shot(view=View.PLAX, num_frames=1))
MARGIN = 12
INFO = replace(ensembles.INFO, view_threshold=0.6, view_floor=0.52)


def row(path: Path, verdict: str = "refused: M-mode", *, is_accepted: bool = False) -> Row:
    """Return a row."""
    return Row(path=path, verdict=verdict, is_accepted=is_accepted)


def sheet(tmp_path: Path, *chapters: list[Row], spec: ClipSpec = SPEC) -> Frames:
    """Return the pixels of the sheet of these chapters (H, W, 3)."""
    file = tmp_path / "sheet.png"
    assert draw(file, "ensemble", [Chapter(heading="Study 1.2", rows=rows) for rows in chapters], spec) == [file]
    return pixels(file)


def pixels(file: Path) -> Frames:
    """Return a picture (H, W, 3)."""
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert image.info == {}
        return np.asarray(image)


def bands(sheet_HWC: Frames, number: int) -> list[Frames]:
    """Return the last rows of the sheet."""
    end = len(sheet_HWC) - MARGIN
    return [sheet_HWC[end - ROW_HEIGHT * left :][:ROW_HEIGHT] for left in range(number, 0, -1)]


def tile(band_HWC: Frames, column: int) -> Frames:
    """Return one of the four pictures of a row."""
    left = MARGIN + column * (TILE[0] + 8)
    return band_HWC[-TILE[1] - MARGIN // 2 : -MARGIN // 2, left : left + TILE[0]]


def has(picture_HWC: Frames, colour: tuple[int, int, int]) -> bool:
    """Return whether a pixel has exactly this colour."""
    return bool((picture_HWC == np.array(colour)).all(axis=-1).any())


def is_plain(picture_HWC: Frames) -> bool:
    """Return whether there is nothing to see."""
    return len(np.unique(picture_HWC.reshape(-1, 3), axis=0)) == 1


def padded(name: str, instance: Dataset) -> bytes:
    """Return a name in the length of the Study Instance UID."""
    return name.encode().ljust(len(instance.StudyInstanceUID), b" ")


def count_of_rows(file: Path) -> int:
    """Return how many rows of a sheet have a refused file."""
    is_verdict: NDArray[np.bool_] = (pixels(file) == np.array(REFUSED)).all(axis=-1).any(axis=1)
    starts = np.flatnonzero(is_verdict)
    return 1 + int((np.diff(starts) > TILE[1] // 2).sum())


def heart(tmp_path: Path) -> Path:
    """Return a phantom's loop, uncompressed."""
    frames = render(
        Heart(edv_ml=120.0, esv_ml=50.0), View.A4C, num_frames=16, frame_time_ms=50.0, rng=np.random.default_rng(3),
        screen=Screen(rows=240, columns=320),
    )  # fmt: skip
    return write_native(tmp_path / "heart.dcm", frames)


def test_each_file_has_a_row_and_each_study_a_heading(tmp_path: Path) -> None:
    file = write_native(tmp_path / "loop.dcm", picture())

    one = sheet(tmp_path, [row(file)])
    three = sheet(tmp_path, [row(file)] * 3)
    two_studies = sheet(tmp_path, [row(file)], [row(file)])

    assert one.shape[1] == WIDTH
    assert len(three) - len(one) == 2 * ROW_HEIGHT
    assert len(two_studies) - len(one) > ROW_HEIGHT


def test_what_is_accepted_and_what_is_refused_is_seen_at_once(tmp_path: Path) -> None:
    file = write_native(tmp_path / "loop.dcm", picture())

    good, bad = bands(sheet(tmp_path, [row(file, "accepted", is_accepted=True), row(file)]), 2)

    assert (has(good, ACCEPTED), has(good, REFUSED)) == (True, False)
    assert (has(bad, ACCEPTED), has(bad, REFUSED)) == (False, True)


def test_the_verdict_and_the_file_s_name_are_written_over_the_pictures(tmp_path: Path) -> None:
    file, other = (write_native(tmp_path / name, picture()) for name in ("one.dcm", "two.dcm"))

    first, reason, name = bands(sheet(tmp_path, [row(file), row(file, "refused: 3-D volume"), row(other)]), 3)

    differs_at = np.flatnonzero((first != reason).any(axis=(1, 2)))
    assert 0 < len(differs_at) < 20
    assert (first[: differs_at[0]] != name[: differs_at[0]]).any()
    for column in range(4):
        assert np.array_equal(tile(first, column), tile(reason, column))


def test_the_first_the_middle_and_the_last_sampled_frame_are_shown_as_decoded(tmp_path: Path) -> None:
    frames = np.stack([np.full((90, 120, 3), 10 * t, dtype=np.uint8) for t in range(20)])
    file = write_native(tmp_path / "loop.dcm", frames)

    (band,) = bands(sheet(tmp_path, [row(file)]), 1)

    # Sampled: frames floor(k * 19 / 15); the middle one of sixteen is k = 8.
    assert [int(tile(band, column)[90, 120, 0]) for column in range(4)] == [0, 100, 190, 100]


def test_a_picture_keeps_its_aspect_ratio(tmp_path: Path) -> None:
    file = write_native(tmp_path / "wide.dcm", np.full((9, 30, 240, 3), 255, dtype=np.uint8))

    (band,) = bands(sheet(tmp_path, [row(file)]), 1)

    assert int((tile(band, 0)[:, 120] == 255).all(axis=-1).sum()) == 30


def test_a_still_is_one_picture_and_a_loop_of_two_frames_shows_each_once(tmp_path: Path) -> None:
    files = [write_native(tmp_path / f"{count}.dcm", picture(count)) for count in (1, 2)]

    still, pair = bands(sheet(tmp_path, [row(file) for file in files]), 2)

    assert [is_plain(tile(still, column)) for column in range(4)] == [False, True, True, True]
    assert [is_plain(tile(pair, column)) for column in range(4)] == [False, False, True, False]


def test_the_outline_is_drawn_on_the_frames_only_if_the_recipe_cuts_the_sector_out(tmp_path: Path) -> None:
    file = heart(tmp_path)

    (cut,) = bands(sheet(tmp_path, [row(file)], spec=SECTOR), 1)
    (whole,) = bands(sheet(tmp_path, [row(file)], spec=SPEC), 1)

    assert [has(tile(cut, column), OUTLINE) for column in range(4)] == [True, True, True, False]
    assert not has(whole, OUTLINE)


@pytest.mark.parametrize("spec", [SPEC, SECTOR])
def test_the_crop_is_what_the_recipe_keeps_of_the_middle_frame(tmp_path: Path, spec: ClipSpec) -> None:
    file = heart(tmp_path)
    frames = open_loop(file).read(range(16))
    kept = cut_out(frames, locate(frames, spec, None))[8]

    (band,) = bands(sheet(tmp_path, [row(file)], spec=spec), 1)

    assert np.array_equal(tile(band, 3), np.asarray(thumbnail(kept, None)))


def test_a_sector_that_is_not_found_is_said_in_place_of_the_crop(tmp_path: Path) -> None:
    frames = np.full((16, 90, 120, 3), 90, dtype=np.uint8)
    file = write_native(tmp_path / "frozen.dcm", frames)

    (band,) = bands(sheet(tmp_path, [row(file)], spec=SECTOR), 1)

    assert is_plain(tile(band, 0))
    assert has(tile(band, 3), (255, 255, 255))


def test_what_gives_no_picture_says_why_on_an_empty_tile(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no DICOM")
    document = Dataset()
    document.SOPClassUID = ComprehensiveSRStorage
    report = write(tmp_path / "report.dcm", document, None)
    whole = write_native(tmp_path / "whole.dcm", picture()).read_bytes()
    damaged = tmp_path / "damaged.dcm"
    damaged.write_bytes(whole[: len(whole) // 2])

    for band in bands(sheet(tmp_path, [row(text), row(report), row(damaged)]), 3):
        assert has(tile(band, 0), (255, 255, 255))
        assert all(is_plain(tile(band, column)) for column in (1, 2, 3))


@pytest.mark.parametrize("name", ["two\nlines.txt", "no text \udcff.txt", "long " * 45, "Müller 山田.txt"])
def test_any_file_name_takes_one_line(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("no DICOM")

    (band,) = bands(sheet(tmp_path, [row(file)]), 1)

    white_rows = np.flatnonzero((band[: -TILE[1]] == 255).all(axis=-1).any(axis=1))
    assert 0 < np.ptp(white_rows) < 18


def test_a_hundred_instances_are_one_sheet_and_more_are_continued(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no DICOM")

    hundred = draw(tmp_path / "a.png", "ensemble", [Chapter(heading="Study", rows=[row(text)] * 100)], SPEC)
    many = draw(tmp_path / "b.png", "ensemble", [Chapter(heading="Study", rows=[row(text)] * 140)], SPEC)

    assert [file.name for file in hundred] == ["a.png"]
    assert [file.name for file in many] == ["b.png", "b-2.png"]
    assert all(len(pixels(file)) <= MAX_HEIGHT for file in many)
    assert sum(count_of_rows(file) for file in many) == 140


def test_one_study_after_another_is_continued_too(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no DICOM")

    files = draw(tmp_path / "a.png", "ensemble", [Chapter(heading="Study", rows=[row(text)])] * 130, SPEC)

    assert all(len(pixels(file)) <= MAX_HEIGHT for file in files)
    assert sum(count_of_rows(file) for file in files) == 130


def test_a_verdict_is_the_view_with_its_probability_or_the_reason(tmp_path: Path) -> None:
    def looked_at(*probabilities: float) -> str:
        verdict = AnalysedLoop(outputs={Task.VIEW: [list(probabilities)]}, frames=(0,))
        shown = judged(tmp_path, verdict, INFO)
        assert shown.is_accepted
        return shown.verdict

    refused = judged(tmp_path, RefusedLoop(code="still", reason="still image, not a cine loop"), INFO)

    assert looked_at(0.1, 0.1, 0.7, 0.1, 0.0) == "accepted: PLAX, probability 0.70"
    assert looked_at(0.3, 0.1, 0.5, 0.1, 0.0) == "accepted: view not recognised, at best 0.50"
    assert looked_at(0.3, 0.0, 0.55, 0.1, 0.05) == "accepted: view uncertain, at best PLAX, probability 0.55"
    assert (refused.verdict, refused.is_accepted) == ("refused: still image, not a cine loop", False)


def test_another_patient_s_study_makes_the_same_sheet_to_the_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = []
    for name in ("Doe^Jane", "Roe^Richard"):
        folder = tmp_path / name
        folder.mkdir()
        study = phantom_study(seed=4, shots=SHOTS)
        for number, instance in enumerate([*study, study[0]]):
            instance.PatientName = instance.PatientID = name
            dcmwrite(folder / f"{number}.dcm", instance, enforce_file_format=True)
        misplaced = phantom_study(seed=5, shots=SHOTS[1:])[0]
        dcmwrite(folder / "9.dcm", misplaced, enforce_file_format=True)
        (folder / "9.dcm").write_bytes(
            (folder / "9.dcm").read_bytes().replace(misplaced.StudyInstanceUID.encode(), padded(name, misplaced))
        )

        with capture_logs():
            assert run([folder], tmp_path / "out", None, True, tmp_path / "sheet.png") == 0

        said = capsys.readouterr()
        content = json.loads(said.out)
        assert (len(content["studies"]), len(content["refused"])) == (1, 2)
        assert said.err == f"contact sheet: {tmp_path / 'sheet.png'}\n"
        drawn.append((tmp_path / "sheet.png").read_bytes())
        assert count_of_rows(tmp_path / "sheet.png") == 3
    assert drawn[0] == drawn[1]


def test_a_sheet_that_cannot_be_written_leaves_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no DICOM")

    with capture_logs():
        assert run([file], tmp_path / "out", None, True, tmp_path / "gone" / "sheet.png") == 1

    said = capsys.readouterr()
    assert len(json.loads(said.out)["refused"]) == 1
    assert "contact sheet" in said.err

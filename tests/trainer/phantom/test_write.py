"""Phantom data sets on disk: the same bytes for the same seed, and headers that say what the pictures are."""

import hashlib
from pathlib import Path

import pytest
from pydicom import dcmread

from model.phantom.screen import Screen
from model.tasks import View
from trainer.errors import UsageError
from trainer.phantom.case import Plan, make_case
from trainer.phantom.write import LAYOUTS, MARK, write


def content(folder: Path) -> dict[str, str]:
    """Return the digest of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("layout", ["echonet", "camus", "camus-challenge", "tmed"])
def test_the_same_seed_writes_the_same_bytes_with_any_number_of_processes(layout: str, tmp_path: Path) -> None:
    for name, jobs, seed in (("one", 1, 5), ("two", 2, 5), ("other", 1, 6)):
        write(layout, tmp_path / name, cases=2, plan=Plan(seed=seed), jobs=jobs)

    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert content(tmp_path / "one") != content(tmp_path / "other")
    assert MARK in content(tmp_path / "one")


def test_a_study_of_mimic_is_whole(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write("mimic", tmp_path / name, cases=1, plan=Plan(seed=5), jobs=1)
    assert content(tmp_path / "one") == content(tmp_path / "two")

    headers = [dcmread(path, stop_before_pixels=True) for path in sorted((tmp_path / "one").rglob("*.dcm"))]

    assert len(headers) == 10
    assert len({header.StudyInstanceUID for header in headers}) == 1
    assert [header.InstanceNumber for header in headers] == list(range(1, 11))
    loops = [header for header in headers if "NumberOfFrames" in header]
    assert len(loops) == 8
    for header in loops:
        beat_ms = 60_000.0 / float(header.HeartRate)
        assert float(header.FrameTime) * int(header.NumberOfFrames) >= 0.98 * beat_ms
        region = header.SequenceOfUltrasoundRegions[0]
        # What the region says and what the fan shows: its depth.
        height = (region.RegionLocationMaxY1 + 1 - region.ReferencePixelY0) * float(region.PhysicalDeltaY)
        assert height == pytest.approx(16.0, rel=0.02)


def test_cases_do_not_depend_on_how_many_there_are() -> None:
    assert make_case(Plan(seed=1), 3).heart == make_case(Plan(seed=1), 3).heart
    assert make_case(Plan(seed=1), 3).heart != make_case(Plan(seed=1), 4).heart


def test_mixed_depths_are_mixed() -> None:
    depths = {round(make_case(Plan(seed=1, mixed_depths=True), number).screen.depth_mm) for number in range(20)}

    assert len(depths) > 10
    assert {make_case(Plan(seed=1), number).screen.depth_mm for number in range(20)} == {160.0}


def test_mixed_times_are_mixed_and_hold_a_beat() -> None:
    patients = [
        make_case(Plan(seed=1, mixed_times=True), number, base=Screen(rows=60, columns=80)) for number in range(8)
    ]
    films = [(one, one.film(View.A4C, loop)) for one in patients for loop in range(3)]

    beats = [len(film.frames_THWC) * film.frame_time_ms / one.heart.beat_ms for one, film in films]

    assert min(beats) >= 0.98
    assert max(beats) > 3.0
    assert min(film.frame_time_ms for _, film in films) < 22.0
    assert max(film.frame_time_ms for _, film in films) > 43.0


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(UsageError, match="holds something already"):
        write("echonet", tmp_path, cases=1, plan=Plan(seed=1))


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"is none of {', '.join(LAYOUTS)}"):
        write("lvh", tmp_path / "out", cases=1, plan=Plan(seed=1))

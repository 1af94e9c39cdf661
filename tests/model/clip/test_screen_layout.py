"""Several pictures and traces are told from one picture by the pixels alone, where no header says what they are."""

from pathlib import Path

import numpy as np
import pytest

from model.clip.dicom import open_loop
from model.clip.select import Reason, inspect
from model.clip.source import Frames
from model.clip.spec import frame_indices
from tests.model.clip.test_sector import CINES, phantom

QUIET = [number for number in range(24) if number != 2]
"""Phantoms; of one 2 % of what moves is the green of its ECG, which counts as colour Doppler."""


def reason(frames_THWC: Frames) -> Reason | None:
    """Return what the pixels say."""
    return inspect(frames_THWC).reason


def side_by_side(*loops: Frames) -> Frames:
    """Return a screen with these loops from left to right."""
    rows = min(loop.shape[1] for loop in loops)
    return np.concatenate([loop[:, :rows] for loop in loops], axis=2)


def one_over_another(*loops: Frames) -> Frames:
    """Return a screen with these loops from top to bottom."""
    columns = min(loop.shape[2] for loop in loops)
    return np.concatenate([loop[:, :, :columns] for loop in loops], axis=1)


def strip(columns: int, rows: int = 200) -> Frames:
    """Return an M-mode of many seconds: bands of tissue that go up and down, (H, W)."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:rows, 0:columns]
    wave = 25.0 * np.sin(x / 11.0) + 5.0 * np.sin(x / 3.7)
    bands = sum(
        np.exp(-(((y - place - share * wave) / 6.0) ** 2)) for place, share in ((50, 0.2), (95, 1.0), (150, 0.6))
    )
    return np.clip(200 * bands * rng.rayleigh(0.7, bands.shape) + rng.rayleigh(8.0, bands.shape), 0, 255).astype(
        np.uint8
    )


def on_screen(trace_THW: Frames) -> Frames:
    """Return a screen of 240 x 400 with a trace on it."""
    screen = np.zeros((len(trace_THW), 240, 400, 3), dtype=np.uint8)
    screen[:, 20 : 20 + trace_THW.shape[1], 20 : 20 + trace_THW.shape[2]] = trace_THW[..., None]
    return screen


@pytest.mark.parametrize("number", QUIET)
def test_one_picture_is_one_picture(number: int) -> None:
    assert reason(phantom(number)[0]) is None


@pytest.mark.parametrize("name", CINES)
def test_a_real_loop_is_one_picture(shared_data: Path, name: str) -> None:
    source = open_loop(shared_data / "us" / name)
    frames = source.read(sorted(set(frame_indices(source.header.num_frames, 16))))

    assert reason(frames) is None


@pytest.mark.parametrize(("one", "other"), [(0, 0), (1, 6), (3, 4), (6, 6), (7, 12)])
def test_two_live_pictures_are_several(one: int, other: int) -> None:
    loops = phantom(one)[0], phantom(other)[0]

    assert reason(side_by_side(*loops)) is Reason.SEVERAL_IMAGES
    assert reason(one_over_another(*loops)) is Reason.SEVERAL_IMAGES


def test_the_four_pictures_of_a_stress_test_are_several() -> None:
    pair = side_by_side(phantom(0)[0], phantom(0)[0])

    assert reason(one_over_another(pair, pair)) is Reason.SEVERAL_IMAGES


@pytest.mark.parametrize("middle", [0.35, 0.5, 0.65])
def test_a_picture_that_a_shadow_cuts_in_two_is_one(middle: float) -> None:
    frames, truth = phantom(0)
    columns = np.flatnonzero(truth.any(axis=0))
    at = round(columns[0] + middle * (columns[-1] - columns[0]))
    frames[:, :, at - 12 : at + 12] = 0

    assert reason(frames) is None


def test_a_small_heart_on_a_wide_screen_is_no_trace() -> None:
    """It changes in few columns, as a trace does, but always in the same ones; far beside it a mark blinks."""
    frames = on_screen(np.zeros((16, 200, 360), dtype=np.uint8))
    rng = np.random.default_rng(0)
    frames[:, 60:200, 160:220] = rng.integers(0, 200, (16, 140, 60, 1))
    for column in (25, 370):
        frames[::2, 30:34, column : column + 3] = 200

    assert reason(frames) is not Reason.TRACE


@pytest.mark.parametrize("columns_a_frame", [8, 24, 60])
def test_a_trace_that_is_written_behind_a_bar_is_a_trace(columns_a_frame: int) -> None:
    width = 360
    whole = strip(2 * width + 16 * columns_a_frame)
    screens = []
    for frame in range(16):
        written = width + frame * columns_a_frame
        newest = (written - 1) - (written - 1 - np.arange(width)) % width  # what stands in each column
        screens.append(whole[:, newest])

    assert reason(on_screen(np.stack(screens))) is Reason.TRACE


@pytest.mark.parametrize("columns_a_frame", [5, 30, 120, -30])
def test_a_trace_that_is_pushed_along_is_a_trace(columns_a_frame: int) -> None:
    whole = strip(360 + 16 * 120)
    starts = [frame * columns_a_frame if columns_a_frame > 0 else 1900 + frame * columns_a_frame for frame in range(16)]

    assert reason(on_screen(np.stack([whole[:, start : start + 360] for start in starts]))) is Reason.TRACE

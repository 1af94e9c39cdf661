"""Pictures that are too poor for a number, made of a phantom's loop in the ways in which real ones go wrong."""

from collections.abc import Callable

import numpy as np
import pytest

from model.clip.quality import Quality
from model.clip.select import Reason, inspect
from model.clip.source import Frames
from model.phantom.heart import Heart
from model.phantom.scan import render
from model.tasks import View

LOOP = render(Heart(edv_ml=120.0, esv_ml=50.0), View.A4C, num_frames=16, frame_time_ms=60.0,
              rng=np.random.default_rng(0))  # fmt: skip


def washed_out(frames: Frames) -> Frames:
    """Return the loop with a ninth of its contrast."""
    return (110 + frames.astype(np.int16) // 9).astype(np.uint8)


def too_bright(frames: Frames) -> Frames:
    """Return the loop with the gain far too high."""
    return np.clip(frames.astype(np.int16) * 6, 0, 255).astype(np.uint8)


def frozen(frames: Frames) -> Frames:
    """Return the loop frozen in its fourth frame."""
    return frames[[*range(10), *[10] * 6]]


def white_and_still(frames: Frames) -> Frames:
    """Return the loop with so much gain that its lower half no longer moves."""
    still = frames.copy()
    is_low = (np.arange(frames.shape[1]) > 120)[:, None, None] & (frames.max(axis=0) > 0)
    return np.where(is_low, 255, still).astype(np.uint8)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (washed_out, "contrast "),
        (too_bright, "of the picture is white"),
        (frozen, "do not differ"),
        (white_and_still, "of the picture is white"),
    ],
)
def test_a_poor_picture_is_refused_and_its_fault_named(spoil: Callable[[Frames], Frames], words: str) -> None:
    verdict = inspect(spoil(LOOP))

    assert verdict.reason is Reason.POOR_PICTURE
    assert words in verdict.detail


@pytest.mark.parametrize("num_frames", range(8, 17))
def test_the_repeats_of_a_short_loop_are_no_frozen_picture(num_frames: int) -> None:
    indices = [k * (num_frames - 1) // 15 for k in range(16)]

    assert inspect(LOOP[np.unique(indices)]).reason is None


def test_a_bound_is_still_good() -> None:
    assert Quality(contrast=30.0, clipped=0.25, frozen=0.3).fault == ""

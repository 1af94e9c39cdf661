"""Jitter moves and brightens a clip, and leaves what carries its truth."""

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.data.jitter import JitterConfig, jitter

SIDE = 40


def disc(radius: float = 8.0, level: int = 120) -> Tensor:
    """Return two frames of a disc in the middle of black."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] - (SIDE - 1) / 2
    frame = np.where(np.hypot(x, y) < radius, level, 0).astype(np.uint8)
    return torch.from_numpy(np.broadcast_to(frame, (2, 3, SIDE, SIDE)).copy())


def middle(pixels_TCSS: Tensor) -> tuple[float, float]:
    """Return the centre of what is lit in the first frame, rows and columns."""
    lit = pixels_TCSS[0, 0].double()
    places = torch.arange(SIDE).double()
    return float((lit.sum(1) * places).sum() / lit.sum()), float((lit.sum(0) * places).sum() / lit.sum())


def test_without_a_size_nothing_changes() -> None:
    clip = disc()

    assert torch.equal(jitter(clip, JitterConfig(), np.random.default_rng(0)), clip)


@pytest.mark.parametrize("seed", range(5))
def test_a_clip_is_moved_at_most_as_far_as_said_and_keeps_its_size(seed: int) -> None:
    moved = jitter(disc(), JitterConfig(shift=0.1), np.random.default_rng(seed))

    row, column = middle(moved)
    assert abs(row - (SIDE - 1) / 2) <= 0.1 * SIDE + 0.1
    assert abs(column - (SIDE - 1) / 2) <= 0.1 * SIDE + 0.1
    assert int(moved[0, 0].sum()) == pytest.approx(int(disc()[0, 0].sum()), rel=0.01)


def test_a_clip_is_moved_at_all() -> None:
    middles = {middle(jitter(disc(), JitterConfig(shift=0.1), np.random.default_rng(seed))) for seed in range(5)}

    assert len(middles) == 5


def test_a_turn_is_around_the_middle() -> None:
    clip = disc()
    clip[:, :, :, SIDE // 2 :] = 0

    turned = jitter(clip, JitterConfig(degrees=80.0), np.random.default_rng(1))

    assert np.hypot(*(np.array(middle(turned)) - 19.5)) == pytest.approx(
        np.hypot(*(np.array(middle(clip)) - 19.5)), abs=0.2
    )
    assert not torch.equal(turned, clip)


def test_every_frame_is_changed_alike() -> None:
    first, second = jitter(disc(), JitterConfig(degrees=9.0, shift=0.1, gain=0.1), np.random.default_rng(2))

    assert torch.equal(first, second)


def test_gain_leaves_black_black_and_changes_the_rest_by_one_step() -> None:
    changed = jitter(disc(), JitterConfig(gain=0.2), np.random.default_rng(3))

    assert int(changed[disc() == 0].max()) == 0
    (level,) = set(changed[disc() > 0].tolist())
    assert 0 < abs(level - 120) <= 51

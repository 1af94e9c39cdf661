"""Attention is kept in a byte a cell, and says multiples of the average."""

import numpy as np
import pytest
import torch

from model.attention import Attention
from model.ensemble import SHIPPED, Ensemble
from model.overlay import OPACITY, veil
from model.rollout import drawn
from model.tasks import Task

EVEN = np.full((2, 2, 3, 4), 1 / 24, np.float32)


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    return Ensemble.load(SHIPPED)


def test_even_attention_is_the_average_everywhere_and_shows_nothing() -> None:
    attention = Attention.of(EVEN)

    assert attention.octaves_Bthw == pytest.approx(0.0, abs=0.02)
    assert int(attention.heat_Bthw.max()) <= 2
    assert attention.slices == ((0.5, 0.5), (0.5, 0.5)) or attention.slices == ((0.5, 0.5),)


def test_a_cell_that_draws_four_times_the_average_is_two_octaves_hot() -> None:
    shares = EVEN.copy()
    shares[0, 1, 2, 3] *= 4.0

    attention = Attention.of(shares)

    assert attention.octaves_Bthw[0, 1, 2, 3] == pytest.approx(2.0, abs=0.02)
    assert attention.heat_Bthw[0, 1, 2, 3] == pytest.approx(255 * 2 / 3, abs=2)
    assert Attention.from_json(attention.to_json()) == attention


def test_no_attention_at_all_and_all_of_it_stay_within_the_scale() -> None:
    shares = np.zeros((1, 2, 3, 4), np.float32)
    shares[0, 0, 0, 0] = 1.0

    octaves = Attention.of(shares).octaves_Bthw

    assert (octaves.min(), octaves.max()) == (-4.0, 4.0)


def test_an_ensemble_s_attention_is_the_mean_of_its_members_rollouts(ensemble: Ensemble) -> None:
    spec = ensemble.spec
    clips = torch.rand(2, 3, spec.num_frames, spec.size, spec.size, generator=torch.Generator().manual_seed(1))

    attention = ensemble.attention(clips, [Task.LVEF])

    encoders = [one.network.encoder for one in ensemble._bundles]
    mean = torch.stack([drawn(one, clips[1], row=None) for one in encoders]).mean(dim=0)
    expected = (mean * mean.numel()).log2().clamp(-4, 4)
    assert attention.grid == encoders[0].grid
    assert attention.octaves_Bthw[1] == pytest.approx(expected.numpy(), abs=0.02)


def test_members_of_other_grids_have_one_vote_each_in_the_cells_of_the_first(
    ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ensemble.spec
    clip = torch.rand(1, 3, spec.num_frames, spec.size, spec.size)
    first = ensemble._bundles[0].network.encoder.grid
    corners = iter([(first, (0, 0, 0)), ((2, 4, 4), (1, 3, 3)), ((1, 1, 1), (0, 0, 0))])

    def one_corner(encoder: object, clip_CTHW: torch.Tensor, *, row: None) -> torch.Tensor:
        grid, corner = next(corners)
        shares = torch.zeros(grid)
        shares[corner] = 1.0
        return shares

    monkeypatch.setattr("model.rollout.drawn", one_corner)

    attention = ensemble.attention(clip, [Task.LVEF])

    # A third of all in the first cell, a third in the last half and quarter of each side, a third everywhere.
    assert sum(attention.slices[0]) == pytest.approx(1.0, abs=1e-3)
    halves = sum(attention.slices[0][: first[0] // 2]), sum(attention.slices[0][first[0] // 2 :])
    assert halves == pytest.approx((0.5, 0.5), abs=1e-3)
    octaves = attention.octaves_Bthw[0]
    assert octaves[0, 0, 0] == 4.0
    assert octaves[-1, -1, -1] > octaves[-1, 0, 0]
    assert octaves[0, -1, -1] == pytest.approx(np.log2(1 / 3), abs=0.05)


def test_a_veil_leaves_the_picture_where_there_is_no_heat_and_hides_most_of_it_where_it_is_hottest() -> None:
    frame = np.random.default_rng(1).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    heat = np.zeros((4, 5), np.uint8)
    heat[1, 2] = 255

    shown = veil(heat).over(frame)

    yellow = np.array([255, 255, 0])
    assert shown[1, 2] == pytest.approx((1 - OPACITY) * frame[1, 2] + OPACITY * yellow, abs=2)
    assert np.array_equal(np.delete(shown.reshape(-1, 3), 7, axis=0), np.delete(frame.reshape(-1, 3), 7, axis=0))


def test_a_veil_over_white_does_not_run_over() -> None:
    heat = np.arange(256, dtype=np.uint8).reshape(16, 16)

    shown = veil(heat).over(np.full((16, 16, 3), 255, np.uint8))

    assert int(shown[..., 0].min()) >= 253

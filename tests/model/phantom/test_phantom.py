"""Phantom hearts have the volumes that they claim, beat at their rate, and are drawn the same from the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.phantom.heart import ELONGATION, Heart, diameter_mm, random_heart
from model.phantom.scan import Screen, render
from model.tasks import View

HEARTS = st.builds(
    lambda edv, fraction, rate: Heart(edv_ml=edv, esv_ml=edv * (1.0 - fraction), heart_rate=rate),
    st.floats(60.0, 240.0),
    st.floats(0.1, 0.8),
    st.floats(40.0, 150.0),
)
PLAIN = Screen(has_ecg=False, has_marks=False)


@given(heart=HEARTS)
def test_a_beat_goes_from_the_largest_volume_to_the_smallest_and_back(heart: Heart) -> None:
    beat_ms = 60_000.0 / heart.heart_rate
    volumes = [heart.volume_ml(t) for t in np.linspace(0.0, beat_ms, 501)]

    assert volumes[0] == pytest.approx(heart.edv_ml)
    assert min(volumes) == pytest.approx(heart.esv_ml, rel=1e-3)
    assert all(heart.esv_ml - 1e-6 <= volume <= heart.edv_ml + 1e-6 for volume in volumes)
    assert volumes[-1] == pytest.approx(heart.edv_ml, rel=1e-3)


@given(heart=HEARTS, time_ms=st.floats(0.0, 2000.0), beats=st.integers(1, 5))
def test_every_beat_is_like_the_first(heart: Heart, time_ms: float, beats: int) -> None:
    later = time_ms + beats * 60_000.0 / heart.heart_rate

    assert heart.volume_ml(later) == pytest.approx(heart.volume_ml(time_ms), rel=1e-3)


@given(volume_ml=st.floats(10.0, 400.0))
def test_the_diameter_is_that_of_an_ellipsoid_of_the_volume(volume_ml: float) -> None:
    diameter = diameter_mm(volume_ml)

    assert np.pi / 6.0 * ELONGATION * diameter**3 / 1000.0 == pytest.approx(volume_ml)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_random_heart_is_an_adults(seed: int) -> None:
    heart = random_heart(np.random.default_rng(seed))

    assert 60.0 <= heart.edv_ml <= 240.0
    assert 15.0 <= heart.lvef_percent <= 75.0
    assert 0 <= heart.stenosis <= 4


@pytest.mark.parametrize("view", View)
def test_the_same_seed_draws_the_same_loop(view: View) -> None:
    loops = [loop(view, Screen(), seed) for seed in (7, 7, 8)]

    assert np.array_equal(loops[0], loops[1])
    assert not np.array_equal(loops[0], loops[2])


def loop(view: View, screen: Screen, seed: int, heart: Heart | None = None) -> np.ndarray:
    """Return half a beat."""
    heart = heart or Heart(edv_ml=120.0, esv_ml=50.0, heart_rate=60.0)
    rng = np.random.default_rng(seed)
    return render(heart, view, num_frames=10, frame_time_ms=40.0, rng=rng, screen=screen)


@pytest.mark.parametrize("view", View)
def test_nothing_is_drawn_outside_the_fan(view: View) -> None:
    frames = loop(view, PLAIN, 1)

    assert frames.shape == (10, 240, 320, 3)
    assert frames[:, :, :20].max() == 0
    assert frames[:, 225:].max() == 0
    assert frames[:, 60:200, 120:200].mean() > 20


def test_overlays_are_drawn_where_they_are_asked_for() -> None:
    frames = loop(View.A4C, Screen(), 1)

    assert frames[:, 225:, :, 1].max() > 200
    assert frames[0, :220, -8:].max() == 200


@pytest.mark.parametrize("view", [View.A4C, View.A2C, View.PLAX, View.PSAX])
def test_the_cavity_is_smaller_at_end_systole(view: View) -> None:
    frames = loop(view, PLAIN, 1)

    assert dark(frames[9], frames) < 0.75 * dark(frames[0], frames)


def dark(frame: np.ndarray, frames: np.ndarray) -> int:
    """Return the number of blood pixels in the part of the fan that moves."""
    moves = frames.max(axis=(0, 3)).astype(int) - frames.min(axis=(0, 3)) > 60
    return int(np.sum(moves & (frame[..., 0] < 45)))


@pytest.mark.parametrize("volume_ml", [70.0, 120.0, 180.0])
def test_the_diameter_in_the_picture_is_that_of_the_volume(volume_ml: float) -> None:
    still = Heart(edv_ml=volume_ml, esv_ml=volume_ml - 0.01)
    screen = Screen(rows=480, columns=640, has_ecg=False, has_marks=False)

    frame = render(still, View.PSAX, num_frames=1, frame_time_ms=1.0, rng=np.random.default_rng(5), screen=screen)[0]

    seen_mm = blood_height(frame) * screen.depth_mm / (0.9 * screen.rows)
    assert seen_mm == pytest.approx(diameter_mm(volume_ml), rel=0.04)


def blood_height(frame: np.ndarray) -> int:
    """Return the rows of the cavity in the columns at its middle."""
    profile = frame[60:330, 326:338, 0].mean(axis=1)
    return int(np.sum(profile < 60))


def test_colour_is_painted_over_the_blood_only_where_it_is_asked_for() -> None:
    grey, coloured = (loop(View.A4C, Screen(has_ecg=False, has_colour=has), 1) for has in (False, True))

    assert np.array_equal(grey[..., 0], grey[..., 2])
    assert np.mean(np.ptp(coloured.astype(int), axis=-1) > 60) > 0.05


def test_gain_makes_the_picture_brighter() -> None:
    means = [loop(View.A4C, Screen(gain=gain, has_ecg=False), 1).mean() for gain in (0.75, 1.0, 1.25)]

    assert means == sorted(means)
    assert means[2] > 1.1 * means[0]


def test_speckle_moves_with_the_wall() -> None:
    frames = loop(View.PSAX, Screen(rows=480, columns=640, has_ecg=False), 2)[..., 0].astype(float)

    far = correlation(frames[0][380:420, 280:380], frames[9][380:420, 280:380])
    wall = correlation(frames[0][100:125, 320:360], frames[9][100:125, 320:360])

    assert far > 0.8
    assert wall < 0.5


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation of two patches."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])

"""Phantom hearts have the volumes that they claim, beat at their rate, and are drawn the same from the same seed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.phantom.anatomy import Pose, random_pose
from model.phantom.heart import CUT, Heart, random_heart
from model.phantom.ranges import FRESH, TRAINING, Ranges
from model.phantom.scan import chords, outlines, render
from model.phantom.screen import Screen, random_screen
from model.tasks import View

HEARTS = st.builds(
    lambda edv, fraction, rate, elongation, roundness: Heart(
        edv_ml=edv, esv_ml=edv * (1.0 - fraction), heart_rate=rate, elongation=elongation, roundness=roundness
    ),
    st.floats(60.0, 240.0),
    st.floats(0.1, 0.8),
    st.floats(40.0, 150.0),
    st.floats(1.5, 2.0),
    st.floats(0.85, 1.15),
)
PLAIN = Screen(has_ecg=False, has_marks=False)


@given(heart=HEARTS)
def test_a_beat_goes_from_the_largest_volume_to_the_smallest_and_back(heart: Heart) -> None:
    volumes = [heart.volume_ml(t) for t in np.linspace(0.0, heart.beat_ms, 501)]

    assert volumes[0] == pytest.approx(heart.edv_ml)
    assert heart.volume_ml(heart.systole_ms) == pytest.approx(heart.esv_ml)
    assert all(heart.esv_ml - 1e-6 <= volume <= heart.edv_ml + 1e-6 for volume in volumes)
    assert volumes[-1] == pytest.approx(heart.edv_ml, rel=1e-3)


@given(heart=HEARTS, time_ms=st.floats(0.0, 2000.0), beats=st.integers(1, 5))
def test_every_beat_is_like_the_first(heart: Heart, time_ms: float, beats: int) -> None:
    assert heart.volume_ml(time_ms + beats * heart.beat_ms) == pytest.approx(heart.volume_ml(time_ms), rel=1e-3)


@settings(max_examples=30)
@given(heart=HEARTS, time_ms=st.floats(0.0, 1500.0))
def test_the_shape_holds_the_volume(heart: Heart, time_ms: float) -> None:
    """The cut ellipsoid, summed up slice by slice, holds what the heart says."""
    shape = heart.ventricle(time_ms)
    along = (np.arange(4000) + 0.5) * shape.length_mm / 4000
    share = 1.0 - ((along - shape.half_length_mm) / shape.half_length_mm) ** 2
    summed = np.sum(math.pi * shape.half_width_mm * shape.half_depth_mm * share) * shape.length_mm / 4000

    assert summed / 1000.0 == pytest.approx(heart.volume_ml(time_ms), rel=1e-4)
    assert shape.length_mm == pytest.approx((1.0 + CUT) * shape.half_length_mm)


@pytest.mark.parametrize("ranges", [TRAINING, FRESH])
def test_a_random_heart_lies_within_its_ranges(ranges: Ranges) -> None:
    hearts = [random_heart(np.random.default_rng(seed), ranges) for seed in range(200)]

    assert all(ranges.edv_ml[0] <= heart.edv_ml <= ranges.edv_ml[1] for heart in hearts)
    assert all(ranges.lvef_percent[0] - 1e-9 <= heart.lvef_percent <= ranges.lvef_percent[1] + 1e-9 for heart in hearts)
    assert {heart.stenosis for heart in hearts} == set(range(5))


def test_fresh_phantoms_go_beyond_those_of_training_on_every_side() -> None:
    for name in ("heart_rate", "elongation", "roundness", "wall_mm", "half_angle_degrees", "gain_db", "speckle"):
        inner, outer = getattr(TRAINING, name), getattr(FRESH, name)
        assert outer[0] < inner[0]
        assert outer[1] > inner[1]
    assert set(FRESH.vendors) - set(TRAINING.vendors)


@pytest.mark.parametrize("view", View)
def test_the_same_seed_draws_the_same_loop(view: View) -> None:
    loops = [loop(view, Screen(), seed) for seed in (7, 7, 8)]

    assert np.array_equal(loops[0], loops[1])
    assert not np.array_equal(loops[0], loops[2])


def loop(view: View, screen: Screen, seed: int, heart: Heart | None = None, **options: object) -> np.ndarray:
    """Return half a beat."""
    heart = heart or Heart(edv_ml=120.0, esv_ml=50.0, heart_rate=60.0)
    rng = np.random.default_rng(seed)
    return render(heart, view, num_frames=10, frame_time_ms=40.0, rng=rng, screen=screen, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("view", View)
def test_nothing_is_drawn_outside_the_fan(view: View) -> None:
    frames = loop(view, PLAIN, 1)

    assert frames.shape == (10, 240, 320, 3)
    assert frames[:, :, :20].max() == 0
    assert frames[:, 225:].max() == 0
    assert frames[:, 60:200, 120:200].mean() > 20


def test_overlays_are_drawn_where_they_are_asked_for() -> None:
    plain, marked = loop(View.A4C, PLAIN, 1), loop(View.A4C, Screen(has_text=True), 1)

    assert marked[:, 225:, :, 1].max() > 200
    assert marked[0, :220, -20:].max() > plain[0, :220, -20:].max()
    assert marked[0, :40, :30].max() > plain[0, :40, :30].max()


@pytest.mark.parametrize("view", [View.A4C, View.A2C])
def test_the_outlines_shrink_as_the_volume_does(view: View) -> None:
    heart = Heart(edv_ml=140.0, esv_ml=60.0)
    areas = [
        int(np.sum(outlines(heart, view, time_ms, screen=PLAIN, pose=Pose()) == 1))
        for time_ms in (0.0, heart.systole_ms)
    ]

    # An area goes with the volume's power of two thirds, or nearly.
    assert areas[1] / areas[0] == pytest.approx((60.0 / 140.0) ** (2 / 3), abs=0.05)


@pytest.mark.parametrize("view", [View.A4C, View.A2C])
def test_the_picture_is_dark_where_the_outline_says_cavity(view: View) -> None:
    heart, pose = Heart(edv_ml=140.0, esv_ml=60.0), Pose(shift_x_mm=3.0, tilt_degrees=5.0)
    frame = loop(view, PLAIN, 2, heart, pose=pose)[0, ..., 0].astype(float)
    labels = outlines(heart, view, 0.0, screen=PLAIN, pose=pose)
    inside = frame > 0  # what lies beyond the fan shows nothing

    assert frame[(labels == 1) & inside].mean() < 40
    assert frame[(labels == 2) & inside].mean() > 80


@settings(max_examples=20)
@given(heart=HEARTS, seed=st.integers(0, 99))
def test_the_chords_give_the_area_of_the_outline(heart: Heart, seed: int) -> None:
    rng = np.random.default_rng(seed)
    screen, pose = random_screen(rng), random_pose(rng)
    (x1, y1, x2, y2), *across = chords(heart, View.A4C, 0.0, screen=screen, pose=pose)
    pixels = np.sum(outlines(heart, View.A4C, 0.0, screen=screen, pose=pose) == 1)

    length = math.hypot(x2 - x1, y2 - y1)
    area = sum(math.hypot(b - a, d - c) for a, c, b, d in across) * length / len(across)
    assert area == pytest.approx(pixels, rel=0.02)


def test_a_heart_at_twice_the_depth_fills_a_quarter() -> None:
    heart = Heart(edv_ml=100.0, esv_ml=50.0)
    pixels = [
        int(np.sum(outlines(heart, View.A4C, 0.0, screen=Screen(depth_mm=depth), pose=Pose()) == 1))
        for depth in (120.0, 240.0)
    ]

    assert pixels[0] / pixels[1] == pytest.approx(4.0, rel=0.03)


def test_colour_is_painted_over_the_blood_only_where_it_is_asked_for() -> None:
    grey, coloured = (loop(View.A4C, Screen(has_ecg=False, has_colour=has), 1) for has in (False, True))

    assert np.array_equal(grey[..., 0], grey[..., 2])
    assert np.mean(np.ptp(coloured.astype(int), axis=-1) > 60) > 0.05


def test_gain_makes_the_picture_brighter() -> None:
    means = [loop(View.A4C, Screen(gain_db=gain, has_ecg=False), 1).mean() for gain in (-4.0, 0.0, 4.0)]

    assert means == sorted(means)
    assert means[2] > 1.1 * means[0]


def test_a_tight_valve_is_thick_and_bright() -> None:
    def brightness(stenosis: int) -> float:
        heart = Heart(edv_ml=120.0, esv_ml=50.0, stenosis=stenosis)
        return float(loop(View.PSAX, PLAIN, 3, heart, pose=Pose(variant=0.1))[:, 70:110, 140:185].mean())

    levels = [brightness(stenosis) for stenosis in range(5)]

    assert levels == sorted(levels)
    assert levels[4] > 1.2 * levels[0]


def test_speckle_moves_with_the_wall() -> None:
    """The texture of the muscle at end-diastole is found again where the wall has gone to, not where it was."""
    heart, pose = Heart(edv_ml=180.0, esv_ml=70.0, heart_rate=60.0), Pose(variant=0.9)
    screen = Screen(rows=480, columns=640, has_ecg=False, noise_db=-80.0)
    frames = render(heart, View.PSAX, num_frames=2, frame_time_ms=heart.systole_ms / 2, rng=np.random.default_rng(1),
                    screen=screen, pose=pose)[..., 0].astype(float)  # fmt: skip
    patch = frames[0][120:150, 300:360]

    def match(rows: int) -> float:
        moved = frames[1][120 + rows : 150 + rows, 300:360]
        return float(np.corrcoef(patch.ravel(), moved.ravel())[0, 1])

    found = max(range(-40, 41), key=match)
    assert found != 0
    assert match(found) > match(0) + 0.05

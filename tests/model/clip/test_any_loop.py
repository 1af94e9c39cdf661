"""Whatever a header claims, a file gives a clip, or an error of ours that says why not."""

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.sequence import Sequence

from model.clip.loop import Clips, load_clips
from model.clip.spec import ClipSpec
from model.errors import ClipError
from model.phantom.heart import Heart
from model.phantom.scan import render
from model.tasks import View
from tests.doubles.loops import header, write

HEART = render(Heart(edv_ml=120.0, esv_ml=50.0), View.A4C, num_frames=16, frame_time_ms=60.0,
               rng=np.random.default_rng(0))  # fmt: skip

MOST_BYTES = 6_000_000
"""Larger claims are written with fewer pixels than they say, as a file that broke off in transfer."""

SPECS = (ClipSpec(size=32), ClipSpec(size=32, crop="sector"), ClipSpec(size=32, crop="sector", depth_mm=140.0))

CORNERS = st.one_of(st.integers(-20, 5000), st.sampled_from([0, 2**31 - 1, -(2**31)]))
DELTAS = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 0.03, -0.03, 1e300]))


@st.composite
def regions(draw: st.DrawFn) -> Dataset:
    """Return a region that may lie anywhere, be inverted, and have any scale."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType = draw(st.integers(0, 6)), draw(st.integers(0, 18))
    x0, y0, x1, y1 = draw(st.tuples(*[CORNERS] * 4))
    # What does not fit an unsigned number is written as the bits that a broken cart would leave.
    item.RegionLocationMinX0, item.RegionLocationMinY0 = x0 % 2**32, y0 % 2**32
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = x1 % 2**32, y1 % 2**32
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = draw(st.integers(0, 12))
    for axis in "XY":
        delta = draw(DELTAS)
        if delta is not None:
            setattr(item, f"PhysicalDelta{axis}", delta)
    return item


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@example(frames=2000, rows=32, columns=32, times={}, places=[], spec=SPECS[1], seed=0)
@example(frames=2000, rows=4096, columns=4096, times={}, places=[], spec=SPECS[0], seed=0)
@example(frames=16, rows=240, columns=320, times={"HeartRate": 0, "FrameTime": 0.0}, places=[], spec=SPECS[1], seed=0)
@given(
    frames=st.one_of(st.integers(1, 40), st.integers(1, 2000)),
    rows=st.one_of(st.integers(2, 200), st.integers(2, 4096)),
    columns=st.one_of(st.integers(2, 200), st.integers(2, 4096)),
    times=st.fixed_dictionaries(
        {},
        optional={
            "FrameTime": st.sampled_from([0.0, -1.0, 1e-9, 33.3, 1e30]),
            "CineRate": st.integers(-(2**31), 2**31 - 1),
            "RecommendedDisplayFrameRate": st.integers(-(2**31), 2**31 - 1),
            "HeartRate": st.one_of(st.integers(-(2**31), 2**31 - 1), st.just([60, 70])),
        },
    ),
    places=st.lists(regions(), max_size=3),
    spec=st.sampled_from(SPECS),
    seed=st.integers(0, 9),
)
def test_a_file_gives_a_clip_or_a_reason(
    frames: int, rows: int, columns: int, times: dict[str, object], places: list[Dataset], spec: ClipSpec, seed: int
) -> None:
    dataset = header(frames, rows, columns, SequenceOfUltrasoundRegions=Sequence(places), **times)

    clip = clip_of(dataset, pixels_of(frames, rows, columns, seed), spec)

    assert clip is None or max(clip.indices[0]) < frames


@pytest.mark.parametrize("spec", SPECS)
def test_a_heart_under_a_sane_header_gives_a_clip(spec: ClipSpec) -> None:
    """What the test above draws from is no row of refusals alone."""
    place = Dataset()
    place.RegionSpatialFormat = place.RegionDataType = 1
    place.RegionLocationMinX0 = place.RegionLocationMinY0 = 0
    place.RegionLocationMaxX1, place.RegionLocationMaxY1 = 319, 220
    place.PhysicalUnitsXDirection = place.PhysicalUnitsYDirection = 3
    place.PhysicalDeltaX = place.PhysicalDeltaY = 0.0741

    for frames, rows, columns in ((16, 240, 320), (8, 240, 320), (26, 240, 320)):
        dataset = header(frames, rows, columns, SequenceOfUltrasoundRegions=Sequence([place]))

        assert clip_of(dataset, pixels_of(frames, rows, columns, seed=0), spec) is not None


def pixels_of(frames: int, rows: int, columns: int, seed: int) -> bytes:
    """Return a heart, drawn out to any size (even seeds), or noise, as many bytes of it as `MOST_BYTES` allows."""
    if seed % 2:
        num_bytes = min(frames * rows * columns * 3, MOST_BYTES)
        return np.random.default_rng(seed).integers(0, 256, num_bytes, dtype=np.uint8).tobytes()
    y, x = (np.arange(rows) * 240) // rows, (np.arange(columns) * 320) // columns
    held = max(1, min(frames, MOST_BYTES // (rows * columns * 3)))
    return b"".join(HEART[number % 16][y[:, None], x].tobytes() for number in range(held))


def clip_of(dataset: Dataset, pixels: bytes, spec: ClipSpec) -> Clips | None:
    """Return the clip of a file, whole as the recipe says; None: the file was refused by an error of ours."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            clip = load_clips(write(Path(folder) / "a.dcm", dataset, pixels), spec)
        except ClipError as error:
            assert str(error), "a reason has words"  # noqa: PT017
            return None
    assert clip.pixels_BCTSS[0].shape == (3, 16, 32, 32)
    assert len(clip.indices[0]) == 16
    assert math.isfinite(float(clip.pixels_BCTSS[0].sum()))
    return clip


def test_the_whole_of_a_long_loop_is_reached() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, 2000 * 96 * 96 * 1, dtype=np.uint8)
    dataset = header(2000, 96, 96, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", PlanarConfiguration=None)
    with tempfile.TemporaryDirectory() as folder:
        clip = load_clips(write(Path(folder) / "a.dcm", dataset, pixels.tobytes()), ClipSpec(size=32))

    assert clip.indices[0][-1] == 1999
    assert float(clip.pixels_BCTSS[0].mean()) == pytest.approx(0.5, abs=0.01)

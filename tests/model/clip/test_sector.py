"""The sector on the screen: found as it is on phantoms, whose truth is known, and on real loops, as the eye sees it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from numpy.typing import NDArray

from model.clip.dicom import open_loop
from model.clip.find_sector import find_sector
from model.clip.scale import picture_region
from model.clip.sector import BOX_ASPECT, Sector
from model.clip.select import Reason
from model.clip.source import Frames, Region
from model.clip.spec import ClipSpec, frame_indices
from model.clip.transform import make_clip, make_still
from model.errors import NotALoop
from model.phantom.anatomy import random_pose
from model.phantom.heart import random_heart
from model.phantom.ranges import FRESH, MIXED_DEPTHS_MM
from model.phantom.scan import render
from model.phantom.screen import Screen, fan_of, random_screen
from model.tasks import View
from tests.doubles.loops import PLAIN

SPEC = ClipSpec(size=112, crop="sector")
RANGES = replace(FRESH, depth_mm=MIXED_DEPTHS_MM, factors=(1.0,))

Point = tuple[int, int]

# x, y on the screen, read off the pictures: (in the sector, near its edges), (outside: text, traces, logos, marks)
SEEN: dict[str, tuple[list[Point], list[Point]]] = {
    "hp_ped_I_000001.dcm": (
        [(240, 15), (116, 200), (385, 190), (240, 340)],
        [(60, 390), (390, 100), (60, 60), (430, 60)],
    ),
    "hp_ped_I_000004.dcm": (
        [(240, 15), (116, 200), (385, 190), (240, 340)],
        [(60, 390), (390, 100), (60, 60), (430, 60)],
    ),
    "acuson_stress_I_000007.dcm": ([(190, 30), (10, 230), (375, 130), (375, 260)], [(20, 40), (20, 100)]),
    "acuson_stress_I_000009.dcm": ([(190, 25), (8, 270), (375, 250)], [(20, 40), (10, 100), (375, 60)]),
    "acuson_stress_I_000018.dcm": ([(200, 45), (10, 190), (375, 190), (200, 270)], [(262, 34), (20, 60), (370, 60)]),
    "sonosite_apical_ybr.dcm": (
        [(170, 25), (75, 140), (280, 140), (170, 190)],
        [(10, 10), (310, 60), (100, 232), (297, 110)],
    ),
    "toshiba_adult_I_000031.dcm": (
        [(400, 130), (165, 420), (660, 380), (400, 495)],
        [(60, 550), (60, 150), (740, 500), (690, 530)],
    ),
}
CINES = [
    "hp_ped_I_000001.dcm",
    "hp_ped_I_000004.dcm",
    *(f"acuson_stress_I_0000{number:02}.dcm" for number in range(7, 19)),
    "toshiba_adult_I_000031.dcm",
    "sonosite_apical_ybr.dcm",
]


# Dark vessels and blood cut their pictures in two, or they fade into the noise at the sides.
HARD = (19, 28, 30, 37, 47, 131, 152, 157, 167, 170)


def phantom(number: int, *, seed: int = 7) -> tuple[Frames, NDArray[np.bool_]]:
    """Return a loop beyond the ranges of training, as JPEG leaves it, and its true sector."""
    rng = np.random.default_rng([seed, number])
    screen = random_screen(rng, RANGES)
    view = list(View)[number % len(View)]
    frames_THWC = render(random_heart(rng, RANGES), view, num_frames=16, frame_time_ms=float(rng.uniform(40, 100)),
                         rng=rng, screen=screen, pose=random_pose(rng, RANGES))  # fmt: skip
    truth_HW = np.zeros((screen.rows, screen.columns), dtype=np.bool_)
    truth_HW.reshape(-1)[fan_of(screen).inside] = True
    return np.stack([compressed(frame) for frame in frames_THWC]), truth_HW


def compressed(frame_HWC: Frames) -> Frames:
    """Return a frame after JPEG."""
    return simplejpeg.decode_jpeg(
        simplejpeg.encode_jpeg(np.ascontiguousarray(frame_HWC), quality=90, colorsubsampling="422")
    )


def real(path: Path) -> Frames:
    """Return the sampled frames of a file."""
    source = open_loop(path)
    return source.read(frame_indices(source.header.num_frames, 16))


def found(frames_THWC: Frames) -> Sector:
    """Return the sector, which must be found."""
    sector = find_sector(frames_THWC)
    assert sector is not None
    return sector


@pytest.mark.parametrize(("seed", "number"), [*((7, number) for number in range(25)), *((77, hard) for hard in HARD)])
def test_the_sector_of_a_phantom_is_its_true_one(seed: int, number: int) -> None:
    frames, truth = phantom(number, seed=seed)

    mask = found(frames).mask_HW

    assert (mask & truth).sum() / (mask | truth).sum() >= 0.97


@pytest.mark.parametrize("name", SEEN)
def test_the_sector_of_a_real_loop_is_where_the_eye_sees_it(shared_data: Path, name: str) -> None:
    inside, outside = SEEN[name]

    mask = found(real(shared_data / "us" / name)).mask_HW

    assert {(x, y) for x, y in inside if not mask[y, x]} == set(), "cut away"
    assert {(x, y) for x, y in outside if mask[y, x]} == set(), "left in"


def beside_a_waterfall() -> tuple[Frames, Region, Sector]:
    """Return a loop beside something that moves and is grey; the region of the loop; the sector of the loop alone."""
    frames, _ = phantom(0)
    num_frames, rows, columns, _ = frames.shape
    screen = np.zeros((num_frames, rows, 3 * columns, 3), dtype=np.uint8)
    screen[:, :, :columns] = frames
    screen[:, rows // 2 :, columns:] = np.random.default_rng(1).integers(
        0, 256, (num_frames, rows - rows // 2, 2 * columns, 1)
    )
    region = Region(spatial_format=1, data_type=1, x0=0, y0=0, x1=columns - 1, y1=rows - 1)
    return screen, region, found(frames)


def likeness(sector: Sector, alone: Sector) -> float:
    """Return the IoU of a sector and one of a narrower screen."""
    mask, truth = sector.mask_HW, np.zeros_like(sector.mask_HW)
    truth[:, : alone.columns] = alone.mask_HW
    return float((mask & truth).sum() / (mask | truth).sum())


def test_the_header_s_region_tells_which_of_what_moves_is_the_picture() -> None:
    screen, region, alone = beside_a_waterfall()

    misled, sector = find_sector(screen), find_sector(screen, region)

    assert misled is None or likeness(misled, alone) < 0.5
    assert sector is not None
    assert likeness(sector, alone) >= 0.97


@pytest.mark.parametrize("part", [(1.0, 0.5), (0.5, 1.0), (0.6, 0.6)])
def test_a_region_that_cuts_through_the_picture_is_not_believed(part: tuple[float, float]) -> None:
    """Somebody enlarged the image, or the header is of another one: the picture is never cut."""
    frames, _ = phantom(0)
    _, rows, columns, _ = frames.shape
    down, across = part
    region = Region(
        spatial_format=1, data_type=1, x0=0, y0=0, x1=round(across * columns) - 1, y1=round(down * rows) - 1
    )

    assert find_sector(frames, region) == find_sector(frames)


def test_a_region_that_agrees_changes_nothing() -> None:
    frames, _ = phantom(3)
    _, rows, columns, _ = frames.shape
    whole = Region(spatial_format=1, data_type=1, x0=0, y0=0, x1=columns - 1, y1=rows - 1)

    assert find_sector(frames, whole) == find_sector(frames)


@pytest.mark.parametrize("name", CINES)
def test_the_regions_of_real_headers_cut_nothing_away(shared_data: Path, name: str) -> None:
    source = open_loop(shared_data / "us" / name)

    assert find_sector(real(shared_data / "us" / name), picture_region(source.header)) == found(
        real(shared_data / "us" / name)
    )


@pytest.mark.parametrize(
    ("places", "is_used"),
    [
        ([(10, 10, 80, 80)], True),
        ([(10, 10, 80, 80), (10, 10, 80, 80)], True),
        ([(10, 10, 80, 80), (100, 10, 180, 80)], False),
        ([(10, 10, 300, 80)], False),
        ([(80, 10, 10, 80)], False),
        ([], False),
    ],
    ids=["one", "colour over B-mode", "two pictures", "outside the image", "inverted", "none"],
)
def test_a_region_that_cannot_be_is_not_used(places: list[tuple[int, int, int, int]], *, is_used: bool) -> None:
    regions = tuple(
        Region(spatial_format=1, data_type=number + 1, x0=x0, y0=y0, x1=x1, y1=y1)
        for number, (x0, y0, x1, y1) in enumerate(places)
    )

    assert (picture_region(replace(PLAIN, rows=100, columns=200, regions=regions)) is not None) == is_used


@pytest.mark.parametrize("name", CINES)
def test_what_moves_in_a_real_loop_is_not_cut_away(shared_data: Path, name: str) -> None:
    frames = real(shared_data / "us" / name)
    rows, columns = frames.shape[1:3]
    moves = np.ptp(frames.max(axis=-1).astype(np.int16), axis=0) > 40
    heart = moves[rows // 6 : 3 * rows // 4, columns // 4 : 3 * columns // 4]

    mask = found(frames).mask_HW[rows // 6 : 3 * rows // 4, columns // 4 : 3 * columns // 4]

    assert (heart & ~mask).sum() <= 0.002 * heart.sum()


def test_the_box_has_one_shape_and_holds_the_whole_sector() -> None:
    for number in range(5):
        frames, _ = phantom(number)
        sector = found(frames)

        box = sector.cut_out(frames)

        _, _, height, width = sector.box
        assert box.shape == (16, height, width, 3)
        assert abs(width / height - BOX_ASPECT) < 0.01
        inside = np.where(sector.mask_HW[None, ..., None], frames, 0)
        assert int(box.sum(dtype=np.int64)) == int(inside.sum(dtype=np.int64))


def test_what_stands_beside_the_sector_does_not_reach_the_network() -> None:
    frames, _ = phantom(1)
    rng = np.random.default_rng(0)
    written = frames.copy()
    # As text is: still, away from the sector, any brightness.
    for _ in range(30):
        y, x = int(rng.integers(0, 30)), int(rng.integers(0, 60))
        written[:, y : y + 5, x : x + 3] = rng.integers(0, 256, 3)

    assert not np.array_equal(written, frames)
    assert torch.equal(make_clip(written, SPEC), make_clip(frames, SPEC))


@pytest.mark.parametrize("level", [9, 40, 90])
def test_a_lit_screen_hides_no_sector(level: int) -> None:
    frames, truth = phantom(3)
    lit = frames.copy()
    lit[:, ~truth] = np.maximum(lit[:, ~truth], level)

    mask = found(lit).mask_HW

    assert (mask & truth).sum() / (mask | truth).sum() >= 0.97


def test_repeated_and_reversed_frames_change_nothing() -> None:
    frames, _ = phantom(2)
    sector = found(frames[:10])

    repeated = found(frames[np.repeat(np.arange(10), [1, 2, 1, 2, 2, 1, 2, 2, 1, 2])])
    backwards = found(frames[:10][::-1])

    assert np.array_equal(sector.mask_HW, repeated.mask_HW)
    assert np.array_equal(sector.mask_HW, backwards.mask_HW)


def test_a_sector_that_was_kept_is_the_same_to_the_last_bit() -> None:
    for number in range(4):
        frames, _ = phantom(number)
        sector = found(frames)

        kept = Sector.from_json(json.loads(json.dumps(sector.to_json())))

        assert kept == sector
        assert np.array_equal(kept.cut_out(frames), sector.cut_out(frames))


def test_a_still_is_cut_by_what_moves_in_its_loop() -> None:
    frames, _ = phantom(3)

    still = make_still(frames[8], SPEC, found(frames))

    assert torch.equal(still, make_clip(frames, SPEC)[:, 8])


@pytest.mark.parametrize(
    "frames",
    [
        np.full((16, 240, 320, 3), 90, dtype=np.uint8),
        np.zeros((16, 64, 64, 3), dtype=np.uint8),
        np.repeat(np.random.default_rng(0).integers(0, 256, (1, 200, 200, 3), dtype=np.uint8), 16, axis=0),
    ],
    ids=["grey", "black", "frozen"],
)
def test_a_loop_without_a_sector_is_refused_by_the_recipe_that_needs_one(frames: Frames) -> None:
    with pytest.raises(NotALoop) as caught:
        make_clip(frames, SPEC)

    assert caught.value.reason is Reason.NO_SECTOR


def test_without_a_crop_the_whole_screen_is_squashed_as_the_paper_does() -> None:
    frames = np.full((16, 240, 320, 3), 90, dtype=np.uint8)

    assert float(make_clip(frames, ClipSpec(size=112)).min()) == pytest.approx(90 / 255)


@settings(max_examples=150)
@given(
    st.tuples(st.integers(1, 17), st.integers(1, 70), st.integers(1, 70)).flatmap(
        lambda shape: nps.arrays(np.uint8, (*shape, 3), elements=st.integers(0, 255), fill=st.just(0))
    )
)
def test_any_frames_give_a_sector_or_none(frames: Frames) -> None:
    sector = find_sector(frames)

    if sector is not None:
        assert sector.mask_HW.shape == frames.shape[1:3]
        assert sector.cut_out(frames).shape[1:3] == sector.box[2:]


@settings(max_examples=40)
@given(rows=st.integers(2, 600), columns=st.integers(2, 600), seed=st.integers(0, 99))
def test_noise_of_any_size_gives_a_sector_or_none(rows: int, columns: int, seed: int) -> None:
    frames = np.random.default_rng(seed).integers(0, 256, (2, rows, columns, 3), dtype=np.uint8)

    sector = find_sector(frames)

    assert sector is None or sector.mask_HW.any()


def test_a_bare_screen_has_the_sector_of_one_with_writing() -> None:
    rng = np.random.default_rng(4)
    heart, pose = random_heart(rng), random_pose(rng)
    full = Screen(has_ecg=True, has_marks=True, has_text=True)
    bare = replace(full, has_ecg=False, has_marks=False, has_text=False)
    masks = [
        found(render(heart, View.A4C, num_frames=16, frame_time_ms=60.0, rng=np.random.default_rng(1), screen=screen,
                     pose=pose)).mask_HW
        for screen in (full, bare)
    ]  # fmt: skip

    assert (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum() > 0.98

"""The scale of a picture: taken from headers that can be right, and what a recipe of fixed depth makes of it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from model.clip.dicom import open_loop
from model.clip.loop import load_clips, load_still
from model.clip.scale import Scale, scale_of
from model.clip.sector import Sector
from model.clip.select import Reason
from model.clip.source import Frames, Region
from model.clip.spec import ClipSpec, frame_indices
from model.clip.transform import SHOWN_MM, cut_out, locate, make_clip
from model.errors import NotALoop
from model.phantom.heart import Heart
from model.phantom.scan import render
from model.phantom.screen import Screen, fan_of
from model.tasks import View
from tests.doubles.loops import PLAIN

SPEC = ClipSpec(size=112, crop="sector", depth_mm=140.0)
FITTED = ClipSpec(size=112, crop="sector")
PICTURE = Region(spatial_format=1, data_type=1, x0=40, y0=4, x1=438, y1=353, row_mm=0.25, column_mm=0.3)
TRACE = Region(spatial_format=4, data_type=10, x0=40, y0=374, x1=257, y1=406)
HEADER = replace(PLAIN, rows=430, columns=480, regions=(PICTURE,))

# Depth of the picture in mm, read off the marks on the screens by eye; None: the header must not be believed.
SEEN_MM = {
    "hp_ped_I_000001.dcm": 80,
    "toshiba_adult_I_000031.dcm": 140,
    "sonosite_apical_ybr.dcm": None,  # made half as large after the header was written: it would be 100, and is 190
}


@pytest.mark.parametrize(
    ("regions", "scale"),
    [
        ((PICTURE,), Scale(0.25, 0.3)),
        ((PICTURE, TRACE), Scale(0.25, 0.3)),
        ((PICTURE, replace(PICTURE, data_type=2)), Scale(0.25, 0.3)),
        ((PICTURE, replace(PICTURE, row_mm=None, column_mm=None)), None),
        ((replace(PICTURE, spatial_format=0, row_mm=None, column_mm=None), PICTURE), Scale(0.25, 0.3)),  # an Acuson
        ((replace(PICTURE, x1=480, y1=430),), Scale(0.25, 0.3)),  # one beyond the last, as some carts write
        ((), None),
        ((TRACE,), None),
        ((replace(PICTURE, row_mm=None),), None),
        ((replace(PICTURE, column_mm=None),), None),
        ((replace(PICTURE, row_mm=0.0),), None),
        ((replace(PICTURE, row_mm=math.nan),), None),
        ((replace(PICTURE, column_mm=math.inf),), None),
        ((replace(PICTURE, row_mm=2.5, column_mm=2.5),), None),
        ((replace(PICTURE, row_mm=0.01, column_mm=0.01),), None),
        ((replace(PICTURE, column_mm=0.6),), None),
        ((PICTURE, replace(PICTURE, row_mm=0.26)), None),
        ((replace(PICTURE, x1=595),), None),
        ((replace(PICTURE, y1=480),), None),
        ((replace(PICTURE, x0=-5),), None),
        ((replace(PICTURE, x0=438, x1=40),), None),
    ],
)
def test_a_header_is_believed_where_it_can_be_right(regions: tuple[Region, ...], scale: Scale | None) -> None:
    found = scale_of(replace(HEADER, regions=regions))

    assert (None if found is None else found[:2]) == (None if scale is None else scale[:2])


@pytest.mark.parametrize("name", SEEN_MM)
def test_the_scale_of_a_real_loop_is_that_of_the_marks_on_its_screen(shared_data: Path, name: str) -> None:
    source = open_loop(shared_data / "us" / name)
    scale, seen = scale_of(source.header), SEEN_MM[name]

    if seen is None:
        assert scale is None
    else:
        assert scale is not None
        sector = locate(source.read(frame_indices(source.header.num_frames, 16)), FITTED, None)
        assert sector is not None
        assert sector.extent[2] * scale.row_mm == pytest.approx(seen, rel=0.03)


def test_an_acuson_counts_to_the_left(shared_data: Path) -> None:
    """Its Physical Delta X is below zero; a pixel is as wide all the same."""
    (silent, picture) = open_loop(shared_data / "us" / "acuson_stress_I_000007.dcm").header.regions

    assert (silent.row_mm, silent.column_mm) == (None, None)
    assert (picture.row_mm, picture.column_mm) == (pytest.approx(0.3628, abs=1e-4), pytest.approx(0.3628, abs=1e-4))


def seen_at(depth_mm: float, *, pixel_ratio: float = 1.0) -> tuple[Frames, Scale, NDArray[np.bool_]]:
    """Return one and the same heart as a screen of this depth shows it, the screen's scale, and its true sector."""
    screen = Screen(depth_mm=depth_mm, pixel_ratio=pixel_ratio, half_angle_degrees=38.0, has_marks=False)
    frames_THWC = render(Heart(edv_ml=120.0, esv_ml=50.0), View.A4C, num_frames=16, frame_time_ms=60.0,
                         rng=np.random.default_rng(0), screen=screen)  # fmt: skip
    truth_HW = np.zeros((screen.rows, screen.columns), dtype=np.bool_)
    truth_HW.reshape(-1)[fan_of(screen).inside] = True
    return frames_THWC, Scale(screen.row_mm, screen.column_mm), truth_HW


def likeness(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the correlation of two clips, each blurred to cells of 4 pixels so that speckle does not decide."""
    pair = torch.stack([torch.nn.functional.avg_pool2d(clip.mean(dim=0), 4).flatten() for clip in (one, other)])
    return float(torch.corrcoef(pair)[0, 1])


@pytest.mark.parametrize("depth_mm", [180.0, 200.0, 220.0])
def test_a_heart_has_one_size_whatever_the_depth_of_its_loop(depth_mm: float) -> None:
    usual, usual_scale, _ = seen_at(150.0)
    other, other_scale, _ = seen_at(depth_mm)

    physical = likeness(make_clip(usual, SPEC, usual_scale), make_clip(other, SPEC, other_scale))
    fitted = likeness(make_clip(usual, FITTED), make_clip(other, FITTED))

    assert physical > 0.9
    assert physical > fitted + 0.1


def test_pixels_that_are_not_square_give_the_same_heart() -> None:
    square, square_scale, _ = seen_at(150.0)
    wide, wide_scale, _ = seen_at(150.0, pixel_ratio=1.25)

    assert likeness(make_clip(square, SPEC, square_scale), make_clip(wide, SPEC, wide_scale)) > 0.85


def test_the_box_is_as_deep_as_the_recipe_says() -> None:
    frames, scale, _ = seen_at(200.0)

    sector = locate(frames, SPEC, scale)

    assert sector is not None
    assert sector.box[2] * scale.row_mm == pytest.approx(140.0, abs=scale.row_mm)
    assert sector.box[3] * scale.column_mm == pytest.approx(140.0 * 1.44, abs=scale.column_mm)
    assert sector.box[0] == sector.extent[0]
    assert cut_out(frames, sector).shape == (16, sector.box[2], sector.box[3], 3)


def test_a_sector_of_a_fixed_depth_is_kept_to_the_last_bit() -> None:
    frames, scale, _ = seen_at(120.0)
    sector = locate(frames, SPEC, scale)
    assert sector is not None

    kept = Sector.from_json(json.loads(json.dumps(sector.to_json())))

    assert kept == sector
    assert np.array_equal(kept.cut_out(frames), sector.cut_out(frames))


def test_a_sector_kept_before_there_were_depths_is_read() -> None:
    frames, scale, _ = seen_at(120.0)
    sector = locate(frames, FITTED, scale)
    assert sector is not None
    document = sector.to_json()
    del document["box_shape"]

    assert Sector.from_json(document) == sector


@pytest.mark.parametrize(
    ("scale", "detail"),
    [
        (None, ""),
        (Scale(1.9, 1.9), "by the header the picture is 4"),
        (Scale(0.05, 0.05), "the picture is 1"),
        (Scale(0.7, 0.7, 110), "2.0 times as high as the region"),  # somebody enlarged the image
        (Scale(0.7, 0.7, 470), "0.5 times as high"),
    ],
)
def test_a_loop_without_a_usable_scale_is_refused(scale: Scale | None, detail: str) -> None:
    frames, _, _ = seen_at(160.0)

    with pytest.raises(NotALoop) as caught:
        make_clip(frames, SPEC, scale)

    assert caught.value.reason is Reason.NO_SCALE
    assert detail in caught.value.detail


def test_a_recipe_that_keeps_the_scale_free_asks_no_header() -> None:
    frames, scale, _ = seen_at(160.0)

    assert torch.equal(make_clip(frames, FITTED, scale), make_clip(frames, FITTED))


def test_a_depth_without_a_sector_is_no_recipe() -> None:
    with pytest.raises(ValidationError, match='needs crop = "sector"'):
        ClipSpec(depth_mm=140.0)


def test_a_real_loop_and_its_still_are_cut_alike(shared_data: Path) -> None:
    path = shared_data / "us" / "toshiba_adult_I_000031.dcm"

    clip = load_clips(path, SPEC)

    assert clip.sector is not None
    assert clip.sector.box_shape is not None
    assert torch.equal(load_still(path, SPEC, clip.sector), clip.pixels_BCTSS[0][:, 8])
    with pytest.raises(NotALoop) as caught:
        load_clips(shared_data / "us" / "sonosite_apical_ybr.dcm", SPEC)
    assert caught.value.reason is Reason.NO_SCALE


def test_a_screen_of_tiny_pixels_is_refused_before_its_box_fills_the_memory() -> None:
    still = np.zeros((16, 2160, 4096, 3), dtype=np.uint8)
    frames, _, _ = seen_at(160.0)
    still[:, :1920, :2560] = np.repeat(np.repeat(frames, 8, axis=1), 8, axis=2)

    with pytest.raises(NotALoop) as caught:
        locate(still, replace_depth(400.0), Scale(0.025, 0.025))

    assert caught.value.reason is Reason.NO_SCALE
    assert "16000 x 23040 pixels" in caught.value.detail


def replace_depth(depth_mm: float) -> ClipSpec:
    """Return the recipe with another depth."""
    return SPEC.model_copy(update={"depth_mm": depth_mm})


SIZES = st.one_of(st.floats(), st.floats(0.01, 3.0))


@given(row_mm=SIZES, column_mm=SIZES, depth_mm=st.floats(20, 400))
@example(row_mm=0.72, column_mm=0.72, depth_mm=140.0)
def test_any_scale_gives_a_clip_or_a_reason(row_mm: float, column_mm: float, depth_mm: float) -> None:
    frames, _, _ = ANY
    found = scale_of(replace(HEADER, regions=(replace(PICTURE, row_mm=row_mm, column_mm=column_mm),)))

    try:
        sector = locate(frames, replace_depth(depth_mm), found and found._replace(region_rows=None))
    except NotALoop:
        return

    assert sector is not None
    assert found is not None
    assert sector.box[2] <= (1 + depth_mm / SHOWN_MM[0]) * frames.shape[1]


ANY = seen_at(160.0)

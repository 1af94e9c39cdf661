"""Sampling and pixels agree with the paper's code."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torchvision.transforms import v2

from model.clip.spec import ClipSpec, frame_indices
from model.clip.transform import make_clip, make_still, resize
from tests.doubles.loops import picture


@pytest.mark.parametrize(
    ("num_available", "indices"),
    [
        (8, [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]),
        (1, [0] * 16),
        (2, [0] * 15 + [1]),
        (16, list(range(16))),
        (31, list(range(0, 31, 2))),
    ],
)
def test_sampling_gives_the_frames_of_the_paper(num_available: int, indices: list[int]) -> None:
    assert list(frame_indices(num_available, 16)) == indices


def test_sampling_equals_the_released_code_for_every_usual_length() -> None:
    ours = [frame_indices(n, 16) for n in range(1, 400)]

    assert ours == [tuple(torch.linspace(0, n - 1, 16).long().tolist()) for n in range(1, 400)]
    assert ours == [tuple(np.linspace(0, n - 1, 16).astype(int).tolist()) for n in range(1, 400)]


@given(num_available=st.integers(1, 100_000), num_wanted=st.integers(2, 64))
def test_sampling_is_the_floor_of_evenly_spaced_points(num_available: int, num_wanted: int) -> None:
    indices = frame_indices(num_available, num_wanted)

    spacing = Fraction(num_available - 1, num_wanted - 1)
    assert indices == tuple(int(k * spacing) for k in range(num_wanted))
    assert (indices[0], indices[-1]) == (0, num_available - 1)
    assert list(indices) == sorted(indices)


def test_a_clip_is_the_papers_resize_divided_by_255() -> None:
    frames = picture(16, 708, 1016)

    clip = make_clip(frames, ClipSpec())

    papers = v2.Resize((224, 224), antialias=True)(torch.from_numpy(frames).permute(0, 3, 1, 2))
    assert torch.equal(clip, (papers.float() / 255.0).permute(1, 0, 2, 3))
    assert clip.dtype == torch.float32


def test_a_clip_is_normalised_channel_by_channel() -> None:
    plain = make_clip(picture(16), ClipSpec())

    clip = make_clip(picture(16), ClipSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))

    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        torch.testing.assert_close(clip[channel], (plain[channel] - mean) / std)


def test_a_still_is_one_frame_of_the_clip() -> None:
    frames = picture(16, 150, 200)
    spec = ClipSpec(mean=(0.1, 0.2, 0.3))

    still = make_still(frames[8], spec, None)

    assert torch.equal(still, make_clip(frames, spec)[:, 8])


@pytest.mark.parametrize(("rows", "columns"), [(100, 144), (144, 100), (64, 64), (300, 2), (2, 300)])
def test_what_is_fitted_keeps_its_shape_and_is_black_beside_it(rows: int, columns: int) -> None:
    frames = np.full((4, rows, columns, 3), 200, dtype=np.uint8)

    clip = make_clip(frames, ClipSpec(num_frames=4, size=48, resize="fit"))[0, 0]

    lit = clip > 0
    height, width = int(lit.any(dim=1).sum()), int(lit.any(dim=0).sum())
    assert max(height, width) == 48
    assert abs(height - max(1.0, 48 * rows / max(rows, columns))) <= 0.5
    assert abs(width - max(1.0, 48 * columns / max(rows, columns))) <= 0.5
    assert abs(int(lit.nonzero()[:, 0].min()) - (48 - height) / 2) <= 0.5
    assert clip[lit].unique().tolist() == pytest.approx([200 / 255])


def test_a_box_of_fixed_depth_is_fitted_by_its_millimetres() -> None:
    """Pixels twice as wide as high: 100 mm are 100 rows, and 144 mm 72 columns."""
    spec = ClipSpec(size=48, crop="sector", depth_mm=100.0, resize="fit")
    fitted = resize(np.full((1, 100, 72, 3), 200, dtype=np.uint8), spec)[0, 0]

    assert (int((fitted > 0).any(dim=1).sum()), int((fitted > 0).any(dim=0).sum())) == (33, 48)


@settings(max_examples=25)
@given(rows=st.integers(1, 300), columns=st.integers(1, 300), size=st.integers(8, 64), grey=st.integers(0, 255))
def test_a_plain_picture_stays_plain_at_every_size(rows: int, columns: int, size: int, grey: int) -> None:
    frames = np.full((4, rows, columns, 3), grey, dtype=np.uint8)

    clip = make_clip(frames, ClipSpec(num_frames=4, size=size))

    assert clip.shape == (3, 4, size, size)
    assert torch.equal(clip, torch.full_like(clip, grey / 255.0))


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), size=st.integers(8, 64))
def test_a_clip_stays_between_zero_and_one(seed: int, size: int) -> None:
    frames = np.random.default_rng(seed).integers(0, 256, size=(2, 50, 70, 3), dtype=np.uint8)

    clip = make_clip(frames, ClipSpec(num_frames=2, size=size))

    assert 0.0 <= float(clip.min()) <= float(clip.max()) <= 1.0


def test_the_number_of_frames_must_be_the_recipes() -> None:
    with pytest.raises(AssertionError, match="recipe"):
        make_clip(picture(15), ClipSpec())


@pytest.mark.parametrize("wrong", [{"sise": 224}, {"sampling": "random"}, {"num_frames": 0}])
def test_a_recipe_refuses_what_it_does_not_know(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ClipSpec.model_validate(wrong)

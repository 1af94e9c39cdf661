"""From a file to its clip: what is accepted, what is decoded, what it costs."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom.uid import JPEGBaseline8Bit

from model.clip.dicom import open_loop
from model.clip.loop import load_clips, load_still
from model.clip.select import Reason
from model.clip.spec import ClipSpec, frame_indices
from model.clip.transform import make_clip, make_still
from model.errors import NotALoop, UnreadableLoop
from model.phantom.heart import Heart
from model.phantom.scan import render
from model.phantom.screen import Screen
from model.tasks import View
from tests.doubles.loops import jpeg, write_encapsulated, write_native

REAL = ("hp_ped_I_000001.dcm", "toshiba_adult_I_000031.dcm", "sonosite_apical_ybr.dcm")


def beating(num_frames: int, *, has_colour: bool = False) -> np.ndarray:
    """Return a loop of a phantom heart."""
    return render(
        Heart(edv_ml=130.0, esv_ml=60.0), View.A4C, num_frames=num_frames, frame_time_ms=40.0,
        rng=np.random.default_rng(3), screen=Screen(has_colour=has_colour),
    )  # fmt: skip


def test_a_clip_is_made_of_the_sampled_frames(tmp_path: Path) -> None:
    frames = beating(30)
    loop = write_native(tmp_path / "a.dcm", frames)

    clip = load_clips(loop, ClipSpec())

    assert clip.indices[0] == frame_indices(30, 16)
    assert torch.equal(clip.pixels_BCTSS[0], make_clip(frames[list(clip.indices[0])], ClipSpec()))


def test_a_short_loop_repeats_its_frames(tmp_path: Path) -> None:
    frames = beating(10)
    loop = write_native(tmp_path / "a.dcm", frames)

    clip = load_clips(loop, ClipSpec())

    assert clip.indices[0] == (0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7, 7, 8, 9)
    assert torch.equal(clip.pixels_BCTSS[0][:, 0], clip.pixels_BCTSS[0][:, 1])


def test_a_still_is_the_middle_sampled_frame(tmp_path: Path) -> None:
    frames = beating(30)
    loop = write_native(tmp_path / "a.dcm", frames)

    still = load_still(loop, ClipSpec(), None)

    assert torch.equal(still, make_still(frames[frame_indices(30, 16)[8]], ClipSpec(), None))


@pytest.mark.parametrize(
    ("num_frames", "has_colour", "reason"),
    [(1, False, Reason.STILL), (7, False, Reason.TOO_SHORT), (20, True, Reason.COLOUR_DOPPLER)],
)
def test_what_is_no_loop_says_why(tmp_path: Path, num_frames: int, has_colour: bool, reason: Reason) -> None:
    loop = write_native(tmp_path / "a.dcm", beating(num_frames, has_colour=has_colour))

    with pytest.raises(NotALoop) as caught:
        load_clips(loop, ClipSpec())

    assert caught.value.reason is reason
    assert str(caught.value).startswith(reason.text)


def test_a_colour_loop_in_jpeg_is_refused(tmp_path: Path) -> None:
    frames = [jpeg(frame, quality=75, subsampling="4:2:0") for frame in beating(20, has_colour=True)]
    loop = write_encapsulated(
        tmp_path / "a.dcm", frames, (20, 240, 320), JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422"
    )

    with pytest.raises(NotALoop, match="colour or tissue Doppler"):
        load_clips(loop, ClipSpec())


def test_damaged_pixels_give_no_clip(tmp_path: Path) -> None:
    frames = [jpeg(frame) for frame in beating(20)]
    frames[19] = frames[19][:300]
    loop = write_encapsulated(
        tmp_path / "a.dcm", frames, (20, 240, 320), JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422"
    )

    with pytest.raises(UnreadableLoop):
        load_clips(loop, ClipSpec())


@pytest.mark.parametrize("has_offsets", [True, False])
def test_damage_between_the_sampled_frames_is_not_even_seen(tmp_path: Path, has_offsets: bool) -> None:
    frames = [jpeg(frame) for frame in beating(31)]
    frames[1::2] = [b"\xff\xd8 no picture \xff\xd9"] * 15
    loop = write_encapsulated(
        tmp_path / "a.dcm", frames, (31, 240, 320), JPEGBaseline8Bit,
        has_offsets=has_offsets, PhotometricInterpretation="YBR_FULL_422",
    )  # fmt: skip

    assert load_clips(loop, ClipSpec()).indices[0] == tuple(range(0, 31, 2))


@pytest.mark.parametrize("is_compressed", [False, True], ids=["native", "JPEG"])
def test_a_long_loop_costs_the_memory_of_its_sampled_frames(tmp_path: Path, *, is_compressed: bool) -> None:
    def loop(beats: int) -> Path:
        frames = np.tile(beating(16), (beats, 1, 1, 1))
        path = tmp_path / f"{beats}.dcm"
        if not is_compressed:
            return write_native(path, frames)
        pictures = [jpeg(frame) for frame in frames]
        return write_encapsulated(path, pictures, frames.shape[:3], JPEGBaseline8Bit,
                                  PhotometricInterpretation="YBR_FULL_422")  # fmt: skip

    short, long = loop(1), loop(20)
    sampled = beating(16).nbytes

    assert peak_of(lambda: open_loop(long).read(frame_indices(320, 16))) < 1.4 * sampled
    assert peak_of(lambda: load_clips(long, ClipSpec())) < 1.1 * peak_of(lambda: load_clips(short, ClipSpec()))


def peak_of(call: Callable[[], object]) -> int:
    """Return the bytes that a call holds at most."""
    call()  # what is imported and cached is not counted
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("name", REAL)
def test_a_real_loop_gives_the_same_clip_every_time(shared_data: Path, name: str) -> None:
    clips = [load_clips(shared_data / "us" / name, ClipSpec()) for _ in range(2)]

    assert clips[0].pixels_BCTSS[0].shape == (3, 16, 224, 224)
    assert torch.equal(clips[0].pixels_BCTSS[0], clips[1].pixels_BCTSS[0])

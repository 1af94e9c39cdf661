"""Which frames make the clips of a loop: the paper's, or one clip a beat."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from model.clip.loop import load_clips, load_still
from model.clip.sampling import NOMINAL_RATE, distinct, sample
from model.clip.spec import ClipSpec, frame_indices
from model.clip.transform import make_still
from model.phantom.heart import Heart
from model.phantom.scan import render
from model.prediction import mean_outputs
from model.tasks import Task, View
from tests.doubles.loops import write_native

BEAT = ClipSpec(sampling="beat")


def test_uniform_is_one_clip_of_the_whole_loop_whatever_the_header_says() -> None:
    assert sample(90, ClipSpec(), frame_time_ms=20.0, heart_rate=100.0) == (frame_indices(90, 16),)


def test_a_clip_of_each_whole_beat() -> None:
    """75 a minute and 25 ms: 32 frames a beat; 100 frames are three beats and a rest."""
    clips = sample(100, BEAT, frame_time_ms=25.0, heart_rate=75.0)

    assert [(clip[0], clip[-1]) for clip in clips] == [(0, 31), (32, 63), (64, 95)]
    assert clips[1] == tuple(32 + index for index in frame_indices(32, 16))


def test_so_many_beats_as_the_recipe_says() -> None:
    assert len(sample(1000, BEAT.model_copy(update={"beats": 2}), frame_time_ms=25.0, heart_rate=75.0)) == 2


def test_without_a_heart_rate_a_beat_takes_a_second() -> None:
    assert sample(100, BEAT, frame_time_ms=25.0, heart_rate=None) == sample(
        100, BEAT, frame_time_ms=25.0, heart_rate=NOMINAL_RATE
    )


@pytest.mark.parametrize(
    ("frames", "frame_time_ms", "heart_rate"),
    [(30, 25.0, 50.0), (100, None, 60.0), (1, 25.0, 60.0)],
    ids=["shorter than a beat", "frames without a time", "one frame"],
)
def test_a_loop_that_is_not_cut_into_beats_is_taken_whole(
    frames: int, frame_time_ms: float | None, heart_rate: float
) -> None:
    assert sample(frames, BEAT, frame_time_ms=frame_time_ms, heart_rate=heart_rate) == (frame_indices(frames, 16),)


@given(
    num_frames=st.integers(1, 2000),
    frame_time_ms=st.floats(0.1, 2000.0),
    heart_rate=st.none() | st.floats(20.0, 300.0),
    beats=st.integers(1, 16),
)
@example(num_frames=1, frame_time_ms=2000.0, heart_rate=300.0, beats=16)
def test_clips_lie_in_the_loop_one_behind_the_other_and_are_equally_long(
    num_frames: int, frame_time_ms: float, heart_rate: float | None, beats: int
) -> None:
    spec = ClipSpec(sampling="beat", beats=beats)

    clips = sample(num_frames, spec, frame_time_ms=frame_time_ms, heart_rate=heart_rate)

    assert 1 <= len(clips) <= beats
    assert all(len(clip) == 16 and list(clip) == sorted(clip) for clip in clips)
    assert len({clip[-1] - clip[0] for clip in clips}) == 1
    assert all(before[0] <= after[0] for before, after in pairwise(clips))
    assert clips[0][0] == 0
    assert max(clips[-1]) < num_frames
    assert set(distinct(clips)) == {index for clip in clips for index in clip}


def test_the_clips_of_a_file_are_its_beats_and_its_still_is_of_the_first(tmp_path: Path) -> None:
    frames = render(Heart(edv_ml=120.0, esv_ml=50.0), View.A4C, num_frames=100, frame_time_ms=25.0,
                    rng=np.random.default_rng(0))  # fmt: skip
    file = tmp_path / "a.dcm"
    write_native(file, frames, FrameTime="25", HeartRate=75)

    clips = load_clips(file, BEAT)

    whole = torch.stack([make_still(frame, BEAT, None) for frame in frames], dim=1)
    assert clips.indices == sample(100, BEAT, frame_time_ms=25.0, heart_rate=75.0)
    assert torch.equal(clips.pixels_BCTSS, torch.stack([whole[:, list(one)] for one in clips.indices]))
    assert clips.frames == tuple(distinct(clips.indices))
    assert torch.equal(load_still(file, BEAT, None), clips.pixels_BCTSS[0, :, 8])


def test_a_loop_says_the_mean_of_its_clips() -> None:
    of_clips = [{Task.LVEF: [[50.0], [60.0]], Task.VIEW: [[0.5, 0.5, 0, 0, 0]] * 2},
                {Task.LVEF: [[52.0], [70.0]], Task.VIEW: [[0.7, 0.3, 0, 0, 0]] * 2}]  # fmt: skip

    said = mean_outputs(of_clips)

    assert said[Task.LVEF] == [[51.0], [65.0]]
    assert said[Task.VIEW][0] == pytest.approx([0.6, 0.4, 0.0, 0.0, 0.0])
    assert mean_outputs(of_clips[:1]) == of_clips[0]

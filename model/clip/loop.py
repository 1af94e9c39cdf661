"""From a DICOM file to its clip, or to the reason why there is none.

Legend: T clip frames, S side of the clip, C = 3 RGB.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.clip.dicom import open_loop
from model.clip.select import inspect, select
from model.clip.spec import ClipSpec, frame_indices
from model.clip.transform import make_clip, make_still
from model.errors import NotALoop


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """What a network sees of a loop."""

    pixels_CTSS: Tensor
    """float32 (3, T, S, S), normalised by the recipe."""
    indices: tuple[int, ...]
    """The frames of the loop, 0-based, ascending, repeated in a short loop."""


def load_clip(path: Path, spec: ClipSpec) -> Clip:
    """Return the clip of a B-mode cine loop.

    Raises:
        NotALoop: the instance carries no number.
        UnreadableLoop: its bytes give no picture.
    """
    source = open_loop(path)
    verdict = select(source.header)
    if verdict.reason is not None:
        raise NotALoop(verdict.reason, verdict.detail)
    indices = frame_indices(source.header.num_frames, spec.num_frames)
    frames_THWC = source.read(indices)
    verdict = inspect(frames_THWC)
    if verdict.reason is not None:
        raise NotALoop(verdict.reason, verdict.detail)
    return Clip(pixels_CTSS=make_clip(frames_THWC, spec), indices=indices)


def load_still(path: Path, spec: ClipSpec) -> Tensor:
    """Return the middle sampled frame of a loop, float32 (3, S, S): its still for a study's stack.

    Raises:
        NotALoop: the recipe cuts the sector out, and none is found.
        UnreadableLoop: its bytes give no picture.
    """
    source = open_loop(path)
    indices = frame_indices(source.header.num_frames, spec.num_frames)
    if spec.crop == "none":  # the others show where the sector is
        indices = (indices[len(indices) // 2],)
    return make_still(source.read(indices), spec)

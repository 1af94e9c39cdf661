"""From a DICOM file to its clip, or to the reason why there is none.

Legend: T clip frames, S side of the clip, C = 3 RGB.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.clip.dicom import open_loop
from model.clip.header_view import header_view
from model.clip.scale import scale_of
from model.clip.sector import Sector
from model.clip.select import inspect, select
from model.clip.spec import ClipSpec, frame_indices
from model.clip.transform import locate, make_still, pixels_of
from model.errors import NotALoop
from model.tasks import View


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """What a network sees of a loop."""

    pixels_CTSS: Tensor
    """float32 (3, T, S, S), normalised by the recipe."""
    indices: tuple[int, ...]
    """The frames of the loop, 0-based, ascending, repeated in a short loop."""
    sector: Sector | None
    """What was cut out of the screen; None: nothing was."""
    header_view: View | None = None
    """The view that the header names; None: it names none."""


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
    verdict = inspect(frames_THWC, indices)
    if verdict.reason is not None:
        raise NotALoop(verdict.reason, verdict.detail)
    sector = locate(frames_THWC, spec, scale_of(source.header))
    pixels_TCSS = pixels_of(frames_THWC, sector, spec)
    return Clip(
        pixels_CTSS=pixels_TCSS.transpose(0, 1),
        indices=indices,
        sector=sector,
        header_view=header_view(source.header.view_code),
    )


def load_still(path: Path, spec: ClipSpec, sector: Sector | None) -> Tensor:
    """Return the middle sampled frame of a loop, float32 (3, S, S): its still for a study's stack.

    Args:
        path: of the loop.
        spec: the recipe.
        sector: of the loop's clip; so that no other frame need be decoded.

    Raises:
        UnreadableLoop: its bytes give no picture.
    """
    source = open_loop(path)
    indices = frame_indices(source.header.num_frames, spec.num_frames)
    return make_still(source.read([indices[len(indices) // 2]])[0], spec, sector)

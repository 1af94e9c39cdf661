"""From a DICOM file to its clips, or to the reason why there is none.

Legend: B clips of a loop, T clip frames, S side of a clip, N frames that clips are made of, H, W pixels, C = 3 RGB.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.clip.dicom import open_loop
from model.clip.header_view import header_view
from model.clip.sampling import clips_of, distinct
from model.clip.sector import Sector
from model.clip.select import inspect, select
from model.clip.source import Frames, LoopHeader
from model.clip.spec import ClipSpec
from model.clip.transform import locate_by_header, make_still, pixels_of
from model.tasks import View


@dataclass(frozen=True, kw_only=True, slots=True)
class Clips:
    """What a network sees of a loop: one clip, or one a beat."""

    pixels_BCTSS: Tensor
    """float32 (B, 3, T, S, S), normalised by the recipe."""
    indices: tuple[tuple[int, ...], ...]
    """The frames of the loop of each clip, 0-based, ascending, repeated in a short loop."""
    sector: Sector | None
    """What was cut out of the screen; None: nothing was."""
    header_view: View | None = None
    """The view that the header names; None: it names none."""

    @property
    def frames(self) -> tuple[int, ...]:
        """Return every frame of the loop that was looked at, once, ascending."""
        return tuple(distinct(self.indices))


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What the clips of a loop are made of."""

    header: LoopHeader
    frames_NHWC: Frames
    """As decoded; to be left as they are."""
    indices: Sequence[int]
    """Of these frames in the loop, 0-based, ascending."""
    sector: Sector | None
    """What is cut out of them; None: nothing is."""


def load_clips(path: Path, spec: ClipSpec, show: Callable[[Seen], None] = lambda _seen: None) -> Clips:
    """Return the clips of a B-mode cine loop.

    Args:
        path: of its file.
        spec: the recipe.
        show: is given what they are made of, while it is in memory.

    Raises:
        NotALoop: the instance carries no number.
        UnreadableLoop: its bytes give no picture.
    """
    source = open_loop(path)
    select(source.header).check()
    indices = clips_of(source.header, spec)
    seen = distinct(indices)
    frames_NHWC = source.read(seen)
    inspect(frames_NHWC).check()
    sector = locate_by_header(frames_NHWC, spec, source.header)
    show(Seen(header=source.header, frames_NHWC=frames_NHWC, indices=seen, sector=sector))
    pixels_NCSS = pixels_of(frames_NHWC, sector, spec)
    place = {index: number for number, index in enumerate(seen)}
    clips = [pixels_NCSS[[place[index] for index in clip]].transpose(0, 1) for clip in indices]
    return Clips(
        pixels_BCTSS=torch.stack(clips),
        indices=indices,
        sector=sector,
        header_view=header_view(source.header.view_code),
    )


def load_still(path: Path, spec: ClipSpec, sector: Sector | None) -> Tensor:
    """Return the middle frame of a loop's first clip, float32 (3, S, S): its still for a study's stack.

    Args:
        path: of the loop.
        spec: the recipe.
        sector: of the loop's clips; so that no other frame need be decoded.

    Raises:
        UnreadableLoop: its bytes give no picture.
    """
    source = open_loop(path)
    indices = clips_of(source.header, spec)[0]
    return make_still(source.read([indices[len(indices) // 2]])[0], spec, sector)

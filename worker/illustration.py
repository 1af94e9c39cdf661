"""A loop with the networks' attention over it, as a moving picture at the loop's own rate.

What the networks did not see is not shown: the picture is the analysed part of the screen, between the first and the
last frame that was looked at. Frames are decoded and encoded in small groups: a loop never lies in memory whole.

Legend: B clips of the loop, t, h, w cells of the networks' grid, S side of a clip, T frames, H, W pixels, C = 3 RGB.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from dicom_node.report.pictures import Cine
from model.attention import Attention
from model.clip.dicom import open_loop
from model.clip.sampling import clips_of
from model.clip.sector import Sector
from model.clip.source import Frames
from model.clip.spec import ClipSpec
from model.clip.transform import placement
from model.overlay import Veil, veil
from worker.caption import caption
from worker.findings import seen_part
from worker.loops import AnalysedLoop

MAX_SIDE = 512
"""Columns and rows of a picture, its caption apart: a cell of the heat map is 40 of them."""

MAX_FRAMES = 300
"""Of a longer loop every second, third ... frame is shown: ten seconds at 30 a second."""

_GROUP = 16
_QUALITY = 75


@dataclass(frozen=True, kw_only=True, slots=True)
class Illustration:
    """What was drawn of one loop."""

    cine: Cine
    still_HWC: Frames
    """The frame in the middle of the first clip, with the heat over it, without the caption."""
    trace: tuple[float, ...]
    """Share of each slice of the first clip in its attention, in the order of time."""


def illustrate(
    path: Path, loop: AnalysedLoop, attention: Attention, spec: ClipSpec, lines: Sequence[str]
) -> Illustration:
    """Return the picture of a loop.

    Args:
        path: of its file.
        loop: what was found in it.
        attention: where the networks looked.
        spec: the recipe of the clips.
        lines: what stands under the picture.

    Raises:
        UnreadableLoop: its bytes give no picture.
    """
    source = open_loop(path)
    clips = clips_of(source.header, spec)
    step = -(-(loop.frames[-1] - loop.frames[0] + 1) // MAX_FRAMES)
    shown = range(loop.frames[0], loop.frames[-1] + 1, step)
    drawing = _Drawing(attention=attention, clips=clips, sector=loop.sector, spec=spec)
    frames: list[bytes] = []
    rows = columns = 0
    below_HWC: Frames | None = None
    for start in range(0, len(shown), _GROUP):
        group = shown[start : start + _GROUP]
        for index, frame_HWC in zip(group, source.read(group), strict=True):
            picture_HWC = drawing.of(index, frame_HWC)
            if below_HWC is None:
                below_HWC = caption(lines, picture_HWC.shape[1])
            whole_HWC = np.concatenate([picture_HWC, below_HWC])
            rows, columns = whole_HWC.shape[:2]
            frames.append(encode(whole_HWC))
    middle = clips[0][len(clips[0]) // 2]
    frame_time_ms = source.header.frame_time_ms
    return Illustration(
        cine=Cine(
            frames=tuple(frames),
            rows=rows,
            columns=columns,
            frame_time_ms=None if frame_time_ms is None else step * frame_time_ms,
            source_frames=tuple(index + 1 for index in shown),
        ),
        still_HWC=drawing.of(middle, source.read([middle])[0]),
        trace=tuple(float(share) for share in attention.shares_Bt[0]),
    )


def encode(picture_HWC: Frames, quality: int = _QUALITY) -> bytes:
    """Return a picture as JPEG baseline, YCbCr 4:2:2."""
    pixels_HWC = np.ascontiguousarray(picture_HWC)
    encoded: bytes = simplejpeg.encode_jpeg(pixels_HWC, quality=quality, colorspace="RGB", colorsubsampling="422")
    return encoded


class _Drawing:
    """Lays the attention of a loop over its frames; neighbours that share a slice share its veil."""

    def __init__(
        self, *, attention: Attention, clips: Sequence[tuple[int, ...]], sector: Sector | None, spec: ClipSpec
    ) -> None:
        self._heat_Bthw = attention.heat_Bthw
        self._clips = clips
        self._starts = [clip[0] for clip in clips]
        self._sector = sector
        self._spec = spec
        self._slice: tuple[int, int] | None = None
        self._veil: Veil | None = None

    def of(self, index: int, frame_HWC: Frames) -> Frames:
        """Return what was analysed of a frame, by its place in the loop, with the heat over it."""
        left, top, right, bottom = seen_part(self._sector, *frame_HWC.shape[:2])
        part_HWC = frame_HWC[top:bottom, left:right]
        if self._sector is not None:
            part_HWC = part_HWC * self._sector.mask_HW[top:bottom, left:right, None]
        scale = min(1.0, MAX_SIDE / max(part_HWC.shape))
        size = max(2, round((right - left) * scale)), max(2, round((bottom - top) * scale))
        small_HWC = np.asarray(Image.fromarray(part_HWC).resize(size, Image.Resampling.BILINEAR))
        place = self._slice_of(index)
        if self._veil is None or place != self._slice:
            corners = self._cells_under(left, top, right, bottom, *frame_HWC.shape[:2])
            heat = Image.fromarray(self._heat_Bthw[place]).resize(size, Image.Resampling.BILINEAR, box=corners)
            self._slice, self._veil = place, veil(np.asarray(heat))
        return self._veil.over(small_HWC)

    def _slice_of(self, index: int) -> tuple[int, int]:
        """Return the clip that a frame lies in, and the slice of its grid: that of the sampled frame before it."""
        number = max(bisect_right(self._starts, index) - 1, 0)
        clip = self._clips[number]
        position = max(bisect_right(clip, index) - 1, 0)
        return number, position * self._heat_Bthw.shape[1] // len(clip)

    def _cells_under(
        self, left: int, top: int, right: int, bottom: int, rows: int, columns: int
    ) -> tuple[float, float, float, float]:
        """Return which cells lie over a part of the screen: left, top, right, bottom, in cells."""
        row, column, height, width = (0, 0, rows, columns) if self._sector is None else self._sector.box
        first_row, first_column, high, wide = placement(height, width, self._spec)
        down, across = (count / self._spec.size for count in self._heat_Bthw.shape[2:])
        return (
            (first_column + (left - column) * wide / width) * across,
            (first_row + (top - row) * high / height) * down,
            (first_column + (right - column) * wide / width) * across,
            (first_row + (bottom - row) * high / height) * down,
        )

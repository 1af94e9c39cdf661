"""A loop with the networks' attention over it, as a moving picture at the loop's own rate.

What the networks did not see is not shown: the picture is the analysed part of the screen, between the first and the
last frame that was looked at. Frames are decoded and encoded in small groups: a loop never lies in memory whole.

Legend: B clips of the loop, t, h, w cells of the networks' grid, S side of a clip, T frames, H, W pixels, C = 3 RGB.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from model.clip.source import Frames, LoopSource
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

_GROUP_BYTES = 64 << 20  # of decoded frames that a thread holds
_THREADS = min(os.cpu_count() or 1, 4)
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
    header = source.header
    clips = clips_of(header, spec)
    drawing = _Drawing(source=source, attention=attention, clips=clips, sector=loop.sector, spec=spec)
    step = -(-(loop.frames[-1] - loop.frames[0] + 1) // MAX_FRAMES)
    shown = range(loop.frames[0], loop.frames[-1] + 1, step)
    middle = clips[0][len(clips[0]) // 2]
    (still_HWC,) = drawing.of([middle])
    below_HWC = caption(lines, still_HWC.shape[1])
    size = max(_GROUP_BYTES // (3 * (header.rows or 1) * (header.columns or 1)), 1)
    groups = [shown[start : start + size] for start in range(0, len(shown), size)]

    def encoded(group: Sequence[int]) -> list[bytes]:
        return [encode(np.concatenate([picture_HWC, below_HWC])) for picture_HWC in drawing.of(group)]

    # Decoding, drawing and encoding all run outside of the interpreter's lock.
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="draw") as pool:
        frames = [frame for group in pool.map(encoded, groups) for frame in group]
    return Illustration(
        cine=Cine(
            frames=tuple(frames),
            rows=still_HWC.shape[0] + below_HWC.shape[0],
            columns=still_HWC.shape[1],
            frame_time_ms=None if header.frame_time_ms is None else step * header.frame_time_ms,
            source_frames=tuple(index + 1 for index in shown),
        ),
        still_HWC=still_HWC,
        trace=tuple(float(share) for share in attention.shares_Bt[0]),
    )


def encode(picture_HWC: Frames, quality: int = _QUALITY) -> bytes:
    """Return a picture as JPEG baseline, YCbCr 4:2:2."""
    pixels_HWC = np.ascontiguousarray(picture_HWC)
    encoded: bytes = simplejpeg.encode_jpeg(pixels_HWC, quality=quality, colorspace="RGB", colorsubsampling="422")
    return encoded


@dataclass(frozen=True, kw_only=True, slots=True)
class _Drawing:
    """Lays the attention of a loop over its frames."""

    source: LoopSource
    attention: Attention
    clips: Sequence[tuple[int, ...]]
    sector: Sector | None
    spec: ClipSpec

    def of(self, indices: Sequence[int]) -> Iterator[Frames]:
        """Yield what was analysed of each frame with the heat over it.

        Raises:
            UnreadableLoop: they cannot be decoded.
        """
        heat_Bthw = self.attention.heat_Bthw
        drawn: tuple[tuple[int, int], Veil] | None = None
        for index, frame_HWC in zip(indices, self.source.read(indices), strict=True):
            left, top, right, bottom = seen_part(self.sector, *frame_HWC.shape[:2])
            part_HWC = frame_HWC[top:bottom, left:right]
            if self.sector is not None:
                part_HWC = part_HWC * self.sector.mask_HW[top:bottom, left:right, None]
            scale = min(1.0, MAX_SIDE / max(part_HWC.shape))
            size = max(2, round((right - left) * scale)), max(2, round((bottom - top) * scale))
            place = self._slice_of(index)
            if drawn is None or place != drawn[0]:  # frames of one slice share its veil
                corners = self._cells_under(left, top, right, bottom, *frame_HWC.shape[:2])
                heat = Image.fromarray(heat_Bthw[place]).resize(size, Image.Resampling.BILINEAR, box=corners)
                drawn = place, veil(np.asarray(heat))
            small = Image.fromarray(part_HWC).resize(size, Image.Resampling.BILINEAR)
            yield drawn[1].over(np.asarray(small))

    def _slice_of(self, index: int) -> tuple[int, int]:
        """Return the clip that a frame lies in, and the slice of its grid: that of the sampled frame before it."""
        number = max(bisect_right([clip[0] for clip in self.clips], index) - 1, 0)
        clip = self.clips[number]
        position = max(bisect_right(clip, index) - 1, 0)
        return number, position * self.attention.grid[0] // len(clip)

    def _cells_under(
        self, left: int, top: int, right: int, bottom: int, rows: int, columns: int
    ) -> tuple[float, float, float, float]:
        """Return which cells lie over a part of the screen: left, top, right, bottom, in cells."""
        row, column, height, width = (0, 0, rows, columns) if self.sector is None else self.sector.box
        first_row, first_column, high, wide = placement(height, width, self.spec)
        down, across = (count / self.spec.size for count in self.attention.grid[1:])
        return (
            (first_column + (left - column) * wide / width) * across,
            (first_row + (top - row) * high / height) * down,
            (first_column + (right - column) * wide / width) * across,
            (first_row + (bottom - row) * high / height) * down,
        )

"""A loop with the networks' attention over it: as a moving picture at the loop's own rate, or one frame of it.

The picture is the analysed part of the screen, between the first and the last frame that was looked at. Of most loops
some frames were looked at; those between two of them carry the heat of the earlier one. Frames are decoded, drawn and
encoded in groups: a loop never lies in memory whole.

Legend: B clips of the loop, t, h, w cells of the networks' grid, S side of a clip, H, W pixels, C = 3 RGB.
"""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from dicom_node.report.pictures import Cine
from model.attention import Attention
from model.clip.dicom import open_loop
from model.clip.sampling import clips_of
from model.clip.source import Frames, LoopSource
from model.clip.spec import ClipSpec
from model.clip.transform import placement
from model.overlay import Veil, veil
from worker.caption import caption
from worker.findings import seen_part
from worker.loops import AnalysedLoop

SIDES = (256, 512)
"""Smallest and largest longer side of a picture, pixels, its caption apart."""

MAX_FRAMES = 300
"""Of a longer loop every second, third ... frame is shown: ten seconds at 30 a second."""

_GROUP = (16, 64 << 20)  # frames at least, bytes at most if those are more: a video is opened anew for each group
_MEMORY = 512 << 20  # of the decoded frames of all threads, unless one group is more
_THREADS = min(os.cpu_count() or 1, 4)
_QUALITY = 75


@dataclass(frozen=True, kw_only=True, slots=True)
class Illustration:
    """Where the networks looked in one loop, ready to be drawn."""

    source: LoopSource
    loop: AnalysedLoop
    attention: Attention
    clips: Sequence[tuple[int, ...]]
    """Frames of the loop that each clip is made of."""
    spec: ClipSpec

    @property
    def trace(self) -> tuple[float, ...]:
        """Return the share of each slice of time in the attention of the first clip; they make one."""
        return self.attention.slices[0]

    def still(self) -> Frames:
        """Return the frame in the middle of the first clip, without caption.

        Raises:
            UnreadableLoop: its bytes give no picture.
        """
        (picture_HWC,) = self._drawn([self.clips[0][len(self.clips[0]) // 2]])
        return picture_HWC

    def cine(self, lines: Sequence[str]) -> Cine:
        """Return the moving picture.

        Args:
            lines: what stands under it.

        Raises:
            UnreadableLoop: its bytes give no picture.
        """
        header, seen = self.source.header, self.loop.frames
        step = -(-(seen[-1] - seen[0] + 1) // MAX_FRAMES)
        shown = range(seen[0], seen[-1] + 1, step)
        looked = f"{len(seen)} of {len(shown)} frames were looked at: the others carry the heat of the one before."
        more = [] if len(seen) >= len(shown) else [looked]
        below = cache(partial(caption, [*lines, *more]))  # by its width: that of the pictures

        def encoded(group: Sequence[int]) -> list[bytes]:
            return [encode(np.concatenate([one_HWC, below(one_HWC.shape[1])])) for one_HWC in self._drawn(group)]

        frame_bytes = 3 * (header.rows or 1) * (header.columns or 1)
        size = max(_GROUP[0], _GROUP[1] // frame_bytes)
        groups = [shown[start : start + size] for start in range(0, len(shown), size)]
        # Decoding, drawing and encoding all run outside of the interpreter's lock.
        with ThreadPoolExecutor(max(min(_MEMORY // (size * frame_bytes), _THREADS), 1), "draw") as pool:
            frames = tuple(frame for group in pool.map(encoded, groups) for frame in group)
        rows, columns = simplejpeg.decode_jpeg_header(frames[0])[:2]
        return Cine(
            frames=frames,
            rows=rows,
            columns=columns,
            frame_time_ms=None if header.frame_time_ms is None else step * header.frame_time_ms,
            source_frames=tuple(index + 1 for index in shown),
        )

    def _drawn(self, indices: Sequence[int]) -> Iterator[Frames]:
        """Yield what was analysed of each frame with the heat over it."""
        heat_Bthw = self.attention.heat_Bthw
        sector = self.loop.sector
        drawn: tuple[tuple[int, int, int], Veil] | None = None
        for index, frame_HWC in zip(indices, self.source.read(indices), strict=True):
            left, top, right, bottom = seen_part(sector, *frame_HWC.shape[:2])
            part_HWC = frame_HWC[top:bottom, left:right]
            if sector is not None:
                part_HWC = part_HWC * sector.mask_HW[top:bottom, left:right, None]
            size = _size(right - left, bottom - top)
            place = self._slices_of(index)
            if drawn is None or place != drawn[0]:  # frames of one slice share its veil
                clip, first, last = place
                corners = self._cells_under(left, top, right, bottom, *frame_HWC.shape[:2])
                heat = Image.fromarray(heat_Bthw[clip, first : last + 1].max(axis=0))
                drawn = place, veil(np.asarray(heat.resize(size, Image.Resampling.BILINEAR, box=corners)))
            small = Image.fromarray(part_HWC).resize(size, Image.Resampling.BILINEAR)
            yield drawn[1].over(np.asarray(small))

    def _slices_of(self, index: int) -> tuple[int, int, int]:
        """Return the clip that a frame lies in, and the first and last slice of what was seen of it.

        A frame that is between two of the clip has the slice of the earlier one; one that fills several slices of the
        clip of a short loop has them all.
        """
        number = max(bisect_right([clip[0] for clip in self.clips], index) - 1, 0)
        clip, slices = self.clips[number], self.attention.grid[0]
        last = max(bisect_right(clip, index) - 1, 0)
        first = bisect_left(clip, clip[last])
        return number, first * slices // len(clip), last * slices // len(clip)

    def _cells_under(
        self, left: int, top: int, right: int, bottom: int, rows: int, columns: int
    ) -> tuple[float, float, float, float]:
        """Return which cells lie over a part of the screen: left, top, right, bottom, in cells."""
        sector = self.loop.sector
        row, column, height, width = (0, 0, rows, columns) if sector is None else sector.box
        first_row, first_column, high, wide = placement(height, width, self.spec)
        down, across = (count / self.spec.size for count in self.attention.grid[1:])
        return (
            (first_column + (left - column) * wide / width) * across,
            (first_row + (top - row) * high / height) * down,
            (first_column + (right - column) * wide / width) * across,
            (first_row + (bottom - row) * high / height) * down,
        )


def open_illustration(path: Path, loop: AnalysedLoop, attention: Attention, spec: ClipSpec) -> Illustration:
    """Return the illustration of a loop.

    Args:
        path: of its file.
        loop: what was found in it.
        attention: where the networks looked.
        spec: the recipe of the clips.

    Raises:
        UnreadableLoop: its header cannot be read.
    """
    source = open_loop(path)
    return Illustration(source=source, loop=loop, attention=attention, clips=clips_of(source.header, spec), spec=spec)


def encode(picture_HWC: Frames, quality: int = _QUALITY) -> bytes:
    """Return a picture as JPEG baseline, YCbCr 4:2:2."""
    pixels_HWC = np.ascontiguousarray(picture_HWC)
    encoded: bytes = simplejpeg.encode_jpeg(pixels_HWC, quality=quality, colorspace="RGB", colorsubsampling="422")
    return encoded


def _size(width: int, height: int) -> tuple[int, int]:
    """Return columns and rows of the picture of a part of the screen; its aspect ratio is kept."""
    smallest, largest = SIDES
    longer = max(width, height)
    scale = largest / longer if longer > largest else max(smallest / longer, 1.0)
    return max(2, round(width * scale)), max(2, round(height * scale))

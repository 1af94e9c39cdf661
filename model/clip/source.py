"""What every file that can hold a loop looks like: a header, and frames by their index.

Legend: T frames, H, W pixels, C = 3 RGB.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""RGB, uint8: frames_THWC, or one frame_HWC."""


MAX_PIXELS = 8_847_360
"""Rows x Columns of one frame: a 4096 x 2160 screen; sixteen such frames are 425 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """An item of Sequence of Ultrasound Regions (PS3.3 C.8.5.5), as the header says it, sane or not."""

    spatial_format: int
    """1 two-dimensional, 2 M-mode, 3 spectral, 4 waveform, 5 graphics, 0 none."""
    data_type: int
    """1 tissue, 2 colour flow, 3 PW, 4 CW spectral Doppler, 10 ECG trace, 0 none."""
    x0: int
    y0: int
    x1: int
    y1: int
    """Corners, pixels, both inside the region; may lie outside the image or be inverted."""
    row_mm: float | None = None
    """Height of a pixel, by Physical Delta Y; None where the units are no lengths, or missing."""
    column_mm: float | None = None
    """Width of a pixel, by Physical Delta X."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopHeader:
    """What the header of a file says about its picture; nothing about the patient."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    modality: str
    rows: int | None
    columns: int | None
    num_frames: int
    """At least 1; from the container in a video file."""
    samples_per_pixel: int
    photometric: str
    bits_allocated: int
    frame_time_ms: float | None
    """Frame Time, else the mean of Frame Time Vector, else of Cine Rate, else of Recommended Display Frame Rate; None
    where the header has none of them."""
    heart_rate: float | None
    """Beats a minute; None where the header has none, or what no heart does."""
    modes: int
    """Imaging modes by the fourth value of Image Type (PS3.3 C.8.5.6.1.1), a bit each: 1 2-D, 2 M-mode, 4 CW, 8 PW,
    16 colour Doppler, 32 colour M-mode, 64 3-D, 256 colour power; 0 where the header does not say."""
    is_colour_flagged: bool
    """Ultrasound Color Data Present says so (0028,0014)."""
    regions: tuple[Region, ...]
    view_code: str | None
    """Code value of the first View Code Sequence item."""
    series_number: int | None
    instance_number: int | None

    @property
    def seconds(self) -> float | None:
        """Return how long the loop takes; None where the header gives no time."""
        return None if self.frame_time_ms is None else self.num_frames * self.frame_time_ms / 1000.0


class LoopSource(Protocol):
    """An open loop; nothing is decoded until `read`."""

    @property
    def header(self) -> LoopHeader:
        """Return what the file says about itself."""
        ...

    def read(self, indices: Sequence[int]) -> Frames:
        """Return the frames of these indices, RGB uint8 (T, H, W, 3), repeats as asked; each is decoded once.

        Raises:
            UnreadableLoop: the bytes give no picture.
        """
        ...

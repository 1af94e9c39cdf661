"""A heat map laid over a picture, the same in the trainer's explanations and in the pictures of a report.

Legend: H, W pixels, C = 3 RGB.
"""

from dataclasses import dataclass
from functools import cache

import matplotlib
import numpy as np
from numpy.typing import NDArray

from model.clip.source import Frames

COLOURS = "autumn"
"""Of matplotlib: red to yellow, bright from the start, for what lies under it is dark."""

OPACITY = 0.6
"""Of the hottest pixel: what lies under it stays visible."""

_ONE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Veil:
    """What a heat map does to any picture of its size: so much of the picture stays, so much colour is added."""

    stays_HW1: NDArray[np.uint16]
    """256 is all of it."""
    added_HWC: NDArray[np.uint16]
    """256 times the colour."""

    def over(self, frame_HWC: Frames) -> Frames:
        """Return the picture with the heat over it."""
        mixed_HWC = frame_HWC * self.stays_HW1 + self.added_HWC  # at most 255 * 256: it fits
        return np.asarray(mixed_HWC >> 8, dtype=np.uint8)


def veil(heat_HW: NDArray[np.uint8]) -> Veil:
    """Return the veil of a heat map: 0 leaves the picture as it is, 255 hides most of it."""
    stays, added = _tables()
    return Veil(stays_HW1=stays[heat_HW][..., None], added_HWC=added[heat_HW])


@cache
def _tables() -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    heat = np.arange(256) / 255.0
    weights = np.round(OPACITY * np.sqrt(heat) * _ONE).astype(np.uint16)  # a root: a little heat must be seen too
    colours = np.round(matplotlib.colormaps[COLOURS](heat)[:, :3] * 255.0).astype(np.uint16)
    return _ONE - weights, colours * weights[:, None]

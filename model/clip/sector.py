"""The ultrasound sector on a screen: which pixels are picture, and the box that they are cut out in.

A sector is what lies inside straight sides and, mostly, an arc. It is small to keep: a report's stills are cut out by
the sector that was found when the loop was looked at.

Legend: T frames, H, W pixels, C = 3 RGB.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from model.clip.source import Frames

Mask = NDArray[np.bool_]

BOX_ASPECT = 1.44
"""Width of the box over its height: a sector of 92 degrees fills it. One shape for all, so that a millimetre is as many
pixels of the clip across narrow sectors as across wide ones of the same depth."""


class Side(NamedTuple):
    """A straight side: points with `right * x + down * y` under `offset` lie beyond it; `right, down` has length 1."""

    right: float
    down: float
    offset: float


class Arc(NamedTuple):
    """The end of the beams: points further than `radius` from (x, y) lie beyond it."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True, kw_only=True)
class Sector:
    """Where the picture is on the screen; sides and arc in pixels of a screen that is `step` times smaller."""

    rows: int
    """Of the screen."""
    columns: int
    """Of the screen."""
    step: int
    sides: tuple[Side, ...]
    arc: Arc | None
    box_shape: tuple[int, int] | None = None
    """Rows and columns of the box that a recipe fixes in millimetres; None: just as large as the sector needs."""

    @cached_property
    def mask_HW(self) -> Mask:
        """Return which pixels of the screen are picture."""
        x_W = (np.arange(self.columns) / self.step).astype(np.float32)
        y_H1 = (np.arange(self.rows) / self.step).astype(np.float32)[:, None]
        inside = np.ones((self.rows, self.columns), dtype=np.bool_)
        for side in self.sides:
            inside &= side.right * x_W + side.down * y_H1 >= side.offset
        if self.arc is not None:
            inside &= (x_W - self.arc.x) ** 2 + (y_H1 - self.arc.y) ** 2 <= self.arc.radius**2
        return inside

    @cached_property
    def _bits_HWC(self) -> Frames:
        """Return the mask as 255 and 0 for each colour, in which a whole row is masked at once."""
        return np.repeat(np.where(self.mask_HW, np.uint8(255), np.uint8(0))[..., None], 3, axis=-1)

    @cached_property
    def extent(self) -> tuple[int, int, int, int]:
        """Return first row, first column, rows and columns of the sector."""
        rows, columns = np.flatnonzero(self.mask_HW.any(axis=1)), np.flatnonzero(self.mask_HW.any(axis=0))
        return int(rows[0]), int(columns[0]), int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)

    @cached_property
    def box(self) -> tuple[int, int, int, int]:
        """Return first row, first column, rows and columns of the box.

        It may stand out of the screen; one of a fixed shape begins where the sector begins, and may end before it.
        """
        first_row, first_column, high, wide = self.extent
        fitting = max(high, math.ceil(wide / BOX_ASPECT))
        height, width = self.box_shape or (fitting, round(fitting * BOX_ASPECT))
        return first_row, round(first_column + (wide - width) / 2.0), height, width

    def cut_out(self, frames_THWC: Frames) -> Frames:
        """Return the box, black where the sector is not: uint8 (T, height, width, 3)."""
        num_frames, rows, columns, _ = frames_THWC.shape
        assert (rows, columns) == (self.rows, self.columns), "the sector is of another screen"
        first_row, first_column, height, width = self.box
        box = np.zeros((num_frames, height, width, 3), dtype=np.uint8)
        top, left = max(first_row, 0), max(first_column, 0)
        bottom, right = min(first_row + height, rows), min(first_column + width, columns)
        inside = box[:, top - first_row : bottom - first_row, left - first_column : right - first_column]
        np.bitwise_and(frames_THWC[:, top:bottom, left:right], self._bits_HWC[top:bottom, left:right], out=inside)
        return box

    def to_json(self) -> dict[str, Any]:
        """Return the form that the ledger keeps; floats survive it to the last bit."""
        return {
            "rows": self.rows,
            "columns": self.columns,
            "step": self.step,
            "sides": [list(side) for side in self.sides],
            "arc": None if self.arc is None else list(self.arc),
            "box_shape": None if self.box_shape is None else list(self.box_shape),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Return what `to_json` was made of."""
        shape = document.get("box_shape")  # rows of an older version have none
        return cls(
            rows=document["rows"],
            columns=document["columns"],
            step=document["step"],
            sides=tuple(Side(*side) for side in document["sides"]),
            arc=None if document["arc"] is None else Arc(*document["arc"]),
            box_shape=None if shape is None else (shape[0], shape[1]),
        )

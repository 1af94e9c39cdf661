"""Where the networks looked in the clips of a loop: small enough to be kept beside their answers.

What a cell drew is said as a multiple of the average cell of its clip. A few cells draw tens of times as much as the
rest, so that the scale is logarithmic.

Legend: B clips of a loop, t, h, w cells of the encoder's grid.
"""

import base64
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

OCTAVES = 4
"""Of the scale, to each side of the average."""

SHOWN = 3
"""Octaves over the average that a picture shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """The attention rollout of each clip, mean over the networks."""

    grid: tuple[int, int, int]
    """Cells in time, down and across."""
    cells: bytes
    """One byte a cell in the order (B, t, h, w): 0 is a sixteenth of the average or less, 255 sixteen times or more."""
    slices: tuple[tuple[float, ...], ...]
    """The share of each slice of time in its clip, (B, t): the bytes end where a cell draws more."""

    @classmethod
    def of(cls, shares_Bthw: NDArray[np.float32]) -> Self:
        """Return the attention of clips in which the shares of the cells make one."""
        time, height, width = shares_Bthw.shape[1:]
        octaves = np.log2(np.maximum(shares_Bthw * (time * height * width), 2.0**-OCTAVES))
        levels = np.round((octaves + OCTAVES) / (2 * OCTAVES) * 255.0).clip(0, 255).astype(np.uint8)
        slices = np.round(shares_Bthw.sum(axis=(2, 3), dtype=np.float64), 4).tolist()
        return cls(grid=(time, height, width), cells=levels.tobytes(), slices=tuple(map(tuple, slices)))

    @property
    def octaves_Bthw(self) -> NDArray[np.float32]:
        """Return the cells of every clip as powers of two of the average: -4 to 4."""
        levels = np.frombuffer(self.cells, dtype=np.uint8).reshape(-1, *self.grid)
        return levels.astype(np.float32) / 255.0 * (2 * OCTAVES) - OCTAVES

    @property
    def heat_Bthw(self) -> NDArray[np.uint8]:
        """Return what a picture shows: 0 the average or less, 255 eight times the average or more."""
        return np.round(self.octaves_Bthw.clip(0, SHOWN) / SHOWN * 255.0).astype(np.uint8)

    def to_json(self) -> dict[str, Any]:
        """Return the form that the ledger keeps."""
        cells = base64.b64encode(self.cells).decode()
        return {"grid": list(self.grid), "cells": cells, "slices": [list(one) for one in self.slices]}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Return what `to_json` was made of."""
        time, height, width = document["grid"]
        return cls(
            grid=(time, height, width),
            cells=base64.b64decode(document["cells"]),
            slices=tuple(map(tuple, document["slices"])),
        )

"""The texture of tissue: fully developed speckle in dB, finer along the beam than across it."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from model.phantom.screen import Plane

SIDE = 1024
"""The texture repeats after so many cells."""
CELL_MM = 0.3
"""Size of a cell along the beam."""
CELL_RADIANS = 0.0042
"""Size of a cell across the beam: speckle grows wider with depth, as in a sector scan."""

_DARKEST_DB, _BRIGHTEST_DB = -26.0, 9.0


@cache
def texture_db() -> Plane:
    """Return the texture, flattened from (SIDE along the beam, SIDE across); the same in every process."""
    rng = np.random.default_rng(20261124)
    field = np.asarray(rng.normal(size=(2, SIDE, SIDE)), dtype=np.float32)
    for _ in range(3):
        field += np.roll(field, 1, axis=1)
        field += np.roll(field, 1, axis=2)
        field += np.roll(field, 2, axis=2)
    amplitude = np.hypot(field[0], field[1])
    level = 20.0 * np.log10(amplitude / np.sqrt(np.mean(amplitude**2)) + 1e-3) + _patches(rng)
    return np.asarray(np.clip(level, _DARKEST_DB, _BRIGHTEST_DB), dtype=np.float32).ravel()


def _patches(rng: np.random.Generator) -> Plane:
    """Return slow changes of the echo within tissue."""
    coarse = np.asarray(rng.normal(size=(64, 64)), dtype=np.float32)
    fine = np.repeat(np.repeat(coarse, SIDE // 64, axis=0), SIDE // 64, axis=1)
    for shift in (8, 4, 2, 1):
        fine = (fine + np.roll(fine, shift, axis=0)) / 2.0
        fine = (fine + np.roll(fine, shift, axis=1)) / 2.0
    return np.asarray(2.0 * fine / fine.std(), dtype=np.float32)


def look_up(along: Plane, across: Plane) -> Plane:
    """Return the texture at these cells, each coordinate in cells."""
    place = along.astype(np.int32)
    place &= SIDE - 1
    place <<= SIDE.bit_length() - 1
    column: NDArray[np.int32] = across.astype(np.int32)
    column &= SIDE - 1
    place |= column
    return np.take(texture_db(), place)

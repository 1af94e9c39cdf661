"""Volumes of the left ventricle from outlines in two apical views: the biplane method of discs (Simpson).

Each disc is an ellipse whose axes are the widths of the cavity in the two views at the same share of the long axis; its
height is that of the longer axis (Lang 2015, recommendations for chamber quantification). The code that was released
with CAMUS shares one height among end-diastole and end-systole; here each instant has its own, since the axis shortens.

Legend: H, W pixels; lengths in mm, volumes in mL.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

NUM_DISCS = 20
CAVITY, MYOCARDIUM, ATRIUM = 1, 2, 3
"""Labels of an outline."""

_FEWEST_PIXELS = 100
_SUBPIXELS = 3  # each pixel is divided so many times in both directions

Labels = NDArray[np.uint8]
Points = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """One instant in one view."""

    labels_HW: Labels
    row_mm: float
    """Height of a pixel."""
    column_mm: float
    """Width of a pixel."""


def biplane_volume_ml(two_chamber: Outline, four_chamber: Outline) -> float:
    """Return the volume of the cavity at one instant.

    Raises:
        ValueError: an outline has no cavity, or one without a base.
    """
    length2, widths2 = discs(two_chamber)
    length4, widths4 = discs(four_chamber)
    height = max(length2, length4) / NUM_DISCS
    return float(math.pi / 4.0 * np.sum(widths2 * widths4) * height / 1000.0)


def discs(outline: Outline) -> tuple[float, NDArray[np.float64]]:
    """Return the length of the cavity's axis, and its widths across it from the base to the apex.

    Raises:
        ValueError: the outline has no cavity, or one without a base.
    """
    cavity = _largest(outline.labels_HW == CAVITY)
    if int(cavity.sum()) < _FEWEST_PIXELS:
        raise ValueError(f"the cavity has {int(cavity.sum())} pixels")
    contour = cavity & ~ndimage.binary_erosion(cavity)
    base = _points(_base(outline.labels_HW, contour), outline)
    if len(base) < 2:
        raise ValueError("the cavity has no base: it touches no atrium, and muscle surrounds it")
    middle = _ends(base).mean(axis=0)
    points = _points(contour, outline)
    axis = points[np.argmax(np.hypot(*(points - middle).T))] - middle
    axis /= np.hypot(*axis)
    # Widths from areas: all of the cavity counts, not only where a line across it happens to leave the outline.
    along = (_subpixels(cavity, outline) - middle) @ axis
    length = float(along.max())
    slab = np.floor(along * NUM_DISCS / length).astype(np.int64)
    slab = np.clip(slab, None, NUM_DISCS - 1)  # what lies behind the base is in no disc
    counts = np.bincount(slab[slab >= 0], minlength=NUM_DISCS)
    area = outline.row_mm * outline.column_mm / _SUBPIXELS**2
    return length, np.asarray(counts * (area * NUM_DISCS / length), dtype=np.float64)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest connected part: stray pixels are no cavity."""
    parts, number = ndimage.label(mask)
    if number < 2:
        return mask
    return np.asarray(parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:])))


def _base(labels: Labels, contour: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the contour that lies at the atrium; without an atrium, where no muscle is."""
    around = ndimage.generate_binary_structure(2, 2)
    at_atrium = contour & ndimage.binary_dilation(labels == ATRIUM, around, iterations=2)
    if at_atrium.any():
        return np.asarray(at_atrium)
    at_muscle = ndimage.binary_dilation(labels == MYOCARDIUM, around, iterations=2)
    return np.asarray(contour & ~at_muscle)


def _points(mask: NDArray[np.bool_], outline: Outline) -> Points:
    """Return the middles of the pixels as (x, y) in mm."""
    rows, columns = np.nonzero(mask)
    return np.stack([(columns + 0.5) * outline.column_mm, (rows + 0.5) * outline.row_mm], axis=1)


def _subpixels(mask: NDArray[np.bool_], outline: Outline) -> Points:
    shifts = (np.arange(_SUBPIXELS) + 0.5) / _SUBPIXELS - 0.5
    middles = _points(mask, outline)
    return np.concatenate(
        [
            middles + np.array([across * outline.column_mm, down * outline.row_mm])
            for across in shifts
            for down in shifts
        ]
    )


def _ends(base: Points) -> Points:
    """Return the two ends of the base: the farthest along its main direction."""
    away = base - base.mean(axis=0)
    direction = np.linalg.svd(away, full_matrices=False)[2][0]
    place = away @ direction
    return base[[int(place.argmin()), int(place.argmax())]]

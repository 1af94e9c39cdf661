"""The screen of a scanner: where its fan lies, and what each pixel of the fan looks at.

Legend: H, W pixels of the screen, N pixels inside the fan.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from model.phantom.ranges import TRAINING, Ranges, Vendor, between

Plane = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Screen:
    """How the scanner draws."""

    rows: int = 240
    """Height, pixels."""
    columns: int = 320
    """Width, pixels."""
    apex_row: float = 0.02
    """Where the fan begins, over the rows."""
    apex_column: float = 0.5
    """Where the fan begins, over the columns."""
    bottom_row: float = 0.92
    """Where `depth_mm` lies under the apex, over the rows."""
    half_angle_degrees: float = 40.0
    """From the middle of the fan to its side."""
    depth_mm: float = 160.0
    """Depth at the bottom of the fan."""
    pixel_ratio: float = 1.0
    """Width of a pixel over its height, in mm."""
    gain_db: float = 0.0
    """Brightness of the picture."""
    attenuation_db: float = 7.0
    """What the bottom of the fan has lost."""
    noise_db: float = -55.0
    """Electronic noise at the bottom of the fan."""
    speckle: float = 1.0
    """Size of a speckle; 1 is usual."""
    shadows: tuple[tuple[float, float], ...] = ()
    """Rib shadows: middle and half width, over the half angle of the fan."""
    has_ecg: bool = True
    """A green trace runs along the bottom."""
    has_marks: bool = True
    """Depth marks at the right side."""
    has_text: bool = False
    """Settings are written at the left side."""
    has_logo: bool = False
    """A coloured sign and a bar of all grey levels stand beside the fan."""
    has_colour: bool = False
    """Colour Doppler lies over the blood."""

    @property
    def row_mm(self) -> float:
        """Return the height of a pixel."""
        return self.depth_mm / ((self.bottom_row - self.apex_row) * self.rows)

    @property
    def column_mm(self) -> float:
        """Return the width of a pixel."""
        return self.row_mm * self.pixel_ratio


@dataclass(frozen=True, kw_only=True, slots=True)
class Fan:
    """The pixels of a screen that show something, row by row; x to the right, z down from the probe, mm."""

    inside: NDArray[np.intp]
    """Their places in the flattened screen."""
    x: Plane
    z: Plane
    range_mm: Plane
    """Distance from the probe."""
    angle: Plane
    """From the middle of the fan, radians."""


def fan_of(screen: Screen) -> Fan:
    """Return the fan of a screen."""
    whole = whole_of(screen)
    is_inside = (
        (np.abs(whole.angle) < math.radians(screen.half_angle_degrees))
        & (whole.range_mm < screen.depth_mm)
        & (whole.z > 1.0)
    )
    inside = np.flatnonzero(is_inside)
    return Fan(
        inside=inside, x=whole.x[inside], z=whole.z[inside], range_mm=whole.range_mm[inside], angle=whole.angle[inside]
    )


def whole_of(screen: Screen) -> Fan:
    """Return every pixel of a screen."""
    x, z = (plane.ravel() for plane in plane_of(screen))
    return Fan(inside=np.arange(x.size), x=x, z=z, range_mm=np.hypot(x, z), angle=np.arctan2(x, z))


def plane_of(screen: Screen) -> tuple[Plane, Plane]:
    """Return x and z of every pixel, each (H, W)."""
    columns = (np.arange(screen.columns) + 0.5 - screen.apex_column * screen.columns) * screen.column_mm
    rows = (np.arange(screen.rows) + 0.5 - screen.apex_row * screen.rows) * screen.row_mm
    x, z = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
    return x, z


def random_screen(rng: Generator, ranges: Ranges = TRAINING, *, base: Screen | None = None) -> Screen:
    """Return a screen with settings within the ranges: one of the vendors' screens, or `base`, which stays as large."""
    if base is None:
        vendor = VENDORS[ranges.vendors[int(rng.integers(len(ranges.vendors)))]]
        factor = ranges.factors[int(rng.integers(len(ranges.factors)))]
        base = replace(vendor, rows=round(vendor.rows * factor), columns=round(vendor.columns * factor))
    return replace(
        base,
        half_angle_degrees=between(rng, ranges.half_angle_degrees),
        depth_mm=between(rng, ranges.depth_mm),
        gain_db=between(rng, ranges.gain_db),
        attenuation_db=between(rng, ranges.attenuation_db),
        noise_db=between(rng, ranges.noise_db),
        speckle=between(rng, ranges.speckle),
        shadows=tuple(
            (float(rng.uniform(-1.0, 1.0)), float(rng.uniform(0.04, 0.12)))
            for _ in range(int(rng.integers(0, ranges.shadows + 1)))
        ),
        has_ecg=bool(rng.random() < 0.8),
        has_marks=bool(rng.random() < 0.8),
        has_text=bool(rng.random() < 0.8),
    )


VENDORS = {
    Vendor.GE: Screen(rows=248, columns=356, apex_row=0.03, apex_column=0.5, bottom_row=0.9),
    Vendor.PHILIPS: Screen(rows=240, columns=320, apex_row=0.08, apex_column=0.5, bottom_row=0.95),
    Vendor.SIEMENS: Screen(rows=264, columns=352, apex_row=0.05, apex_column=0.46, bottom_row=0.93),
    Vendor.CANON: Screen(rows=270, columns=360, apex_row=0.1, apex_column=0.53, bottom_row=0.96),
}

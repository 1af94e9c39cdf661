"""What every view is made of: levels of echo, tissue that moves, and simple shapes.

Legend: N pixels inside the fan. Lengths in mm, echoes in dB under the brightest.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from model.phantom.heart import Heart
from model.phantom.ranges import TRAINING, Ranges
from model.phantom.screen import Plane

BLOOD = -57.0
AROUND = -35.0
MUSCLE = -22.0
FIBROUS = -12.0
BRIGHT = -5.0

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pose:
    """How the heart lies under the probe, against its usual place."""

    shift_x_mm: float = 0.0
    shift_z_mm: float = 0.0
    tilt_degrees: float = 0.0
    variant: float = 0.0
    """0..1: which of its kinds a view shows (levels of the short axis, places that are no heart)."""


def random_pose(rng: Generator, ranges: Ranges = TRAINING) -> Pose:
    """Return a pose within the ranges."""
    shift, tilt = ranges.shift_mm, ranges.tilt_degrees
    return Pose(
        shift_x_mm=float(rng.uniform(-shift, shift)),
        shift_z_mm=float(rng.uniform(-shift, shift)),
        tilt_degrees=float(rng.uniform(-tilt, tilt)),
        variant=float(rng.random()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """One instant of a view, for each of N pixels."""

    echo_db: Plane
    """How bright."""
    toward_x: Plane
    """Where the tissue that is here now lies at end-diastole, to the right of here."""
    toward_z: Plane
    """Where it lies at end-diastole, below here."""
    flow: Plane
    """Where blood flows: -1..1, towards the probe positive."""


class View2D(Protocol):
    """A view of a heart, prepared for a set of points."""

    def at(self, time_ms: float) -> Moment:
        """Return what the view shows at this time."""
        ...


class Frame2D:
    """Coordinates along an axis of the heart: `a` from its origin along it, `t` across, to the left of its course."""

    def __init__(
        self, x: Plane, z: Plane, *, origin: tuple[float, float], degrees: float, is_mirrored: bool = False
    ) -> None:
        """Lay the axis through `origin`; at 0 degrees it runs down, and `t` to the right, or mirrored to the left."""
        self._cos, self._sin = np.float32(math.cos(math.radians(degrees))), np.float32(math.sin(math.radians(degrees)))
        self._origin = origin
        self._side = np.float32(-1.0 if is_mirrored else 1.0)
        right, down = x - np.float32(origin[0]), z - np.float32(origin[1])
        self.a: Plane = right * self._sin + down * self._cos
        self.t: Plane = (right * self._cos - down * self._sin) * self._side

    def point(self, along: float, across: float) -> tuple[float, float]:
        """Return x and z of a point given along and across the axis."""
        ends = np.array([[along], [across]], dtype=np.float32)
        right, down = self.turn_back(ends[0], ends[1])
        return self._origin[0] + float(right[0]), self._origin[1] + float(down[0])

    def turn_back(self, along: Plane, across: Plane) -> tuple[Plane, Plane]:
        """Return a displacement along the axes as one to the right and down."""
        side = across * self._side
        return along * self._sin + side * self._cos, along * self._cos - side * self._sin


class Cavity:
    """The left ventricle around its axis: the ellipsoid's cut in this view, and the wall around it.

    The apex rests; the base comes down to it.
    """

    def __init__(self, heart: Heart, frame: Frame2D, *, is_deep: bool, x: Plane, z: Plane) -> None:
        """Prepare the points; `is_deep` cuts along the depth instead of the width of the ellipsoid."""
        self._heart, self._frame, self._is_deep = heart, frame, is_deep
        self.rest_length = heart.ventricle(0.0).length_mm
        half, width = self._halves(0.0)
        slope_a = (frame.a - half) / np.float32(half * half)
        slope_t = frame.t / np.float32(width * width)
        self._steep = np.hypot(slope_a, slope_t) + np.float32(1e-6)
        right, down = frame.turn_back(slope_a, slope_t)
        facing = np.abs(right * x + down * z) / (self._steep * np.hypot(x, z))
        self.specular_db: Plane = 9.0 * facing - np.float32(6.0)
        """Walls across the beam send more back than walls along it."""

    def _halves(self, time_ms: float) -> tuple[float, float]:
        now = self._heart.ventricle(time_ms)
        return now.half_length_mm, now.half_depth_mm if self._is_deep else now.half_width_mm

    def sizes(self, time_ms: float) -> tuple[float, float, float]:
        """Return length to the mitral plane, and half axes along and across, at this time."""
        return (self._heart.ventricle(time_ms).length_mm, *self._halves(time_ms))

    def cut(self, time_ms: float) -> "Cut":
        """Return the cavity at this time."""
        half, width = self._halves(time_ms)
        rest_half, rest_width = self._halves(0.0)
        a, t = self._frame.a, self._frame.t
        radius = np.hypot((a - np.float32(half)) * np.float32(1.0 / half), t * np.float32(1.0 / width))
        steep = self._steep * np.float32(rest_width / width)
        distance = (radius - np.float32(1.0)) * radius / np.maximum(steep, np.float32(1e-3))
        wall = self._heart.wall_mm * rest_width / width  # muscle keeps its mass: it thickens as the cavity shrinks
        length = self._heart.ventricle(time_ms).length_mm
        # Near the wall tissue follows the cavity; a diameter away it rests.
        follow = np.clip(np.float32(2.4) - radius, np.float32(0.0), np.float32(1.0))
        right, down = self._frame.turn_back(
            follow * a * np.float32(rest_half / half - 1.0), follow * t * np.float32(rest_width / width - 1.0)
        )
        return Cut(radius=radius, distance=distance, wall=wall, length=length, width=width, right=right, down=down)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """The left ventricle in a view at one time."""

    radius: Plane
    """Below 1: inside the uncut ellipse."""
    distance: Plane
    """About how far outside of it."""
    wall: float
    """Thickness of the wall."""
    length: float
    """Where the mitral plane cuts the axis."""
    width: float
    """Half axis across."""
    right: Plane
    down: Plane
    """Where the tissue here lay at end-diastole."""


def ellipse(u: Plane, v: Plane, middle: tuple[float, float], halves: tuple[float, float]) -> Plane:
    """Return the square of the radius in an ellipse: below 1 inside."""
    across, along = (u - np.float32(middle[0])), (v - np.float32(middle[1]))
    across *= np.float32(1.0 / halves[0])
    along *= np.float32(1.0 / halves[1])
    across *= across
    along *= along
    across += along
    return across


def paint(echo_db: Plane, where: Mask, level: float | np.float32 | Plane) -> None:
    """Set the echo at these points."""
    np.copyto(echo_db, level, where=where, casting="same_kind")


def chamber(echo_db: Plane, squared: Plane, *, rim: float = 1.22, wall_db: float = MUSCLE) -> Mask:
    """Draw a thin-walled chamber; return its blood."""
    paint(echo_db, squared < np.float32(rim), np.float32(wall_db))
    blood = squared < np.float32(1.0)
    paint(echo_db, blood, np.float32(BLOOD))
    return blood


def stroke(
    echo_db: Plane,
    u: Plane,
    v: Plane,
    ends: tuple[tuple[float, float], tuple[float, float]],
    width: float,
    level: float,
) -> None:
    """Draw a line with round ends, for leaflets and septa; only points near it are looked at."""
    (u0, v0), (u1, v1) = ends
    reach = width / 2.0
    near = np.flatnonzero(
        (np.abs(u - np.float32((u0 + u1) / 2.0)) < np.float32(abs(u1 - u0) / 2.0 + reach))
        & (np.abs(v - np.float32((v0 + v1) / 2.0)) < np.float32(abs(v1 - v0) / 2.0 + reach))
    )
    du, dv = u1 - u0, v1 - v0
    right, down = u[near] - np.float32(u0), v[near] - np.float32(v0)
    share = np.clip((right * du + down * dv) / max(du * du + dv * dv, 1e-6), 0.0, 1.0)
    hit = near[np.hypot(right - share * du, down - share * dv) < reach]
    echo_db[hit] = np.maximum(echo_db[hit], np.float32(level))

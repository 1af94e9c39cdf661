"""What each view shows of a heart: how bright every point of the plane is.

Coordinates: x across the fan, z depth, both in mm; the probe is at (0, 0).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.phantom.heart import ELONGATION, Heart, diameter_mm
from model.tasks import View

Plane = NDArray[np.float64]

BLOOD = 0.03
TISSUE = 0.30
MUSCLE = 0.62
VALVE = 1.0

_WALL_MM = 9.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """One instant of a view."""

    brightness: Plane
    """0..1 at each point."""
    u: Plane
    """First coordinate of the tissue that is at a point now: speckle is tied to it, so it moves with the wall."""
    v: Plane
    """Second coordinate of the tissue."""
    flow: Plane
    """Where blood flows: -1..1, towards the probe positive."""


def cut(view: View, heart: Heart, time_ms: float, x: Plane, z: Plane) -> Slice:
    """Return what the view shows at this time."""
    diameter = diameter_mm(heart.volume_ml(time_ms))
    rest = diameter_mm(heart.edv_ml)
    picture = np.full_like(x, TISSUE)
    flow = np.zeros_like(x)
    if view is View.OTHER:
        return _liver(x, z, picture, flow)
    cx, cz, angle, long_axis = _PLACES[view]
    along, across = _turn(x - cx, z - cz, angle)
    half = (diameter * long_axis / 2.0, diameter / 2.0)
    radius = np.hypot(along / half[0], across / half[1])
    for chamber in _CHAMBERS[view]:
        _chamber(picture, x, z, chamber, 1.0 + 0.25 * (1.0 - diameter / rest))
    wall = _WALL_MM * (rest / diameter)  # muscle keeps its mass: it thickens as the cavity shrinks
    outside = (radius - 1.0) * diameter / 2.0
    picture[outside < wall] = MUSCLE
    picture[radius < 1.0] = BLOOD
    flow[radius < 1.0] = -1.0 if heart.is_valve_open(time_ms) else 1.0
    _valve(picture, view, heart, time_ms, x, z)
    # Near the wall tissue follows the cavity; two diameters away it rests.
    follow = np.clip(2.0 - radius, 0.0, 1.0) * (rest / diameter - 1.0)
    return Slice(brightness=picture, u=x + (x - cx) * follow, v=z + (z - cz) * follow, flow=flow)


# Centre, angle of the long axis (degrees from across), length over diameter.
_PLACES = {
    View.A4C: (14.0, 62.0, 90.0, ELONGATION),
    View.A2C: (0.0, 62.0, 84.0, ELONGATION),
    View.PLAX: (-14.0, 72.0, 12.0, ELONGATION),
    View.PSAX: (4.0, 68.0, 0.0, 1.0),
}

# Other chambers: centre, half axes.
_CHAMBERS = {
    View.A4C: ((-26.0, 66.0, 13.0, 30.0), (18.0, 122.0, 19.0, 17.0), (-22.0, 120.0, 18.0, 16.0)),
    View.A2C: ((2.0, 124.0, 22.0, 18.0),),
    View.PLAX: ((-6.0, 34.0, 26.0, 9.0), (46.0, 58.0, 16.0, 11.0), (44.0, 92.0, 18.0, 14.0)),
    View.PSAX: ((-36.0, 60.0, 9.0, 24.0),),
}

# Where the aortic valve is seen, and how large.
_VALVES = {
    View.A4C: (8.0, 101.0, 4.0),
    View.A2C: (0.0, 103.0, 3.0),
    View.PLAX: (29.0, 60.0, 8.0),
    View.PSAX: (26.0, 40.0, 7.0),
}


def _turn(x: Plane, z: Plane, degrees: float) -> tuple[Plane, Plane]:
    angle = np.deg2rad(degrees)
    return x * np.cos(angle) + z * np.sin(angle), z * np.cos(angle) - x * np.sin(angle)


def _chamber(picture: Plane, x: Plane, z: Plane, chamber: tuple[float, float, float, float], scale: float) -> None:
    cx, cz, half_x, half_z = chamber
    radius = np.hypot((x - cx) / (half_x * scale), (z - cz) / (half_z * scale))
    picture[radius < 1.18] = MUSCLE * 0.8
    picture[radius < 1.0] = BLOOD


def _valve(picture: Plane, view: View, heart: Heart, time_ms: float, x: Plane, z: Plane) -> None:
    """Draw the aortic valve: the more stenotic, the thicker and brighter, and the less it opens."""
    cx, cz, size = _VALVES[view]
    opening = (1.0 - heart.stenosis / 5.0) * (0.8 if heart.is_valve_open(time_ms) else 0.05)
    distance = np.abs(np.abs(z - cz) - size * opening)
    leaflet = (np.abs(x - cx) < size) & (distance < 0.8 + 0.9 * heart.stenosis)
    picture[leaflet] = np.maximum(picture[leaflet], VALVE * (0.55 + 0.11 * heart.stenosis))


def _liver(x: Plane, z: Plane, picture: Plane, flow: Plane) -> Slice:
    """Return a picture without a heart: liver and a vessel."""
    picture[:] = 0.45
    vessel = np.hypot(x - 12.0 - 0.2 * z, (z - 70.0) / 3.0) < 6.0
    picture[vessel] = BLOOD
    picture[z > 118.0] = 0.75
    flow[vessel] = 1.0
    return Slice(brightness=picture, u=x, v=z, flow=flow)

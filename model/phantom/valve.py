"""The aortic valve: the more stenotic, the thicker and brighter its leaflets, and the less they open."""

import math

import numpy as np

from model.phantom.anatomy import BLOOD, BRIGHT, FIBROUS, chamber, paint, stroke
from model.phantom.heart import Heart
from model.phantom.screen import Plane

ROOT_MM = 14.0
"""Radius of the aortic root."""

_LEAFLET_MM = 11.0


def thickness_mm(heart: Heart) -> float:
    """Return how thick a leaflet is drawn."""
    return 1.4 + 1.0 * heart.stenosis


def level_db(heart: Heart) -> float:
    """Return how bright a leaflet is: fibrous when healthy, calcified when severe."""
    return -17.0 + 3.5 * heart.stenosis


def orifice(heart: Heart, time_ms: float) -> float:
    """Return how far the leaflets stand apart, over the radius of the root."""
    return (0.88 - 0.19 * heart.stenosis) * heart.aortic_opening(time_ms)


def long_axis(echo_db: Plane, s: Plane, n: Plane, heart: Heart, time_ms: float) -> None:
    """Draw both leaflets that a long axis shows; `s` runs along the root from its ring, `n` across from its middle."""
    tip = ROOT_MM * orifice(heart, time_ms)
    for side in (-1.0, 1.0):
        hinge, end = (0.0, side * ROOT_MM), (_LEAFLET_MM, side * (tip + 0.3))
        stroke(echo_db, s, n, (hinge, end), thickness_mm(heart), level_db(heart))


def short_axis(echo_db: Plane, right: Plane, down: Plane, heart: Heart, time_ms: float) -> None:
    """Draw the root from above: shut, the three lines of closure; open, the orifice that the leaflets leave."""
    squared = ellipse_of_root(right, down)
    chamber(echo_db, squared, rim=1.36, wall_db=FIBROUS)
    opening = orifice(heart, time_ms)
    level, thick = level_db(heart), thickness_mm(heart)
    angles = [math.radians(degrees) for degrees in (90.0, 210.0, 330.0)]
    for angle in angles:
        outer = (ROOT_MM * math.cos(angle), ROOT_MM * math.sin(angle))
        inner = (outer[0] * opening, outer[1] * opening)
        stroke(echo_db, right, down, (outer, inner), thick, level)
    if opening > 0.05:
        radius = np.sqrt(squared) * np.float32(ROOT_MM)
        paint(echo_db, np.abs(radius - np.float32(ROOT_MM * opening)) < thick / 2.0, np.float32(level))
        paint(echo_db, radius < ROOT_MM * opening - thick / 2.0, np.float32(BLOOD))
    for angle in angles[: heart.stenosis - 1 if heart.stenosis > 1 else 0]:  # lumps of calcium at the commissures
        lump = (0.8 * ROOT_MM * math.cos(angle + 0.6), 0.8 * ROOT_MM * math.sin(angle + 0.6))
        stroke(echo_db, right, down, (lump, lump), 2.0 * thick, BRIGHT)


def hint(echo_db: Plane, a: Plane, t: Plane, place: tuple[float, float], heart: Heart, time_ms: float) -> None:
    """Draw what an apical view shows of the valve: two short strokes that part."""
    half = 5.0 * orifice(heart, time_ms)
    for side in (-1.0, 1.0):
        middle = place[1] + side * half
        ends = ((place[0] - 2.5, middle), (place[0] + 2.5, middle))
        stroke(echo_db, a, t, ends, 0.7 * thickness_mm(heart), level_db(heart) - 3.0)


def ellipse_of_root(right: Plane, down: Plane) -> Plane:
    """Return the square of the distance from the root's middle over its radius."""
    return (right * right + down * down) * np.float32(1.0 / ROOT_MM**2)

"""The parasternal views: long axis, and short axis at the aortic valve or at the papillary muscles.

Legend: N points. In the long axis the axis of the ventricle runs from the apex, left, to the base, right.
"""

import math

import numpy as np

from model.phantom.anatomy import (
    AROUND,
    BLOOD,
    BRIGHT,
    FIBROUS,
    MUSCLE,
    Cavity,
    Cut,
    Frame2D,
    Mask,
    Moment,
    Pose,
    chamber,
    ellipse,
    paint,
    stroke,
)
from model.phantom.heart import Heart
from model.phantom.screen import Plane
from model.phantom.valve import ROOT_MM, long_axis, short_axis

VALVE_LEVEL_SHARE = 0.7
"""Share of the short axes that lie at the aortic valve."""


class LongAxis:
    """The parasternal long axis: right ventricle, septum, left ventricle, aortic root over left atrium."""

    def __init__(self, heart: Heart, x: Plane, z: Plane, pose: Pose) -> None:
        """Prepare the points."""
        self._heart = heart
        rest = heart.ventricle(0.0)
        degrees = 80.0 + pose.tilt_degrees
        base = (12.0 + pose.shift_x_mm, 40.0 + heart.wall_mm + rest.half_depth_mm + pose.shift_z_mm)
        along = (math.sin(math.radians(degrees)), math.cos(math.radians(degrees)))
        origin = (base[0] - along[0] * rest.length_mm, base[1] - along[1] * rest.length_mm)
        self._frame = Frame2D(x, z, origin=origin, degrees=degrees, is_mirrored=True)  # posterior is positive
        self._cavity = Cavity(heart, self._frame, is_deep=True, x=x, z=z)
        self._still = np.zeros_like(x)

    def at(self, time_ms: float) -> Moment:
        """Return what the view shows at this time."""
        a, t = self._frame.a, self._frame.t
        cut = self._cavity.cut(time_ms)
        s = a - np.float32(cut.length - 3.0)
        middle = ROOT_MM + 1.0 - cut.width
        n = t - np.float32(middle) + np.float32(0.22) * s
        echo_db = np.full_like(a, AROUND)
        self._right_ventricle(echo_db, cut)
        atrium = self._atrium(echo_db, cut, middle)
        above = a < np.float32(cut.length)
        outside = cut.distance - np.float32(cut.wall)
        paint(echo_db, (outside > 0.0) & (outside < 2.5) & above & (t > 0.0), np.float32(BRIGHT))
        wall = (outside < 0.0) & above
        paint(echo_db, wall, self._cavity.specular_db + np.float32(MUSCLE))
        paint(echo_db, wall & (cut.distance < 1.4), self._cavity.specular_db + np.float32(FIBROUS))
        cavity = (cut.radius < np.float32(1.0)) & above
        paint(echo_db, cavity, np.float32(BLOOD))
        root = self._root(echo_db, s, n, time_ms)
        self._mitral(echo_db, cut, middle, time_ms)
        flow = np.where(cavity | root | atrium, np.float32(0.5 - self._heart.aortic_opening(time_ms)), self._still)
        return Moment(echo_db=echo_db, toward_x=cut.right, toward_z=cut.down, flow=flow)

    def _right_ventricle(self, echo_db: Plane, cut: Cut) -> None:
        a, t = self._frame.a, self._frame.t
        above = -self._cavity_rest_width() - self._heart.wall_mm - 7.0
        chamber(echo_db, ellipse(a, t, (self._cavity.rest_length - 12.0, above), (46.0, 13.0)), rim=1.5)

    def _cavity_rest_width(self) -> float:
        return self._heart.ventricle(0.0).half_depth_mm

    def _atrium(self, echo_db: Plane, cut: Cut, middle: float) -> Mask:
        a, t = self._frame.a, self._frame.t
        top = middle + ROOT_MM + 2.0
        halves = (0.5 * (self._cavity.rest_length + 44.0 - cut.length), 17.0)
        descending = ellipse(a, t, (cut.length + 2.0, cut.width + self._heart.wall_mm + 24.0), (10.0, 10.0))
        chamber(echo_db, descending, rim=1.4, wall_db=FIBROUS)
        return chamber(echo_db, ellipse(a, t, (cut.length + halves[0] - 1.0, top + 15.0), halves), rim=1.3)

    def _root(self, echo_db: Plane, s: Plane, n: Plane, time_ms: float) -> Mask:
        """Draw the root with its sinuses; it leaves the ventricle under the septum."""
        bulge = np.exp(-(((s - np.float32(12.0)) / np.float32(9.0)) ** 2)) * np.float32(3.0) + np.float32(ROOT_MM)
        beside = np.abs(n)
        beyond = (s > 0.0) & (s < 58.0)
        paint(echo_db, (beside < bulge + np.float32(2.6)) & beyond, np.float32(FIBROUS + 2.0))
        blood: Mask = (beside < bulge) & (s > -4.0) & (s < 58.0)
        paint(echo_db, blood, np.float32(BLOOD))
        long_axis(echo_db, s, n, self._heart, time_ms)
        return blood

    def _mitral(self, echo_db: Plane, cut: Cut, middle: float, time_ms: float) -> None:
        a, t = self._frame.a, self._frame.t
        opening = self._heart.mitral_opening(time_ms)
        front, back = middle + ROOT_MM + 1.0, 0.92 * cut.width
        between = 0.4 * front + 0.6 * back
        front_tip = (cut.length - 5.0 - 18.0 * opening, between - (between - front + 6.0) * opening)
        back_tip = (cut.length - 5.0 - 7.0 * opening, between + (back - between - 1.0) * opening)
        stroke(echo_db, a, t, ((cut.length - 1.0, front), front_tip), 2.4, FIBROUS + 3.0)
        stroke(echo_db, a, t, ((cut.length - 1.0, back), back_tip), 2.4, FIBROUS + 3.0)
        stroke(echo_db, a, t, ((cut.length - 1.0, back + 2.0),) * 2, 6.0, BRIGHT - 2.0)


def short_axis_view(heart: Heart, x: Plane, z: Plane, pose: Pose) -> "ValveLevel | PapillaryLevel":
    """Return the short axis at the level that the pose names."""
    level = ValveLevel if pose.variant < VALVE_LEVEL_SHARE else PapillaryLevel
    return level(heart, x, z, pose)


class ValveLevel:
    """The short axis at the aortic valve, with the atria below and the right ventricle's outflow around it."""

    def __init__(self, heart: Heart, x: Plane, z: Plane, pose: Pose) -> None:
        """Prepare the points."""
        self._heart = heart
        frame = Frame2D(x, z, origin=(2.0 + pose.shift_x_mm, 62.0 + pose.shift_z_mm), degrees=pose.tilt_degrees)
        self._right, self._down = frame.t, frame.a
        self._angle = np.degrees(np.arctan2(-self._down, self._right))  # 90 is up

    def at(self, time_ms: float) -> Moment:
        """Return what the view shows at this time; the root sinks a little as the heart contracts."""
        heart = self._heart
        share = (heart.edv_ml - heart.volume_ml(time_ms)) / heart.edv_ml
        right, down = self._right - np.float32(3.0 * share), self._down - np.float32(9.0 * share)
        echo_db = np.full_like(right, AROUND + 2.0)
        swell = 1.0 + 0.12 * share
        left_atrium = chamber(echo_db, ellipse(right, down, (6.0, 33.0), (30.0, 17.0 * swell)), rim=1.25)
        right_atrium = chamber(echo_db, ellipse(right, down, (-36.0, 22.0), (17.0, 19.0 * swell)), rim=1.25)
        outflow = self._outflow(echo_db, right, down, 1.0 - 0.25 * share)
        stroke(echo_db, right, down, ((-13.0, 12.0), (-21.0, 46.0)), 3.0, FIBROUS)
        stroke(echo_db, right, down, ((-15.0, -2.0), (-32.0, 1.0)), 2.2, FIBROUS)
        short_axis(echo_db, right, down, heart, time_ms)
        filling = np.where(left_atrium | right_atrium, np.float32(heart.mitral_opening(time_ms)), np.float32(0.0))
        root = ellipse(right, down, (0.0, 0.0), (ROOT_MM, ROOT_MM)) < 1.0
        flow = np.where(outflow | root, np.float32(-heart.aortic_opening(time_ms)), filling)
        moved = np.ones_like(right)
        return Moment(
            echo_db=echo_db,
            toward_x=np.float32(-3.0 * share) * moved,
            toward_z=np.float32(-9.0 * share) * moved,
            flow=flow,
        )

    def _outflow(self, echo_db: Plane, right: Plane, down: Plane, size: float) -> Mask:
        """Draw the outflow that wraps the valve from the tricuspid valve, left, to the pulmonary artery, right."""
        distance = np.hypot(right, down)
        inner, outer = ROOT_MM + 3.5, ROOT_MM + 3.5 + 20.0 * size
        around = (self._angle > -12.0) & (self._angle < 188.0)
        paint(echo_db, (distance < outer + 4.0) & around, np.float32(MUSCLE))
        blood: Mask = (distance < outer) & (distance > inner) & around
        paint(echo_db, blood, np.float32(BLOOD))
        artery = chamber(echo_db, ellipse(right, down, (30.0, 16.0), (9.0, 24.0)), rim=1.4, wall_db=FIBROUS)
        stroke(echo_db, right, down, ((20.0, -4.0), (36.0, -6.0)), 2.0, FIBROUS)
        return blood | artery


class PapillaryLevel:
    """The short axis at the papillary muscles: a ring that thickens."""

    def __init__(self, heart: Heart, x: Plane, z: Plane, pose: Pose) -> None:
        """Prepare the points."""
        self._heart = heart
        rest = heart.ventricle(0.0)
        origin = (6.0 + pose.shift_x_mm, 38.0 + rest.half_width_mm + heart.wall_mm + pose.shift_z_mm)
        self._frame = Frame2D(x, z, origin=origin, degrees=pose.tilt_degrees)
        upright = np.abs(self._frame.a) / np.maximum(np.hypot(self._frame.a, self._frame.t), np.float32(1.0))
        self._specular_db: Plane = np.asarray(8.0 * upright - 5.0, dtype=np.float32)

    def at(self, time_ms: float) -> Moment:
        """Return what the view shows at this time."""
        a, t = self._frame.a, self._frame.t
        now, rest = self._heart.ventricle(time_ms), self._heart.ventricle(0.0)
        share = now.half_width_mm / rest.half_width_mm
        radius = np.sqrt(ellipse(a, t, (0.0, 0.0), (now.half_depth_mm, now.half_width_mm)))
        outside = (radius - np.float32(1.0)) * np.float32(now.half_width_mm)
        wall = np.float32(self._heart.wall_mm / share)
        echo_db = np.full_like(a, AROUND)
        beside = -rest.half_width_mm - self._heart.wall_mm + 4.0
        chamber(echo_db, ellipse(a, t, (-6.0, beside), (0.95 * rest.half_depth_mm, 22.0)), rim=1.3)
        line = (outside > wall) & (outside < wall + 2.2) & (t > 0.0)
        paint(echo_db, line, self._specular_db + np.float32(BRIGHT - 2.0))
        paint(echo_db, outside < wall, self._specular_db + np.float32(MUSCLE))
        paint(echo_db, outside < 1.4, self._specular_db + np.float32(FIBROUS))
        blood = radius < np.float32(1.0)
        paint(echo_db, blood, np.float32(BLOOD))
        for degrees in (35.0, 145.0):
            place = 0.78 * now.half_depth_mm
            middle = (place * math.sin(math.radians(degrees)), place * math.cos(math.radians(degrees)))
            stroke(echo_db, a, t, (middle, middle), 11.0, MUSCLE + 2.0)
        follow = np.clip(np.float32(2.4) - radius, 0.0, 1.0) * np.float32(1.0 / share - 1.0)
        right, down = self._frame.turn_back(follow * a, follow * t)
        flow = np.where(blood, np.float32(share - 0.8), np.float32(0.0))
        return Moment(echo_db=echo_db, toward_x=right, toward_z=down, flow=flow)

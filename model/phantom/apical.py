"""The apical views: four chambers, two chambers, and their true outlines.

Legend: N points. The axis runs from the apex (0) to the mitral plane and on through the left atrium.
"""

import math

import numpy as np
from numpy.typing import NDArray

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
from model.phantom.valve import hint

CAVITY, MYOCARDIUM, ATRIUM = 1, 2, 3
"""Labels of the outlines; 0 is everything else."""

_ATRIUM_MM = 42.0  # length of the left atrium at end-diastole
_LEAFLET_MM = 20.0


class Apical:
    """What both apical views share: the left ventricle, the mitral valve and the left atrium."""

    def __init__(self, heart: Heart, x: Plane, z: Plane, pose: Pose, *, is_two_chamber: bool) -> None:
        """Prepare the points."""
        self._heart, self._is_two_chamber = heart, is_two_chamber
        origin = ((-4.0 if is_two_chamber else 10.0) + pose.shift_x_mm, 17.0 + pose.shift_z_mm)
        degrees = (9.0 if is_two_chamber else -4.0) + pose.tilt_degrees
        self._frame = Frame2D(x, z, origin=origin, degrees=degrees)
        self._cavity = Cavity(heart, self._frame, is_deep=is_two_chamber, x=x, z=z)
        self._still = np.zeros_like(x)

    def at(self, time_ms: float) -> Moment:
        """Return what the view shows at this time."""
        a = self._frame.a
        cut = self._cavity.cut(time_ms)
        echo_db = np.full_like(a, AROUND)
        self._others(echo_db, cut)
        atrium = chamber(echo_db, self._atrium(cut), rim=1.25)
        above = a < np.float32(cut.length + 2.0)
        wall = (cut.distance < np.float32(cut.wall)) & above
        paint(echo_db, wall, self._cavity.specular_db + np.float32(MUSCLE))
        self._pericardium(echo_db, cut, above)
        inside = cut.radius < np.float32(1.0)
        paint(
            echo_db, wall & (cut.distance < np.float32(1.6)) & ~inside, self._cavity.specular_db + np.float32(FIBROUS)
        )
        blood = inside & (a < np.float32(cut.length))
        paint(echo_db, inside & above, np.float32(BLOOD))
        self._mitral(echo_db, cut, time_ms)
        opening = self._heart.aortic_opening(time_ms)
        flow = np.where(blood | atrium, np.float32(self._heart.mitral_opening(time_ms) - opening), self._still)
        return Moment(echo_db=echo_db, toward_x=cut.right, toward_z=cut.down, flow=flow)

    def labels(self, time_ms: float) -> NDArray[np.uint8]:
        """Return the true outlines at each point."""
        a = self._frame.a
        cut = self._cavity.cut(time_ms)
        above = a < np.float32(cut.length)
        labels = np.zeros(a.shape, dtype=np.uint8)
        labels[(self._atrium(cut) < 1.0) & ~above] = ATRIUM
        labels[(cut.distance < np.float32(cut.wall)) & above] = MYOCARDIUM
        labels[(cut.radius < 1.0) & above] = CAVITY
        return labels

    def chords(self, time_ms: float, number: int) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        """Return the ends, along and across, of the cavity's axis and then of chords at equal steps along it."""
        length, half, width = self._cavity.sizes(time_ms)
        found = [((0.0, 0.0), (length, 0.0))]
        for step in range(number):
            along = (step + 0.5) * length / number
            across = width * math.sqrt(1.0 - (along / half - 1.0) ** 2)
            found.append(((along, -across), (along, across)))
        return found

    def place(self, along: float, across: float) -> tuple[float, float]:
        """Return x and z of a point given along and across the axis."""
        return self._frame.point(along, across)

    def _atrium(self, cut: Cut) -> Plane:
        """Return the left atrium: its roof rests, so it grows as the mitral plane comes down to the apex."""
        roof = self._cavity.rest_length + _ATRIUM_MM
        length = roof - cut.length
        across = 23.0 if self._is_two_chamber else 21.0
        squared = ellipse(self._frame.a, self._frame.t, (cut.length + 0.4 * length, 0.0), (0.6 * length, across))
        return np.where(self._frame.a < np.float32(cut.length + 1.5), np.float32(9.0), squared)

    def _mitral(self, echo_db: Plane, cut: Cut, time_ms: float) -> None:
        a, t = self._frame.a, self._frame.t
        opening = self._heart.mitral_opening(time_ms)
        ring = 0.8 * cut.width
        for side in (-1.0, 1.0):
            hinge = (cut.length, side * ring)
            tip = (cut.length - 4.0 - (_LEAFLET_MM - 4.0) * opening, side * ring * 0.6 * opening)
            stroke(echo_db, a, t, (hinge, tip), 2.4, FIBROUS + 2.0)
            stroke(echo_db, a, t, (hinge, hinge), 5.0, BRIGHT - 4.0)
        if self._is_two_chamber:
            hint(echo_db, a, t, (cut.length + 4.0, -0.5 * cut.width), self._heart, time_ms)
        else:
            hint(echo_db, a, t, (cut.length - 1.0, -1.05 * cut.width), self._heart, time_ms)

    def _pericardium(self, echo_db: Plane, cut: Cut, above: Mask) -> None:
        outside = cut.distance - np.float32(cut.wall)
        line = (outside > 0.0) & (outside < 2.2) & above
        if not self._is_two_chamber:
            line &= self._frame.t > 0.0
        paint(echo_db, line, self._cavity.specular_db + np.float32(BRIGHT - 3.0))

    def _others(self, echo_db: Plane, cut: Cut) -> None:
        """Draw what lies beside the left heart."""
        a, t = self._frame.a, self._frame.t
        if self._is_two_chamber:
            sinus = ellipse(a, t, (cut.length + 4.0, -cut.width - 8.0), (5.0, 5.0))
            chamber(echo_db, sinus, rim=1.5)
            return
        wall, width = self._heart.wall_mm, cut.width
        right = ellipse(a, t, (0.66 * cut.length, -width - wall - 4.0), (0.42 * cut.length, 27.0))
        below = a > np.float32(cut.length - 3.0)
        right_atrium = ellipse(a, t, (cut.length + 19.0, -width - wall - 9.0), (21.0, 21.0))
        chamber(echo_db, right_atrium, rim=1.25)
        paint(echo_db, (right < 1.32) & ~below, np.float32(MUSCLE))
        paint(echo_db, (right < 1.0) & ~below, np.float32(BLOOD))
        paint(echo_db, (right_atrium < 1.0) & (a > np.float32(cut.length - 6.0)), np.float32(BLOOD))
        hinge, free = (cut.length - 5.0, -width - wall), (cut.length - 3.0, -width - wall - 27.0)
        shut = (cut.length - 7.0, -width - wall - 13.0)
        for end in (hinge, free):
            stroke(echo_db, a, t, (end, shut), 2.0, FIBROUS)

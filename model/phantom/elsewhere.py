"""Views that no task asks for: the liver with the caval vein, and the arch of the aorta."""

import numpy as np

from model.phantom.anatomy import (
    AROUND,
    BLOOD,
    BRIGHT,
    FIBROUS,
    MUSCLE,
    Frame2D,
    Mask,
    Moment,
    Pose,
    chamber,
    ellipse,
    paint,
)
from model.phantom.heart import Heart
from model.phantom.screen import Plane


class Elsewhere:
    """A subcostal picture of the liver, or a suprasternal one of the arch: vessels that hardly move."""

    def __init__(self, heart: Heart, x: Plane, z: Plane, pose: Pose) -> None:
        """Prepare the points."""
        self._heart = heart
        self._is_arch = pose.variant > 0.5
        frame = Frame2D(x, z, origin=(pose.shift_x_mm, pose.shift_z_mm), degrees=pose.tilt_degrees)
        self._right, self._down = frame.t, frame.a
        self._still = np.zeros_like(x)

    def at(self, time_ms: float) -> Moment:
        """Return what the view shows at this time."""
        share = 1.0 - self._heart.volume_ml(time_ms) / self._heart.edv_ml
        draw = self._arch if self._is_arch else self._liver
        echo_db = np.full_like(self._right, AROUND)
        blood = draw(echo_db, share)
        flow = np.where(blood, np.float32(share - 0.2), self._still)
        sink = self._still - np.float32(3.0 * share)
        return Moment(echo_db=echo_db, toward_x=self._still, toward_z=sink, flow=flow)

    def _liver(self, echo_db: Plane, share: float) -> Mask:
        right, down = self._right, self._down - np.float32(3.0 * share)
        paint(echo_db, down < 122.0 + 0.15 * right, np.float32(MUSCLE - 4.0))
        line = np.abs(down - 122.0 - np.float32(0.15) * right)
        paint(echo_db, line < 2.0, np.float32(BRIGHT))
        vein = np.abs(down - 76.0 - np.float32(0.18) * right)
        half = np.float32(9.0 - 3.0 * share)
        where = right > -60.0
        paint(echo_db, (vein < half + 2.0) & where, np.float32(FIBROUS))
        blood = (vein < half) & where
        paint(echo_db, blood, np.float32(BLOOD))
        chamber(echo_db, ellipse(right, down, (-30.0, 52.0), (5.0, 16.0)), rim=1.4)
        chamber(echo_db, ellipse(right, down, (34.0, 104.0), (20.0, 4.0)), rim=1.6)
        return np.asarray(blood)

    def _arch(self, echo_db: Plane, share: float) -> Mask:
        right, down = self._right, self._down - np.float32(3.0 * share)
        distance = np.hypot(right * np.float32(0.9), down - np.float32(84.0))
        tube = np.abs(distance - np.float32(36.0))
        half = np.float32(12.0 + 1.5 * share)
        upper = (down < 92.0) | ((right > 0.0) & (down < 128.0))
        paint(echo_db, (tube < half + 2.5) & upper, np.float32(FIBROUS))
        blood = (tube < half) & upper
        paint(echo_db, blood, np.float32(BLOOD))
        for place in (-16.0, 2.0, 18.0):
            chamber(echo_db, ellipse(right, down, (place, 32.0), (3.5, 14.0)), rim=1.8)
        chamber(echo_db, ellipse(right, down, (0.0, 86.0), (10.0, 10.0)), rim=1.4)
        return np.asarray(blood)

"""A heart of known volumes that beats.

The left ventricle is an ellipsoid with three half axes, cut flat at the mitral plane: its volume is exact.
Lengths in mm, volumes in mL, time in ms.
"""

import math
from dataclasses import dataclass

from numpy.random import Generator

from model.phantom.ranges import TRAINING, Ranges, between

CUT = 0.5
"""Distance of the mitral plane from the ellipsoid's middle, over its long half axis."""

_SHAPE = math.pi * (2.0 / 3.0 + CUT - CUT**3 / 3.0)  # volume over the product of the half axes
_SHORTENING = 0.2  # of the volume's power, the length takes this; the two diameters share the rest


@dataclass(frozen=True, kw_only=True, slots=True)
class Ventricle:
    """The cavity of the left ventricle at one instant."""

    half_length_mm: float
    """Long half axis of the ellipsoid."""
    half_width_mm: float
    """Half axis that the four-chamber view shows."""
    half_depth_mm: float
    """Half axis that the two-chamber view shows."""

    @property
    def length_mm(self) -> float:
        """Return the distance from the apex to the mitral plane."""
        return (1.0 + CUT) * self.half_length_mm

    @property
    def volume_ml(self) -> float:
        """Return the volume between apex and mitral plane."""
        return _SHAPE * self.half_length_mm * self.half_width_mm * self.half_depth_mm / 1000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Heart:
    """What the networks should find out, and the shape that carries it."""

    edv_ml: float
    """End-diastolic volume of the left ventricle."""
    esv_ml: float
    """End-systolic volume."""
    heart_rate: float = 70.0
    """Beats a minute."""
    stenosis: int = 0
    """Grade of aortic stenosis: 0 none, 1 mild, 2 mild to moderate, 3 moderate, 4 severe."""
    elongation: float = 1.75
    """Length of the left ventricle over its mean diameter at end-diastole."""
    roundness: float = 1.0
    """Diameter in the two-chamber view over that in the four-chamber view."""
    wall_mm: float = 9.5
    """Thickness of the wall at end-diastole."""

    @property
    def lvef_percent(self) -> float:
        """Return the ejection fraction."""
        return 100.0 * (self.edv_ml - self.esv_ml) / self.edv_ml

    @property
    def beat_ms(self) -> float:
        """Return the length of a beat."""
        return 60_000.0 / self.heart_rate

    @property
    def systole_ms(self) -> float:
        """Return the time from end-diastole to end-systole: less at high rates, but not in proportion."""
        return min(453.0 - 1.7 * self.heart_rate, 0.5 * self.beat_ms)  # ejection time of Weissler, and contraction

    def volume_ml(self, time_ms: float) -> float:
        """Return the volume of the left ventricle; the beat begins at end-diastole."""
        time = time_ms % self.beat_ms
        if time < self.systole_ms:
            filled = 0.5 + 0.5 * math.cos(math.pi * time / self.systole_ms)
        else:
            diastole = (time - self.systole_ms) / (self.beat_ms - self.systole_ms)
            filled = 0.72 * _rise(diastole, 0.0, 0.5) + 0.28 * _rise(diastole, 0.68, 1.0)
        return self.esv_ml + (self.edv_ml - self.esv_ml) * filled

    def ventricle(self, time_ms: float) -> Ventricle:
        """Return the cavity: a wall of constant shape that shortens by less than it narrows."""
        mean = (1000.0 * self.edv_ml * (1.0 + CUT) / (2.0 * _SHAPE * self.elongation)) ** (1.0 / 3.0)
        share = self.volume_ml(time_ms) / self.edv_ml
        narrow = share ** ((1.0 - _SHORTENING) / 2.0)
        return Ventricle(
            half_length_mm=2.0 * mean * self.elongation / (1.0 + CUT) * share**_SHORTENING,
            half_width_mm=mean * narrow / math.sqrt(self.roundness),
            half_depth_mm=mean * narrow * math.sqrt(self.roundness),
        )

    def aortic_opening(self, time_ms: float) -> float:
        """Return how far the aortic valve is open: 0 shut, 1 as far as it goes."""
        phase = (time_ms % self.beat_ms) / self.systole_ms
        return _rise(phase, 0.08, 0.22) - _rise(phase, 0.82, 0.98)

    def mitral_opening(self, time_ms: float) -> float:
        """Return how far the mitral valve is open: wide in early filling, again when the atrium contracts."""
        diastole = ((time_ms % self.beat_ms) - self.systole_ms) / (self.beat_ms - self.systole_ms)
        early = _rise(diastole, 0.03, 0.15) - 0.6 * _rise(diastole, 0.3, 0.5)
        return early + 0.4 * _rise(diastole, 0.68, 0.8) - 0.8 * _rise(diastole, 0.88, 1.0)


def random_heart(rng: Generator, ranges: Ranges = TRAINING) -> Heart:
    """Return a heart of an adult within the ranges."""
    edv = between(rng, ranges.edv_ml)
    lvef = between(rng, ranges.lvef_percent)
    return Heart(
        edv_ml=edv,
        esv_ml=edv * (1.0 - lvef / 100.0),
        heart_rate=between(rng, ranges.heart_rate),
        stenosis=int(rng.choice(5, p=ranges.stenosis_weights)),
        elongation=between(rng, ranges.elongation),
        roundness=between(rng, ranges.roundness),
        wall_mm=between(rng, ranges.wall_mm),
    )


def _rise(value: float, start: float, end: float) -> float:
    """Return 0 before `start`, 1 after `end`, and a smooth way between."""
    share = min(max((value - start) / (end - start), 0.0), 1.0)
    return share * share * (3.0 - 2.0 * share)

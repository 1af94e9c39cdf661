"""A heart of known volumes that beats.

Lengths in mm, volumes in mL, time in ms.
"""

import math
from dataclasses import dataclass

from numpy.random import Generator

ELONGATION = 1.7
"""Length of the left ventricle over its diameter."""

_SYSTOLE = 0.36  # share of the beat until end-systole


@dataclass(frozen=True, kw_only=True, slots=True)
class Heart:
    """What the networks should find out."""

    edv_ml: float
    """End-diastolic volume of the left ventricle."""
    esv_ml: float
    """End-systolic volume."""
    heart_rate: float = 70.0
    """Beats a minute."""
    stenosis: int = 0
    """Grade of aortic stenosis: 0 none, 1 mild, 2 mild to moderate, 3 moderate, 4 severe."""

    @property
    def lvef_percent(self) -> float:
        """Return the ejection fraction."""
        return 100.0 * (self.edv_ml - self.esv_ml) / self.edv_ml

    def volume_ml(self, time_ms: float) -> float:
        """Return the volume of the left ventricle; the beat begins at end-diastole."""
        phase = (time_ms * self.heart_rate / 60_000.0) % 1.0
        if phase < _SYSTOLE:
            emptied = 0.5 - 0.5 * math.cos(math.pi * phase / _SYSTOLE)
        else:
            emptied = 0.5 + 0.5 * math.cos(math.pi * (phase - _SYSTOLE) / (1.0 - _SYSTOLE))
        return self.edv_ml - (self.edv_ml - self.esv_ml) * emptied

    def is_valve_open(self, time_ms: float) -> bool:
        """Return whether the aortic valve lets blood out."""
        return (time_ms * self.heart_rate / 60_000.0) % 1.0 < _SYSTOLE


def diameter_mm(volume_ml: float) -> float:
    """Return the diameter of a prolate ellipsoid of this volume and of the ventricle's elongation."""
    return 10.0 * math.cbrt(6.0 * volume_ml / (math.pi * ELONGATION))


def random_heart(rng: Generator) -> Heart:
    """Return a heart of an adult: LVEF from 15 to 75 %, EDV from 60 to 240 mL, any stenosis."""
    edv = float(rng.uniform(60.0, 240.0))
    lvef = float(rng.uniform(15.0, 75.0))
    return Heart(
        edv_ml=edv,
        esv_ml=edv * (1.0 - lvef / 100.0),
        heart_rate=float(rng.uniform(50.0, 100.0)),
        stenosis=int(rng.integers(0, 5)),
    )

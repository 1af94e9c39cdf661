"""What phantom hearts and screens are drawn from: one set of ranges to train on, another to evaluate on."""

from dataclasses import dataclass
from enum import StrEnum

from numpy.random import Generator

Range = tuple[float, float]


class Vendor(StrEnum):
    """Whose screen is imitated; size and place of the fan go with it."""

    GE = "ge"
    """708 x 1016, the fan in the middle, the trace under it."""
    PHILIPS = "philips"
    """600 x 800, the fan starts low, the marks stand right."""
    SIEMENS = "siemens"
    """768 x 1024, the fan left of the middle."""
    CANON = "canon"
    """960 x 1280, a wide fan right of the middle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranges:
    """Bounds that every heart, pose and screen is drawn within, evenly unless a field says otherwise."""

    edv_ml: Range = (60.0, 240.0)
    """End-diastolic volume."""
    lvef_percent: Range = (15.0, 75.0)
    """Ejection fraction, drawn independently of the volume."""
    heart_rate: Range = (50.0, 100.0)
    """Beats a minute."""
    stenosis_weights: tuple[float, float, float, float, float] = (0.3, 0.15, 0.15, 0.2, 0.2)
    """How often each grade of aortic stenosis comes, none first."""
    elongation: Range = (1.6, 1.9)
    """Length of the left ventricle over its mean diameter at end-diastole."""
    roundness: Range = (0.92, 1.08)
    """Diameter in the two-chamber view over that in the four-chamber view."""
    wall_mm: Range = (8.0, 11.0)
    """Thickness of the wall at end-diastole."""
    shift_mm: float = 5.0
    """The heart lies at most so far from its usual place, in each direction."""
    tilt_degrees: float = 7.0
    """The heart is turned at most so far from its usual angle, to each side."""
    depth_mm: Range = (160.0, 160.0)
    """Depth at the bottom of the fan; one depth, because volumes cannot be read without the scale."""
    half_angle_degrees: Range = (37.0, 43.0)
    """From the middle of the fan to its side."""
    gain_db: Range = (-4.0, 4.0)
    """Brightness of the whole picture."""
    attenuation_db: Range = (4.0, 10.0)
    """What the bottom of the fan has lost."""
    noise_db: Range = (-58.0, -52.0)
    """Electronic noise at the bottom of the fan."""
    speckle: Range = (0.85, 1.2)
    """Size of a speckle; 1 is usual."""
    shadows: int = 1
    """At most so many rib shadows."""
    frame_time_ms: Range = (20.0, 45.0)
    """Between two frames."""
    vendors: tuple[Vendor, ...] = (Vendor.GE, Vendor.PHILIPS, Vendor.SIEMENS)
    """Whose screens are imitated."""
    factors: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 2.0)
    """Sizes of the screens, each as often as it stands here; 2.7 is a scanner's, and takes seven times as long."""


TRAINING = Ranges()
"""What networks are trained on."""

FRESH = Ranges(
    heart_rate=(46.0, 115.0),
    elongation=(1.52, 1.98),
    roundness=(0.88, 1.12),
    wall_mm=(7.5, 12.5),
    shift_mm=7.0,
    tilt_degrees=10.0,
    half_angle_degrees=(35.0, 46.0),
    gain_db=(-6.0, 6.0),
    attenuation_db=(2.0, 14.0),
    noise_db=(-60.0, -49.0),
    speckle=(0.75, 1.4),
    shadows=2,
    frame_time_ms=(16.0, 55.0),
    vendors=(Vendor.PHILIPS, Vendor.SIEMENS, Vendor.CANON),
    factors=(1.0, 1.5),
)
"""What networks are evaluated on: hearts and screens beyond those of training on every side, one vendor unseen."""


MIXED_DEPTHS_MM: Range = (100.0, 220.0)
"""Depths of data sets whose pictures have no common scale."""


MIXED_FRAME_TIMES_MS: Range = (15.0, 50.0)
MIXED_SECONDS: Range = (0.9, 3.5)
"""Frame times and lengths of data sets whose loops hold from one beat to several; never less than one beat."""


def between(rng: Generator, bounds: Range) -> float:
    """Return a number drawn evenly between the bounds."""
    return float(rng.uniform(*bounds))

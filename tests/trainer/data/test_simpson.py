"""The biplane method of discs against cut ellipsoids whose volume is known in closed form."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.simpson import ATRIUM, CAVITY, MYOCARDIUM, Outline, biplane_volume_ml, discs

CUT = 0.4  # the mitral plane lies so far beyond the middle, over the long half axis


def volume_ml(long: float, across2: float, across4: float) -> float:
    """Return the integral of the cross sections from the apex to the mitral plane."""
    return math.pi * across2 * across4 * long * (2.0 / 3.0 + CUT - CUT**3 / 3.0) / 1000.0


def draw(
    long: float,
    across: float,
    *,
    degrees: float = 0.0,
    row_mm: float = 0.4,
    column_mm: float = 0.4,
    atrium: bool = True,
) -> Outline:
    """Draw the section of a cut ellipsoid: apex above, base below, muscle around it, the atrium behind."""
    rows, columns = round(190.0 / row_mm), round(150.0 / column_mm)
    y, x = np.meshgrid((np.arange(rows) + 0.5) * row_mm, (np.arange(columns) + 0.5) * column_mm, indexing="ij")
    angle = math.radians(degrees)
    a = (x - 75.0) * math.sin(angle) + (y - 80.0) * math.cos(angle)
    t = (x - 75.0) * math.cos(angle) - (y - 80.0) * math.sin(angle)
    labels = np.zeros((rows, columns), dtype=np.uint8)
    base = CUT * long
    if atrium:
        labels[((a - base - 18.0) / 20.0) ** 2 + (t / 19.0) ** 2 < 1.0] = ATRIUM
    outer = (a / (long + 9.0)) ** 2 + (t / (across + 9.0)) ** 2 < 1.0
    labels[outer & (a < base)] = MYOCARDIUM
    labels[((a / long) ** 2 + (t / across) ** 2 < 1.0) & (a < base)] = CAVITY
    return Outline(labels_HW=labels, row_mm=row_mm, column_mm=column_mm)


@settings(max_examples=25)
@given(
    long=st.floats(35.0, 62.0),
    share2=st.floats(0.35, 0.65),  # of length: as slim and as round as hearts are
    share4=st.floats(0.35, 0.65),
    degrees=st.floats(-20.0, 20.0),
    row_mm=st.sampled_from((0.15, 0.3, 0.6)),
    column_mm=st.sampled_from((0.3, 0.6)),
    atrium=st.booleans(),
)
def test_the_volume_is_that_of_the_integral(
    long: float, share2: float, share4: float, degrees: float, row_mm: float, column_mm: float, atrium: bool
) -> None:
    across2, across4 = share2 * long, share4 * long
    two = draw(long, across2, degrees=degrees, row_mm=row_mm, column_mm=column_mm, atrium=atrium)
    four = draw(long, across4, degrees=-degrees, row_mm=row_mm, column_mm=column_mm, atrium=atrium)

    assert biplane_volume_ml(two, four) == pytest.approx(volume_ml(long, across2, across4), rel=0.02)


def test_the_length_is_that_of_the_axis_and_the_widths_run_from_base_to_apex() -> None:
    length, widths = discs(draw(50.0, 25.0))

    assert length == pytest.approx((1.0 + CUT) * 50.0, rel=0.01)
    assert widths[4:7].mean() > 1.8 * widths[-1]
    assert widths.max() == pytest.approx(50.0, rel=0.02)


def test_stray_pixels_are_no_cavity() -> None:
    clean = draw(50.0, 25.0)
    dirty = clean.labels_HW.copy()
    dirty[5:12, 5:12] = CAVITY
    speckled = Outline(labels_HW=dirty, row_mm=0.4, column_mm=0.4)

    assert discs(speckled)[0] == discs(clean)[0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((50, 50), np.uint8), "cavity has 0 pixels"),
        (np.pad(np.ones((20, 20), np.uint8), 20, constant_values=MYOCARDIUM), "no base"),
    ],
)
def test_an_outline_without_cavity_or_base_is_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        discs(Outline(labels_HW=labels, row_mm=1.0, column_mm=1.0))

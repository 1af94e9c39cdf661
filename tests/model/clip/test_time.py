"""How long a loop takes, and how much of a beat that is, by what the carts write."""

from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence

from model.clip.dicom import open_loop
from model.clip.select import Reason, select
from tests.doubles.loops import picture, write_native


@pytest.mark.parametrize(
    ("elements", "milliseconds"),
    [
        ({"FrameTime": 40.0}, 40.0),
        ({"FrameTime": 40.0, "CineRate": 30}, 40.0),
        ({"FrameTime": None, "FrameTimeVector": [0.0, *[20.0, 40.0] * 5]}, 30.0),
        ({"FrameTime": 0.0, "FrameTimeVector": [33.0] * 11, "CineRate": 50}, 33.0),
        ({"FrameTime": None, "FrameTimeVector": [0.0] * 11, "CineRate": 50}, 20.0),
        ({"FrameTime": None, "CineRate": 25, "RecommendedDisplayFrameRate": 50}, 40.0),
        ({"FrameTime": None, "CineRate": 0, "RecommendedDisplayFrameRate": 50}, 20.0),
        ({"FrameTime": None, "RecommendedDisplayFrameRate": 25}, 40.0),
        ({"FrameTime": None}, None),
        ({"FrameTime": -5.0}, None),
    ],
)
def test_the_time_of_a_frame_is_the_first_that_the_header_gives(
    tmp_path: Path, elements: dict[str, object], milliseconds: float | None
) -> None:
    source = open_loop(write_native(tmp_path / "a.dcm", picture(11), **elements))

    assert source.header.frame_time_ms == (None if milliseconds is None else pytest.approx(milliseconds))
    assert source.header.seconds == (None if milliseconds is None else pytest.approx(11 * milliseconds / 1000.0))


@pytest.mark.parametrize(
    ("written", "rate"), [(66, 66.0), (0, None), (5, None), (900, None), (None, None), ([60, 70], None)]
)
def test_a_heart_rate_is_one_that_a_heart_has(tmp_path: Path, written: object, rate: float | None) -> None:
    assert open_loop(write_native(tmp_path / "a.dcm", picture(11), HeartRate=written)).header.heart_rate == rate


def test_a_part_of_a_beat_is_refused_in_words(tmp_path: Path) -> None:
    loop = write_native(tmp_path / "a.dcm", picture(10), FrameTime=40.0, HeartRate=60)

    verdict = select(open_loop(loop).header)

    assert verdict.reason is Reason.TOO_SHORT
    assert verdict.detail == "0.40 s, a beat takes 1.00 s"


def test_a_high_rate_makes_no_beat_of_an_instant(tmp_path: Path) -> None:
    loop = write_native(tmp_path / "a.dcm", picture(8), FrameTime=18.0, HeartRate=300)

    assert select(open_loop(loop).header).reason is Reason.TOO_SHORT


def test_an_element_that_a_loop_can_do_without_costs_no_loop(tmp_path: Path) -> None:
    """Several values where one belongs; the loop itself is fine."""
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType = 1, 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = [3, 3]
    region.PhysicalDeltaX = region.PhysicalDeltaY = [0.1, 0.1]
    loop = write_native(tmp_path / "a.dcm", picture(11), FrameTime=None, CineRate=[25, 30], HeartRate=[60, 70],
                        RecommendedDisplayFrameRate=25, SequenceOfUltrasoundRegions=Sequence([region]))  # fmt: skip

    header = open_loop(loop).header

    assert (header.frame_time_ms, header.heart_rate) == (40.0, None)
    assert (header.regions[0].row_mm, header.regions[0].column_mm) == (None, None)


def test_a_loop_is_not_refused_for_a_heart_rate_of_zero(tmp_path: Path) -> None:
    loop = write_native(tmp_path / "a.dcm", picture(10), FrameTime=40.0, HeartRate=0)

    assert select(open_loop(loop).header).reason is None

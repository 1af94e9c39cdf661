"""Which instances are B-mode cine loops, judged by the header and by the pixels.

The table was written by looking at the pictures.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.clip.dicom import open_loop
from model.clip.select import Reason, inspect, select
from model.clip.source import Frames, Region
from model.clip.spec import frame_indices
from model.phantom.heart import Heart
from model.phantom.scan import render
from model.phantom.screen import Screen
from model.tasks import View
from tests.doubles.loops import PLAIN, picture, write_native

SEEN: dict[str, Reason | None] = {
    "hp_ped_I_000001.dcm": None,  # parasternal long axis, ECG strip in a region of its own
    "hp_ped_I_000003.dcm": Reason.COLOUR_DOPPLER,  # the header says tissue
    "hp_ped_I_000004.dcm": None,  # short axis
    **{f"acuson_stress_I_0000{number:02}.dcm": Reason.TOO_SHORT for number in range(7, 19)},  # systole alone
    "toshiba_adult_I_000031.dcm": None,  # parasternal long axis with an ECG sweep
    "toshiba_adult_I_000034.dcm": Reason.M_MODE,
    "toshiba_adult_I_000037.dcm": Reason.COLOUR_DOPPLER,  # tissue Doppler; the header says tissue
    "toshiba_adult_I_000038.dcm": Reason.SPECTRAL_DOPPLER,
    "sonosite_apical_ybr.dcm": None,
    "gdcm_US-PAL-8-10x-echo_rle.dcm": Reason.COLOUR_DOPPLER,  # no regions at all
    "acuson_colour_implicit.dcm": Reason.COLOUR_DOPPLER,  # the header says tissue
    "ge_e95_A3C_colour_jpeg_derived.dcm": Reason.COLOUR_DOPPLER,  # by its region of type 2
    "philips_epiq_adult_echo_still.dcm": Reason.STILL,
    "acme_TEE_color-pl.dcm": Reason.STILL,
    "atl_hdi5000_cardiac_jpeg.dcm": Reason.STILL,
    "esaote_msk_ybr422_raw.dcm": Reason.STILL,
    "acuson_thyroid_ybrfull_rle.dcm": Reason.STILL,
    "medistim_2frame_jpegll.dcm": Reason.TOO_SHORT,
    "philips_OB_palette_rle_2frame.dcm": Reason.TOO_SHORT,
    "philips_OB_palette_examples.dcm": Reason.STILL,
    "ge_logiq_lymphnode_j2k_rct.dcm": Reason.STILL,
    "philips_gyn_palette_implicit.dcm": Reason.STILL,
}
COLOURED = [name for name, reason in SEEN.items() if reason is Reason.COLOUR_DOPPLER]
GREY = [name for name, reason in SEEN.items() if reason is None]


def sampled(path: Path) -> Frames:
    """Return the sampled frames of a file."""
    source = open_loop(path)
    return source.read(frame_indices(source.header.num_frames, 16))


def judged(path: Path) -> Reason | None:
    """Return what header and pixels together say."""
    verdict = select(open_loop(path).header)
    return verdict.reason if verdict.reason is not None else inspect(sampled(path)).reason


def test_the_table_has_every_real_ultrasound_file(shared_data: Path) -> None:
    assert {path.name for path in (shared_data / "us").iterdir()} == set(SEEN)


@pytest.mark.parametrize("name", SEEN)
def test_a_real_file_is_judged_as_the_eye_judges_it(shared_data: Path, name: str) -> None:
    assert judged(shared_data / "us" / name) is SEEN[name]


@pytest.mark.parametrize("name", COLOURED)
def test_the_pixels_alone_show_that_a_real_loop_is_coloured(shared_data: Path, name: str) -> None:
    assert inspect(sampled(shared_data / "us" / name)).reason is Reason.COLOUR_DOPPLER


@pytest.mark.parametrize("name", GREY)
def test_a_tinted_b_mode_loop_is_not_taken_for_doppler(shared_data: Path, name: str) -> None:
    level = sampled(shared_data / "us" / name).max(axis=-1) / 255.0
    tinted = np.stack([255 * level**0.7, 255 * level, 255 * level**1.6], axis=-1).astype(np.uint8)

    assert inspect(tinted).reason is None


@pytest.mark.parametrize("name", GREY)
def test_a_real_loop_that_is_frozen_is_static(shared_data: Path, name: str) -> None:
    frames = sampled(shared_data / "us" / name)

    assert inspect(np.repeat(frames[:1], 16, axis=0)).reason is Reason.STATIC


def test_a_frozen_picture_over_a_running_ecg_is_static(shared_data: Path) -> None:
    frames = sampled(shared_data / "us" / "hp_ped_I_000001.dcm").copy()
    frames[:, :370] = frames[0, :370]  # the strip begins at row 374

    assert inspect(frames).reason is Reason.STATIC


def test_documents_are_no_images(shared_data: Path) -> None:
    reasons = {select(open_loop(path).header).reason for path in (shared_data / "sr").iterdir()}

    assert reasons == {Reason.NOT_AN_IMAGE}


@pytest.mark.parametrize("view", [View.A4C, View.A2C, View.PLAX, View.PSAX])
@pytest.mark.parametrize("seed", range(3))
def test_a_phantom_heart_is_accepted(view: View, seed: int) -> None:
    assert inspect(phantom(view, seed, Screen())).reason is None


@pytest.mark.parametrize("view", [View.A4C, View.A2C, View.PLAX, View.PSAX])
def test_a_phantom_heart_in_colour_is_refused(view: View) -> None:
    assert inspect(phantom(view, 0, Screen(has_colour=True))).reason is Reason.COLOUR_DOPPLER


def phantom(view: View, seed: int, screen: Screen) -> Frames:
    """Return sixteen frames of a phantom heart."""
    heart = Heart(edv_ml=120.0, esv_ml=50.0)
    return render(heart, view, num_frames=16, frame_time_ms=60.0, rng=np.random.default_rng(seed), screen=screen)


def region(spatial_format: int = 1, data_type: int = 1, box: tuple[int, int, int, int] = (0, 0, 639, 479)) -> Region:
    """Return a region."""
    x0, y0, x1, y1 = box
    return Region(spatial_format=spatial_format, data_type=data_type, x0=x0, y0=y0, x1=x1, y1=y1)


BMODE = replace(PLAIN, regions=(region(),))
LEFT, RIGHT = (0, 0, 300, 479), (320, 0, 639, 479)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"regions": ()}, None),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.3"}, None),
        ({"num_frames": 8}, None),
        ({"num_frames": 7}, Reason.TOO_SHORT),
        ({"num_frames": 1}, Reason.STILL),
        ({"num_frames": 10, "frame_time_ms": 40.0, "heart_rate": 38.0}, Reason.TOO_SHORT),
        ({"num_frames": 10, "frame_time_ms": 40.0, "heart_rate": 150.0}, None),
        ({"num_frames": 10, "frame_time_ms": 40.0, "heart_rate": 120.0}, None),  # 0.8 of a beat
        ({"num_frames": 10, "frame_time_ms": 20.0}, Reason.TOO_SHORT),
        ({"num_frames": 10, "frame_time_ms": None}, None),
        ({"num_frames": 10, "frame_time_ms": None, "heart_rate": 38.0}, None),
        ({"is_colour_flagged": True}, None),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.6.2"}, Reason.VOLUME_3D),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.2", "modality": "CT"}, Reason.NOT_ULTRASOUND),
        ({"sop_class_uid": "1.3.46.670589.2.5.1.1"}, Reason.NOT_ULTRASOUND),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.88.33", "rows": None, "columns": None}, Reason.NOT_AN_IMAGE),
        ({"transfer_syntax_uid": "1.2.840.10008.1.2.4.111"}, Reason.UNSUPPORTED_SYNTAX),
        ({"transfer_syntax_uid": "1.2.840.113619.5.2"}, Reason.UNSUPPORTED_SYNTAX),
        ({"rows": 32}, Reason.IMPLAUSIBLE_SIZE),
        ({"columns": 0}, Reason.IMPLAUSIBLE_SIZE),
        ({"rows": 65535, "columns": 65535}, Reason.IMPLAUSIBLE_SIZE),
        ({"rows": 100, "columns": 4000}, Reason.IMPLAUSIBLE_SIZE),
        ({"regions": (region(0, 0), region())}, None),
        ({"regions": (region(), region(4, 10, (0, 400, 639, 479)))}, None),
        ({"regions": (region(box=(-20, -20, 900, 900)),)}, None),
        ({"regions": (region(box=(639, 479, 0, 0)),)}, None),
        ({"regions": (region(), region(box=(5000, 5000, 6000, 6000)))}, None),
        ({"regions": (region(), region())}, None),
        ({"regions": (region(), region(box=(100, 100, 400, 400)))}, None),
        ({"regions": (region(box=LEFT), region(box=(600, 0, 639, 40)))}, None),
        ({"regions": (region(box=LEFT), region(box=RIGHT))}, Reason.SEVERAL_IMAGES),
        ({"regions": (region(data_type=2),)}, Reason.COLOUR_DOPPLER),
        ({"regions": (region(), region(data_type=2))}, Reason.COLOUR_DOPPLER),
        ({"regions": (region(box=LEFT), region(2, 1, RIGHT))}, Reason.M_MODE),
        ({"regions": (region(box=LEFT), region(3, 3, RIGHT))}, Reason.SPECTRAL_DOPPLER),
        ({"regions": (region(box=LEFT), region(3, 4, RIGHT))}, Reason.SPECTRAL_DOPPLER),
        ({"modes": 0x0001}, None),
        ({"modes": 0x0401}, None),
        ({"modes": 0x0003}, Reason.M_MODE),
        ({"modes": 0x0019}, Reason.SPECTRAL_DOPPLER),
        ({"modes": 0x0005}, Reason.SPECTRAL_DOPPLER),
        ({"modes": 0x0011}, Reason.COLOUR_DOPPLER),
        ({"modes": 0x0101}, Reason.COLOUR_DOPPLER),
        ({"modes": 0x0041}, Reason.VOLUME_3D),
    ],
)  # fmt: skip
def test_a_header_gets_its_verdict(changes: dict[str, object], reason: Reason | None) -> None:
    assert select(replace(BMODE, **changes)).reason is reason


@pytest.mark.parametrize(
    ("image_type", "modes"),
    [
        (["ORIGINAL", "PRIMARY", "", "0011"], 0x11),
        (["ORIGINAL", "PRIMARY", "US IMAGE", "001F", "x"], 0x1F),
        (["ORIGINAL", "PRIMARY", "", ""], 0),
        (["ORIGINAL", "PRIMARY", "", "11"], 0),
        (["ORIGINAL", "PRIMARY", "", "0x11"], 0),
        (["ORIGINAL", "PRIMARY", "TEE", "STRESS"], 0),
        (["DERIVED", "PRIMARY"], 0),
        ("0011", 0),
        (None, 0),
    ],
)
def test_the_modes_are_those_of_image_type(tmp_path: Path, image_type: object, modes: int) -> None:
    path = write_native(tmp_path / "a.dcm", picture(2), ImageType=image_type)

    assert open_loop(path).header.modes == modes


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("acuson_colour_implicit.dcm", Reason.COLOUR_DOPPLER),
        ("toshiba_adult_I_000037.dcm", Reason.COLOUR_DOPPLER),
        ("toshiba_adult_I_000034.dcm", Reason.M_MODE),
        ("toshiba_adult_I_000038.dcm", Reason.SPECTRAL_DOPPLER),
    ],
)
def test_image_type_tells_what_real_regions_do_not(shared_data: Path, name: str, reason: Reason) -> None:
    header = open_loop(shared_data / "us" / name).header

    assert select(replace(header, regions=())).reason is reason


def test_every_reason_has_words_of_its_own() -> None:
    texts = [reason.text for reason in Reason]

    assert all(texts)
    assert len(set(texts)) == len(texts)

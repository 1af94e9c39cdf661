"""Every photometric interpretation and transfer syntax gives the colours that were put in.

Lossless forms must agree within the rounding of the colour transform, JPEG within a few grey levels.
"""

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from pydicom import Dataset, dcmread
from pydicom.pixels import pixel_array  # type: ignore[attr-defined]
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from model.clip.codestream import marked_as_rgb
from model.clip.dicom import open_loop
from model.clip.pixels import rgb_of_jpeg
from model.clip.source import Frames
from tests.doubles.loops import (
    by_gdcm,
    grey_picture,
    header,
    jpeg,
    picture,
    to_ybr,
    write,
    write_encapsulated,
    write_native,
)

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
SOME = (0, 3, 3, 9)
ROUNDING = 2


def worst(decoded: Frames, expected: Frames) -> int:
    """Return the largest difference of any sample, grey levels."""
    assert decoded.dtype == np.uint8
    assert decoded.shape == expected.shape
    return int(np.abs(decoded.astype(int) - expected.astype(int)).max())


def grey(samples: Frames) -> Frames:
    """Return one-sample frames as RGB."""
    return np.repeat(samples[..., np.newaxis], 3, axis=-1)


@pytest.mark.parametrize("syntax", NATIVE)
def test_uncompressed_rgb_comes_back_unchanged(tmp_path: Path, syntax: str) -> None:
    loop = write_native(tmp_path / "a.dcm", picture(), syntax)

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, picture()[list(SOME)]) == 0


@pytest.mark.parametrize("syntax", NATIVE)
def test_uncompressed_frames_of_an_odd_length_come_back_unchanged(tmp_path: Path, syntax: str) -> None:
    loop = write_native(tmp_path / "a.dcm", picture(rows=67, columns=65), syntax)

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, picture(rows=67, columns=65)[list(SOME)]) == 0


@pytest.mark.parametrize("syntax", NATIVE)
def test_uncompressed_colour_by_plane_comes_back_unchanged(tmp_path: Path, syntax: str) -> None:
    planes = np.ascontiguousarray(picture().transpose(0, 3, 1, 2))
    dataset = header(10, 96, 128, PlanarConfiguration=1)
    loop = write(tmp_path / "a.dcm", dataset, planes.tobytes(), syntax)

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, picture()[list(SOME)]) == 0


@pytest.mark.parametrize("syntax", NATIVE)
def test_uncompressed_ybr_full_becomes_rgb(tmp_path: Path, syntax: str) -> None:
    loop = write_native(tmp_path / "a.dcm", to_ybr(picture()), syntax, PhotometricInterpretation="YBR_FULL")

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, picture()[list(SOME)]) <= ROUNDING


@pytest.mark.parametrize("syntax", NATIVE)
def test_uncompressed_ybr_full_422_becomes_rgb(tmp_path: Path, syntax: str) -> None:
    ybr = to_ybr(picture())
    pairs = np.stack([ybr[:, :, 0::2, 0], ybr[:, :, 1::2, 0], ybr[:, :, 0::2, 1], ybr[:, :, 0::2, 2]], axis=-1)
    dataset = header(10, 96, 128, PhotometricInterpretation="YBR_FULL_422")
    loop = write(tmp_path / "a.dcm", dataset, pairs.tobytes(), syntax)

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, picture()[list(SOME)]) <= ROUNDING + 1


@pytest.mark.parametrize("syntax", NATIVE)
def test_eight_bit_grey_comes_back_unchanged(tmp_path: Path, syntax: str) -> None:
    loop = write_native(tmp_path / "a.dcm", grey_picture(), syntax)

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, grey(grey_picture())[list(SOME)]) == 0


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    loop = write_native(tmp_path / "a.dcm", 255 - grey_picture(), PhotometricInterpretation="MONOCHROME1")

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, grey(grey_picture())[list(SOME)]) == 0


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("bits_stored", [10, 12, 16])
def test_deep_grey_is_scaled_from_its_stored_bits(tmp_path: Path, syntax: str, bits_stored: int) -> None:
    deep = grey_picture().astype(np.uint16) << (bits_stored - 8)
    loop = write_native(tmp_path / "a.dcm", deep, syntax, BitsStored=bits_stored)

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, grey(grey_picture())[list(SOME)]) <= 1


def test_deep_grey_follows_its_window(tmp_path: Path) -> None:
    deep = grey_picture().astype(np.uint16) * 4 + 1000
    loop = write_native(tmp_path / "a.dcm", deep, WindowCenter=1510.5, WindowWidth=1021)

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, grey(grey_picture())[list(SOME)]) <= 1


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("depth", [8, 16])
def test_a_palette_gives_its_colours(tmp_path: Path, syntax: str, depth: int) -> None:
    colours = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2], axis=-1).astype(np.uint8)
    loop = write_native(tmp_path / "a.dcm", grey_picture(), syntax, **palette(colours, depth, syntax))

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, colours[grey_picture()][list(SOME)]) == 0


def palette(colours: Frames, depth: int, syntax: str) -> dict[str, object]:
    """Return the elements of a palette of 256 colours; 8-bit entries share words (PS3.3 C.7.6.3.1.6)."""
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for index, name in enumerate(("Red", "Green", "Blue")):
        entries = colours[:, index].astype(np.uint16)
        words = entries << 8 | entries if depth == 16 else entries[0::2] | entries[1::2] << 8
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, depth]
        order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
        elements[f"{name}PaletteColorLookupTableData"] = words.astype(order).tobytes()
    return elements


@pytest.mark.parametrize("has_offsets", [True, False])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_jpeg_baseline_gives_its_colours(tmp_path: Path, subsampling: str, has_offsets: bool) -> None:
    frames = [jpeg(frame, subsampling=subsampling) for frame in picture()]
    loop = write_encapsulated(
        tmp_path / "a.dcm", frames, (10, 96, 128), JPEGBaseline8Bit, has_offsets=has_offsets,
        PhotometricInterpretation="YBR_FULL_422",
    )  # fmt: skip

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, picture()[list(SOME)]) <= 6


def test_eight_bit_jpeg_extended_gives_its_colours(tmp_path: Path) -> None:
    frames = [jpeg(frame) for frame in picture()]
    loop = write_encapsulated(
        tmp_path / "a.dcm", frames, (10, 96, 128), JPEGExtended12Bit, PhotometricInterpretation="YBR_FULL_422"
    )

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, picture()[list(SOME)]) <= 6


def test_grey_jpeg_gives_its_grey(tmp_path: Path) -> None:
    frames = [jpeg(frame) for frame in grey_picture()]
    loop = write_encapsulated(
        tmp_path / "a.dcm", frames, (10, 96, 128), JPEGBaseline8Bit,
        PhotometricInterpretation="MONOCHROME2", SamplesPerPixel=1, PlanarConfiguration=None,
    )  # fmt: skip

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, grey(grey_picture())[list(SOME)]) <= 3


def test_a_jpeg_in_many_fragments_without_offsets_is_put_together(tmp_path: Path) -> None:
    frames = [jpeg(frame) for frame in picture()]
    loop = write_encapsulated(
        tmp_path / "a.dcm", frames, (10, 96, 128), JPEGBaseline8Bit, has_offsets=False, num_fragments=3,
        PhotometricInterpretation="YBR_FULL_422",
    )  # fmt: skip

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, picture()[list(SOME)]) <= 6


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "MONOCHROME2", "PALETTE COLOR"])
def test_lossless_forms_give_their_colours(tmp_path: Path, syntax: str, photometric: str) -> None:
    colours = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2], axis=-1).astype(np.uint8)
    known, changes = {
        "RGB": (picture(), {}),
        "YBR_FULL": (picture(), {"PhotometricInterpretation": "YBR_FULL"}),
        "MONOCHROME2": (grey(grey_picture()), {}),
        "PALETTE COLOR": (colours[grey_picture()], palette(colours, 16, syntax)),
    }[photometric]
    samples = {"RGB": picture(), "YBR_FULL": to_ybr(picture())}.get(photometric, grey_picture())
    loop = compressed(write_native(tmp_path / "a.dcm", samples, **changes), syntax)

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, known[list(SOME)]) <= (ROUNDING if photometric == "YBR_FULL" else 0)


def compressed(path: Path, syntax: str) -> Path:
    """Compress a file in place with pydicom's encoders."""
    dataset: Dataset = dcmread(path)
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("samples", [picture(), grey_picture()], ids=["rgb", "grey"])
def test_what_gdcm_compressed_gives_its_colours(tmp_path: Path, syntax: str, samples: Frames) -> None:
    loop = by_gdcm(write_native(tmp_path / "a.dcm", samples), tmp_path / "b.dcm", syntax)

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, (samples if samples.ndim == 4 else grey(samples))[list(SOME)]) == 0


@pytest.mark.parametrize("has_marker", [True, False])
def test_a_jpeg_that_holds_rgb_keeps_its_colours(tmp_path: Path, has_marker: bool) -> None:
    frames = [jpeg(frame, keep_rgb=True, subsampling="4:4:4") for frame in picture()]
    if not has_marker:
        frames = [frame.replace(adobe_marker(frame), b"") for frame in frames]
    loop = write_encapsulated(tmp_path / "a.dcm", frames, (10, 96, 128), JPEGBaseline8Bit)

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, picture()[list(SOME)]) <= 6


def adobe_marker(frame: bytes) -> bytes:
    """Return the APP14 segment that says that the components are RGB."""
    start = frame.index(b"\xff\xee")
    return frame[start : start + 2 + int.from_bytes(frame[start + 2 : start + 4], "big")]


def test_a_jpeg_that_holds_ybr_under_a_header_of_rgb_is_read_by_its_own_marker(tmp_path: Path) -> None:
    frames = [jpeg(frame) for frame in picture()]
    loop = write_encapsulated(tmp_path / "a.dcm", frames, (10, 96, 128), JPEGBaseline8Bit)

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, picture()[list(SOME)]) <= 6


def on_black(frames_THWC: Frames) -> Frames:
    """Return a screen that is mostly black, as an ultrasound screen is, with a picture on it."""
    screen = np.zeros((len(frames_THWC), 200, 300, 3), dtype=np.uint8)
    screen[:, 20 : 20 + frames_THWC.shape[1], 20 : 20 + frames_THWC.shape[2]] = frames_THWC
    return screen


@pytest.mark.parametrize("is_compressed", [False, True], ids=["native", "RLE"])
@pytest.mark.parametrize(("holds", "says"), [("YBR_FULL", "RGB"), ("RGB", "YBR_FULL")])
def test_samples_under_the_wrong_name_get_their_colours(
    tmp_path: Path, holds: str, says: str, *, is_compressed: bool
) -> None:
    """Carts and converters lie about YCbCr; black tells."""
    true = on_black(picture())
    loop = write_native(
        tmp_path / "a.dcm", to_ybr(true) if holds == "YBR_FULL" else true, PhotometricInterpretation=says
    )
    if is_compressed:
        dataset = dcmread(loop)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(loop)

    decoded = open_loop(loop).read(SOME)

    assert worst(decoded, true[list(SOME)]) <= 3


@pytest.mark.parametrize("colour", [(0, 128, 128), (0, 135, 0)])
def test_a_screen_that_is_teal_and_black_is_left_as_it_is(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    frames = on_black(picture())
    frames[:, :, 150:] = colour

    for photometric, samples in (("RGB", frames), ("YBR_FULL", to_ybr(frames))):
        loop = write_native(tmp_path / f"{photometric}.dcm", samples, PhotometricInterpretation=photometric)
        assert worst(open_loop(loop).read(SOME), frames[list(SOME)]) <= 3


@pytest.mark.parametrize("photometric", ["YBR_ICT", "YBR_RCT"])
def test_jpeg_2000_with_its_own_colour_transform_gives_its_colours(tmp_path: Path, photometric: str) -> None:
    dataset = dcmread(write_native(tmp_path / "a.dcm", picture()))
    dataset.PhotometricInterpretation = photometric
    if photometric == "YBR_ICT":
        dataset.compress(JPEG2000, j2k_psnr=[60], generate_instance_uid=False)
    else:
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    dataset.save_as(tmp_path / "b.dcm")

    decoded = open_loop(tmp_path / "b.dcm").read(SOME)

    assert worst(decoded, picture()[list(SOME)]) <= (6 if photometric == "YBR_ICT" else 0)


@pytest.mark.parametrize("name", ["ge_e95_A3C_colour_jpeg_derived.dcm", "toshiba_adult_I_000031.dcm"])
def test_a_real_jpeg_loop_has_the_colours_that_pydicom_finds(shared_data: Path, name: str) -> None:
    """libjpeg-turbo turns the colours by itself: never further than a rounding from pydicom's way."""
    path = shared_data / "us" / name
    source = open_loop(path)

    for index in (0, source.header.num_frames - 1):
        theirs = pixel_array(path, index=index, decoding_plugin="pillow")
        assert np.abs(source.read([index])[0].astype(int) - theirs).max() <= 1


@pytest.mark.parametrize(
    ("colours", "photometric", "is_served"),
    [("YCbCr", "YBR_FULL_422", True), ("YCbCr", "YBR_FULL", True), ("RGB", "RGB", True), ("YCbCr", "RGB", False),
     ("RGB", "YBR_FULL_422", False)],
)  # fmt: skip
def test_a_jpeg_whose_colours_are_not_those_of_the_header_is_left_to_pydicom(
    colours: str, photometric: str, is_served: bool
) -> None:
    frame = simplejpeg.encode_jpeg(picture(1)[0], quality=95, colorspace="RGB")
    frame = frame if colours == "YCbCr" else marked_as_rgb(frame[:2] + frame[20:])  # without its JFIF marker

    assert (rgb_of_jpeg(frame, photometric) is not None) == is_served
    assert rgb_of_jpeg(frame[: len(frame) // 2], photometric) is None
    assert rgb_of_jpeg(b"", photometric) is None

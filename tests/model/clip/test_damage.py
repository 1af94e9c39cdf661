"""Damaged, lying and hostile files end in a verdict or in our own error, never in a wrong picture."""

import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from model.clip import dicom
from model.clip.dicom import open_loop
from model.clip.select import select
from model.clip.spec import frame_indices
from model.errors import ClipError, UnreadableLoop
from tests.doubles.loops import by_gdcm, header, jpeg, picture, write, write_encapsulated, write_native

SHAPE = (10, 96, 128)
YBR = {"PhotometricInterpretation": "YBR_FULL_422"}
ALL = range(10)


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    """The ten frames as JPEG baseline."""
    return [jpeg(frame) for frame in picture()]


def refusal(path: Path, indices: range = ALL) -> str:
    """Return the words with which the loop is refused."""
    with pytest.raises(UnreadableLoop) as caught:
        open_loop(path).read(indices)
    return str(caught.value)


def test_every_hostile_file_ends_in_a_verdict_or_in_our_own_error(shared_data: Path) -> None:
    files = sorted((shared_data / "hostile").iterdir())
    outcomes = [outcome(path) for path in files]

    assert len(files) > 40
    assert set(outcomes) <= {"refused by its header", "unreadable"}, list(zip(files, outcomes, strict=True))


def test_the_pixels_of_every_hostile_file_are_a_picture_of_its_size_or_our_own_error(shared_data: Path) -> None:
    files = sorted((shared_data / "hostile").iterdir())

    shapes = [decoded_shape(path) for path in files]

    assert sum(shape is not None for shape in shapes) >= 8
    assert all(found == claimed for found, claimed in filter(None, shapes))


def outcome(path: Path) -> str:
    """Return what becomes of a file."""
    try:
        return "accepted" if select(open_loop(path).header).is_accepted else "refused by its header"
    except ClipError:
        return "unreadable"


def decoded_shape(path: Path) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the shape of the sampled frames and the shape that the header claims."""
    try:
        source = open_loop(path)
        frames = source.read(frame_indices(source.header.num_frames, 16))
    except ClipError:
        return None
    return frames.shape, (16, source.header.rows or 0, source.header.columns or 0, 3)


def test_more_frames_than_the_uncompressed_pixels_hold_are_refused(tmp_path: Path) -> None:
    loop = write_native(tmp_path / "a.dcm", picture(), NumberOfFrames=11)

    assert "the header claims 405504 bytes of pixels, the file" in refusal(loop)


def test_more_frames_than_the_value_holds_are_refused_though_the_file_is_long_enough(tmp_path: Path) -> None:
    dataset = header(*SHAPE, NumberOfFrames=11)
    dataset.DataSetTrailingPadding = b"\0" * 200_000
    loop = write(tmp_path / "a.dcm", dataset, picture().tobytes())

    assert refusal(loop, range(11)) == "the header claims 405504 bytes of pixels, the file holds 368640"


def test_fewer_frames_than_the_file_holds_are_a_shorter_loop(tmp_path: Path) -> None:
    loop = write_native(tmp_path / "a.dcm", picture(), NumberOfFrames=8)

    decoded = open_loop(loop).read(range(8))

    assert np.array_equal(decoded, picture()[:8])


def test_an_uncompressed_file_cut_off_in_its_pixels_is_refused(tmp_path: Path) -> None:
    loop = write_native(tmp_path / "a.dcm", picture())
    loop.write_bytes(loop.read_bytes()[:-5000])

    assert "the file" in refusal(loop, range(2))


@pytest.mark.parametrize("number", [0, -1, 100_001, 2**31 - 1])
def test_an_absurd_number_of_frames_is_refused(tmp_path: Path, number: int) -> None:
    loop = write_native(tmp_path / "a.dcm", picture(), NumberOfFrames=number)

    with pytest.raises(UnreadableLoop, match=f"the header claims {number} frames"):
        open_loop(loop)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless])
def test_absurd_rows_and_columns_are_refused_before_memory_is_claimed(
    tmp_path: Path, jpegs: list[bytes], syntax: str
) -> None:
    changes = {"Rows": 65535, "Columns": 65535, **YBR}
    if syntax == ExplicitVRLittleEndian:
        loop = write(tmp_path / "a.dcm", header(*SHAPE, **changes), b"\0" * 1000)
    else:
        loop = write_encapsulated(tmp_path / "a.dcm", jpegs, SHAPE, syntax, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    words = refusal(loop)

    assert words == "the header claims 65535 x 65535 pixels"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_frames_that_would_not_fit_in_memory_are_refused_before_one_is_decoded(
    tmp_path: Path, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = write_encapsulated(tmp_path / "a.dcm", jpegs, SHAPE, JPEGBaseline8Bit, **YBR)
    monkeypatch.setattr(dicom, "MAX_DECODED_BYTES", 6 * 96 * 128 * 3)

    assert open_loop(loop).read(range(6)).shape == (6, 96, 128, 3)
    assert refusal(loop, range(7)) == "7 frames of 96 x 128 pixels take more memory than a loop may"


@pytest.mark.parametrize("num_bytes", range(2**20 + 1, 2**20 + 258, 16))
def test_a_deflated_file_is_inflated_to_its_last_byte(tmp_path: Path, num_bytes: int) -> None:
    """zlib may hold the end of its output back when all its input is gone."""
    loop = write(tmp_path / "a.dcm", header(10, 2, 2), bytes(120), DeflatedExplicitVRLittleEndian)
    content = loop.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    plain = zlib.decompress(content[start:], -zlib.MAX_WBITS)
    padding = bytes(num_bytes - len(plain))
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    deflated = deflater.compress(plain) + deflater.flush(zlib.Z_FULL_FLUSH)
    loop.write_bytes(content[:start] + deflated + deflater.compress(padding) + deflater.flush())

    with dicom._opened(loop) as inflated:
        assert inflated.read().endswith(plain + padding)


def test_a_missing_fragment_is_refused(tmp_path: Path, jpegs: list[bytes]) -> None:
    loop = write_encapsulated(tmp_path / "a.dcm", jpegs[:9], SHAPE, JPEGBaseline8Bit, has_offsets=False, **YBR)

    assert "cannot be decoded" in refusal(loop)


def test_a_frame_that_the_offset_table_does_not_list_is_refused(tmp_path: Path, jpegs: list[bytes]) -> None:
    loop = write_encapsulated(tmp_path / "a.dcm", jpegs[:9], SHAPE, JPEGBaseline8Bit, **YBR)

    assert "cannot be decoded" in refusal(loop)


@pytest.mark.parametrize("has_offsets", [True, False])
def test_fewer_frames_than_fragments_are_a_shorter_loop(tmp_path: Path, jpegs: list[bytes], has_offsets: bool) -> None:
    whole = write_encapsulated(tmp_path / "a.dcm", jpegs, SHAPE, JPEGBaseline8Bit, **YBR)
    loop = write_encapsulated(tmp_path / "b.dcm", jpegs, (8, 96, 128), JPEGBaseline8Bit, has_offsets=has_offsets, **YBR)

    decoded = open_loop(loop).read(range(8))

    assert np.array_equal(decoded, open_loop(whole).read(range(8)))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGBaseline8Bit])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_a_frame_cut_short_is_refused(tmp_path: Path, jpegs: list[bytes], syntax: str, kept: float) -> None:
    frames = jpegs if syntax == JPEGBaseline8Bit else compressed(tmp_path, syntax)
    changes = YBR if syntax == JPEGBaseline8Bit else {}
    frames[4] = frames[4][: int(len(frames[4]) * kept)]
    loop = write_encapsulated(tmp_path / "a.dcm", frames, SHAPE, syntax, **changes)

    refusal(loop)


def compressed(folder: Path, syntax: str) -> list[bytes]:
    """Return the frames of the picture, with noise that makes every byte count, in a lossless form."""
    from pydicom.encaps import generate_frames

    noise = np.random.default_rng(1).integers(0, 50, size=(*SHAPE, 3), dtype=np.uint8)
    dataset = dcmread(write_native(folder / "plain.dcm", picture() // 2 + noise))
    dataset.compress(syntax, generate_instance_uid=False)
    return list(generate_frames(dataset.PixelData, number_of_frames=10))


@pytest.mark.parametrize("rows_and_columns", [(128, 96), (96, 127), (48, 128), (192, 128)])
def test_a_frame_of_another_size_than_the_header_claims_is_refused(
    tmp_path: Path, jpegs: list[bytes], rows_and_columns: tuple[int, int]
) -> None:
    loop = write_encapsulated(tmp_path / "a.dcm", jpegs, (10, *rows_and_columns), JPEGBaseline8Bit, **YBR)

    assert "a frame holds 96 x 128 pixels" in refusal(loop)


@pytest.mark.parametrize("stored", [0, 1, 4, 7, 9, 16])
def test_lossless_jpeg_of_other_bits_than_the_header_says_is_refused(tmp_path: Path, stored: int) -> None:
    """File 2995 of tests/system/test_fuzz_files.py: gdcm ends the process at fewer than 8."""
    loop = by_gdcm(write_native(tmp_path / "plain.dcm", picture()), tmp_path / "a.dcm", JPEGLosslessSV1)
    dataset = dcmread(loop)
    dataset.BitsStored = stored
    dataset.save_as(loop)

    assert refusal(loop, range(2)) == f"the header claims {stored} bits of a frame that holds 8"


def test_a_jpeg_that_claims_to_be_huge_is_refused_before_it_is_decoded(tmp_path: Path, jpegs: list[bytes]) -> None:
    start = jpegs[0].index(b"\xff\xc0") + 5
    bomb = jpegs[0][:start] + struct.pack(">HH", 30_000, 30_000) + jpegs[0][start + 4 :]
    loop = write_encapsulated(tmp_path / "a.dcm", [bomb] * 10, SHAPE, JPEGBaseline8Bit, **YBR)

    assert "a frame holds 30000 x 30000 pixels" in refusal(loop)


def test_a_deflated_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom, "MAX_INFLATED_BYTES", 2**20)
    loop = write_native(tmp_path / "a.dcm", np.zeros((10, 960, 1280, 3), np.uint8), DeflatedExplicitVRLittleEndian)

    with pytest.raises(UnreadableLoop, match="larger than 1048576 bytes"):
        open_loop(loop)


def test_a_deflated_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, size=(*SHAPE, 3), dtype=np.uint8)
    loop = write_native(tmp_path / "a.dcm", noise, DeflatedExplicitVRLittleEndian)
    loop.write_bytes(loop.read_bytes()[:-100_000])

    refusal(loop)


def test_what_is_deflated_wrongly_is_refused(tmp_path: Path) -> None:
    loop = write_native(tmp_path / "a.dcm", picture(), DeflatedExplicitVRLittleEndian)
    whole = loop.read_bytes()
    loop.write_bytes(whole[:600] + bytes(byte ^ 0x55 for byte in whole[600:]))

    with pytest.raises(UnreadableLoop) as caught:
        open_loop(loop).read(ALL)

    assert isinstance(caught.value.__cause__, zlib.error | ValueError | OSError | KeyError | None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"SamplesPerPixel": 4}, "cannot be decoded"),
        ({"BitsAllocated": 32, "BitsStored": 32}, "32 bits"),
        ({"BitsStored": 40}, "40 bits"),
        ({"PhotometricInterpretation": "CMYK"}, "CMYK with"),
        ({"PhotometricInterpretation": None}, "cannot be decoded"),
        ({"PhotometricInterpretation": "PALETTE COLOR", "SamplesPerPixel": 1}, "cannot be decoded"),
        ({"PhotometricInterpretation": "YBR_FULL_422"}, "not subsampled"),
        ({"Rows": 0}, "no Rows and Columns"),
        ({"Columns": None}, "no Rows and Columns"),
    ],
)
def test_a_header_that_does_not_fit_its_pixels_is_refused(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    path = tmp_path / "a.dcm"
    loop = write(path, header(*SHAPE, **({"NumberOfFrames": 2} | changes)), picture().tobytes())

    assert words in refusal(loop, range(2))


def test_pixel_data_that_is_missing_is_named(tmp_path: Path) -> None:
    loop = write_encapsulated(tmp_path / "a.dcm", [b"\0\0"], SHAPE, JPEGBaseline8Bit, **YBR)
    write(loop, header(*SHAPE, **YBR), None, JPEGBaseline8Bit)

    assert refusal(loop) == "there is no pixel data"


def test_an_unknown_transfer_syntax_is_named(tmp_path: Path, jpegs: list[bytes]) -> None:
    loop = write_encapsulated(tmp_path / "a.dcm", jpegs, SHAPE, JPEGBaseline8Bit, **YBR)
    loop.write_bytes(loop.read_bytes().replace(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.59"))

    assert refusal(loop) == "transfer syntax 1.2.840.10008.1.2.4.59 is not decoded"


@pytest.mark.parametrize("content", [b"", b"DICM", b"\0" * 128 + b"DICM", b"\x1f\x8b" * 500, b"\0" * 4096])
def test_what_is_no_dicom_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(content)

    refusal(path)


def test_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    assert "FileNotFoundError" in refusal(tmp_path / "gone.dcm")


def test_no_word_of_a_refusal_comes_from_the_patient(tmp_path: Path) -> None:
    loop = write_native(tmp_path / "a.dcm", picture(), PatientName="Secret^Name", PatientID="Secret", NumberOfFrames=99)

    assert "Secret" not in refusal(loop)


@pytest.mark.parametrize("form", ["native", "jpeg", "rle", "deflated", "jpeg_ls", "jpeg_2000", "jpeg_lossless"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wrong=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=4),
    kept=st.one_of(st.just(1.0), st.floats(0.01, 1.0)),
)
def test_any_byte_may_be_wrong(
    tmp_path: Path, whole_files: Path, form: str, wrong: list[tuple[int, int]], kept: float
) -> None:
    damaged = bytearray((whole_files / form).read_bytes())
    for position, value in wrong:
        damaged[position % len(damaged)] = value
    path = tmp_path / "a.dcm"
    path.write_bytes(damaged[: int(kept * len(damaged))])

    shapes = decoded_shape(path)

    assert shapes is None or shapes[0] == shapes[1]


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory, jpegs: list[bytes]) -> Path:
    """A folder of undamaged files, one of each form."""
    folder = tmp_path_factory.mktemp("whole")
    write_native(folder / "native", picture())
    write_native(folder / "deflated", picture(), DeflatedExplicitVRLittleEndian)
    write_encapsulated(folder / "jpeg", jpegs, SHAPE, JPEGBaseline8Bit, **YBR)
    for name, syntax in (("rle", RLELossless), ("jpeg_ls", JPEGLSLossless), ("jpeg_2000", JPEG2000Lossless)):
        write_encapsulated(folder / name, compressed(folder, syntax), SHAPE, syntax)
    by_gdcm(write_native(folder / "plain.dcm", picture()), folder / "jpeg_lossless", JPEGLosslessSV1)
    return folder

"""A loop in a DICOM file: its header, and the frames that are asked for, decoded to RGB.

Legend: T frames, H, W pixels, C = 3 RGB.
Memory holds the frames asked for and one compressed frame; the file is read where they lie.
"""

import contextlib
import math
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL.Image import DecompressionBombError
from pydicom import Dataset, dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info

from model.clip.pixels import DECODABLE, DEFLATED, NATIVE, VIDEO, PixelData, find_pixel_data
from model.clip.rgb import colouring, true_photometric
from model.clip.source import MAX_PIXELS, Frames, LoopHeader, LoopSource, Region
from model.errors import UnreadableLoop

MAX_FRAMES = 100_000
"""Frames of a loop; an hour of ultrasound at 28 frames a second."""

MAX_INFLATED_BYTES = 2**31
"""Bytes of a deflated data set; a loop that large would be sent compressed."""

MAX_DECODED_BYTES = 600 << 20
"""Bytes of the frames that are asked for at one time: three beats of sixteen frames on a screen of 2560 x 1440."""

HEART_RATES = (20.0, 300.0)
"""Beats a minute that a heart does."""

_CENTIMETRES = 3  # of Physical Units X Direction

_PIECE = 2**20
_PREAMBLE_AND_GROUP_LENGTH = 132 + 12
_PLAIN_META = (
    b"\0" * 128
    + b"DICM"
    + struct.pack("<HH2sHL", 2, 0x00, b"UL", 4, 28)
    + struct.pack("<HH2sH", 2, 0x10, b"UI", 20)
    + b"1.2.840.10008.1.2.1\0"
)
"""The start of a file in Explicit VR Little Endian."""

# What pydicom, its plug-ins and the decoders raise on damaged bytes [seen on the malformed files of the tests].
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    BufferError,
    BytesLengthException,
    DecompressionBombError,
    EOFError,
    InvalidDicomError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    SyntaxError,  # Pillow, on damaged markers
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_MODES_PLACE = 4
_MODES = re.compile("[0-9A-Fa-f]{4}")

_HEADER_TAGS: list[Any] = [
    "SOPClassUID",
    "SOPInstanceUID",
    "ImageType",
    "Modality",
    "FrameTime",
    "FrameTimeVector",
    "CineRate",
    "RecommendedDisplayFrameRate",
    "HeartRate",
    "SequenceOfUltrasoundRegions",
    "SeriesNumber",
    "InstanceNumber",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "UltrasoundColorDataPresent",
    "ViewCodeSequence",
]

_PIXEL_TAGS: list[Any] = [
    *(0x00280000 + element for element in (0x02, 0x04, 0x06, 0x08, 0x10, 0x11, 0x100, 0x101, 0x102, 0x103)),
    *(0x00280000 + element for element in (0x1050, 0x1051, 0x1101, 0x1102, 0x1103, 0x1201, 0x1202, 0x1203)),
    *(0x00280000 + element for element in (0x1221, 0x1222, 0x1223)),
    0x7FE00001,
    0x7FE00002,
]


@dataclass(frozen=True, kw_only=True, slots=True)
class DicomLoop:
    """A DICOM file that was opened: its header is read, its pixels are not."""

    path: Path
    header: LoopHeader

    def read(self, indices: Sequence[int]) -> Frames:
        """Return the frames of these indices, RGB uint8 (T, H, W, 3).

        Raises:
            UnreadableLoop: the pixel data is damaged, missing or in an unknown form.
        """
        wanted = sorted(set(indices))
        _check_claims(self.header, self.path.stat().st_size)
        _check_memory(self.header, len(wanted))
        with _translated("the pixel data cannot be decoded"), _opened(self.path) as file:
            description = dcmread(file, stop_before_pixels=True, specific_tags=_PIXEL_TAGS)
            pixel_data = find_pixel_data(file, description, self.header.transfer_syntax_uid)
            if pixel_data.syntax in VIDEO:
                return _video_frames(pixel_data, self.header, indices)
            colours = colouring(description)
            decoded = pixel_data.frames(wanted)
            first_HWC = colours.to_rgb(next(decoded))
            named = true_photometric(first_HWC, colours.photometric)
            if named != colours.photometric:
                description.PhotometricInterpretation = named
                colours, decoded = colouring(description), pixel_data.frames(wanted)
                first_HWC = colours.to_rgb(next(decoded))
            frames_NHWC = np.empty((len(wanted), *first_HWC.shape), dtype=np.uint8)
            frames_NHWC[0] = first_HWC
            for place, samples in enumerate(decoded, start=1):
                frame_HWC = colours.to_rgb(samples)
                if frame_HWC.shape != first_HWC.shape:
                    raise UnreadableLoop("its frames differ in size")
                frames_NHWC[place] = frame_HWC
            return frames_NHWC if list(indices) == wanted else frames_NHWC[[wanted.index(index) for index in indices]]


def open_loop(path: Path) -> LoopSource:
    """Return the DICOM file at `path`, its header read, without patient data.

    Raises:
        UnreadableLoop: it is no DICOM file, or its header is damaged.
    """
    with _translated("the header cannot be read"), _opened(path) as file:
        dataset = dcmread(file, stop_before_pixels=True, specific_tags=_HEADER_TAGS)
        syntax = read_file_meta_info(path).get("TransferSyntaxUID", "")
        return DicomLoop(path=path, header=_header(dataset, str(syntax)))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading; a deflated one is inflated into a temporary file, so far as it is no bomb."""
    with contextlib.ExitStack() as files:
        file = files.enter_context(path.open("rb"))
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") != DEFLATED:
            yield file
            return
        file.seek(_PREAMBLE_AND_GROUP_LENGTH + int(meta.FileMetaInformationGroupLength))
        inflated = files.enter_context(tempfile.TemporaryFile())
        inflated.write(_PLAIN_META)
        _inflate(file, inflated)
        inflated.seek(0)
        yield inflated


def _inflate(file: IO[bytes], target: IO[bytes]) -> None:
    """Write the data set of a deflated file as it was before (PS3.5 A.5)."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    num_bytes = 0
    while not inflater.eof:
        piece = inflater.unconsumed_tail or file.read(_PIECE)
        inflated = inflater.decompress(piece, _PIECE)
        if not inflated and not piece:  # without input it may still hold the end of its output back
            return
        num_bytes += target.write(inflated)
        if num_bytes > MAX_INFLATED_BYTES:
            raise UnreadableLoop(f"the deflated data set is larger than {MAX_INFLATED_BYTES} bytes")


def _header(dataset: Dataset, syntax: str) -> LoopHeader:
    return LoopHeader(
        sop_class_uid=str(dataset.get("SOPClassUID", "")),
        sop_instance_uid=str(dataset.get("SOPInstanceUID", "")),
        transfer_syntax_uid=syntax,
        modality=str(dataset.get("Modality", "")),
        rows=_integer(dataset, "Rows"),
        columns=_integer(dataset, "Columns"),
        num_frames=_num_frames(dataset),
        samples_per_pixel=_integer(dataset, "SamplesPerPixel") or 1,
        photometric=str(dataset.get("PhotometricInterpretation", "")),
        bits_allocated=_integer(dataset, "BitsAllocated") or 8,
        frame_time_ms=_frame_time_ms(dataset),
        heart_rate=_heart_rate(dataset),
        modes=_modes(dataset),
        is_colour_flagged=_integer(dataset, "UltrasoundColorDataPresent") == 1,
        regions=tuple(_region(item) for item in dataset.get("SequenceOfUltrasoundRegions") or ()),
        view_code=next((str(item.get("CodeValue", "")) for item in dataset.get("ViewCodeSequence") or ()), None),
        series_number=_integer(dataset, "SeriesNumber"),
        instance_number=_integer(dataset, "InstanceNumber"),
    )


def _integer(dataset: Dataset, keyword: str) -> int | None:
    value = dataset.get(keyword)
    return None if value in (None, "") else int(value)


def _num_frames(dataset: Dataset) -> int:
    number = _integer(dataset, "NumberOfFrames")
    if number is None:
        return 1
    if not 1 <= number <= MAX_FRAMES:
        raise UnreadableLoop(f"the header claims {number} frames")
    return number


def _frame_time_ms(dataset: Dataset) -> float | None:
    time = _positive(dataset, "FrameTime")
    if time is not None:
        return time
    vector = dataset.get("FrameTimeVector") or ()
    steps = [float(step) for step in vector] if not isinstance(vector, str | float | int) else [float(vector)]
    positive = [step for step in steps if 0 < step < math.inf]  # the first is 0 by PS3.3 C.7.6.5
    if positive:
        return sum(positive) / len(positive)
    rate = _positive(dataset, "CineRate") or _positive(dataset, "RecommendedDisplayFrameRate")
    return None if rate is None else 1000.0 / rate


def _heart_rate(dataset: Dataset) -> float | None:
    rate = _positive(dataset, "HeartRate")
    return rate if rate is not None and HEART_RATES[0] <= rate <= HEART_RATES[1] else None


def _modes(dataset: Dataset) -> int:
    """Return the fourth value of Image Type, four hexadecimal digits; 0 where there is none."""
    values = dataset.get("ImageType") or ()
    text = "" if isinstance(values, str) or len(values) < _MODES_PLACE else str(values[_MODES_PLACE - 1])
    return int(text, 16) if _MODES.fullmatch(text) else 0


def _positive(dataset: Dataset, keyword: str) -> float | None:
    value = _number(dataset, keyword)
    return value if value is not None and 0 < value < math.inf else None


def _number(dataset: Dataset, keyword: str) -> float | None:
    """Return an element that a loop can do without; None also where it holds no number, or several."""
    try:
        value = dataset.get(keyword)
        return None if value in (None, "") else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _region(item: Dataset) -> Region:
    def corner(keyword: str) -> int:
        return _integer(item, keyword) or 0

    return Region(
        spatial_format=corner("RegionSpatialFormat"),
        data_type=corner("RegionDataType"),
        x0=corner("RegionLocationMinX0"),
        y0=corner("RegionLocationMinY0"),
        x1=corner("RegionLocationMaxX1"),
        y1=corner("RegionLocationMaxY1"),
        row_mm=_pixel_mm(item, "Y"),
        column_mm=_pixel_mm(item, "X"),
    )


def _pixel_mm(item: Dataset, axis: str) -> float | None:
    """Return the size of a pixel along an axis, mm (PS3.3 C.8.5.5.1: unit 3 is the centimetre).

    Carts that count to the left, or upwards, give it below zero [seen on Acuson's].
    """
    delta = _number(item, f"PhysicalDelta{axis}")
    is_length = _number(item, f"PhysicalUnits{axis}Direction") == _CENTIMETRES
    return 10.0 * abs(delta) if is_length and delta is not None else None


def _check_claims(header: LoopHeader, file_size: int) -> None:
    """Refuse what no file of this size can hold, before anything is allocated."""
    rows, columns = header.rows or 0, header.columns or 0
    if rows * columns == 0:
        raise UnreadableLoop("the header gives no Rows and Columns")
    if rows * columns > MAX_PIXELS:
        raise UnreadableLoop(f"the header claims {rows} x {columns} pixels")
    if header.transfer_syntax_uid not in DECODABLE:
        raise UnreadableLoop(f"transfer syntax {header.transfer_syntax_uid or 'missing'} is not decoded")
    if header.transfer_syntax_uid in NATIVE - {DEFLATED}:
        samples = 2 if header.photometric == "YBR_FULL_422" else header.samples_per_pixel
        claimed = rows * columns * samples * header.num_frames * header.bits_allocated // 8
        if claimed > file_size:
            raise UnreadableLoop(f"the header claims {claimed} bytes of pixels, the file has {file_size}")


def _check_memory(header: LoopHeader, num_frames: int) -> None:
    """Refuse what would not fit beside the networks, before anything is decoded."""
    if num_frames * (header.rows or 0) * (header.columns or 0) * 3 > MAX_DECODED_BYTES:
        size = f"{header.rows} x {header.columns} pixels"
        raise UnreadableLoop(f"{num_frames} frames of {size} take more memory than a loop may")


def _video_frames(pixel_data: PixelData, header: LoopHeader, indices: Sequence[int]) -> Frames:
    # Not before the first video: the reader loads every CUDA library, hundreds of megabytes, and few studies hold one.
    from model.clip.video import open_video

    with tempfile.NamedTemporaryFile(suffix=".mpg") as stream:
        pixel_data.write_stream(stream)
        video = open_video(Path(stream.name))
        found, claimed = (video.header.rows, video.header.columns), (header.rows, header.columns)
        if found != claimed:
            raise UnreadableLoop(
                f"a frame holds {found[0]} x {found[1]} pixels, the header claims {claimed[0]} x {claimed[1]}"
            )
        return video.read(indices)


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn what libraries raise on damaged bytes into our own error; the text names no value of the data set."""
    try:
        yield
    except _DAMAGE as error:
        raise UnreadableLoop(f"{what} ({type(error).__name__})") from error

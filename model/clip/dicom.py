"""A loop in a DICOM file: its header, and the frames that are asked for, decoded to RGB.

Legend: T frames, H, W pixels, C = 3 RGB.
Memory holds the frames asked for and one compressed frame; the file is read where they lie.
"""

import contextlib
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import DecompressionBombError
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_fragments
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_color_lut, convert_color_space
from pydicom.pixels.utils import iter_pixels

from model.clip.source import Frames, LoopHeader, LoopSource, Region
from model.clip.video import read_video
from model.errors import UnreadableLoop

MAX_PIXELS = 32_000_000
"""Rows x Columns of one frame; the largest ultrasound screens have 4 million."""

MAX_FRAMES = 100_000
"""Frames of a loop; an hour of ultrasound at 28 frames a second."""

_VIDEO = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (100, 101, 102, 103, 104, 105, 106, 107, 108)) | frozenset(
    f"1.2.840.10008.1.2.4.{n}.1" for n in (100, 101, 102, 103, 104, 105, 106)
)

# One decoder each, always the same: decoders differ by up to 20 grey levels (chroma upsampling).
_PLUGINS = {
    "1.2.840.10008.1.2.4.50": "pillow",
    "1.2.840.10008.1.2.4.51": "pillow",
    "1.2.840.10008.1.2.4.57": "gdcm",
    "1.2.840.10008.1.2.4.70": "gdcm",
    "1.2.840.10008.1.2.4.80": "gdcm",
    "1.2.840.10008.1.2.4.81": "gdcm",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg",
    "1.2.840.10008.1.2.5": "pylibjpeg",
}
_NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"})

DECODABLE = _NATIVE | frozenset(_PLUGINS) | _VIDEO
"""Transfer syntaxes whose pictures this module can decode."""

# What pydicom, its plug-ins and the decoders raise on damaged bytes [seen on the malformed files of the tests].
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    BufferError,
    DecompressionBombError,
    EOFError,
    InvalidDicomError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)

_HEADER_TAGS: list[Any] = [
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "FrameTime",
    "FrameTimeVector",
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

_LUT_TAGS: list[Any] = [
    0x00281101,
    0x00281102,
    0x00281103,
    0x00281201,
    0x00281202,
    0x00281203,
    0x00281221,
    0x00281222,
    0x00281223,
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
        with _translated("the pixel data cannot be decoded"):
            if self.header.transfer_syntax_uid in _VIDEO:
                return _video_frames(self.path, indices)
            decoded = _decode(self.path, self.header, wanted)
        place = {index: position for position, index in enumerate(wanted)}
        return decoded[[place[index] for index in indices]]


def open_loop(path: Path) -> LoopSource:
    """Return the DICOM file at `path`, its header read, without patient data.

    Raises:
        UnreadableLoop: it is no DICOM file, or its header is damaged.
    """
    with _translated("the header cannot be read"):
        dataset = dcmread(path, stop_before_pixels=True, specific_tags=_HEADER_TAGS)
        return DicomLoop(path=path, header=_header(dataset))


def _header(dataset: Dataset) -> LoopHeader:
    return LoopHeader(
        sop_class_uid=str(dataset.get("SOPClassUID", "")),
        sop_instance_uid=str(dataset.get("SOPInstanceUID", "")),
        transfer_syntax_uid=str(dataset.file_meta.get("TransferSyntaxUID", "")),
        modality=str(dataset.get("Modality", "")),
        rows=_integer(dataset, "Rows"),
        columns=_integer(dataset, "Columns"),
        num_frames=_num_frames(dataset),
        samples_per_pixel=_integer(dataset, "SamplesPerPixel") or 1,
        photometric=str(dataset.get("PhotometricInterpretation", "")),
        bits_allocated=_integer(dataset, "BitsAllocated") or 8,
        frame_time_ms=_frame_time_ms(dataset),
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
    time = dataset.get("FrameTime")
    if time not in (None, "") and float(time) > 0:
        return float(time)
    vector = dataset.get("FrameTimeVector") or ()
    steps = [float(step) for step in vector] if not isinstance(vector, str | float | int) else [float(vector)]
    positive = [step for step in steps if step > 0]  # the first is 0 by PS3.3 C.7.6.5
    return sum(positive) / len(positive) if positive else None


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
    )


def _check_claims(header: LoopHeader, file_size: int) -> None:
    """Refuse what no file of this size can hold, before anything is allocated."""
    rows, columns = header.rows or 0, header.columns or 0
    if rows * columns == 0:
        raise UnreadableLoop("the header gives no Rows and Columns")
    if rows * columns > MAX_PIXELS:
        raise UnreadableLoop(f"the header claims {rows} x {columns} pixels")
    if header.transfer_syntax_uid not in DECODABLE:
        raise UnreadableLoop(f"transfer syntax {header.transfer_syntax_uid or 'missing'} is not decoded")
    if header.transfer_syntax_uid in _NATIVE and not header.transfer_syntax_uid.endswith(".99"):
        samples = 2 if header.photometric == "YBR_FULL_422" else header.samples_per_pixel
        claimed = rows * columns * samples * header.num_frames * header.bits_allocated // 8
        if claimed > file_size:
            raise UnreadableLoop(f"the header claims {claimed} bytes of pixels, the file has {file_size}")


def _decode(path: Path, header: LoopHeader, wanted: Sequence[int]) -> Frames:
    palette = Dataset()
    is_palette = header.photometric == "PALETTE COLOR"
    frames = iter_pixels(
        path,
        indices=list(wanted),
        ds_out=palette if is_palette else None,
        specific_tags=_LUT_TAGS,
        decoding_plugin=_PLUGINS.get(header.transfer_syntax_uid, ""),
    )
    pictures = []
    for frame in frames:
        pictures.append(_to_rgb(frame, header, palette if is_palette else None))
    if len(pictures) != len(wanted):
        raise UnreadableLoop(f"{len(wanted)} frames were asked for, {len(pictures)} are held")
    return np.stack(pictures)


def _to_rgb(frame: NDArray[Any], header: LoopHeader, palette: Dataset | None) -> Frames:
    """Return one decoded frame as RGB uint8; pydicom has turned YBR into RGB by then."""
    if palette is not None:
        return _to_bytes(apply_color_lut(frame, palette))
    if header.photometric in ("MONOCHROME1", "MONOCHROME2"):
        grey = _to_bytes(frame)
        if header.photometric == "MONOCHROME1":
            grey = np.asarray(255 - grey, dtype=np.uint8)
        return np.repeat(grey[..., np.newaxis], 3, axis=-1)
    if frame.ndim != 3 or frame.shape[-1] != 3:
        raise UnreadableLoop(f"{header.photometric or 'no photometric interpretation'} with {frame.shape} samples")
    if header.photometric == "YBR_PARTIAL_422":
        return _to_bytes(convert_color_space(frame, "YBR_FULL", "RGB"))
    return _to_bytes(frame)


def _to_bytes(values: NDArray[Any]) -> Frames:
    """Return samples as uint8; deeper ones are scaled from their type's range, so that all frames of a loop agree."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return (values >> 8).astype(np.uint8)
    raise UnreadableLoop(f"samples of type {values.dtype} are no ultrasound picture")


def _video_frames(path: Path, indices: Sequence[int]) -> Frames:
    """Return frames of an encapsulated MPEG stream (PS3.5 A.4): its fragments are one stream."""
    dataset = dcmread(path, specific_tags=["PixelData"])
    with tempfile.NamedTemporaryFile(suffix=".mpg") as stream:
        _write_stream(dataset.PixelData, stream)
        return read_video(Path(stream.name), indices)


def _write_stream(pixel_data: bytes, stream: IO[bytes]) -> None:
    fragments = generate_fragments(pixel_data)
    next(fragments)  # the basic offset table
    for fragment in fragments:
        stream.write(fragment)
    stream.flush()


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn what libraries raise on damaged bytes into our own error; the text names no value of the data set."""
    try:
        yield
    except _DAMAGE as error:
        raise UnreadableLoop(f"{what} ({type(error).__name__})") from error

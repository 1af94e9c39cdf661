"""Frames of a DICOM file's Pixel Data, cut out where they lie and decoded one by one.

Memory holds one frame at a time, compressed or not; nothing is decoded that was not asked for.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import encapsulate, generate_fragments, get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import UID, ExplicitVRLittleEndian

from model.clip.codestream import form_of, marked_as_rgb
from model.clip.source import Frames
from model.errors import UnreadableLoop

# One decoder each, always the same: decoders differ by up to 20 grey levels (chroma upsampling).
_PLUGINS = {
    "1.2.840.10008.1.2.4.50": "pillow",  # where rgb_of_jpeg does not serve
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
_BASELINE = "1.2.840.10008.1.2.4.50"
_LOSSLESS_JPEG = frozenset({"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"})
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED})
VIDEO = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (100, 101, 102, 103, 104, 105, 106, 107, 108)) | frozenset(
    f"1.2.840.10008.1.2.4.{n}.1" for n in (100, 101, 102, 103, 104, 105, 106)
)
DECODABLE = NATIVE | frozenset(_PLUGINS) | VIDEO
"""Transfer syntaxes whose pictures can be decoded."""

_PIXEL_DATA = (0x7FE0, 0x0010)
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelData:
    """Where the pixels of an open file lie, and what they are."""

    file: IO[bytes]
    description: Dataset
    """The Image Pixel elements; its pixels are not read."""
    syntax: str
    offset: int
    length: int | None
    """Bytes of the value; None in encapsulated pixel data."""

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Yield the samples of these frames, YCbCr turned into RGB.

        Raises:
            UnreadableLoop: the pixel data holds fewer bytes than the header claims, or other pictures.
        """
        decoder = get_decoder(ExplicitVRLittleEndian if self.syntax == DEFLATED else self.syntax)
        options = as_pixel_options(
            self.description,
            number_of_frames=1,
            pixel_keyword="PixelData",
            pixel_vr="OB",
            transfer_syntax_uid=decoder.UID,
            decoding_plugin=_PLUGINS.get(self.syntax, ""),
        )
        options.pop("extended_offsets", None)
        for index in indices:
            frame = self._native(index) if self.syntax in NATIVE else self._compressed(index)
            if self._is_plain_jpeg and (picture := rgb_of_jpeg(frame, self._photometric)) is not None:
                yield picture
                continue
            value = frame if self.syntax in NATIVE else encapsulate([frame], has_bot=False)
            samples, _ = decoder.as_array(value, index=0, **options)
            yield samples.astype(samples.dtype.newbyteorder("="), copy=False)

    def write_stream(self, target: IO[bytes]) -> None:
        """Write the fragments behind one another: in the MPEG syntaxes they are one stream (PS3.5 8.2.5-8.2.9)."""
        self.file.seek(self.offset)
        fragments = generate_fragments(self.file)
        next(fragments)  # the basic offset table
        for fragment in fragments:
            target.write(fragment)
        target.flush()

    def _native(self, index: int) -> bytes:
        size = self._checked_frame_size()
        start = index * size
        is_swapped = (
            self.syntax == "1.2.840.10008.1.2.2" and int(self.description.BitsAllocated) == 8 and self._is_words
        )
        if not is_swapped:
            return self._bytes(start, size)
        # Bytes lie in words that were turned round: start and end on a whole word (PS3.5 A.3).
        even = start - start % 2
        words = self._bytes(even, size + 2 - size % 2)
        turned = np.frombuffer(words[: len(words) // 2 * 2], dtype="<u2").byteswap().tobytes()
        return turned[start - even : start - even + size]

    @property
    def _is_words(self) -> bool:
        self.file.seek(self.offset - 8)
        return self.file.read(2) == b"OW"

    def _bytes(self, start: int, size: int) -> bytes:
        self.file.seek(self.offset + start)
        return self.file.read(size)

    def _checked_frame_size(self) -> int:
        """Return the bytes of one uncompressed frame; the value must hold as many as the header claims."""
        rows, columns = int(self.description.Rows), int(self.description.Columns)
        bits, samples = int(self.description.BitsAllocated), int(self.description.SamplesPerPixel)
        if bits not in (8, 16):
            raise UnreadableLoop(f"{bits} bits a sample are no ultrasound picture")
        is_half = self.description.PhotometricInterpretation == "YBR_FULL_422"
        size = rows * columns * (2 if is_half else samples) * bits // 8
        claimed = size * int(self.description.get("NumberOfFrames") or 1)
        if self.length is None:
            raise UnreadableLoop("uncompressed pixel data has no length")
        self.file.seek(0, io.SEEK_END)
        held = min(self.length, self.file.tell() - self.offset)
        if held < claimed:
            raise UnreadableLoop(f"the header claims {claimed} bytes of pixels, the file holds {held}")
        if is_half and held >= claimed * 3 // 2:
            raise UnreadableLoop("the header says YBR_FULL_422, the pixel data is not subsampled")
        return size

    @property
    def _photometric(self) -> str:
        return str(self.description.get("PhotometricInterpretation", ""))

    @property
    def _is_plain_jpeg(self) -> bool:
        """Return whether the frames are baseline JPEG of three colours, a byte each: nearly all ultrasound loops."""
        return (
            self.syntax == _BASELINE
            and self._photometric in ("YBR_FULL_422", "YBR_FULL", "RGB")
            and int(self.description.get("BitsAllocated") or 0) == int(self.description.get("BitsStored") or 0) == 8
            and int(self.description.get("PixelRepresentation") or 0) == 0
        )

    def _compressed(self, index: int) -> bytes:
        self.file.seek(self.offset)
        frame = get_frame(
            self.file,
            index,
            number_of_frames=int(self.description.get("NumberOfFrames") or 1),
            extended_offsets=self._extended_offsets(),
        )
        self._check_form(frame)
        if self._photometric == "RGB" and _PLUGINS.get(self.syntax) == "pillow":
            frame = marked_as_rgb(frame)
        return frame

    def _check_form(self, frame: bytes) -> None:
        """Refuse a frame that is not what the header claims: decoders trust the header, and gdcm then crashes."""
        form = form_of(frame)
        if form is None:
            if _PLUGINS[self.syntax] == "gdcm":
                raise UnreadableLoop("a frame has no frame header")
            return
        rows, columns = int(self.description.Rows), int(self.description.Columns)
        if (form.rows, form.columns) != (rows, columns):
            raise UnreadableLoop(
                f"a frame holds {form.rows} x {form.columns} pixels, the header claims {rows} x {columns}"
            )
        samples, bits = int(self.description.SamplesPerPixel), int(self.description.BitsAllocated)
        if form.samples != samples or form.bits > bits or (form.bits > 8) != (bits > 8):
            raise UnreadableLoop(
                f"a frame holds {form.samples} samples of {form.bits} bits, the header claims {samples} in {bits}"
            )
        stored = int(self.description.get("BitsStored") or 0)
        if self.syntax in _LOSSLESS_JPEG and bits == 8 != stored:
            raise UnreadableLoop(f"the header claims {stored} bits of a frame that holds {form.bits}")

    def _extended_offsets(self) -> tuple[bytes, bytes] | None:
        if "ExtendedOffsetTable" in self.description and "ExtendedOffsetTableLengths" in self.description:
            return self.description.ExtendedOffsetTable, self.description.ExtendedOffsetTableLengths
        return None


def rgb_of_jpeg(frame: bytes, photometric: str) -> Frames | None:
    """Return a baseline JPEG frame as RGB, decoded and turned from YCbCr by libjpeg-turbo in one go.

    pydicom has the same library decode and turns the colours itself, in ten times the time; at most a grey level lies
    between the two. None where it is to decide: a damaged frame, or one that holds other colours than the header says.
    """
    try:
        *_, colours, _ = simplejpeg.decode_jpeg_header(frame)
        if colours != ("RGB" if photometric == "RGB" else "YCbCr"):
            return None
        return np.asarray(simplejpeg.decode_jpeg(frame, colorspace="RGB"), dtype=np.uint8)
    except ValueError:
        return None


def find_pixel_data(file: IO[bytes], description: Dataset, syntax: str) -> PixelData:
    """Return the pixel data of a file that pydicom has read up to it (`stop_before_pixels`).

    Raises:
        UnreadableLoop: there is none.
    """
    is_implicit, is_little = description.original_encoding
    order = "<" if is_little else ">"
    head = file.read(8 if is_implicit else 12)
    if len(head) < (8 if is_implicit else 12) or struct.unpack(f"{order}HH", head[:4]) != _PIXEL_DATA:
        raise UnreadableLoop("there is no pixel data")
    (length,) = struct.unpack(f"{order}L", head[-4:])
    is_native = UID(syntax) in NATIVE
    if is_native == (length == _UNDEFINED):
        raise UnreadableLoop("the form of the pixel data does not fit the transfer syntax")
    return PixelData(
        file=file,
        description=description,
        syntax=syntax,
        offset=file.tell(),
        length=length if is_native else None,
    )

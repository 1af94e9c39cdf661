"""Files of pictures that the worker made: JPEG frames and PDFs are taken out of them as they are, and never decoded.

They are what a browser shows: the attention over a loop, as it goes out with a report, and the preview of a loop, which
goes nowhere. A preview carries nothing of the patient: it is for the page, beside whose other words it is shown.
"""

import io
import uuid
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import JPEGBaseline8Bit, MultiFrameGrayscaleByteSecondaryCaptureImageStorage

from dicom_node.errors import UnreadableCine
from dicom_node.report.header import DAMAGE
from dicom_node.report.pictures import FRAME_TIME_MS, Cine

MAX_BYTES = 64 << 20
"""Of a file that is read: 300 frames of attention are a fifth of it."""

_TAGS = ["NumberOfFrames", "FrameTime", "Rows", "Columns", "SourceImageSequence"]
_PIXEL_DATA = bytes.fromhex("e07f1000") + b"OB\0\0" + b"\xff" * 4  # explicit VR, of undefined length: encapsulated
_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True, kw_only=True, slots=True)
class CineFile:
    """A file whose header was read."""

    path: Path
    num_frames: int
    rows: int
    columns: int
    frame_time_ms: float
    source_frames: tuple[int, ...]
    """The loop's frame under each, counted from 1."""
    start: int
    """Where the Basic Offset Table begins, bytes from the beginning of the file."""

    def frame(self, index: int) -> bytes:
        """Return a frame, counted from 0, as it lies in the file: a JPEG.

        Raises:
            UnreadableCine: there is none, or the file is damaged.
        """
        if not 0 <= index < self.num_frames:
            raise UnreadableCine(f"{self.path.name} has no frame {index + 1}")
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                frame = get_frame(file, index, number_of_frames=self.num_frames)
        except (*DAMAGE, OSError) as error:
            raise UnreadableCine(f"{self.path.name} cannot be read ({type(error).__name__})") from error
        if not frame.startswith(_JPEG):
            raise UnreadableCine(f"{self.path.name}: frame {index + 1} is no JPEG")
        return frame


def open_cine(path: Path) -> CineFile:
    """Return the file at `path`.

    Raises:
        UnreadableCine: it is not there, or it is no multi-frame file of JPEG frames.
    """
    header, start = _opened(path)
    try:
        (source,) = header.SourceImageSequence
        frames = source.ReferencedFrameNumber
        found = CineFile(
            path=path,
            num_frames=int(header.NumberOfFrames),
            rows=int(header.Rows),
            columns=int(header.Columns),
            frame_time_ms=float(header.FrameTime),
            source_frames=(int(frames),) if isinstance(frames, int | str) else tuple(map(int, frames)),
            start=start,
        )
    except DAMAGE as error:
        raise UnreadableCine(f"{path.name} cannot be read ({type(error).__name__})") from error
    if not 0 < found.num_frames == len(found.source_frames) or found.rows < 1 or found.columns < 1:
        raise UnreadableCine(f"{path.name} is no picture of ours")
    return found


def still(path: Path) -> bytes:
    """Return the first frame of the picture at `path`: a JPEG.

    Raises:
        UnreadableCine: it is not there, or it is no picture of JPEG frames.
    """
    header, start = _opened(path)
    try:
        num_frames = int(header.get("NumberOfFrames", 1))
    except DAMAGE as error:
        raise UnreadableCine(f"{path.name} cannot be read ({type(error).__name__})") from error
    one = CineFile(
        path=path, num_frames=num_frames, rows=1, columns=1, frame_time_ms=FRAME_TIME_MS, source_frames=(), start=start
    )
    return one.frame(0)


def document(path: Path) -> bytes:
    """Return the PDF that the file at `path` holds.

    Raises:
        UnreadableCine: it is not there, or it holds none.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UnreadableCine(f"{path.name} is no document of ours")
        content = dcmread(path)
        pdf = bytes(content.EncapsulatedDocument[: content.EncapsulatedDocumentLength])
    except (*DAMAGE, OSError) as error:
        raise UnreadableCine(f"{path.name} cannot be read ({type(error).__name__})") from error
    if not pdf.startswith(b"%PDF-"):
        raise UnreadableCine(f"{path.name} holds no PDF")
    return pdf


def preview_file(cine: Cine) -> bytes:
    """Return grey JPEG frames as a file without patient, study and loop."""
    image = Dataset()
    image.SOPClassUID = MultiFrameGrayscaleByteSecondaryCaptureImageStorage
    image.SOPInstanceUID = f"2.25.{uuid.uuid4().int}"
    source = Dataset()
    source.ReferencedFrameNumber = list(cine.source_frames)
    image.SourceImageSequence = [source]
    image.NumberOfFrames = len(cine.frames)
    image.FrameTime = f"{cine.frame_time_ms or FRAME_TIME_MS:.6g}"
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.Rows, image.Columns = cine.rows, cine.columns
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit = 7
    image.PixelRepresentation = 0
    image.PixelData = encapsulate(list(cine.frames))
    image["PixelData"].VR = "OB"
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    buffer = io.BytesIO()
    dcmwrite(buffer, image, enforce_file_format=True)
    return buffer.getvalue()


def _opened(path: Path) -> tuple[Dataset, int]:
    """Return what is needed of the header of a picture, and where its Basic Offset Table begins."""
    try:
        with path.open("rb") as file:
            header = dcmread(file, stop_before_pixels=True, specific_tags=[*_TAGS])
            is_encapsulated = file.read(len(_PIXEL_DATA)) == _PIXEL_DATA
            start = file.tell()
            is_too_large = file.seek(0, io.SEEK_END) > MAX_BYTES
    except (*DAMAGE, OSError) as error:
        raise UnreadableCine(f"{path.name} cannot be read ({type(error).__name__})") from error
    if is_too_large or not is_encapsulated:
        raise UnreadableCine(f"{path.name} is no picture of ours")
    return header, start

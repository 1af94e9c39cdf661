"""DICOM loops of known pixels, written the way carts write them, and some the way no cart should.

Legend: T frames, H, W pixels, C = 3 RGB.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import gdcm
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from model.clip.source import Frames, LoopHeader

US_MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.3.1"


def picture(num_frames: int = 10, rows: int = 96, columns: int = 128) -> Frames:
    """Return a smooth coloured loop; every frame has other values in every pixel."""
    y, x = np.mgrid[0:rows, 0:columns]
    frames = [
        np.stack([40 + 15 * t + 0 * x, 60 + x * 100 / columns, 200 - y * 120 / rows], axis=-1)
        for t in range(num_frames)
    ]
    return np.stack(frames).astype(np.uint8)


def grey_picture(num_frames: int = 10, rows: int = 96, columns: int = 128) -> Frames:
    """Return a smooth grey loop of one sample a pixel (T, H, W); every frame has other values."""
    y, x = np.mgrid[0:rows, 0:columns]
    return np.stack([10 * t + x * 100 / columns + y * 40 / rows for t in range(num_frames)]).astype(np.uint8)


def header(num_frames: int, rows: int, columns: int, **changes: object) -> Dataset:
    """Return an ultrasound loop's data set without pixels; None in `changes` takes an element out."""
    dataset = Dataset()
    values: dict[str, object] = {
        "SOPClassUID": US_MULTI_FRAME,
        "SOPInstanceUID": "2.25.1",
        "Modality": "US",
        "NumberOfFrames": num_frames,
        "FrameTime": 33.3,
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
    }
    merged = values | changes
    if "BitsStored" in changes and "HighBit" not in changes:
        merged["HighBit"] = int(str(changes["BitsStored"])) - 1
    for keyword, value in merged.items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


PLAIN = LoopHeader(
    sop_class_uid=US_MULTI_FRAME,
    sop_instance_uid="2.25.1",
    transfer_syntax_uid="1.2.840.10008.1.2.4.50",
    modality="US",
    rows=480,
    columns=640,
    num_frames=40,
    samples_per_pixel=3,
    photometric="YBR_FULL_422",
    bits_allocated=8,
    frame_time_ms=33.3,
    heart_rate=None,
    modes=0,
    is_colour_flagged=False,
    regions=(),
    view_code=None,
    series_number=1,
    instance_number=1,
)
"""The header of a cine loop that nothing speaks against."""


def write(path: Path, dataset: Dataset, pixel_data: bytes | None, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write the data set with these bytes as its Pixel Data."""
    if pixel_data is not None:
        dataset.PixelData = pixel_data + b"\0" * (len(pixel_data) % 2)
        dataset["PixelData"].VR = "OB" if dataset.BitsAllocated <= 8 and syntax != ImplicitVRLittleEndian else "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", "1.2.3")
    dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    dataset.save_as(
        path,
        enforce_file_format=True,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
    )
    return path


def write_native(
    path: Path, samples: NDArray[np.generic], syntax: str = ExplicitVRLittleEndian, **changes: object
) -> Path:
    """Write uncompressed samples (T, H, W[, C]) as they lie in memory."""
    if samples.ndim == 3:
        changes = {
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "PlanarConfiguration": None,
        } | changes
    depth = samples.dtype.itemsize * 8
    changes = {"BitsAllocated": depth, "BitsStored": depth} | changes
    if syntax == ExplicitVRBigEndian and depth > 8:
        samples = samples.byteswap()
    return write(path, header(*samples.shape[:3], **changes), samples.tobytes(), syntax)


def write_encapsulated(
    path: Path,
    frames: Sequence[bytes],
    shape: tuple[int, int, int],
    syntax: str,
    *,
    has_offsets: bool = True,
    num_fragments: int = 1,
    **changes: object,
) -> Path:
    """Write compressed frames of (T, H, W)."""
    pixel_data = encapsulate(list(frames), fragments_per_frame=num_fragments, has_bot=has_offsets)
    return write(path, header(*shape, **changes), pixel_data, syntax)


def jpeg(frame: Frames, **options: object) -> bytes:
    """Return one frame as JPEG baseline (YCbCr for colour), almost without loss."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", **({"quality": 98, "subsampling": "4:2:2"} | options))
    return buffer.getvalue()


def to_ybr(frames_THWC: Frames) -> Frames:
    """Return full-range YCbCr by the equations of PS3.3 C.7.6.3.1.2."""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    ybr = frames_THWC.astype(np.float64) @ matrix.T + np.array([0.0, 128.0, 128.0])
    return np.asarray(np.clip(np.rint(ybr), 0, 255), dtype=np.uint8)


def by_gdcm(source: Path, target: Path, syntax: str) -> Path:
    """Compress a file with gdcm."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return target

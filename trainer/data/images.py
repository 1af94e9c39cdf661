"""Grey images of medical formats: NIfTI, and MetaImage headers with raw bytes beside them.

Legend: T frames, H, W pixels.
"""

import gzip
import math
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from model.errors import UnreadableLoop

_BYTES = "MET_UCHAR"


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """A picture or a sequence with the size of its pixels."""

    frames_THW: NDArray[np.uint8]
    row_mm: float
    """Height of a pixel."""
    column_mm: float
    """Width of a pixel."""


def read_images(path: Path) -> Images:
    """Return the images of a .nii, .nii.gz or .mhd file.

    Raises:
        UnreadableLoop: it is damaged, or of a form that nothing here reads.
    """
    if not path.is_file():
        raise UnreadableLoop(f"{path.name} is missing")
    return _read_metaimage(path) if path.suffix == ".mhd" else _read_nifti(path)


def _read_nifti(path: Path) -> Images:
    try:
        image = nib.Nifti1Image.from_filename(path)
        steps = image.header.get_zooms()  # type: ignore[no-untyped-call]  # nibabel has types in part
        values = np.asarray(image.dataobj)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, gzip.BadGzipFile) as error:
        raise UnreadableLoop(f"{path.name} is no NIfTI image") from error
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise UnreadableLoop(f"{path.name} has the shape {values.shape}, not columns x rows (x frames)")
    frames = values.T if values.ndim == 3 else values.T[None]  # the first axis of NIfTI is the column
    return _checked(path, frames, row_mm=float(steps[1]), column_mm=float(steps[0]))


def _read_metaimage(path: Path) -> Images:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        header = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
        sizes = [int(word) for word in header["DimSize"].split()]
        steps = [float(word) for word in header["ElementSpacing"].split()]
        kind, data = header["ElementType"], header["ElementDataFile"]
    except (OSError, UnicodeDecodeError, ValueError, KeyError) as error:
        raise UnreadableLoop(f"{path.name} is no MetaImage header ({error})") from error
    if kind != _BYTES or header.get("CompressedData", "False").lower() == "true":
        raise UnreadableLoop(f"{path.name} holds {kind}, perhaps compressed: only plain {_BYTES} is read")
    if len(sizes) not in (2, 3) or len(steps) < 2 or min(sizes) < 1 or Path(data).name != data:
        raise UnreadableLoop(f"{path.name} names no image of columns x rows (x frames)")
    try:
        content = np.fromfile(path.with_name(data), dtype=np.uint8)
    except OSError as error:
        raise UnreadableLoop(f"{data} cannot be read") from error
    if content.size != math.prod(sizes):
        raise UnreadableLoop(f"{data} holds {content.size} bytes, not {math.prod(sizes)}")
    frames = content.reshape(sizes[::-1]) if len(sizes) == 3 else content.reshape(1, sizes[1], sizes[0])
    return _checked(path, frames, row_mm=steps[1], column_mm=steps[0])


def _checked(path: Path, frames: NDArray[np.generic], *, row_mm: float, column_mm: float) -> Images:
    if frames.dtype != np.uint8:
        values = np.rint(np.asarray(frames, dtype=np.float64))
        if values.min() < 0 or values.max() > 255:
            raise UnreadableLoop(f"{path.name} holds values beyond 0 to 255")
        frames = values.astype(np.uint8)
    if not (row_mm > 0 and column_mm > 0):
        raise UnreadableLoop(f"{path.name} says pixels of {column_mm} x {row_mm} mm")
    return Images(frames_THW=np.ascontiguousarray(frames, dtype=np.uint8), row_mm=row_mm, column_mm=column_mm)

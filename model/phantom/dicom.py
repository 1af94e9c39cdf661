"""A phantom's picture as DICOM: pixels in JPEG, times, and where on the screen it is and how large; no identity.

Legend: T frames, H, W pixels, C = 3 RGB.
"""

import numpy as np
import simplejpeg
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UltrasoundImageStorage, UltrasoundMultiFrameImageStorage

from model.phantom.scan import Frames
from model.phantom.screen import Screen

QUALITY = 90
"""Of the JPEG."""


def picture(frames_THWC: Frames, screen: Screen, *, frame_time_ms: float, heart_rate: float) -> Dataset:
    """Return a B-mode loop, with a colour region over it if the screen has colour, or a still of one frame.

    Args:
        frames_THWC: RGB.
        screen: how the scanner drew.
        frame_time_ms: between two frames.
        heart_rate: beats a minute.
    """
    num_frames = len(frames_THWC)
    instance = Dataset()
    instance.SOPClassUID = UltrasoundImageStorage if num_frames == 1 else UltrasoundMultiFrameImageStorage
    if num_frames > 1:
        instance.NumberOfFrames = num_frames
        instance.FrameTime = f"{frame_time_ms:.3f}"
        instance.FrameIncrementPointer = 0x00181063
        instance.HeartRate = round(heart_rate)
    instance.SequenceOfUltrasoundRegions = Sequence([region(screen, spatial_format=1, data_type=1)])
    if screen.has_colour:
        instance.SequenceOfUltrasoundRegions.append(region(screen, spatial_format=1, data_type=2))
    compress(instance, frames_THWC)
    return instance


def region(screen: Screen, *, spatial_format: int, data_type: int) -> Dataset:
    """Return where the picture is and how large its pixels are (PS3.3 C.8.5.5)."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = spatial_format, data_type, 2
    item.RegionLocationMinX0, item.RegionLocationMinY0 = 0, 0
    item.RegionLocationMaxX1 = screen.columns - 1
    item.RegionLocationMaxY1 = round(screen.bottom_row * screen.rows) - 1
    item.ReferencePixelX0 = round(screen.apex_column * screen.columns)
    item.ReferencePixelY0 = round(screen.apex_row * screen.rows)
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3  # cm
    item.PhysicalDeltaX, item.PhysicalDeltaY = screen.column_mm / 10.0, screen.row_mm / 10.0
    return item


def compress(instance: Dataset, frames_THWC: Frames) -> None:
    """Give an instance these frames as JPEG baseline."""
    _, instance.Rows, instance.Columns, _ = frames_THWC.shape
    instance.SamplesPerPixel = 3
    instance.PhotometricInterpretation = "YBR_FULL_422"
    instance.PlanarConfiguration = 0
    instance.BitsAllocated = instance.BitsStored = 8
    instance.HighBit, instance.PixelRepresentation = 7, 0
    instance.UltrasoundColorDataPresent = 1  # as real carts say of every loop that is stored in colour
    instance.LossyImageCompression = "01"
    instance.PixelData = encapsulate(
        [
            simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=QUALITY, colorsubsampling="422")
            for frame in frames_THWC
        ]
    )
    instance["PixelData"].VR = "OB"
    instance["PixelData"].is_undefined_length = True  # PS3.5 A.4: encapsulated

"""The preview of a loop: small, grey, cut out to the sector, for the page of the node.

It is made of the frames that the networks look at, while they are in memory: nothing is decoded for it. What a cart
wrote beside the sector, the patient's name first of all, is not in it; a loop that nothing is cut out of has none.

Legend: N frames, H, W pixels of the loop, h, w pixels of the preview, C = 3 RGB.
"""

import numpy as np
import simplejpeg
import structlog
from PIL import Image

from dicom_node.cine_file import preview_file
from dicom_node.errors import StoreError
from dicom_node.report.pictures import Cine
from dicom_node.store import InstanceStore
from model.clip.loop import Seen
from worker.findings import seen_part

MAX_FRAMES = 48
MAX_SIDE = 384
"""Rows or columns."""
MAX_BYTES = 500_000
"""Of all frames; of a preview with more every second frame is left out, until it has not."""

_QUALITY = 75

log = structlog.get_logger(__name__)


def keep_preview(store: InstanceStore, instance_path: str, seen: Seen) -> None:
    """Keep the preview of a loop beside the files of its study; one that cannot be had is not missed."""
    try:
        cine = preview(seen)
        if cine is not None:
            store.keep_preview(instance_path, preview_file(cine))
    except (ArithmeticError, MemoryError, OSError, RuntimeError, StoreError, ValueError) as error:
        log.warning("preview_not_kept", path=instance_path, reason=str(error) or type(error).__name__)


def preview(seen: Seen) -> Cine | None:
    """Return the preview; None: of this loop it would show what lies beside the sector."""
    sector = seen.sector
    if sector is None:
        return None
    left, top, right, bottom = seen_part(sector, *seen.frames_NHWC.shape[1:3])
    times = max(-(-max(right - left, bottom - top) // MAX_SIDE), 1)
    inside_HW = np.where(sector.mask_HW[top:bottom, left:right], np.uint8(255), np.uint8(0))
    mask_hw = np.asarray(Image.fromarray(inside_HW).reduce(times)) == 255  # wholly inside: nothing shines through
    shown = range(0, len(seen.indices), -(-len(seen.indices) // MAX_FRAMES))
    frames = []
    for number in shown:
        green_HW = np.ascontiguousarray(seen.frames_NHWC[number, top:bottom, left:right, 1])
        small_hw = np.asarray(Image.fromarray(green_HW).reduce(times)) * mask_hw
        frames.append(simplejpeg.encode_jpeg(small_hw[..., None], quality=_QUALITY, colorspace="GRAY", fastdct=True))
    while sum(map(len, frames)) > MAX_BYTES and len(frames) > 1:
        frames, shown = frames[::2], shown[::2]
    between = seen.header.frame_time_ms
    span = seen.indices[shown[-1]] - seen.indices[0]
    return Cine(
        frames=tuple(frames),
        rows=mask_hw.shape[0],
        columns=mask_hw.shape[1],
        frame_time_ms=None if between is None else between * span / max(len(frames) - 1, 1) or between,
        source_frames=tuple(seen.indices[number] + 1 for number in shown),
    )

"""From decoded frames to the tensor that a network sees.

Legend: T clip frames, H, W pixels of the loop, S side of the clip, C = 3 RGB.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from model.clip.find_sector import find_sector
from model.clip.scale import Scale, picture_region, scale_of
from model.clip.sector import BOX_ASPECT, Sector
from model.clip.select import Reason
from model.clip.source import MAX_PIXELS, Frames, LoopHeader, Region
from model.clip.spec import ClipSpec
from model.errors import NotALoop

SHOWN_MM = (40.0, 350.0)
"""What a picture of a heart shows from the probe down, by the header: beyond this the header is wrong."""

OF_REGION = (0.6, 1.15)
"""Height of a sector over that of the region that the header's scale is said of: beyond this somebody has scaled the
image without a word in the header."""

MAX_BOX = 4 * MAX_PIXELS
"""Pixels of a box of fixed depth."""


def make_clip(frames_THWC: Frames, spec: ClipSpec, scale: Scale | None = None) -> Tensor:
    """Return the clip of the sampled frames of a loop.

    Args:
        frames_THWC: RGB as decoded, 0..255, `spec.num_frames` of them.
        spec: the recipe that the network was trained with.
        scale: of the screen; None: unknown.

    Returns:
        float32 (3, T, S, S), normalised.

    Raises:
        NotALoop: as `locate`.
    """
    assert frames_THWC.shape[0] == spec.num_frames, "the frames are not those of the recipe"
    return pixels_of(frames_THWC, locate(frames_THWC, spec, scale), spec).transpose(0, 1)


def make_still(frame_HWC: Frames, spec: ClipSpec, sector: Sector | None) -> Tensor:
    """Return one frame by the same recipe: float32 (3, S, S).

    Args:
        frame_HWC: RGB as decoded.
        spec: the recipe.
        sector: what `locate` found in the frame's loop.
    """
    return pixels_of(frame_HWC[None], sector, spec)[0]


def locate(frames_THWC: Frames, spec: ClipSpec, scale: Scale | None, region: Region | None = None) -> Sector | None:
    """Return the sector that the recipe cuts out; None: it keeps the whole screen.

    Args:
        frames_THWC: all sampled frames of a loop, for the sector is found by what moves.
        spec: the recipe.
        scale: of the screen, for a recipe that fixes the depth; None: unknown.
        region: where the header says that the picture is, as `picture_region` gives it.

    Raises:
        NotALoop: the recipe cuts the sector out, and none is found; or it fixes the depth, and the scale is unknown or
            cannot be that of a heart.
    """
    if spec.crop == "none":
        return None
    sector = find_sector(frames_THWC, region)
    if sector is None:
        raise NotALoop(Reason.NO_SECTOR)
    if spec.depth_mm is None:
        return sector
    if scale is None:
        raise NotALoop(Reason.NO_SCALE)
    shown_mm = sector.extent[2] * scale.row_mm
    if not SHOWN_MM[0] <= shown_mm <= SHOWN_MM[1]:
        raise NotALoop(Reason.NO_SCALE, f"by the header the picture is {shown_mm:.0f} mm deep")
    if scale.region_rows is not None:
        share = sector.extent[2] / scale.region_rows
        if not OF_REGION[0] <= share <= OF_REGION[1]:
            raise NotALoop(Reason.NO_SCALE, f"the picture is {share:.1f} times as high as the region that has it")
    rows, columns = round(spec.depth_mm / scale.row_mm), round(spec.depth_mm * BOX_ASPECT / scale.column_mm)
    if rows * columns > MAX_BOX:
        raise NotALoop(Reason.NO_SCALE, f"{spec.depth_mm:.0f} mm would be {rows} x {columns} pixels")
    return replace(sector, box_shape=(rows, columns))


def locate_by_header(frames_THWC: Frames, spec: ClipSpec, header: LoopHeader) -> Sector | None:
    """Return what `locate` finds with all that the header of the loop says of its screen.

    Raises:
        NotALoop: as `locate`.
    """
    return locate(frames_THWC, spec, scale_of(header), picture_region(header))


def cut_out(frames_THWC: Frames, sector: Sector | None) -> Frames:
    """Return what is kept of the screen: the box of the sector, or all of it."""
    return frames_THWC if sector is None else sector.cut_out(frames_THWC)


def pixels_of(frames_THWC: Frames, sector: Sector | None, spec: ClipSpec) -> Tensor:
    """Return the frames as the network sees them: float32 (T, 3, S, S).

    Frame by frame: a box may be larger than the screen, and one of them is enough in memory.
    """
    small = [resize(cut_out(frame_HWC[None], sector), spec) for frame_HWC in frames_THWC]
    return normalise(torch.cat(small), spec)


def resize(frames_THWC: Frames, spec: ClipSpec) -> Tensor:
    """Return the frames in the clip's size: uint8 (T, 3, S, S).

    Bilinear with antialias on uint8; squashed: the paper's torchvision v2.Resize, bit for bit.
    """
    top, left, rows, columns = placement(frames_THWC.shape[1], frames_THWC.shape[2], spec)
    # Colours stay behind one another, as decoded: torch resizes them so in a fifth of the time, to the same bits.
    frames_TCHW = torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)
    resized: Tensor = functional.resize(
        frames_TCHW, [rows, columns], interpolation=functional.InterpolationMode.BILINEAR, antialias=True
    )
    if (rows, columns) == (spec.size, spec.size):
        return resized.contiguous()
    fitted = resized.new_zeros((len(resized), 3, spec.size, spec.size))
    fitted[..., top : top + rows, left : left + columns] = resized
    return fitted


def placement(rows: int, columns: int, spec: ClipSpec) -> tuple[int, int, int, int]:
    """Return first row, first column, rows and columns that a picture of this size takes in the clip."""
    if spec.resize == "squash":
        return 0, 0, spec.size, spec.size
    # A box of fixed depth has its shape in millimetres, whatever that of a pixel.
    aspect = columns / rows if spec.depth_mm is None else BOX_ASPECT
    longer = spec.size
    shorter = max(1, round(longer / max(aspect, 1.0 / aspect)))
    high, wide = (shorter, longer) if aspect > 1.0 else (longer, shorter)
    return (longer - high) // 2, (longer - wide) // 2, high, wide


def normalise(pixels_CSS: Tensor, spec: ClipSpec) -> Tensor:
    """Return resized uint8 pixels (..., 3, S, S) as the float32 that the network sees, on their device."""
    mean = torch.tensor(spec.mean, device=pixels_CSS.device).view(3, 1, 1)
    std = torch.tensor(spec.std, device=pixels_CSS.device).view(3, 1, 1)
    return (pixels_CSS.float() / 255.0 - mean) / std

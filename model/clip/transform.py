"""From decoded frames to the tensor that a network sees.

Legend: T clip frames, H, W pixels of the loop, S side of the clip, C = 3 RGB.
"""

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from model.clip.find_sector import find_sector
from model.clip.sector import Sector
from model.clip.select import Reason
from model.clip.source import Frames
from model.clip.spec import ClipSpec
from model.errors import NotALoop


def make_clip(frames_THWC: Frames, spec: ClipSpec) -> Tensor:
    """Return the clip of the sampled frames.

    Args:
        frames_THWC: RGB as decoded, 0..255, `spec.num_frames` of them.
        spec: the recipe that the network was trained with.

    Returns:
        float32 (3, T, S, S), normalised.

    Raises:
        NotALoop: the recipe cuts the sector out, and none is found.
    """
    assert frames_THWC.shape[0] == spec.num_frames, "the frames are not those of the recipe"
    return pixels_of(crop(frames_THWC, spec), spec).transpose(0, 1)


def make_still(frame_HWC: Frames, spec: ClipSpec, sector: Sector | None) -> Tensor:
    """Return one frame by the same recipe: float32 (3, S, S).

    Args:
        frame_HWC: RGB as decoded.
        spec: the recipe.
        sector: what `locate` found in the frame's loop.
    """
    return pixels_of(cut_out(frame_HWC[None], sector), spec)[0]


def crop(frames_THWC: Frames, spec: ClipSpec) -> Frames:
    """Return what the recipe keeps of the screen in the sampled frames of a loop.

    Raises:
        NotALoop: as `locate`.
    """
    return cut_out(frames_THWC, locate(frames_THWC, spec))


def locate(frames_THWC: Frames, spec: ClipSpec) -> Sector | None:
    """Return the sector that the recipe cuts out; None: it keeps the whole screen.

    Args:
        frames_THWC: all sampled frames of a loop, for the sector is found by what moves.
        spec: the recipe.

    Raises:
        NotALoop: the recipe cuts the sector out, and none is found.
    """
    if spec.crop == "none":
        return None
    sector = find_sector(frames_THWC)
    if sector is None:
        raise NotALoop(Reason.NO_SECTOR)
    return sector


def cut_out(frames_THWC: Frames, sector: Sector | None) -> Frames:
    """Return what is kept of the screen: the box of the sector, or all of it."""
    return frames_THWC if sector is None else sector.cut_out(frames_THWC)


def pixels_of(kept_THWC: Frames, spec: ClipSpec) -> Tensor:
    """Return what was kept of the frames as the network sees it: float32 (T, 3, S, S)."""
    return normalise(resize(kept_THWC, spec), spec)


def resize(frames_THWC: Frames, spec: ClipSpec) -> Tensor:
    """Return the frames in the clip's size: uint8 (T, 3, S, S).

    Bilinear with antialias on uint8, the aspect ratio given up: the paper's torchvision v2.Resize, bit for bit.
    """
    frames_TCHW = torch.from_numpy(frames_THWC).permute(0, 3, 1, 2).contiguous()
    size = [spec.size, spec.size]
    resized: Tensor = functional.resize(
        frames_TCHW, size, interpolation=functional.InterpolationMode.BILINEAR, antialias=True
    )
    return resized


def normalise(pixels_CSS: Tensor, spec: ClipSpec) -> Tensor:
    """Return resized uint8 pixels (..., 3, S, S) as the float32 that the network sees, on their device."""
    mean = torch.tensor(spec.mean, device=pixels_CSS.device).view(3, 1, 1)
    std = torch.tensor(spec.std, device=pixels_CSS.device).view(3, 1, 1)
    return (pixels_CSS.float() / 255.0 - mean) / std

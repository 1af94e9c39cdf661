"""Small changes to a clip that change no truth: turned, moved, brighter or darker, as another hand would have held it.

Legend: T frames, C = 3 RGB, S side of a clip.
"""

import math

import torch
from numpy.random import Generator
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from model.bundle import Closed


class JitterConfig(Closed):
    """How far clips are changed in training, evenly to each side; all zero: not at all, as the paper does.

    Sizes are kept: they carry the volumes.
    """

    degrees: float = Field(default=0.0, ge=0, lt=90)
    """Turned around the middle."""
    shift: float = Field(default=0.0, ge=0, lt=0.5)
    """Moved along each side, of its length."""
    gain: float = Field(default=0.0, ge=0, lt=1)
    """Added to what is not black, of the range of brightness."""


def jitter(pixels_TCSS: Tensor, config: JitterConfig, rng: Generator) -> Tensor:
    """Return the clip changed, every frame alike: uint8 in, uint8 out; black comes in from the sides."""
    degrees, right, down, gain = (float(number) for number in rng.uniform(-1.0, 1.0, size=4))
    num_frames, channels, side, _ = pixels_TCSS.shape
    pixels_NSS = pixels_TCSS.reshape(1, num_frames * channels, side, side).float()
    if config.degrees or config.shift:
        angle = math.radians(config.degrees) * degrees
        cos, sin = math.cos(angle), math.sin(angle)
        # Coordinates run from -1 to 1: a side is 2 long.
        turn = torch.tensor([[[cos, -sin, 2 * config.shift * right], [sin, cos, 2 * config.shift * down]]])
        grid = functional.affine_grid(turn, [1, 1, side, side], align_corners=False)
        pixels_NSS = functional.grid_sample(pixels_NSS, grid, align_corners=False)
    if config.gain:
        is_lit = pixels_NSS >= 1.0
        pixels_NSS = pixels_NSS + is_lit * (255.0 * config.gain * gain)
    return pixels_NSS.clamp_(0.0, 255.0).round_().to(torch.uint8).reshape(pixels_TCSS.shape)

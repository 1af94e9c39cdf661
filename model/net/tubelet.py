"""From a clip to tokens: tubelet embedding and the position codes.

Legend: B clips, C = 3 RGB, T frames, H, W pixels, L tokens (t, h, w order), V visible tokens, D width.
Sources: VideoMAE (NeurIPS 2022) section 3; Echo-Vision-FM, Nat Commun 2025, section 4.2.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class TubeletEmbed(nn.Conv3d):
    """Cut a clip into tubelets and project each to a token: a 3-D convolution whose stride is its kernel.

    Its parameters are named as the canonical checkpoints name them: patch_embed.weight, patch_embed.bias.
    """

    def __init__(self, dim: int, *, tubelet: int, patch: int) -> None:
        """Make the projection of tubelets of `tubelet` x `patch` x `patch` RGB pixels to `dim` numbers."""
        size = (tubelet, patch, patch)
        super().__init__(3, dim, kernel_size=size, stride=size)

    def forward(self, clip_BCTHW: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Return tokens (B, L, D), flattened in the order t, h, w; with a mask those that are not hidden, (B, V, D)."""
        if mask_BL is None:
            return super().forward(clip_BCTHW).flatten(2).transpose(1, 2)
        # Of a clip of the pre-training a convolution would project 85 % for nothing.
        batch, channels, frames, rows, columns = clip_BCTHW.shape
        tubelet, patch, _ = self.kernel_size
        shape = (frames // tubelet, tubelet, rows // patch, patch, columns // patch, patch)
        cubes = clip_BCTHW.view(batch, channels, *shape).permute(0, 2, 4, 6, 1, 3, 5, 7)
        seen = cubes[~mask_BL.view(cubes.shape[:4])].flatten(1)
        return functional.linear(seen, self.weight.flatten(1), self.bias).view(batch, -1, self.out_channels)


def sincos_table(length: int, dim: int) -> Tensor:
    """Return the fixed codes of the positions 0..length-1: float32 (length, dim), even columns sine, odd cosine.

    Flat, one-dimensional over the token index: angle(p, i) = p / 10000^(2 floor(i/2) / dim).
    """
    return sincos(torch.arange(length, dtype=torch.float64), dim).float()


def sincos(positions: Tensor, dim: int) -> Tensor:
    """Return the code of each position, in float64: shape (*positions.shape, dim)."""
    column = torch.arange(dim, dtype=torch.float64, device=positions.device)
    angle = positions.double().unsqueeze(-1) / 10000.0 ** (2.0 * torch.floor(column / 2.0) / dim)
    return torch.where(column % 2 == 0, torch.sin(angle), torch.cos(angle))


def sincos_3d(grid: tuple[int, int, int], dim: int) -> Tensor:
    """Return the code of each cell of a (t, h, w) grid: float32 (t, h, w, dim).

    A third of the width an axis, each a 1-D code of its own frequencies f_k = 10000^(-2k/n); cut to `dim`.
    """
    width = 2 * math.ceil(dim / 6)
    width += width % 2
    frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    axes = []
    for axis, length in enumerate(grid):
        angle = torch.arange(length, dtype=torch.float64).unsqueeze(-1) * frequency
        code = torch.stack((torch.sin(angle), torch.cos(angle)), dim=-1).flatten(-2)
        shape = [1, 1, 1, width]
        shape[axis] = length
        axes.append(code.view(shape).expand(*grid, width))
    return torch.cat(axes, dim=-1)[..., :dim].float()

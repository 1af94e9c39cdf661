"""Masked auto-encoding: the encoder sees the visible tubelets, a small decoder rebuilds the hidden ones.

Legend: B clips, C = 3 RGB, T frames, H, W pixels, L tokens (t, h, w order), V visible and M masked tokens, D widths,
P = tubelet x patch x patch x 3 pixels of a cube, in the order frame, row, column, channel.
Sources: VideoMAE (NeurIPS 2022) section 3; Echo-Vision-FM, Nat Commun 2025, sections 3.1 and 4.2.
"""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from model.net.echo_vision import NetConfig, make_encoder
from model.net.encoder import initialise, make_blocks
from model.net.tubelet import sincos_table


class DecoderConfig(BaseModel):
    """The decoder of the pre-training; it is thrown away afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dim: int = Field(default=384, ge=1)
    """Width."""
    depth: int = Field(default=4, ge=1)
    """Blocks."""
    heads: int = Field(default=6, ge=1)
    """Attention heads of a block."""
    mlp_dim: int = Field(default=1536, ge=1)
    """Hidden width of a block's MLP."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Of the LayerNorm behind the blocks, which have the encoder's: 1e-5 at Hugging Face, 1e-6 officially."""


class Decoder(nn.Module):
    """Blocks over all tokens, then the pixels of the hidden ones."""

    def __init__(self, config: DecoderConfig, *, eps: float, outputs: int) -> None:
        """Make the decoder with random weights."""
        super().__init__()
        self.blocks = make_blocks(config.dim, config.depth, config.heads, config.mlp_dim, eps)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.head = nn.Linear(config.dim, outputs)
        self.apply(initialise)

    def forward(self, tokens_BLD: Tensor, num_masked: int) -> Tensor:
        """Return the pixels of the last `num_masked` tokens, (B, M, P)."""
        for block in self.blocks:
            tokens_BLD = block(tokens_BLD)
        pixels_BMP: Tensor = self.head(self.norm(tokens_BLD[:, -num_masked:]))
        return pixels_BMP


class MaskedAutoencoder(nn.Module):
    """The whole pre-training network; its names are those of the canonical checkpoints."""

    positions: Tensor

    def __init__(self, net: NetConfig, decoder: DecoderConfig, *, drop_path: float = 0.0) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.net = net
        self.encoder = make_encoder(net, drop_path=drop_path)
        self.encoder_to_decoder = nn.Linear(net.dim, decoder.dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.dim))
        self.decoder = Decoder(decoder, eps=net.eps, outputs=net.tubelet * net.patch * net.patch * 3)
        length = self.encoder.positions.shape[0]
        self.register_buffer("positions", sincos_table(length, decoder.dim), persistent=False)
        initialise(self.encoder_to_decoder)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, clip_BCTHW: Tensor, mask_BL: Tensor) -> Tensor:
        """Return what the network thinks stands in the hidden cubes, (B, M, P), in the order of the tokens.

        Args:
            clip_BCTHW: normalised as the recipe says.
            mask_BL: True where a token is hidden, the same count in each row.
        """
        seen_BVD = self.encoder_to_decoder(self.encoder(clip_BCTHW, mask_BL))
        batch, num_visible, dim = seen_BVD.shape
        places_BLD = self.positions.to(seen_BVD.dtype).expand(batch, -1, -1)
        seen_BVD = seen_BVD + places_BLD[~mask_BL].view(batch, num_visible, dim)
        # Visible tokens first, hidden ones behind, as VideoMAE does: the decoder never puts them back in order.
        hidden_BMD = self.mask_token.to(seen_BVD.dtype) + places_BLD[mask_BL].view(batch, -1, dim)
        pixels_BMP: Tensor = self.decoder(torch.cat((seen_BVD, hidden_BMD), dim=1), hidden_BMD.shape[1])
        return pixels_BMP


def cubes(clip_BCTHW: Tensor, net: NetConfig) -> Tensor:
    """Return the pixels of every cube, (B, L, P)."""
    t, h, w = net.grid
    batch, channels = clip_BCTHW.shape[:2]
    cut = clip_BCTHW.reshape(batch, channels, t, net.tubelet, h, net.patch, w, net.patch)
    return cut.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(batch, t * h * w, -1)


def uncut(cubes_BLP: Tensor, net: NetConfig) -> Tensor:
    """Return the clip (B, C, T, H, W) that `cubes` cut."""
    t, h, w = net.grid
    batch = cubes_BLP.shape[0]
    cut = cubes_BLP.reshape(batch, t, h, w, net.tubelet, net.patch, net.patch, 3)
    return cut.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(batch, 3, net.frames, net.size, net.size)


def standardise(cubes_BLP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each cube's pixels with mean 0 and deviation 1 in each channel, with the mean and deviation (B, L, 1, 3).

    The deviation is unbiased, and 1e-6 is added to it: a constant cube becomes 0.
    """
    pixels = cubes_BLP.view(*cubes_BLP.shape[:-1], -1, 3)
    mean = pixels.mean(dim=-2, keepdim=True)
    std = pixels.var(dim=-2, unbiased=True, keepdim=True).sqrt()
    return ((pixels - mean) / (std + 1e-6)).flatten(-2), mean, std


def reconstruction_loss(
    pixels_BMP: Tensor,
    clip_BCTHW: Tensor,
    mask_BL: Tensor,
    net: NetConfig,
    *,
    is_standardised: bool = True,
    min_cube_std: float = 0.0,
) -> Tensor:
    """Return the mean squared error over the hidden cubes, a scalar in float32.

    Args:
        pixels_BMP: what the network thinks.
        clip_BCTHW: the clip with values from 0 to 1, not normalised.
        mask_BL: as the network was given it.
        net: the architecture.
        is_standardised: the target of each cube has mean 0 and deviation 1 in each channel (VideoMAE's norm_pix_loss).
        min_cube_std: hidden cubes whose pixels deviate less do not count: outside the sector compression noise would be
            blown up to the size of anatomy. 0: every cube counts, as in the paper.
    """
    batch = clip_BCTHW.shape[0]
    hidden_BMP = cubes(clip_BCTHW.float(), net)[mask_BL].view(batch, -1, pixels_BMP.shape[-1])
    target_BMP = standardise(hidden_BMP)[0] if is_standardised else hidden_BMP
    error_BM = (pixels_BMP.float() - target_BMP).square().mean(dim=-1)
    if min_cube_std == 0.0:
        return error_BM.mean()
    counts_BM = (hidden_BMP.std(dim=-1) >= min_cube_std).float()
    return (error_BM * counts_BM).sum() / counts_BM.sum().clamp(min=1.0)

"""The VideoMAE encoder: a vision transformer with joint space-time attention over tubelet tokens.

Legend: B clips, C = 3 RGB, T frames, H, W pixels, L tokens (t, h, w order), V visible tokens, D width.
Block names equal the official VideoMAE checkpoints' (timm's EvaBlock), so that weights come in key for key.
"""

from functools import partial

import torch
from timm.models.eva import EvaBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.net.head_by_head import attend_head_by_head
from model.net.tubelet import TubeletEmbed, sincos_table


class Encoder(nn.Module):
    """Tokens of a clip; with a mask, of its visible tubelets only."""

    positions: Tensor

    def __init__(
        self,
        *,
        frames: int,
        size: int,
        tubelet: int,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        eps: float,
        final_norm: bool,
        drop_path: float = 0.0,
    ) -> None:
        """Make the encoder with random weights.

        Args:
            frames, size: of the clip, in frames and pixels.
            tubelet, patch: of a token, in frames and pixels.
            dim, depth, heads, mlp_dim: of the transformer.
            eps: of every LayerNorm (1e-12 in the Hugging Face family, 1e-6 in the official one).
            final_norm: whether a LayerNorm ends the encoder (official pre-training: yes; Echo-Vision-FM's: no).
            drop_path: share of samples that skip the last block in training; it rises from 0 at the first.
        """
        super().__init__()
        self.is_checkpointed = False
        """Training keeps only the blocks' inputs and computes them again for the gradient: less memory, more time."""
        self.grid = (frames // tubelet, size // patch, size // patch)
        length = self.grid[0] * self.grid[1] * self.grid[2]
        self.patch_embed = TubeletEmbed(dim, tubelet=tubelet, patch=patch)
        # Fixed, so in no checkpoint.
        self.register_buffer("positions", sincos_table(length, dim), persistent=False)
        self.blocks = make_blocks(dim, depth, heads, mlp_dim, eps, drop_path=drop_path)
        self.norm = nn.LayerNorm(dim, eps=eps) if final_norm else nn.Identity()
        self.apply(initialise)

    def forward(self, clip_BCTHW: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Return the tokens of a clip.

        Args:
            clip_BCTHW: normalised as the checkpoint's recipe says.
            mask_BL: True where a token is hidden, the same count in each row; None: nothing is hidden.

        Returns:
            (B, L, D), or (B, V, D) of the visible tokens in their order.
        """
        size = tuple(step * side for step, side in zip(self.grid, self.patch_embed.kernel_size, strict=True))
        assert clip_BCTHW.shape[2:] == size, "the clip does not have the encoder's size"
        if mask_BL is not None:
            _check_mask(mask_BL, (len(clip_BCTHW), len(self.positions)))
        tokens_BLD = self.patch_embed(clip_BCTHW, mask_BL)
        places_BLD = self.positions.to(tokens_BLD.dtype).expand(len(clip_BCTHW), -1, -1)
        tokens_BLD = tokens_BLD + (places_BLD if mask_BL is None else places_BLD[~mask_BL].view_as(tokens_BLD))
        for block in self.blocks:
            if self.is_checkpointed and self.training:
                tokens_BLD = checkpoint(block, tokens_BLD, use_reentrant=False)
            else:
                tokens_BLD = block(tokens_BLD)
        normed: Tensor = self.norm(tokens_BLD)
        return normed


def make_blocks(dim: int, depth: int, heads: int, mlp_dim: int, eps: float, *, drop_path: float = 0.0) -> nn.ModuleList:
    """Return VideoMAE's pre-norm blocks, with timm's random weights; drop path rises to `drop_path` at the last."""
    return nn.ModuleList(
        attend_head_by_head(
            EvaBlock(
                dim,
                heads,
                qkv_bias=True,
                qkv_fused=True,
                mlp_ratio=mlp_dim / dim,
                norm_layer=partial(nn.LayerNorm, eps=eps),
                drop_path=drop_path * number / max(depth - 1, 1),
            )
        )
        for number in range(depth)
    )


def _check_mask(mask_BL: Tensor, shape: tuple[int, int]) -> None:
    assert mask_BL.dtype == torch.bool, "a mask is one bool a token"
    assert mask_BL.shape == shape, "a mask is one bool a token"
    num_visible = (~mask_BL).sum(dim=1)
    # Else tokens of one clip would slip into the next one's row.
    assert bool((num_visible == num_visible[0]).all()), "each row of a mask hides the same count"


def initialise(module: nn.Module) -> None:
    """Start a layer: Xavier for matrices, zero biases, as VideoMAE starts."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

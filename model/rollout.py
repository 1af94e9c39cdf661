"""Attention rollout: which cells of a clip the encoder's answer drew on (Abnar and Zuidema, ACL 2020; paper 4.5).

Legend: B clips, C = 3 RGB, T frames, H, W pixels, L tokens in the order of the grid (t, h, w), N heads.
It is a picture of attention, not of causes: the pooling and the heads behind the encoder have no part in it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
from timm.models.eva import EvaBlock
from torch import Tensor, nn
from torch.nn import functional

from model.net.encoder import Encoder

HeadFusion = Literal["min", "mean", "max"]

DISCARD = 0.9
"""Share of each fused matrix, its smallest entries, that counts as no attention."""

ROW = 125
"""Token whose row is shown; the paper says "randomly select", its code takes this one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saliency:
    """What one token, or the mean of them, draws on, 0..1 each."""

    cells_thw: Tensor
    """float32, one number a token."""
    pixels_THW: Tensor
    """float32, each frame with the slice that it is in, bilinear."""


def saliency(
    encoder: Encoder,
    clip_CTHW: Tensor,
    *,
    row: int | None = ROW,
    head_fusion: HeadFusion = "min",
    layers: Sequence[int] | None = None,
) -> Saliency:
    """Return the rollout of a clip through an encoder in evaluation mode.

    Args:
        encoder: it is left as it was.
        clip_CTHW: as the recipe of the weights normalises it.
        row: token that is asked, smaller than L; None: the mean over all, in which no token's skip connection to
            itself outshines the rest.
        head_fusion: how the heads of a layer become one matrix.
        layers: blocks to follow, ascending; None: all.
    """
    num_frames, height, width = clip_CTHW.shape[1:]
    cells_thw = stretched(drawn(encoder, clip_CTHW, row=row, head_fusion=head_fusion, layers=layers))
    slices_tHW = functional.interpolate(cells_thw[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    tubelet = num_frames // encoder.grid[0]
    return Saliency(cells_thw=cells_thw, pixels_THW=slices_tHW.repeat_interleave(tubelet, dim=0))


@torch.inference_mode()
def drawn(
    encoder: Encoder,
    clip_CTHW: Tensor,
    *,
    row: int | None = ROW,
    head_fusion: HeadFusion = "min",
    layers: Sequence[int] | None = None,
) -> Tensor:
    """Return the share of each cell in what a token, or the mean of them, draws on: (t, h, w), one in all, on the CPU.

    Args and default of them: as `saliency`.
    """
    fused_LL = attentions(encoder, clip_CTHW, head_fusion)
    length = len(fused_LL[0])
    assert row is None or 0 <= row < length, f"the clip has {length} tokens"
    asked_1L = fused_LL[0].new_zeros((1, length))
    if row is None:
        asked_1L += 1.0 / length
    else:
        asked_1L[0, row] = 1.0
    return roll(fused_LL, asked_1L, layers)[0].view(encoder.grid).cpu()


def roll(fused_LL: Sequence[Tensor], asked_RL: Tensor, layers: Sequence[int] | None = None) -> Tensor:
    """Return what the asked mixtures of tokens draw on: (R, L), rows sum to one where those of `asked_RL` do.

    It is `asked_RL` times the product of the layers' attention, each with half of the skip connection. From the last
    layer to the first, so that one row costs L * L a layer and never L * L * L.
    """
    chosen = fused_LL if layers is None else [fused_LL[layer] for layer in layers]
    drawn_RL = asked_RL
    for attention_LL in reversed(chosen):
        mixed_LL = _strongest(attention_LL)
        mixed_LL.diagonal().add_(1.0)
        drawn_RL = (drawn_RL / mixed_LL.sum(dim=-1)) @ mixed_LL
    return drawn_RL


@torch.inference_mode()
def attentions(encoder: Encoder, clip_CTHW: Tensor, head_fusion: HeadFusion = "min") -> list[Tensor]:
    """Return each layer's attention over a clip, its heads made one: (L, L), float32 on the encoder's device."""
    kept: list[Tensor] = []

    def keep(attention_BNLL: Tensor) -> None:
        kept.append(_fused(attention_BNLL[0], head_fusion).float())  # all heads of all layers would be gigabytes

    with _plain_attention(encoder, keep):
        encoder(clip_CTHW[None])
    return kept


@contextmanager
def _plain_attention(encoder: Encoder, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Let each block compute its attention as a matrix, which the fused kernel never does, and show it to `see`."""

    def show(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        see(inputs[0])

    layers = [cast(EvaBlock, block).attn for block in encoder.blocks]
    before = [layer.fused_attn for layer in layers]
    hooks = [layer.attn_drop.register_forward_pre_hook(show) for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False
        yield
    finally:
        for layer, is_fused, hook in zip(layers, before, hooks, strict=True):
            layer.fused_attn = is_fused
            hook.remove()


def _fused(attention_NLL: Tensor, head_fusion: HeadFusion) -> Tensor:
    if head_fusion == "mean":
        return attention_NLL.mean(dim=0)
    return attention_NLL.amin(dim=0) if head_fusion == "min" else attention_NLL.amax(dim=0)


def _strongest(fused_LL: Tensor) -> Tensor:
    """Return the matrix with its smallest entries at zero; the first of all is never discarded (released code)."""
    flat = fused_LL.flatten()
    num_discarded = int(flat.numel() * DISCARD)
    if num_discarded == 0:
        return fused_LL.clone()
    # A threshold takes a tenth of the time of sorting them; of those that lie on it, the first ones go.
    threshold = flat.kthvalue(num_discarded).values
    is_kept = flat >= threshold
    on_it = (flat == threshold).nonzero()[:, 0]
    is_kept[on_it[: num_discarded - int((~is_kept).sum())]] = False
    is_kept[0] = True
    return torch.where(is_kept, flat, 0.0).view_as(fused_LL)


def stretched(values: Tensor) -> Tensor:
    """Return the values from 0 (the smallest) to 1; zeros if all are alike."""
    low, high = values.min(), values.max()
    return torch.zeros_like(values) if low == high else (values - low) / (high - low)

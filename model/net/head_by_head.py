"""Attention in bfloat16 on a CPU, head by head: PyTorch's fused one computes there at the speed of float32.

Legend: B clips, L tokens, H heads, D width, d = D / H, R tokens of a tile.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from timm.models.eva import EvaAttention, EvaBlock
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_ROWS = 392
"""Tokens that are looked at together, a tile: their weights of 1,568 tokens, 1.2 MB, stay in a core's cache."""

_ENOUGH = 200
"""Tokens. Of 58 PyTorch's takes half as long, of 235 (which pre-training sees) as long or longer."""

_THREADS = 4
"""PyTorch's computes heads side by side, this one a product: on many cores it would wait more than it works."""


class HeadByHead(EvaAttention):
    """timm's attention, and the same another way where that is quicker."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Return what timm's would, (B, L, D)."""
        is_plain = rope is None and attn_mask is None and not is_causal and not (self.training and self.attn_drop.p)
        # Who wants to see the weights has switched the fused attention off.
        if not is_plain or not self.fused_attn or not _is_quicker(x) or torch.compiler.is_compiling():
            attended: Tensor = super().forward(x, rope=rope, attn_mask=attn_mask, is_causal=is_causal)
            return attended
        bias = torch.cat((self.q_bias, self.get_buffer("k_bias"), self.v_bias))
        qkv = functional.linear(x, self.qkv.weight, bias).view(*x.shape[:2], 3, self.num_heads, -1)
        queries_BHLd, keys_BHLd, values_BHLd = qkv.permute(2, 0, 3, 1, 4)
        found_BLHd: Tensor = _Attention.apply(queries_BHLd * self.scale, keys_BHLd, values_BHLd)
        projected: Tensor = self.proj_drop(self.proj(self.norm(found_BLHd.flatten(2))))
        return projected


class _Attention(torch.autograd.Function):
    """The weights of a tile are computed, used, and forgotten; for the gradient they are computed once more."""

    @staticmethod
    def forward(ctx: Any, queries_BHLd: Tensor, keys_BHLd: Tensor, values_BHLd: Tensor) -> Tensor:
        ctx.save_for_backward(queries_BHLd, keys_BHLd, values_BHLd)
        batch, num_heads, length, width = queries_BHLd.shape
        found_BLHd = queries_BHLd.new_empty((batch, length, num_heads, width))
        for head in product(range(batch), range(num_heads)):
            keys_Ld, values_Ld = keys_BHLd[head].contiguous(), values_BHLd[head].contiguous()
            for rows in _tiles(length):
                weights_RL = torch.softmax(queries_BHLd[head][rows] @ keys_Ld.T, dim=-1)
                found_BLHd[head[0], rows, head[1]] = weights_RL @ values_Ld
        return found_BLHd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, found_grad_BLHd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        saved = ctx.saved_tensors  # asked for once: a block that is checkpointed is computed again for it
        queries_BHLd, keys_BHLd, values_BHLd = saved
        queries_grad_BHLd, keys_grad_BHLd, values_grad_BHLd = map(torch.empty_like, saved)
        batch, num_heads, length, width = queries_BHLd.shape
        for head in product(range(batch), range(num_heads)):
            keys_Ld, values_Ld = keys_BHLd[head].contiguous(), values_BHLd[head].contiguous()
            # Sums over tiles, in float32.
            keys_grad_Ld, values_grad_Ld = keys_Ld.new_zeros((2, length, width), dtype=torch.float32)
            for rows in _tiles(length):
                queries_Rd, grad_Rd = queries_BHLd[head][rows], found_grad_BLHd[head[0], rows, head[1]]
                weights_RL = torch.softmax(queries_Rd @ keys_Ld.T, dim=-1)
                values_grad_Ld += weights_RL.T @ grad_Rd
                scores_grad_RL = torch._softmax_backward_data(grad_Rd @ values_Ld.T, weights_RL, -1, weights_RL.dtype)
                queries_grad_BHLd[head][rows] = scores_grad_RL @ keys_Ld
                keys_grad_Ld += scores_grad_RL.T @ queries_Rd
            keys_grad_BHLd[head], values_grad_BHLd[head] = keys_grad_Ld, values_grad_Ld
        return queries_grad_BHLd, keys_grad_BHLd, values_grad_BHLd


def _tiles(length: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, length, _ROWS))


def attend_head_by_head(block: EvaBlock) -> EvaBlock:
    """Return the block, with its attention of this kind; its weights and their names stay."""
    block.attn.__class__ = HeadByHead  # type: ignore[assignment]  # made anew it would draw other random numbers
    return block


def _is_quicker(x: Tensor) -> bool:
    """Return whether it is: in bfloat16, on some cores of a CPU, of many tokens."""
    is_cpu = x.device.type == "cpu"
    is_half = is_cpu and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
    return is_half and x.shape[1] >= _ENOUGH and torch.get_num_threads() <= _THREADS

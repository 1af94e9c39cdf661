"""Attention in bfloat16 on a CPU, head by head: PyTorch's fused one computes there at the speed of float32.

Legend: B clips, L tokens, H heads, D width, d = D / H.
"""

import torch
from timm.models.eva import EvaAttention, EvaBlock
from torch import Tensor
from torch.nn import functional

_ROWS = 392
"""Tokens that are looked at together: their weights of 1,568 tokens, 1.2 MB, stay in a core's cache."""


class HeadByHead(EvaAttention):
    """timm's attention, and the same another way where that is quicker: not in training, in bfloat16, on a CPU."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Return what timm's would, (B, L, D)."""
        is_plain = rope is None and attn_mask is None and not is_causal
        # Who wants to see the weights has switched the fused attention off.
        if self.training or not self.fused_attn or not is_plain or not _in_bfloat16(x):
            attended: Tensor = super().forward(x, rope=rope, attn_mask=attn_mask, is_causal=is_causal)
            return attended
        batch, length, dim = x.shape
        bias = torch.cat((self.q_bias, self.get_buffer("k_bias"), self.v_bias))
        qkv = functional.linear(x, self.qkv.weight, bias).reshape(batch, length, 3, self.num_heads, -1)
        queries_BHLd, keys_BHLd, values_BHLd = qkv.permute(2, 0, 3, 1, 4)
        queries_BHLd = queries_BHLd * self.scale
        keys_BHdL, values_BHLd = keys_BHLd.transpose(-1, -2).contiguous(), values_BHLd.contiguous()
        found_BLHd = qkv.new_empty((batch, length, self.num_heads, qkv.shape[-1]))
        for clip in range(batch):
            for head in range(self.num_heads):
                queries_Ld, keys_dL = queries_BHLd[clip, head], keys_BHdL[clip, head]
                values_Ld = values_BHLd[clip, head]
                for start in range(0, length, _ROWS):
                    rows = slice(start, start + _ROWS)
                    found_BLHd[clip, rows, head] = torch.softmax(queries_Ld[rows] @ keys_dL, dim=-1) @ values_Ld
        projected: Tensor = self.proj(self.norm(found_BLHd.reshape(batch, length, dim)))
        return projected


def attend_head_by_head(block: EvaBlock) -> EvaBlock:
    """Return the block, with its attention of this kind; its weights and their names stay."""
    block.attn.__class__ = HeadByHead  # type: ignore[assignment]  # made anew it would draw other random numbers
    return block


def _in_bfloat16(x: Tensor) -> bool:
    is_cpu = x.device.type == "cpu"
    return is_cpu and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16

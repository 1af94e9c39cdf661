"""STF-Net: spatio-temporal fusion of the encoder's tokens (Echo-Vision-FM, Nat Commun 2025, sections 3.2 and 3.3).

Legend: B clips, L tokens (t, h, w order), D width, G = (t, h, w) the token grid, T frames of the clip.

The paper's layout is the default. `released` reproduces the axes that the released code scrambles (a view where a
permutation is needed, twice); it exists to run weights that were trained that way, and has the same parameters.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.net.tubelet import sincos, sincos_3d

Layout = Literal["paper", "released"]
SpatialPool = Literal["full", "depthwise"]
AttentionInit = Literal["xavier", "released"]


class GatedAttention(nn.Module):
    """Attention pooling with a gate (Ilse et al., ICML 2018): weights over tokens that sum to one."""

    def __init__(self, dim: int, hidden: int, init: AttentionInit = "xavier") -> None:
        """Make the pooling; `released` starts almost one-hot, as the released code does."""
        super().__init__()
        self.V = nn.Parameter(torch.empty(hidden, dim))
        self.U = nn.Parameter(torch.empty(hidden, dim))
        self.W = nn.Parameter(torch.empty(hidden, 1))
        for matrix in (self.V, self.U):
            nn.init.xavier_uniform_(matrix)
        if init == "xavier":
            nn.init.xavier_uniform_(self.W)
        else:
            nn.init.kaiming_uniform_(self.W)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Return the weighted sum of the tokens, (B, D)."""
        gated = torch.tanh(tokens_BLD @ self.V.T) * torch.sigmoid(tokens_BLD @ self.U.T)
        weights_B1L = torch.softmax(gated @ self.W, dim=1).transpose(1, 2)
        return (weights_B1L @ tokens_BLD).squeeze(1)


def _bottleneck(dim: int, rank: Literal[2, 3]) -> nn.Sequential:
    """Return the residual branch: 1x1, 3x3 (3x3x3), 1x1 convolutions with batch normalisation."""
    conv: type[nn.Module] = nn.Conv2d if rank == 2 else nn.Conv3d
    norm: type[nn.Module] = nn.BatchNorm2d if rank == 2 else nn.BatchNorm3d
    half = dim // 2
    return nn.Sequential(
        conv(dim, half, 1, bias=False),
        norm(half),
        nn.ReLU(),
        conv(half, half, 3, padding=1, bias=False),
        norm(half),
        nn.ReLU(),
        conv(half, dim, 1, bias=False),
        norm(dim),
    )


class StfNet(nn.Module):
    """Fuse tokens into one vector: a joint space-time road and one that takes space and time apart."""

    grid_code: Tensor

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int, int],
        *,
        layout: Layout = "paper",
        spatial_pool: SpatialPool = "full",
        attention_dim: int = 1024,
        attention_init: AttentionInit = "xavier",
    ) -> None:
        """Make the fusion of (t, h, w) = `grid` tokens of width `dim`."""
        super().__init__()
        self.grid = grid
        self.layout = layout
        self.joint_residual = _bottleneck(dim, 3)
        self.joint_attention = GatedAttention(dim, attention_dim, attention_init)
        self.spatial_residual = _bottleneck(dim, 2)
        groups = dim if spatial_pool == "depthwise" else 1
        self.spatial_conv = nn.Conv2d(dim, dim, kernel_size=grid[1:], stride=grid[1:], groups=groups)
        self.frame_mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.temporal_attention = GatedAttention(dim, attention_dim, attention_init)
        self.register_buffer("grid_code", sincos_3d(grid, dim), persistent=False)

    def forward(self, tokens_BLD: Tensor, indices_BT: Tensor) -> Tensor:
        """Return the joint and the disjoint vector side by side, (B, 2D).

        Args:
            tokens_BLD: of the encoder, in t, h, w order.
            indices_BT: the frames of the loop that the clip was made of, T a multiple of t.
        """
        batch, length, dim = tokens_BLD.shape
        assert length == math.prod(self.grid), "the tokens do not fill the grid"
        cells = tokens_BLD.view(batch, *self.grid, dim)
        return torch.cat((self._joint(cells), self._disjoint(cells, indices_BT)), dim=-1)

    def _joint(self, cells_BtHWD: Tensor) -> Tensor:
        batch, *_, dim = cells_BtHWD.shape
        # A view, channels last: what convolutions are quickest in, on CPUs and on GPUs.
        coded = (cells_BtHWD + self.grid_code.to(cells_BtHWD.dtype)).permute(0, 4, 1, 2, 3)
        fused_BDtHW = torch.relu(coded + self.joint_residual(coded))
        if self.layout == "released":
            tokens = fused_BDtHW.reshape(batch, -1, dim)  # the released view: a run of positions of one channel
        else:
            tokens = fused_BDtHW.flatten(2).transpose(1, 2)
        pooled: Tensor = self.joint_attention(tokens)
        return pooled

    def _disjoint(self, cells_BtHWD: Tensor, indices_BT: Tensor) -> Tensor:
        batch, t, h, w, dim = cells_BtHWD.shape
        if self.layout == "released":
            planes = cells_BtHWD.reshape(batch * t, dim, h, w)  # the released view: channels take the place of space
        else:
            planes = cells_BtHWD.flatten(0, 1).permute(0, 3, 1, 2)
        fused = torch.relu(planes + self.spatial_residual(planes))
        steps_BtD = self._spatial_pool(fused).view(batch, t, dim)
        code_BtD = self._frame_code(indices_BT, t, dim).to(steps_BtD.dtype)
        pooled: Tensor = self.temporal_attention(steps_BtD + self.frame_mlp(code_BtD))
        return pooled

    def _spatial_pool(self, planes_NDHW: Tensor) -> Tensor:
        """Return the convolution whose kernel covers the plane, (N, D) of N planes."""
        conv = self.spatial_conv
        if conv.groups > 1:
            pooled: Tensor = conv(planes_NDHW).flatten(1)
            return pooled
        # One matrix product; as a convolution it would put its half gigabyte of weights in another order each time.
        return functional.linear(planes_NDHW.flatten(1), conv.weight.flatten(1), conv.bias)

    @staticmethod
    def _frame_code(indices_BT: Tensor, t: int, dim: int) -> Tensor:
        """Return the code of each temporal step: the mean of the codes of its frames' indices in the loop.

        They count from the clip's first frame, which is the loop's where clips are made as in the paper.
        """
        code_BTD = sincos(indices_BT - indices_BT[:, :1], dim).float()
        batch = code_BTD.shape[0]
        return code_BTD.view(batch, t, -1, dim).mean(dim=2)

"""The whole network: one encoder, and for each task a branch that pools its tokens and answers.

Legend: B clips, C = 3 RGB, T frames, H, W pixels, L tokens (t, h, w order), D width, K outputs of a task.
With one task it is the paper's network; with several they share one pass of the encoder.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Literal, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from model.net.encoder import Encoder
from model.net.heads import LinearHead, MlpHead
from model.net.stf import Layout, SpatialPool, StfNet


class NetConfig(BaseModel):
    """The architecture; stored with every checkpoint and bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    frames: int = Field(default=16, ge=1)
    """Frames of a clip."""
    size: int = Field(default=224, ge=1)
    """Height and width of a clip, pixels."""
    tubelet: int = Field(default=2, ge=1)
    """Frames of a token."""
    patch: int = Field(default=16, ge=1)
    """Height and width of a token, pixels."""
    dim: int = Field(default=768, ge=1)
    """Width of the encoder."""
    depth: int = Field(default=12, ge=1)
    """Blocks of the encoder."""
    heads: int = Field(default=12, ge=1)
    """Attention heads of a block."""
    mlp_dim: int = Field(default=3072, ge=1)
    """Hidden width of a block's MLP."""
    eps: float = Field(default=1e-12, gt=0)
    """Of the encoder's LayerNorms: 1e-12 in the Hugging Face family, 1e-6 in the official one."""
    final_norm: bool = False
    """A LayerNorm ends the encoder: True for VideoMAE's pre-training and from scratch, False for Echo-Vision-FM's."""
    pool: Literal["stf", "max", "mean"] = "stf"
    """How a branch pools the tokens; max is the paper's network without STF-Net."""
    stf_layout: Layout = "paper"
    """`released` only for weights that were trained with the released code."""
    stf_spatial_pool: SpatialPool = "full"
    """`depthwise`: one filter a channel, for small networks."""
    stf_attention_dim: int = Field(default=1024, ge=1)
    """Hidden width of the gated attentions."""
    share: Literal["encoder", "fusion"] = "encoder"
    """What the tasks share: the encoder, or its pooling too, so that only their heads differ."""
    head: Literal["mlp", "linear"] = "mlp"
    """The task's head."""
    head_hidden: tuple[int, ...] = (200, 100)
    """Hidden widths of the MLP head."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        # What does not divide would be dropped by the tubelet embedding without a word.
        for whole, part in (("frames", "tubelet"), ("size", "patch"), ("dim", "heads")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"{whole} is no multiple of {part}")
        return self

    @classmethod
    def base(cls) -> "NetConfig":
        """Return the paper's network."""
        return cls()

    @classmethod
    def small(cls) -> "NetConfig":
        """Return the same network in small, for a CPU: a quarter of the tokens, one fusion for all tasks."""
        return cls(
            size=112,
            dim=96,
            depth=4,
            heads=4,
            mlp_dim=384,
            final_norm=True,
            stf_spatial_pool="depthwise",
            stf_attention_dim=128,
            share="fusion",
            head_hidden=(64, 32),
        )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Return the tokens of a clip in time, height and width."""
        return (self.frames // self.tubelet, self.size // self.patch, self.size // self.patch)

    @property
    def operations(self) -> int:
        """Return the floating-point operations of the encoder's matrix products on one clip."""
        length = math.prod(self.grid)
        embedding = 2 * length * self.dim * 3 * self.tubelet * self.patch**2
        linear = 2 * length * (4 * self.dim**2 + 2 * self.dim * self.mlp_dim)
        attention = 4 * length**2 * self.dim
        return embedding + self.depth * (linear + attention)


class Pool(nn.Module):
    """From tokens to one vector a clip: STF-Net, or the largest or the mean token."""

    def __init__(self, config: NetConfig) -> None:
        """Make the pooling with random weights."""
        super().__init__()
        self.pool = config.pool
        if config.pool == "stf":
            self.stf = StfNet(
                config.dim,
                config.grid,
                layout=config.stf_layout,
                spatial_pool=config.stf_spatial_pool,
                attention_dim=config.stf_attention_dim,
            )

    def features(self, tokens_BLD: Tensor, indices_BT: Tensor) -> Tensor:
        """Return one vector a clip: (B, 2D) with STF-Net, else (B, D)."""
        if self.pool == "stf":
            fused: Tensor = self.stf(tokens_BLD, indices_BT)
            return fused
        return tokens_BLD.amax(dim=1) if self.pool == "max" else tokens_BLD.mean(dim=1)

    def forward(self, tokens_BLD: Tensor, indices_BT: Tensor) -> Tensor:
        """Return `features`."""
        return self.features(tokens_BLD, indices_BT)


class Branch(Pool):
    """One task's own road from the shared tokens to its raw outputs: a pooling and a head."""

    def __init__(self, config: NetConfig, outputs: int) -> None:
        """Make the branch with random weights."""
        super().__init__(config)
        self.head = _head(config, outputs)

    def forward(self, tokens_BLD: Tensor, indices_BT: Tensor) -> Tensor:
        """Return the raw outputs, (B, K)."""
        answer: Tensor = self.head(self.features(tokens_BLD, indices_BT))
        return answer


class SharedBranch(nn.Module):
    """One task's head over the fusion that all tasks share."""

    def __init__(self, config: NetConfig, outputs: int) -> None:
        """Make the head with random weights."""
        super().__init__()
        self.head = _head(config, outputs)


def _head(config: NetConfig, outputs: int) -> nn.Sequential:
    features = 2 * config.dim if config.pool == "stf" else config.dim
    return MlpHead(features, outputs, config.head_hidden) if config.head == "mlp" else LinearHead(features, outputs)


class EchoVision(nn.Module):
    """Echo-Vision-FM for one task, or for several that share the encoder."""

    def __init__(self, config: NetConfig, outputs: Mapping[str, int], *, drop_path: float = 0.0) -> None:
        """Make the network with random weights.

        Args:
            config: the architecture.
            outputs: each task's name and its number of outputs.
            drop_path: of the encoder, in training.
        """
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config, drop_path=drop_path)
        branch: type[nn.Module] = Branch
        if config.share == "fusion":
            self.fusion = Pool(config)
            branch = SharedBranch
        self.branches = nn.ModuleDict({name: branch(config, number) for name, number in outputs.items()})

    def encode(self, clip_BCTHW: Tensor) -> Tensor:
        """Return the shared tokens, (B, L, D)."""
        tokens: Tensor = self.encoder(clip_BCTHW)
        return tokens

    def answer(
        self, names: Iterable[str], tokens_BLD: Tensor, indices_BT: Tensor, rows: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the named tasks' raw outputs, (B, K) each; a shared fusion runs once.

        Args:
            names: of the tasks.
            tokens_BLD: of `encode`.
            indices_BT: the frames of the loop that each clip was made of.
            rows: task -> the clips that it looks at (in training: those that have a label); None: all.
        """
        wanted = {name: slice(None) if rows is None else rows[name] for name in names}
        if self.config.share == "encoder":
            return {name: self.branches[name](tokens_BLD[of], indices_BT[of]) for name, of in wanted.items()}
        fused_BF = self.fusion(tokens_BLD, indices_BT)
        return {name: cast(SharedBranch, self.branches[name]).head(fused_BF[of]) for name, of in wanted.items()}

    def forward(
        self, clip_BCTHW: Tensor, indices_BT: Tensor, rows: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the tasks' raw outputs, (B, K) each, from one pass of the encoder; poolings and heads are float32.

        Args:
            clip_BCTHW: as the recipe of the weights normalises it.
            indices_BT: the frames of the loop that the clip was made of.
            rows: as in `answer`; only its tasks are asked.
        """
        tokens_BLD = self.encode(clip_BCTHW)
        with torch.autocast(tokens_BLD.device.type, enabled=False):
            return self.answer(self.branches if rows is None else rows, tokens_BLD.float(), indices_BT, rows)


def make_encoder(config: NetConfig, *, drop_path: float = 0.0) -> Encoder:
    """Return the encoder of the architecture, with random weights."""
    return Encoder(
        frames=config.frames,
        size=config.size,
        tubelet=config.tubelet,
        patch=config.patch,
        dim=config.dim,
        depth=config.depth,
        heads=config.heads,
        mlp_dim=config.mlp_dim,
        eps=config.eps,
        final_norm=config.final_norm,
        drop_path=drop_path,
    )

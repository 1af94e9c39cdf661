"""Which tubelets are hidden: exact counts, a mask of its own for each clip, a function of its seed.

Legend: B clips, L tokens (t, h, w order).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trainer.config import MaskConfig


def num_hidden(config: MaskConfig, grid: tuple[int, int, int]) -> int:
    """Return how many tokens of a clip are hidden: floor(ratio L), by a tube mask floor(ratio h w) in each slice."""
    t, h, w = grid
    if config.kind == "tube":
        return t * math.floor(config.ratio * h * w)
    return math.floor(config.ratio * t * h * w)


def draw_masks(seeds: Sequence[Sequence[int]], config: MaskConfig, grid: tuple[int, int, int]) -> Tensor:
    """Return masks (B, L), True where a token is hidden; each is a function of its seed alone."""
    t, h, w = grid
    hidden = num_hidden(config, grid)
    masks = np.zeros((len(seeds), t * h * w), dtype=np.bool_)
    for mask, seed in zip(masks, seeds, strict=True):
        rng = np.random.default_rng(seed)
        if config.kind == "tube":
            places = rng.permutation(h * w)[: hidden // t]
            mask.reshape(t, h * w)[:, places] = True
        else:
            mask[rng.permutation(t * h * w)[:hidden]] = True
    return torch.from_numpy(masks)

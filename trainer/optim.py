"""AdamW over named groups of parameters: what decays, and how fast each learns."""

import re
from collections.abc import Iterable

import torch
from torch import nn

from trainer.config import OptimiserConfig

_BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.")


def make_optimiser(network: nn.Module, depth: int, config: OptimiserConfig) -> torch.optim.AdamW:
    """Return AdamW over the parameters that learn.

    Each group holds `lr_factor`, by which `set_learning_rate` multiplies; the order depends on the names alone, so that
    a saved state fits again.

    Args:
        network: its encoder's names begin with `encoder.`.
        depth: blocks of the encoder.
        config: the recipe.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim <= 1 or name == "mask_token" else config.weight_decay
            groups.setdefault((_lr_factor(name, depth, config), decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "lr_factor": factor}
            for (factor, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=config.peak_lr,
        betas=config.betas,
        fused=True,
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's learning rate to its share of `rate`."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_factor"]


def clip_gradient(parameters: Iterable[nn.Parameter], largest: float | None) -> float:
    """Scale the gradient down to norm `largest`, and return the norm it had."""
    bound = float("inf") if largest is None else largest
    return float(nn.utils.clip_grad_norm_(list(parameters), bound))


def _lr_factor(name: str, depth: int, config: OptimiserConfig) -> float:
    if not name.startswith("encoder."):
        return 1.0
    block = _BLOCK.match(name)
    front = 0 if "patch_embed" in name else depth + 1
    layer = front if block is None else int(block[1]) + 1
    return config.encoder_lr_factor * float(config.layer_decay ** (depth + 1 - layer))

"""Arithmetic of the encoder: one rule for training and serving; heads and losses are float32 always."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]
"""What the matrix products are computed in."""

WantedPrecision = Literal["auto", "fp32", "bf16"]
"""What a configuration asks for; auto: as the device can."""


def choose_precision(device: str, wanted: WantedPrecision) -> Precision:
    """Return bf16 on a GPU that computes in it, else fp32, unless the configuration says which."""
    if wanted != "auto":
        return wanted
    return "bf16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "fp32"

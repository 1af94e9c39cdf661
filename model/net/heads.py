"""Task heads: from one vector a clip to raw outputs (paper 4.3); decoding is not theirs.

Legend: B clips, F features, K outputs.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


class MlpHead(nn.Sequential):
    """The paper's head: hidden layers with batch normalisation and ReLU, then one linear layer; (B, F) to (B, K)."""

    def __init__(self, features: int, outputs: int, hidden: Sequence[int] = (200, 100)) -> None:
        """Make the head with random weights."""
        widths = (features, *hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        super().__init__(*layers, nn.Linear(widths[-1], outputs))


class LinearHead(nn.Sequential):
    """One linear layer, for linear probes; (B, F) to (B, K)."""

    def __init__(self, features: int, outputs: int) -> None:
        """Make the head with random weights."""
        super().__init__(nn.Linear(features, outputs))

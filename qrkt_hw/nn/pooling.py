"""What a classifier's head reads of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightedPool(nn.Module):
    """Weighted sums of the tokens, with a learned weight for each map, position and feature: a mean that knows places.

    The first map starts as the mean; the others start as means with noise of its size, so that they differ.

    Args:
        tokens: number of positions.
        hidden: width of a token.
        maps: sums to make of them.
    """

    def __init__(self, tokens: int, hidden: int, maps: int = 1) -> None:
        super().__init__()
        noise = torch.randn(maps, tokens, hidden)
        noise[0] = 0
        self.weight = nn.Parameter((1 + noise) / tokens)

    def forward(self, y: Tensor) -> Tensor:
        """``(batch, tokens, hidden)`` to ``(batch, maps * hidden)``."""
        return torch.cat([(y * weights).sum(dim=1) for weights in self.weight], dim=-1)

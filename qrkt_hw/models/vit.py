"""The vision transformer; quantum or classical by the projections it is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qrkt_hw.layers.patches import PatchEmbedding, sincos_positions
from qrkt_hw.layers.sharing import shared_weights


class VisionTransformer(nn.Module):
    """Patches, positions, blocks, LayerNorm, pooling, linear head: ``(batch, channels, size, size)`` to logits.

    Args:
        image_size: pixels along a side; a multiple of ``patch``.
        channels: 1 or 3.
        classes: size of the logits.
        patch: pixels along a side of a patch.
        hidden: width of the tokens.
        blocks: modules that keep ``(batch, tokens, hidden)``.
        positions: ``learned``, ``sincos`` or ``none``.
        pool: ``mean`` over tokens, or ``class`` for a class token.
        dropout: on the embedded tokens.
    """

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        classes: int,
        patch: int,
        hidden: int,
        blocks: Sequence[nn.Module],
        positions: str = "learned",
        pool: str = "mean",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        side = image_size // patch
        self.embedding = PatchEmbedding(channels=channels, hidden=hidden, patch=patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, hidden) * 0.02) if pool == "class" else None
        if positions == "learned":
            self.positions: Tensor | None = nn.Parameter(torch.randn(1, side * side, hidden) * 0.02)
        elif positions == "sincos":
            self.register_buffer("positions", sincos_positions(side, side, hidden)[None], persistent=False)
        else:
            self.positions = None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, classes)``."""
        y = self.embedding(images.to(self.head.weight.dtype))
        if self.positions is not None:
            y = y + self.positions
        if self.class_token is not None:
            y = torch.cat([self.class_token.expand(len(y), -1, -1), y], dim=1)
        y = self.dropout(y)
        with shared_weights(self.blocks):
            for block in self.blocks:
                y = block(y)
        y = self.norm(y)
        pooled = y[:, 0] if self.class_token is not None else y.mean(dim=1)
        return self.head(pooled)

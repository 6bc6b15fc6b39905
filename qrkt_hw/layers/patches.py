"""From an image to tokens, and where the tokens are."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """One non-overlapping patch convolution: ``(batch, channels, height, width)`` to ``(batch, tokens, hidden)``."""

    def __init__(self, *, channels: int, hidden: int, patch: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, hidden, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.convolution(images).flatten(2).transpose(1, 2)


def sincos_positions(rows: int, columns: int, hidden: int) -> Tensor:
    """2-D sine-cosine positions ``(rows * columns, hidden)``; half of the width for rows, half for columns.

    After Vaswani et al. 2017 in two dimensions; where ``hidden`` is not a multiple of 4 the rest is zero.
    """
    quarter = hidden // 4
    table = torch.zeros(rows * columns, hidden)
    if quarter:
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(quarter) / max(quarter - 1, 1))
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        parts = [f(axis.flatten()[:, None] * frequencies) for axis in (row, column) for f in (torch.sin, torch.cos)]
        table[:, : 4 * quarter] = torch.cat(parts, dim=1)
    return table


class ImageTokens(nn.Module):
    """Patches, positions, a class token in front where one is asked for, dropout.

    Args:
        image_size, channels, patch, hidden: of image and tokens.
        positions: ``learned``, ``sincos`` or ``none``.
        class_token: put a learned token first; it has no position.
        dropout: on the tokens.
    """

    positions: Tensor | None

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        patch: int,
        hidden: int,
        positions: str = "learned",
        class_token: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        side = image_size // patch
        self.embedding = PatchEmbedding(channels=channels, hidden=hidden, patch=patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, hidden) * 0.02) if class_token else None
        if positions == "learned":
            self.positions = nn.Parameter(torch.randn(1, side * side, hidden) * 0.02)
        elif positions == "sincos":
            self.register_buffer("positions", sincos_positions(side, side, hidden)[None], persistent=False)
        else:
            self.positions = None
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, channels, size, size)`` to ``(batch, tokens, hidden)``."""
        y = self.embedding(images)
        if self.positions is not None:
            y = y + self.positions
        if self.class_token is not None:
            y = torch.cat([self.class_token.expand(len(y), -1, -1), y], dim=1)
        return self.dropout(y)

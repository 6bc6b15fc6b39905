"""From an image to tokens, and where the tokens are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qrkt_hw.nn.tokens import Tokens


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


class ImageTokens(Tokens):
    """Tokens of an image: its patches.

    Args:
        image_size, channels, patch, hidden: of image and tokens.
        options: of :class:`qrkt_hw.nn.tokens.Tokens`.
    """

    def __init__(self, *, image_size: int, channels: int, patch: int, hidden: int, **options: Any) -> None:
        side = image_size // patch
        embedding = PatchEmbedding(channels=channels, hidden=hidden, patch=patch)
        super().__init__(embedding, sincos_positions(side, side, hidden), grid=(side, side), **options)

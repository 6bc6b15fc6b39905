"""From token ids to embedded tokens, and which of them are padding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

PADDING = 0


def sincos_sequence(length: int, hidden: int) -> Tensor:
    """Sine-cosine positions ``(length, hidden)`` after Vaswani et al. 2017; an odd last feature is zero."""
    half = hidden // 2
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half) / max(half, 1))
    angles = torch.arange(length)[:, None] * frequencies
    table = torch.zeros(length, hidden)
    table[:, : 2 * half] = torch.cat([angles.sin(), angles.cos()], dim=1)
    return table


class TextTokens(nn.Module):
    """Embedding, positions, a class token in front where one is asked for, dropout.

    Args:
        vocabulary: number of ids; 0 is padding.
        length: longest text in tokens.
        hidden, positions, class_token, dropout: as for :class:`qrkt_hw.layers.patches.ImageTokens`.
    """

    positions: Tensor | None

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        hidden: int,
        positions: str = "learned",
        class_token: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden, padding_idx=PADDING)
        self.class_token = nn.Parameter(torch.randn(1, 1, hidden) * 0.02) if class_token else None
        if positions == "learned":
            self.positions = nn.Parameter(torch.randn(1, length, hidden) * 0.02)
        elif positions == "sincos":
            self.register_buffer("positions", sincos_sequence(length, hidden)[None], persistent=False)
        else:
            self.positions = None
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """``(batch, length)`` int64, up to the longest length, to ``(batch, tokens, hidden)``."""
        y = self.embedding(ids)
        if self.positions is not None:
            y = y + self.positions[:, : ids.shape[1]]
        if self.class_token is not None:
            y = torch.cat([self.class_token.expand(len(y), -1, -1), y], dim=1)
        return self.dropout(y)

    def mask(self, ids: Tensor) -> Tensor | None:
        """``(batch, tokens)``, False where a token is padding; None where nothing is."""
        seen = ids != PADDING
        if bool(seen.all()):
            return None
        if self.class_token is not None:
            seen = torch.cat([seen.new_ones(len(seen), 1), seen], dim=1)
        return seen

"""What images and texts share on their way to tokens: positions, a class token, dropout."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tokens(nn.Module):
    """Embedding, positions, a class token in front where one is asked for, dropout.

    Args:
        embedding: inputs to ``(batch, tokens, hidden)``.
        table: sine-cosine positions ``(tokens, hidden)``; its shape is that of learned ones.
        positions: ``learned``, ``axial`` (learned, a row's and a column's added), ``sincos`` or ``none``.
        class_token: put a learned token first; it has no position.
        dropout: on the tokens.
        grid: rows and columns of the tokens, for ``axial``.
    """

    positions: Tensor | None

    def __init__(
        self,
        embedding: nn.Module,
        table: Tensor,
        *,
        positions: str = "learned",
        class_token: bool = False,
        dropout: float = 0.0,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.class_token = nn.Parameter(torch.randn(1, 1, table.shape[-1]) * 0.02) if class_token else None
        if positions == "learned":
            self.positions = nn.Parameter(torch.randn(1, *table.shape) * 0.02)
        elif positions == "sincos":
            self.register_buffer("positions", table[None], persistent=False)
        else:
            self.positions = None
        self.axes: nn.ParameterList | None = None
        if positions == "axial":
            assert grid is not None
            rows, columns, width = *grid, table.shape[-1]
            shapes = ((1, rows, 1, width), (1, 1, columns, width))
            self.axes = nn.ParameterList(nn.Parameter(torch.randn(shape) * 0.02) for shape in shapes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        """``(batch, tokens, hidden)``, of as many tokens as the inputs have."""
        y = self.embedding(inputs)
        if self.positions is not None:
            y = y + self.positions[:, : y.shape[1]]
        if self.axes is not None:
            y = y + (self.axes[0] + self.axes[1]).flatten(1, 2)
        if self.class_token is not None:
            y = torch.cat([self.class_token.expand(len(y), -1, -1), y], dim=1)
        return self.dropout(y)

    def thinned(self, inputs: Tensor) -> Tensor:
        """The inputs, in training perhaps without some of their tokens."""
        return inputs

    def mask(self, inputs: Tensor) -> Tensor | None:
        """``(batch, tokens)``, False where a token is padding; None where nothing is."""
        return None

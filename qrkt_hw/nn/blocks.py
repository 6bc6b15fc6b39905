"""Transformer blocks: the ordinary pre-norm encoder block and the Runge-Kutta block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qrkt_hw.nn.attention import Attention
from qrkt_hw.nn.feedforward import FeedForward
from qrkt_hw.nn.projection import project_together
from qrkt_hw.nn.tableaus import Tableau


class EncoderBlock(nn.Module):
    """``y += attention(norm(y))``, then ``y += feed_forward(norm(y))``."""

    def __init__(self, attention: Attention, feed_forward: FeedForward, *, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden)
        self.attention = attention
        self.feed_forward_norm = nn.LayerNorm(hidden)
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(dropout)

    def forward(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(batch, tokens, hidden)``, same out; ``mask (batch, tokens)`` is True where a token is not padding."""
        y = y + self.dropout(self.attention(self.attention_norm(y), mask))
        return y + self.dropout(self.feed_forward(self.feed_forward_norm(y)))


class TransformerField(nn.Module):
    """The right-hand side ``F(y) = attention(norm(y)) + feed_forward(norm(y))`` in two rounds of circuits.

    Query, key, value and the hidden layer of the feed-forward go together, then the output projection.

    Args:
        norm: stands before both; None: nothing does, and F sees how large the tokens are.
        attention, feed_forward: what F is made of.
        dropout: on F.
        feed_forward_norm: stands before the feed-forward instead of ``norm``.
    """

    def __init__(
        self,
        norm: nn.LayerNorm | None,
        attention: Attention,
        feed_forward: FeedForward,
        dropout: float = 0.0,
        feed_forward_norm: nn.LayerNorm | None = None,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.attention = attention
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(dropout)

    def forward(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(batch, tokens, hidden)``, same out; ``mask (batch, tokens)`` is True where a token is not padding."""
        z = y if self.norm is None else self.norm(y)
        entered = z if self.feed_forward_norm is None else self.feed_forward_norm(y)
        *qkv, hidden = project_together([*self.attention.requests(z), *self.feed_forward.requests(entered)])
        attended = self.attention.output(self.attention.mix(*qkv, mask=mask))
        return self.dropout(attended + self.feed_forward.finish(hidden))


class RungeKuttaBlock(nn.Module):
    """One step of an explicit Runge-Kutta method for ``y' = F(y)``.

    Args:
        field: F, a module that keeps the shape; or one module per stage (the published code's unshared stages).
        tableau: the method.
        step: step size h.

    Raises:
        ValueError: a number of fields that is neither 1 nor the number of stages.
    """

    def __init__(self, field: nn.Module | Sequence[nn.Module], tableau: Tableau, step: float = 1.0) -> None:
        super().__init__()
        fields = [field] if isinstance(field, nn.Module) else list(field)
        if len(fields) not in (1, tableau.stages):
            raise ValueError(f"{tableau.name} has {tableau.stages} stages; {len(fields)} fields do not fit")
        self.fields = nn.ModuleList(fields)
        self.tableau = tableau
        self.step = step

    def forward(self, y: Tensor, *context: Any) -> Tensor:
        """Same shape as ``y``; F is given ``context`` (such as a mask) in every stage."""
        slopes: list[Tensor] = []
        for stage, row in enumerate(self.tableau.a):
            field = self.fields[stage if len(self.fields) > 1 else 0]
            slopes.append(field(_combine(y, slopes, row, self.step), *context))
        return _combine(y, slopes, self.tableau.b, self.step)


def _combine(y: Tensor, slopes: Sequence[Tensor], weights: Sequence[float], step: float) -> Tensor:
    for slope, weight in zip(slopes, weights, strict=True):
        if weight:
            y = torch.add(y, slope, alpha=step * weight)
    return y

"""From token ids to embedded tokens, and which of them are padding."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qrkt_hw.data.text import trimmed
from qrkt_hw.nn.tokens import Tokens

PADDING = 0


def sincos_sequence(length: int, hidden: int) -> Tensor:
    """Sine-cosine positions ``(length, hidden)`` after Vaswani et al. 2017; an odd last feature is zero."""
    half = hidden // 2
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half) / max(half, 1))
    angles = torch.arange(length)[:, None] * frequencies
    table = torch.zeros(length, hidden)
    table[:, : 2 * half] = torch.cat([angles.sin(), angles.cos()], dim=1)
    return table


class TextTokens(Tokens):
    """Tokens of a text: its words.

    Args:
        vocabulary: number of ids; 0 is padding.
        length: longest text in tokens.
        hidden: width of the tokens.
        left_out: share of the words that training leaves out, drawn anew for each text and step.
        scale: standard deviation of the embeddings before training.
        options: of :class:`qrkt_hw.nn.tokens.Tokens`.
    """

    def __init__(
        self, *, vocabulary: int, length: int, hidden: int, left_out: float = 0.0, scale: float = 1.0, **options: Any
    ) -> None:
        embedding = nn.Embedding(vocabulary, hidden, padding_idx=PADDING)
        with torch.no_grad():
            embedding.weight.mul_(scale)
        super().__init__(embedding, sincos_sequence(length, hidden), **options)
        self.left_out = left_out

    def thinned(self, ids: Tensor) -> Tensor:
        """In training, the texts without a share of their words; a text keeps its first."""
        if not (self.training and self.left_out):
            return ids
        gone = torch.rand(ids.shape, device=ids.device) < self.left_out
        gone[:, 0] = False
        ids = ids.masked_fill(gone, PADDING)
        kept_first = (ids == PADDING).to(torch.uint8).argsort(dim=1, stable=True)
        return trimmed(ids.gather(1, kept_first))

    def mask(self, ids: Tensor) -> Tensor | None:
        """``(batch, tokens)``, False where a token is padding; None where nothing is."""
        seen = ids != PADDING
        if bool(seen.all()):
            return None
        if self.class_token is not None:
            seen = torch.cat([seen.new_ones(len(seen), 1), seen], dim=1)
        return seen

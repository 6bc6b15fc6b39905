"""The decoder block: unmasked self-attention, cross-attention to the encoder's output, feed-forward."""

from __future__ import annotations

from torch import Tensor, nn

from qrkt_hw.nn.attention import Attention, CrossAttention
from qrkt_hw.nn.feedforward import FeedForward


class DecoderBlock(nn.Module):
    """Three pre-norm residual steps on ``y``; keeps ``(batch, tokens, hidden)``."""

    def __init__(
        self,
        attention: Attention,
        cross_attention: CrossAttention,
        feed_forward: FeedForward,
        *,
        hidden: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden)
        self.attention = attention
        self.cross_attention_norm = nn.LayerNorm(hidden)
        self.cross_attention = cross_attention
        self.feed_forward_norm = nn.LayerNorm(hidden)
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(dropout)

    def forward(self, y: Tensor, memory: Tensor, mask: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """``memory (batch, others, hidden)``; ``mask`` of ``y`` and ``seen`` of ``memory`` are False at padding."""
        y = y + self.dropout(self.attention(self.attention_norm(y), mask))
        y = y + self.dropout(self.cross_attention(self.cross_attention_norm(y), memory, seen))
        return y + self.dropout(self.feed_forward(self.feed_forward_norm(y)))


class Decoder(nn.Module):
    """A second embedding of the same input, decoder blocks that read the encoder's output, LayerNorm."""

    def __init__(self, tokens: nn.Module, blocks: list[DecoderBlock], *, hidden: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, inputs: Tensor, memory: Tensor, seen: Tensor | None = None) -> Tensor:
        """``(batch, tokens, hidden)``; ``seen (batch, others)`` is True where ``memory`` is not padding."""
        y = self.tokens(inputs)
        for block in self.blocks:
            y = block(y, memory, seen, seen)
        return self.norm(y)

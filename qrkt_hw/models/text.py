"""The text transformer: the vision transformer with words for patches, and padding that nobody reads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from qrkt_hw.layers.decoder import Decoder
from qrkt_hw.layers.texts import TextTokens


class TextTransformer(nn.Module):
    """Token ids ``(batch, length)``, 0 being padding, to logits ``(batch, classes)``.

    Args:
        tokens: ids to tokens ``(batch, tokens, hidden)``.
        blocks: modules that take tokens and a mask and keep the shape.
        hidden: width of the tokens.
        classes: size of the logits.
        decoder: reads ids and encoded tokens; the head then reads its tokens.
    """

    def __init__(
        self,
        tokens: TextTokens,
        blocks: Sequence[nn.Module],
        *,
        hidden: int,
        classes: int,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden)
        self.decoder = decoder
        self.head = nn.Linear(hidden, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """``(batch, classes)``; how far a text is padded does not change its logits."""
        mask = self.tokens.mask(ids)
        y = self.tokens(ids)
        for block in self.blocks:
            y = block(y, mask)
        y = self.norm(y)
        if self.decoder is not None:
            y = self.decoder(ids, y, mask)
        if self.tokens.class_token is not None:
            return self.head(y[:, 0])
        if mask is None:
            return self.head(y.mean(dim=1))
        weight = mask.to(y.dtype).unsqueeze(-1)
        return self.head((y * weight).sum(1) / weight.sum(1))

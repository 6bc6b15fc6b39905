"""The vision transformer; quantum or classical by the blocks it is given."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from qrkt_hw.layers.decoder import Decoder
from qrkt_hw.layers.patches import ImageTokens
from qrkt_hw.layers.sharing import shared_weights


class VisionTransformer(nn.Module):
    """Tokens, blocks, LayerNorm, decoder or none, pooling, linear head: ``(batch, channels, size, size)`` to logits.

    Args:
        tokens: image to tokens ``(batch, tokens, hidden)``.
        blocks: modules that keep their shape.
        hidden: width of the tokens.
        classes: size of the logits.
        decoder: reads image and encoded tokens; the head then reads its tokens.
    """

    def __init__(
        self,
        tokens: ImageTokens,
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

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, classes)``."""
        images = images.to(self.head.weight.dtype)
        y = self.tokens(images)
        with shared_weights(self.blocks):
            for block in self.blocks:
                y = block(y)
        y = self.norm(y)
        if self.decoder is not None:
            y = self.decoder(images, y)
        return self.head(y[:, 0] if self.tokens.class_token is not None else y.mean(dim=1))

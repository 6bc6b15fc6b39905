"""The transformer for images and texts; quantum or classical by the blocks it is given."""

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from qrkt_hw.data.images import as_images
from qrkt_hw.nn.blocks import TransformerBlock
from qrkt_hw.nn.embeddings import Tokens, WeightedPool


class Decoder(nn.Module):
    """A second embedding of the same input, decoder blocks that read the encoder's output, LayerNorm."""

    def __init__(self, tokens: Tokens, blocks: Sequence[TransformerBlock], *, hidden: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, inputs: Tensor, memory: Tensor, seen: Tensor | None = None) -> Tensor:
        """``(batch, tokens, hidden)``; ``seen (batch, others)`` is True where ``memory`` is not padding."""
        y = self.tokens(inputs)
        for block in self.blocks:
            y = block(y, seen, memory, seen)
        return self.norm(y)


class Transformer(nn.Module):
    """Tokens, blocks, LayerNorm, decoder or none, pooling, linear head.

    Args:
        tokens: images ``(batch, channels, size, size)`` or ids ``(batch, length)`` to ``(batch, tokens, hidden)``.
        blocks: modules that take tokens and a mask and keep the shape.
        hidden: width of the tokens.
        classes: size of the logits.
        decoder: reads the inputs and the encoded tokens; the head then reads its tokens.
        final_norm: LayerNorm behind the blocks.
        pool: maps the tokens to what the head reads; None: the class token, or else the mean of the unmasked tokens.

    A ``backbone`` may be attached: its features are then the images.
    """

    def __init__(
        self,
        tokens: Tokens,
        blocks: Sequence[nn.Module],
        *,
        hidden: int,
        classes: int,
        decoder: Decoder | None = None,
        pool: WeightedPool | None = None,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden) if final_norm else nn.Identity()
        self.decoder = decoder
        self.pool = pool
        self.head = nn.Linear(hidden if pool is None else hidden * len(pool.weight), classes)
        self.backbone: nn.Module | None = None
        self.input_shape: tuple[int, ...] = ()

    def attach(self, backbone: nn.Module, input_shape: tuple[int, ...]) -> None:
        """Put a copy of a user's module between the inputs, of this shape, and the tokens."""
        like = self.head.weight
        self.backbone = copy.deepcopy(backbone).to(device=like.device, dtype=like.dtype)
        self.input_shape = tuple(input_shape)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(batch, classes)``; how far a text is padded does not change them."""
        if inputs.is_floating_point():
            inputs = inputs.to(self.head.weight.dtype)
        if self.backbone is not None:
            inputs = as_images(self.backbone(inputs))
        inputs = self.tokens.drop_words(inputs)
        mask = self.tokens.mask(inputs)
        y = self.tokens(inputs)
        for block in self.blocks:
            y = block(y, mask)
        y = self.norm(y)
        if self.decoder is not None:
            y = self.decoder(inputs, y, mask)
        if self.pool is not None:
            return self.head(self.pool(y))
        if self.tokens.class_token is not None:
            return self.head(y[:, 0])
        if mask is None:
            return self.head(y.mean(dim=1))
        weight = mask.to(y.dtype).unsqueeze(-1)
        return self.head((y * weight).sum(1) / weight.sum(1))

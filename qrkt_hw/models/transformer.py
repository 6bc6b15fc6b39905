"""The transformer for images and texts, and the GAN of two; quantum or classical by the blocks they are given.

The GAN is after the QRKT-GAN thesis (2024) and TransGAN (Jiang et al. 2021, NeurIPS): noise to a small grid of wide
tokens, and between two stages a pixel shuffle that doubles a side and divides the width by four. Its discriminator is
the vision transformer.
"""

import copy
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
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


class Generator(nn.Module):
    """Noise ``(batch, latent)`` to images ``(batch, channels, size, size)`` in [-1, 1].

    Args:
        latent: size of the noise.
        side: tokens along a side in the first stage.
        widths: of the tokens in each stage; each a quarter of the one before.
        stages: the blocks of each stage.
        channels: of the images.
        patch: pixels along a side that a last token draws.
        bounded: pixels pass a tanh; without it they are only expected in [-1, 1].
        classes: that it can be asked for, by an embedding added to the tokens of each stage; 0: it knows no classes.
    """

    def __init__(
        self,
        *,
        latent: int,
        side: int,
        widths: Sequence[int],
        stages: Sequence[Sequence[nn.Module]],
        channels: int,
        patch: int,
        bounded: bool,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.latent, self.side, self.patch, self.bounded, self.classes = latent, side, patch, bounded, classes
        self.enter = nn.Linear(latent, side * side * widths[0])
        self.positions = nn.ParameterList(
            nn.Parameter(torch.randn(1, (side * 2**k) ** 2, width) * 0.02) for k, width in enumerate(widths)
        )
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        self.leave = nn.Conv2d(widths[-1], channels * patch * patch, kernel_size=1)
        self.embeddings = nn.ModuleList(nn.Embedding(classes, width) for width in widths if classes)

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks, from the noise to the pixels."""
        return [block for stage in self.stages for block in cast(nn.ModuleList, stage)]

    def forward(self, noise: Tensor, labels: Tensor | None = None, raw: bool = False) -> Tensor:
        """Images ``(batch, channels, size, size)``; ``raw`` ones are before :meth:`bound`. ``labels (batch,)`` are
        classes, of a generator that knows some; without them the classes take turns."""
        side = self.side
        if self.classes and labels is None:
            labels = torch.arange(len(noise), device=noise.device) % self.classes
        y = self.enter(noise.to(self.enter.weight.dtype)).unflatten(-1, (side * side, -1))
        for number, (positions, blocks) in enumerate(zip(self.positions, self.stages, strict=True)):
            if number:
                y = F.pixel_shuffle(y.transpose(1, 2).unflatten(-1, (side, side)), 2).flatten(2).transpose(1, 2)
                side *= 2
            y = y + positions
            if self.classes:
                y = y + self.embeddings[number](labels).unsqueeze(1)
            for block in cast(nn.ModuleList, blocks):
                y = block(y)
        pixels = F.pixel_shuffle(self.leave(y.transpose(1, 2).unflatten(-1, (side, side))), self.patch)
        return pixels if raw else self.bound(pixels)

    def bound(self, pixels: Tensor) -> Tensor:
        """Raw pixels of any shape in [-1, 1], or as they are where the generator is not bounded."""
        return pixels.tanh() if self.bounded else pixels


class Gan(nn.Module):
    """Generator and discriminator; as a function it is the generator.

    Attributes:
        generator: noise to images.
        discriminator: images to scores ``(batch, 1)``, high for real ones; of a class-conditional GAN to
            ``(batch, 1 + classes)``, see :func:`of_class`.
    """

    def __init__(self, generator: Generator, discriminator: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator

    @property
    def latent(self) -> int:
        return self.generator.latent

    @property
    def sides(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    @property
    def classes(self) -> int:
        """That the generator can be asked for; 0 without ``--conditional``."""
        return self.generator.classes

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """``(batch, channels, size, size)``."""
        return self.generator(noise, labels)


def of_class(scores: Tensor, labels: Tensor | None) -> Tensor:
    """Scores ``(batch, 1)`` of images that are said to be of these classes, by projection (Miyato and Koyama 2018).

    The head of the discriminator is linear, so its column 0 is the score without a class, and column ``1 + k`` the
    inner product of the features with the embedding of class k. Without labels the scores are what they are.
    """
    return scores if labels is None else scores[:, :1] + scores.gather(1, 1 + labels.unsqueeze(1))

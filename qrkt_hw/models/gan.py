"""The GAN of two transformers: a generator that grows tokens into pixels, and the vision transformer as discriminator.

After the QRKT-GAN thesis (2024) and TransGAN (Jiang et al. 2021, NeurIPS): noise to a small grid of wide tokens, and
between two stages a pixel shuffle that doubles a side and divides the width by four.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """``labels (batch,)`` are classes, of a generator that knows some; without them the classes take turns."""
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

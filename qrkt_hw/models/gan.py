"""The GAN of two transformers: a generator that grows tokens into pixels, and the vision transformer as its judge.

After the QRKT-GAN thesis (2024) and TransGAN (Jiang et al. 2021, NeurIPS): noise to a small grid of wide tokens, and
between two stages a pixel shuffle that doubles a side and divides the width by four.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qrkt_hw.backends import Backend
from qrkt_hw.data.base import DataShape
from qrkt_hw.errors import UserError
from qrkt_hw.models.build import build_transformer, make_blocks
from qrkt_hw.runs.config import Config, VitConfig


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
    ) -> None:
        super().__init__()
        self.latent, self.side, self.patch, self.bounded = latent, side, patch, bounded
        self.enter = nn.Linear(latent, side * side * widths[0])
        self.positions = nn.ParameterList(
            nn.Parameter(torch.randn(1, (side * 2**k) ** 2, width) * 0.02) for k, width in enumerate(widths)
        )
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        self.leave = nn.Conv2d(widths[-1], channels * patch * patch, kernel_size=1)

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks, from the noise to the pixels."""
        return [block for stage in self.stages for block in cast(nn.ModuleList, stage)]

    def forward(self, noise: Tensor) -> Tensor:
        side = self.side
        y = self.enter(noise.to(self.enter.weight.dtype)).unflatten(-1, (side * side, -1))
        for number, (positions, blocks) in enumerate(zip(self.positions, self.stages, strict=True)):
            if number:
                y = F.pixel_shuffle(y.transpose(1, 2).unflatten(-1, (side, side)), 2).flatten(2).transpose(1, 2)
                side *= 2
            y = y + positions
            for block in cast(nn.ModuleList, blocks):
                y = block(y)
        pixels = F.pixel_shuffle(self.leave(y.transpose(1, 2).unflatten(-1, (side, side))), self.patch)
        return pixels.tanh() if self.bounded else pixels


class Gan(nn.Module):
    """Generator and discriminator; as a function it is the generator.

    Attributes:
        generator: noise to images.
        discriminator: images to scores ``(batch, 1)``, high for real ones.
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

    def forward(self, noise: Tensor) -> Tensor:
        """``(batch, channels, size, size)``."""
        return self.generator(noise)


def build_gan(options: Config, shape: DataShape, backend: str | Backend = "exact") -> Gan:
    """The GAN of these options for images of this shape.

    Raises:
        UserError: sizes that do not fit each other or the data.
    """
    if shape.vocabulary or shape.channels not in (1, 3):
        raise UserError("--model: gan draws images of 1 or 3 channels; this data set has none")
    side, widths = _sizes(options, shape)
    ordinary = _per_stage(options, "generator_blocks")
    steps = _per_stage(options, "generator_rk_blocks")
    stages = [
        make_blocks(generator_stage(options, width, ordinary[k], steps[k]), backend) for k, width in enumerate(widths)
    ]
    generator = Generator(
        latent=options.gan.latent,
        side=side,
        widths=widths,
        stages=stages,
        channels=shape.channels,
        patch=options.gan.generator_patch,
        bounded=options.gan.generator_output == "tanh",
    )
    scored = DataShape(shape.channels, shape.image_size, 1)
    return Gan(generator, build_transformer(discriminator_options(options), scored, backend))


def discriminator_options(options: Config) -> Config:
    """Those of the vision transformer that scores images."""
    gan = options.gan
    return _vit(
        options,
        projection=gan.discriminator_projection or gan.projection,
        encoder_blocks=gan.discriminator_blocks,
        rk_blocks=gan.discriminator_rk_blocks,
        rk=gan.discriminator_rk or gan.rk,
    )


def _vit(options: Config, **keys: Any) -> Config:
    """A part of the GAN as a vision transformer."""
    shared = {key: value for key, value in options.gan if key in VitConfig.model_fields and key != "kind"}
    return options.model_copy(update={"model": VitConfig(**{**shared, **keys})})


def generator_stage(options: Config, width: int, ordinary: int, steps: int) -> Config:
    """Those of the blocks of a stage whose tokens have this width.

    Raises:
        UserError: heads or qubits that do not divide the width.
    """
    size = max(1, round(width * options.gan.generator_mlp_ratio))
    gan = options.gan
    stage = _vit(
        options,
        projection=gan.generator_projection or gan.projection,
        hidden=width,
        heads=gan.generator_heads or gan.heads,
        mlp=size,
        encoder_blocks=ordinary,
        rk_blocks=steps,
        rk=gan.generator_rk or gan.rk,
    )
    if not ordinary + steps:
        return stage
    name = "--generator-hidden: a stage of the generator has tokens of width"
    if width % stage.model.heads:
        raise UserError(f"{name} {width}, which {stage.model.heads} heads do not divide (--generator-heads)")
    if stage.model.quantum_attention and width % stage.circuit.qubits:
        raise UserError(f"{name} {width}, which groups of {stage.circuit.qubits} qubits do not divide (--qubits)")
    if stage.model.quantum_mlp and size % stage.mlp_qubits:
        raise UserError(f"--generator-mlp-ratio: a stage's MLP of {size} is not divisible by {stage.mlp_qubits} qubits")
    return stage


def _sizes(options: Config, shape: DataShape) -> tuple[int, list[int]]:
    """Tokens along a side, and widths, of the stages.

    Raises:
        UserError: the images or the width cannot be divided so often.
    """
    growth = options.gan.generator_patch * 2 ** (options.gan.generator_stages - 1)
    if shape.image_size % growth:
        raise UserError(
            f"--generator-stages: images of {shape.image_size} pixels are not a multiple of {growth}, which "
            f"{options.gan.generator_stages} stages and last patches of {options.gan.generator_patch} need"
        )
    shrink = 4 ** (options.gan.generator_stages - 1)
    if options.gan.generator_hidden % shrink:
        raise UserError(
            f"--generator-hidden: {options.gan.generator_hidden} is not divisible by {shrink}, "
            f"as {options.gan.generator_stages} stages need"
        )
    return shape.image_size // growth, [
        options.gan.generator_hidden // 4**k for k in range(options.gan.generator_stages)
    ]


def _per_stage(options: Config, key: str) -> list[int]:
    counts = [int(part) for part in getattr(options.gan, key).split(",")]
    if len(counts) == 1:
        counts *= options.gan.generator_stages
    if len(counts) != options.gan.generator_stages:
        raise UserError(
            f"--{key.replace('_', '-')}: {len(counts)} numbers for {options.gan.generator_stages} stages "
            "(--generator-stages); name one, or one for each"
        )
    return counts

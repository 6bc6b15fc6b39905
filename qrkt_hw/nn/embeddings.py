"""From images and texts to tokens with their positions, and from tokens to what a classifier's head reads."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qrkt_hw.data.ranks import Dropout, drawn, longest
from qrkt_hw.data.text import trimmed

PADDING = 0  # the id of padding in texts


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
        self.dropout = Dropout(dropout)

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

    def drop_words(self, inputs: Tensor) -> Tensor:
        """The inputs, in training perhaps without some of their tokens."""
        return inputs

    def mask(self, inputs: Tensor) -> Tensor | None:
        """``(batch, tokens)``, False where a token is padding; None where nothing is."""
        return None


class PatchEmbedding(nn.Module):
    """One non-overlapping patch convolution: ``(batch, channels, height, width)`` to ``(batch, tokens, hidden)``."""

    def __init__(self, *, channels: int, hidden: int, patch: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, hidden, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.convolution(images).flatten(2).transpose(1, 2)


def sincos_positions(rows: int, columns: int, hidden: int) -> Tensor:
    """2-D sine-cosine positions ``(rows * columns, hidden)``; half of the width for rows, half for columns.

    After Vaswani et al. 2017 in two dimensions; where ``hidden`` is not a multiple of 4 the rest is zero.
    """
    quarter = hidden // 4
    table = torch.zeros(rows * columns, hidden)
    if quarter:
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(quarter) / max(quarter - 1, 1))
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        parts = [f(axis.flatten()[:, None] * frequencies) for axis in (row, column) for f in (torch.sin, torch.cos)]
        table[:, : 4 * quarter] = torch.cat(parts, dim=1)
    return table


class ImageTokens(Tokens):
    """Tokens of an image: its patches.

    Args:
        image_size, channels, patch, hidden: of image and tokens.
        options: of :class:`Tokens`.
    """

    def __init__(self, *, image_size: int, channels: int, patch: int, hidden: int, **options: Any) -> None:
        side = image_size // patch
        embedding = PatchEmbedding(channels=channels, hidden=hidden, patch=patch)
        super().__init__(embedding, sincos_positions(side, side, hidden), grid=(side, side), **options)


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
        word_dropout: share of the words that a training step drops, drawn anew for each text.
        scale: standard deviation of the embeddings before training.
        options: of :class:`Tokens`.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        hidden: int,
        word_dropout: float = 0.0,
        scale: float = 1.0,
        **options: Any,
    ) -> None:
        embedding = nn.Embedding(vocabulary, hidden, padding_idx=PADDING)
        with torch.no_grad():
            embedding.weight.mul_(scale)
        super().__init__(embedding, sincos_sequence(length, hidden), **options)
        self.word_dropout = word_dropout

    def drop_words(self, ids: Tensor) -> Tensor:
        """In training, the texts without a share of their words; a text keeps its first."""
        if not (self.training and self.word_dropout):
            return ids
        gone = drawn(partial(torch.rand, device=ids.device), ids.shape) < self.word_dropout
        gone[:, 0] = False
        ids = ids.masked_fill(gone, PADDING)
        kept_first = (ids == PADDING).to(torch.uint8).argsort(dim=1, stable=True)
        ids = ids.gather(1, kept_first)
        return ids[:, : longest(trimmed(ids).shape[1])]

    def mask(self, ids: Tensor) -> Tensor | None:
        """``(batch, tokens)``, False where a token is padding; None where nothing is."""
        seen = ids != PADDING
        if bool(seen.all()):
            return None
        if self.class_token is not None:
            seen = torch.cat([seen.new_ones(len(seen), 1), seen], dim=1)
        return seen


class WeightedPool(nn.Module):
    """Weighted sums of the tokens, with a learned weight for each map, position and feature: a mean that knows places.

    The first map starts as the mean; the others start as means with noise of its size, so that they differ.

    Args:
        tokens: number of positions.
        hidden: width of a token.
        maps: sums to make of them.
    """

    def __init__(self, tokens: int, hidden: int, maps: int = 1) -> None:
        super().__init__()
        noise = torch.randn(maps, tokens, hidden)
        noise[0] = 0
        self.weight = nn.Parameter((1 + noise) / tokens)

    def forward(self, y: Tensor) -> Tensor:
        """``(batch, tokens, hidden)`` to ``(batch, maps * hidden)``."""
        return torch.cat([(y * weights).sum(dim=1) for weights in self.weight], dim=-1)

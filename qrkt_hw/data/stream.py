"""A set of parquet files larger than memory, read in order; shuffled by whole files and within a window."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from qrkt_hw.data.images import Statistics, decoded, normalised
from qrkt_hw.data.parquet import image_and_label, rows
from qrkt_hw.errors import UserError

# encoded samples held for shuffling: about 110 MB of ImageNet
WINDOW = 1_000


@dataclass(frozen=True)
class Shard:
    """A parquet file and its number of rows."""

    file: str
    rows: int

    def members(self, split: str) -> np.ndarray:
        """Which rows belong to ``train`` (nine tenths), ``validation`` (one tenth), or ``all``; a function of the
        file's name and the row alone, so that nothing has to be remembered."""
        if split == "all":
            return np.ones(self.rows, dtype=bool)
        name = zlib.crc32(self.file.replace("\\", "/").rpartition("/")[2].encode())
        drawn = np.random.RandomState(name).random_sample(self.rows) < 0.1
        return drawn if split == "validation" else ~drawn


@dataclass
class Stream(Dataset[Any]):
    """Batches of images in a fixed order for ``(seed, epoch)``, whichever process asks for them.

    Attributes:
        shards: the files.
        split: ``train``, ``validation`` or ``all`` of their rows.
        columns: names of the image and label columns.
        size: images are scaled and cropped to this.
        statistics: mean and deviation of the training part.
        classes: number of classes, to refuse other labels.
        limit: only the first samples in file order.
    """

    shards: Sequence[Shard]
    split: str
    columns: tuple[str, str]
    size: int
    statistics: Statistics
    classes: int
    limit: int | None = None

    def __post_init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._next = 0
        self._samples: Iterator[tuple[bytes, int, str]] = iter(())

    def __getstate__(self) -> dict[str, Any]:
        # where a reader stands is its own affair, and no file handle goes to another process
        return {**self.__dict__, "_key": (), "_next": 0, "_samples": iter(())}

    def __len__(self) -> int:
        count = sum(int(shard.members(self.split).sum()) for shard in self.shards)
        return count if self.limit is None else min(count, self.limit)

    def first(self, count: int) -> Stream:
        return replace(self, limit=count)

    def batch(self, seed: int | None, epoch: int, number: int, size: int) -> tuple[Tensor, Tensor]:
        """Batch ``number`` of an epoch. Batches before it are read over, not decoded: each of several workers decodes
        its own and the order does not depend on their number."""
        key = (seed, epoch, size)
        if key != self._key or number < self._next:
            self._samples, self._key, self._next = self._ordered(seed, epoch), key, 0
        while self._next < number:
            for _ in range(size):
                next(self._samples, None)
            self._next += 1
        taken = [sample for _, sample in zip(range(size), self._samples, strict=False)]
        self._next += 1
        if not taken:
            raise UserError(f"{self.shards[-1].file} is damaged: it has fewer rows than it says")
        pixels = torch.stack([decoded(content, name, 3, self.size) for content, _, name in taken])
        return normalised(pixels, self.statistics), torch.tensor([label for _, label, _ in taken])

    def _ordered(self, seed: int | None, epoch: int) -> Iterator[tuple[bytes, int, str]]:
        if seed is None:
            yield from self._rows(self.shards)
            return
        random = np.random.default_rng((seed, epoch))
        # a limit means the first samples, whatever their order is then
        shards = (
            list(self.shards)
            if self.limit is not None
            else [self.shards[k] for k in random.permutation(len(self.shards))]
        )
        window: list[tuple[bytes, int, str]] = []
        for sample in self._rows(shards):
            if len(window) < WINDOW:
                window.append(sample)
                continue
            place = int(random.integers(WINDOW))
            yield window[place]
            window[place] = sample
        for place in random.permutation(len(window)):
            yield window[place]

    def _rows(self, shards: Sequence[Shard]) -> Iterator[tuple[bytes, int, str]]:
        given = 0
        for shard in shards:
            members = shard.members(self.split)
            for k, row in enumerate(rows(shard.file, self.columns)):
                if self.limit is not None and given >= self.limit:
                    return
                if k < len(members) and members[k]:
                    name = f"{shard.file}: row {k}"
                    content, found = image_and_label(row, self.columns, name)
                    if found >= self.classes:
                        raise UserError(f"{name} has label {found}; there are {self.classes} classes")
                    given += 1
                    yield content, found, name

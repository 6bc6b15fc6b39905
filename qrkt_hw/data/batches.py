"""Batches whose order is a function of seed and epoch, so that a resumed run sees what an uninterrupted one saw."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler


class EpochBatches(Sampler[list[int]]):
    """Lists of indices; shuffled by ``(seed, epoch)`` when a seed is given. Lightning calls ``set_epoch``."""

    def __init__(self, size: int, batch_size: int, seed: int | None = None) -> None:
        self.size, self.batch_size, self.seed, self.epoch = size, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.size)
        if self.seed is not None:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        for start in range(0, self.size, self.batch_size):
            yield order[start : start + self.batch_size].tolist()


def loader(dataset: Dataset[Any], batch_size: int, seed: int | None = None) -> DataLoader[Any]:
    """Batches of a data set that takes index lists; in order without a seed."""
    batches = EpochBatches(len(dataset), batch_size, seed)  # type: ignore[arg-type]
    # a generator of its own: a new iterator would draw from torch's, and dropout depend on when it is made
    return DataLoader(dataset, batch_size=None, sampler=batches, generator=torch.Generator())

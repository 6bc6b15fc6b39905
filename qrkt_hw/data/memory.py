"""From the images of two files in memory to a split and normalised data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from qrkt_hw.data.base import Data, DataShape
from qrkt_hw.data.images import MemoryImages, statistics_of
from qrkt_hw.data.split import stratified
from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import DataConfig


def held_out(labels: np.ndarray, limit: int | None, run: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training 90 % and the validation 10 % of a training part, classes in proportion, whatever
    the seed.

    Args:
        labels: ``(samples,)``.
        limit: keeps a fixed, proportional part of the first.
        run: validation is drawn as runs of so many samples of a class that follow each other, for data whose
            neighbours are akin; shorter ones where a class has not fifty of them.

    Raises:
        UserError: fewer than two samples.
    """
    if len(labels) < 2:
        raise UserError(
            f"--dataset: a training part of {len(labels)} samples cannot be split into training and validation"
        )
    run = min(run, int(np.unique(labels, return_counts=True)[1].min()) // 50)
    if run > 1:
        train, validation = _in_runs(labels, run)
    else:
        validation, train = stratified(labels, max(1, round(len(labels) / 10)))
    if limit is not None and limit < len(train):
        kept, _ = stratified(labels[train], limit, salt=2)
        train = train[kept]
    return train, validation


def _in_runs(labels: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation indices; the latter are a tenth of the runs of each class."""
    runs = np.empty(len(labels), dtype=np.int64)
    kinds: list[int] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place = np.arange(len(members)) // length
        runs[members] = place + len(kinds)
        kinds += [int(label)] * (int(place[-1]) + 1)
    drawn, _ = stratified(np.array(kinds, dtype=np.int64), max(1, round(len(kinds) / 10)))
    held = np.isin(runs, drawn)
    return np.flatnonzero(~held), np.flatnonzero(held)


def in_memory(
    options: DataConfig, names: Sequence[str], train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> Data:
    """A data set of images in memory.

    Args:
        options: of the data.
        names: of the classes, in label order.
        train, test: bytes ``(samples, channels, size, size)`` and labels; validation is taken from ``train``.

    Raises:
        UserError: labels without a name, no test images, or parts of different sizes.
    """
    pixels, labels = train
    if not len(test[1]):
        raise UserError(f"--dataset {options.dataset}: the test part holds no images")
    for part in (labels, test[1]):
        wrong = part[(part < 0) | (part >= len(names))]
        if len(wrong):
            raise UserError(f"--dataset {options.dataset}: label {int(wrong[0])} found; there are {len(names)} classes")
    if test[0].shape[1:] != pixels.shape[1:]:
        sizes = " and ".join("x".join(map(str, found.shape[2:])) for found in (pixels, test[0]))
        raise UserError(f"--dataset {options.dataset}: training and test images are {sizes} pixels; give --image-size")
    kept, validation = held_out(labels.numpy(), None)
    # of the whole training part, also where --limit takes less of it: the input stays the same
    statistics = statistics_of(_chunks(pixels, kept))
    kept, validation = held_out(labels.numpy(), options.limit)
    parts = {"train": (pixels, labels, kept), "validation": (pixels, labels, validation)}
    splits = {
        name: MemoryImages(images[torch.from_numpy(index)], marks[torch.from_numpy(index)], statistics)
        for name, (images, marks, index) in parts.items()
    }
    splits["test"] = MemoryImages(*test, statistics)
    shape = DataShape(pixels.shape[1], pixels.shape[-1], len(names))
    return Data(options.dataset, shape, tuple(names), *statistics, splits, resized=options.image_size is not None)


def _chunks(pixels: Tensor, indices: np.ndarray, size: int = 2048) -> Iterator[Tensor]:
    for start in range(0, len(indices), size):
        yield pixels[torch.from_numpy(indices[start : start + size])]


def resized(pixels: Tensor, size: int | None) -> Tensor:
    """Bytes ``(samples, channels, height, width)`` scaled to ``size``; None leaves them."""
    if size is None or pixels.shape[-1] == size:
        return pixels
    parts = [
        torch.nn.functional.interpolate(chunk.float(), size=(size, size), mode="bicubic", antialias=True)
        for chunk in pixels.split(2048)
    ]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])

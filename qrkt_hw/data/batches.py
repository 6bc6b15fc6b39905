"""Batches whose order is a function of seed and epoch, so that a resumed run sees what an uninterrupted one saw."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, TensorDataset

from qrkt_hw.data.parquet import Stream
from qrkt_hw.data.ranks import Ranks, Share, set_share, share
from qrkt_hw.errors import UserError

AT_ONCE = 256  # samples of a stream that are read together


class Draw(NamedTuple):
    """One batch: which samples, and what its random numbers depend on."""

    indices: list[int]
    seed: int | None
    epoch: int
    number: int


class EpochBatches(Sampler[Draw]):
    """Batches of indices; shuffled by ``(seed, epoch)`` when a seed is given. A stream shuffles itself and reads the
    number of a batch alone."""

    def __init__(self, size: int, batch_size: int, seed: int | None = None) -> None:
        self.size, self.batch_size, self.seed, self.epoch = size, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def counts(self) -> list[int]:
        """Samples of each batch."""
        return [min(self.batch_size, self.size - start) for start in range(0, self.size, self.batch_size)]

    def __iter__(self) -> Iterator[Draw]:
        order = np.arange(self.size)
        if self.seed is not None:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        for number, start in enumerate(range(0, self.size, self.batch_size)):
            yield Draw(order[start : start + self.batch_size].tolist(), self.seed, self.epoch, number)


def augmented(
    images: Tensor, kind: str, random: np.random.Generator, part: tuple[list[int], int] | None = None
) -> Tensor:
    """A batch ``(batch, channels, height, width)``, each image on its own flipped left to right, shifted, or both.

    ``crop`` takes its part of the image with a border of an eighth, zero: the mean colour of normalised images.
    ``shift`` moves by a sixteenth at most, at least by up to a pixel, and repeats the edge: for images, like digits,
    whose border is not the mean colour. The images may be ``part``: these rows of a batch of so many, whose
    random numbers they then have.
    """
    _, _, height, width = images.shape
    count = len(images) if part is None else part[1]
    chosen: Any = slice(None) if part is None else part[0]
    if "crop" in kind or kind == "shift":
        border = max(1, height // (16 if kind == "shift" else 8))
        padded = F.pad(images, (border,) * 4, mode="replicate" if kind == "shift" else "constant")
        rows, columns = (torch.from_numpy(random.integers(0, 2 * border + 1, count)[chosen]) for _ in range(2))
        row, column = rows[:, None] + torch.arange(height), columns[:, None] + torch.arange(width)
        images = padded[torch.arange(len(images))[:, None, None], :, row[:, :, None], column[:, None, :]].permute(
            0, 3, 1, 2
        )
    if "flip" in kind:
        flips = torch.from_numpy(random.random(count)[chosen] < 0.5)
        images = torch.where(flips[:, None, None, None], images.flip(-1), images)
    return images.contiguous()


class _Fetched(Dataset[Any]):
    """Batches of a data set; runs in the worker processes. A user's error travels as a value, whole and short."""

    def __init__(
        self, dataset: Dataset[Any], batch_size: int, augment: str, ranks: tuple[int, int], mixup: float = 0.0
    ) -> None:
        self.dataset, self.batch_size, self.augment, self.ranks = dataset, batch_size, augment, ranks
        self.mixup = mixup

    def __getitem__(self, draw: Draw) -> tuple[Tensor, ...] | UserError:
        total = len(draw.indices)
        part = None if self.ranks[1] == 1 else Share.of(total, *self.ranks)
        own = list(range(total)) if part is None else list(range(part.start, part.stop))
        before = self.mixup and part is not None  # a share is mixed with the sample before it, too
        if before:
            own = [(own[0] - 1) % total, *own]
        try:
            if isinstance(self.dataset, Stream):
                inputs, labels = self.dataset.batch(draw.seed, draw.epoch, draw.number, self.batch_size, own)
            else:
                inputs, labels = self.dataset[[draw.indices[k] for k in own]]
                if part is not None and not inputs.is_floating_point():  # texts are as long as the batch's longest
                    inputs = self.dataset[draw.indices][0][own]
        except UserError as error:
            return error
        if self.augment != "none":
            # the 1 keeps these numbers apart from the order of the samples
            random = np.random.default_rng((draw.seed or 0, draw.epoch, 1, draw.number))
            inputs = augmented(inputs, self.augment, random, None if part is None else (own, total))
        if not self.mixup:
            return inputs, labels
        # torchvision's MixUp: one weight for the batch, whose order is drawn already; partners are one place before
        weight = float(np.random.default_rng((draw.seed or 0, draw.epoch, 2, draw.number)).beta(self.mixup, self.mixup))
        inputs = inputs.roll(1, 0).mul_(1 - weight).add_(inputs.mul(weight))
        partners, skip = labels.roll(1), int(before)
        return inputs[skip:], labels[skip:], partners[skip:], torch.tensor(weight)


class Batches(DataLoader[Any]):
    """A DataLoader that raises a worker's UserError as it was and leaves no worker behind. Of several ranks each gets
    its share of every batch."""

    ranks: Ranks

    def whole(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Rows of all samples in their order, of this rank's rows, as of logits or labels."""
        return self.ranks.whole(values, self.sampler.counts())  # type: ignore[attr-defined]

    def __iter__(self) -> Any:
        batches = super().__iter__()
        workers = list(getattr(batches, "_workers", ()))
        try:
            for batch, count in zip(batches, self.sampler.counts(), strict=True):  # type: ignore[attr-defined]
                if isinstance(batch, UserError):
                    raise batch
                set_share(self.ranks.share(count))
                yield batch
        finally:
            set_share(None)
            if workers:
                batches._shutdown_workers()  # type: ignore[attr-defined]
            for worker in workers:  # one that read parquet can hang in arrow's threads when it ends
                worker.join(1)
                if worker.is_alive():
                    worker.kill()
                    worker.join()


def portions(count: int, parts: int, device: torch.device) -> Iterator[slice]:
    """Rows of this process' ``count`` samples of a batch in ``parts``, one after the other. Within each, random numbers
    and weights are those of its rows in the batch, so that sums over all parts do not depend on their number."""
    parts, before = min(parts, count), share()
    if parts == 1:
        yield slice(0, count)
        return
    whole, cuda = before or Share(0, count, count, 1.0), [device] if device.type == "cuda" else []
    state = torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in cuda]
    for k in range(parts):
        torch.set_rng_state(state[0])
        for d, kept in zip(cuda, state[1], strict=True):
            torch.cuda.set_rng_state(kept, d)
        rows = slice(count * k // parts, count * (k + 1) // parts)
        weight = whole.weight * (rows.stop - rows.start) / count
        set_share(Share(whole.start + rows.start, whole.start + rows.stop, whole.total, weight))
        yield rows
    set_share(before)


def loader(
    dataset: Dataset[Any],
    batch_size: int,
    seed: int | None = None,
    workers: int = 0,
    augment: str = "none",
    ranks: Ranks | None = None,
    mixup: float = 0.0,
) -> Batches:
    """Batches of a data set that takes index lists, or of a stream; in order without a seed. The batches, augmentation
    included, are the same for any number of workers, and divided among ``ranks`` where they are given. With ``mixup``
    inputs are mixed, and batches are ``(inputs, labels, partners' labels, weight of the own)``."""
    ranks = ranks or Ranks()
    fetched = _Fetched(dataset, batch_size, augment, (ranks.rank, ranks.count), mixup)
    draws = EpochBatches(len(dataset), batch_size, seed)  # type: ignore[arg-type]
    own = torch.Generator()  # a new iterator would draw from torch's, and dropout depend on when it is made
    batches = Batches(fetched, batch_size=None, sampler=draws, num_workers=workers, generator=own)
    batches.ranks = ranks
    return batches


def in_memory(dataset: Dataset[Any]) -> Dataset[Any]:
    """The data set; a stream, of which no part can be read alone, as its tensors."""
    if not isinstance(dataset, Stream):
        return dataset
    return TensorDataset(*map(torch.cat, zip(*loader(dataset, AT_ONCE), strict=True)))


def first(dataset: Dataset[Any], count: int | None) -> Dataset[Any]:
    """The first ``count`` samples; all where that is None or more than there are."""
    if count is None or count >= len(dataset):  # type: ignore[arg-type]
        return dataset
    return replace(dataset, limit=count) if isinstance(dataset, Stream) else Subset(dataset, range(count))

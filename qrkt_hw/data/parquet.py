"""Parquet files in the hub's layout: all rows into memory, or a stream of batches of a set larger than memory.

Arrow reads the rows. ``datasets`` would copy every file into its cache first, or, streaming, give each worker process
other rows; it says what the columns mean.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from qrkt_hw.data.base import regular
from qrkt_hw.data.images import Part, Statistics, decoded, normalised
from qrkt_hw.errors import UserError, extras

MOST_ROWS = 10**8
WINDOW = 1_000  # encoded samples held for shuffling: about 110 MB of ImageNet
Sample = tuple[bytes, int, str]  # an encoded image, its label, and what to call it in an error
Place = tuple[Any, int, Iterator[Sample]]  # the epoch that is being read, its next batch, and the samples from there
START: Place = (None, 0, iter(()))


def files(folders: Sequence[Path], split: str) -> list[str]:
    """Files of a split in the hub's layout (``train-00000-of-00001.parquet``), sorted; in the first folder that has
    any, or in its ``data``, ``plain_text`` or ``cifar100`` sub-folder."""
    for folder in folders:
        for inner in (folder, folder / "data", folder / "plain_text", folder / "cifar100"):
            found = sorted(inner.glob(f"{split}-*.parquet")) or sorted(inner.glob(f"{split}.parquet"))
            if found:
                return [str(regular(file)) for file in found]
    return []


def rows(file: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of one file in order, encoded images as bytes; memory holds a row group of these columns."""
    with extras():
        import fsspec
        import pyarrow.parquet as pq

    try:
        with fsspec.open(file, "rb") as handle:
            for batch in pq.ParquetFile(handle).iter_batches(64, columns=list(columns), use_threads=False):
                if not set(batch.schema.names) >= {name.partition(".")[0] for name in columns}:
                    raise ValueError("columns are missing")
                yield from batch.to_pylist()
    except Exception as error:  # arrow and fsspec raise many kinds for a file that is not whole
        raise UserError(f"{file} is damaged, or no parquet file with columns {', '.join(columns)}") from error


def _opened(file: str) -> tuple[int, Any]:
    """Number of rows and Arrow schema, from the file's last bytes."""
    with extras():
        import fsspec
        import pyarrow.parquet as pq

    try:
        with fsspec.open(file, "rb") as handle:
            opened = pq.ParquetFile(handle)
            return opened.metadata.num_rows, opened.schema_arrow
    except Exception as error:
        raise UserError(f"{file} is damaged: it is not a parquet file") from error


def column(file: str, wanted: Sequence[str]) -> str:
    """The first of the wanted columns that the file has."""
    names = _opened(file)[1].names
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise UserError(f"{file} has no column {' or '.join(wanted)}; there are {', '.join(names)}")
    return found


def class_names(file: str, labels: Sequence[str], unnamed: Sequence[str]) -> tuple[str, ...]:
    """Names of the classes as the file knows them, or else ``unnamed``; ``labels`` may be the name of its column."""
    with extras():
        import datasets

    label, schema = column(file, labels), _opened(file)[1]
    try:
        feature = datasets.Features.from_arrow_schema(schema).get(label)
        return tuple(map(str, feature.names)) if isinstance(feature, datasets.ClassLabel) else tuple(unnamed)
    except Exception:  # metadata are anybody's text, and datasets checks none of it
        return tuple(unnamed)


def samples(file: str, columns: Sequence[str]) -> Iterator[Sample]:
    """The rows of a file whose ``columns`` are image and label; any other row is refused."""
    for k, row in enumerate(rows(file, columns)):
        name, (image, label) = f"{file}: row {k}", (row[column] for column in columns)
        content = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(content, bytes):
            raise UserError(f"{name} holds no image: its {columns[0]} has no bytes")
        if type(label) is not int or not 0 <= label < 2**31:
            raise UserError(f"{name} has the {columns[1]} {str(label)[:40]!r}; a label is a whole number from 0")
        yield content, label, name


def read_parts(
    folders: Sequence[Path], images: Sequence[str], labels: Sequence[str], channels: int, size: int | None
) -> tuple[Part, Part] | None:
    """All training and all test images of the files in these folders; None where one of the parts has no file.

    ``images`` and ``labels`` are names the columns may have. Images are scaled to ``size``; None keeps theirs, which
    must then be the same for all.
    """
    train, test = (files(folders, part) for part in ("train", "test"))
    if not (train and test):
        return None

    def read(part: list[str]) -> Part:
        pixels, found = list[Tensor](), list[int]()
        for file in part:
            for content, label, name in samples(file, (column(file, images), column(file, labels))):
                pixels.append(decoded(content, name, channels, size))
                found.append(label)
                if pixels[-1].shape != pixels[0].shape or pixels[0].shape[1] != pixels[0].shape[2]:
                    raise UserError(f"{name} is an image of another size, or not square; give --image-size")
        if not pixels:
            raise UserError(f"{part[0]} holds no rows")
        return torch.stack(pixels), np.array(found, dtype=np.int64)

    return read(train), read(test)


class Shard:
    """A parquet file and its number of rows."""

    def __init__(self, file: str) -> None:
        self.file, self.rows = file, _opened(file)[0]
        if not 0 <= self.rows <= MOST_ROWS:
            raise UserError(f"{file} is damaged: it says to hold {self.rows} rows; at most {MOST_ROWS:,} are read")

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
    """Batches of images in a fixed order for ``(seed, epoch)``, whichever process asks for them. Files are shuffled as
    wholes, rows within a window.

    Attributes:
        split: ``train``, ``validation`` or ``all`` of the rows of the shards.
        columns: names of the image and label columns.
        size: images are scaled and cropped to this.
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
    _place: Place = field(default=START, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # where a reader stands is its own affair, and no file handle goes to another process
        return {**self.__dict__, "_place": START}

    def __len__(self) -> int:
        count = sum(int(shard.members(self.split).sum()) for shard in self.shards)
        return count if self.limit is None else min(count, self.limit)

    def batch(
        self, seed: int | None, epoch: int, number: int, size: int, own: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Batch ``number`` of an epoch, or its samples ``own``; the others are not decoded. Batches before it are read
        over, not decoded: each of several workers decodes
        its own and the order does not depend on their number."""
        key, upcoming, samples = self._place
        if key != (seed, epoch, size) or number < upcoming:
            upcoming, samples = 0, self._ordered(seed, epoch)
        taken = list(islice(samples, (number - upcoming) * size, (number - upcoming + 1) * size))
        self._place = (seed, epoch, size), number + 1, samples
        if not taken:
            raise UserError(f"{self.shards[-1].file} is damaged: it has fewer rows than it says")
        taken = taken if own is None else [taken[k] for k in own]
        pixels = torch.stack([decoded(content, name, 3, self.size) for content, _, name in taken])
        return normalised(pixels, self.statistics), torch.tensor([label for _, label, _ in taken])

    def _ordered(self, seed: int | None, epoch: int) -> Iterator[Sample]:
        if seed is None:
            yield from self._rows(self.shards)
            return
        random = np.random.default_rng((seed, epoch))
        shards = self.shards
        if self.limit is None:  # a limit means the first samples, whatever their order is then
            shards = [shards[k] for k in random.permutation(len(shards))]
        window: list[Sample] = []
        for sample in self._rows(shards):
            if len(window) < WINDOW:
                window.append(sample)
            else:
                place = int(random.integers(WINDOW))
                yield window[place]
                window[place] = sample
        for place in random.permutation(len(window)):
            yield window[place]

    def _rows(self, shards: Sequence[Shard]) -> Iterator[Sample]:
        given = 0
        for shard in shards:
            for sample, wanted in zip(samples(shard.file, self.columns), shard.members(self.split), strict=False):
                if given == self.limit:
                    return
                if wanted:
                    if sample[1] >= self.classes:
                        raise UserError(f"{sample[2]} has label {sample[1]}; there are {self.classes} classes")
                    given += 1
                    yield sample

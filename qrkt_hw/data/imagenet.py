"""ImageNet 2012 (Russakovsky et al., 2015): streamed from parquet, or an ImageFolder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from qrkt_hw.data import files, parquet
from qrkt_hw.data.base import Data, DataShape
from qrkt_hw.data.folder import DEFAULT_SIZE, from_folder
from qrkt_hw.data.images import decoded, statistics_of
from qrkt_hw.data.stream import Shard, Stream
from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import DataConfig

HUB = "datasets/ILSVRC/imagenet-1k/data"
SOURCE = "https://huggingface.co/datasets/ILSVRC/imagenet-1k (accept its terms first)"
# rows of the first and of the middle file that stand for the training part's mean and deviation
SAMPLED = 1_000


def load(options: DataConfig) -> Data:
    """``DIR/imagenet`` with ``train`` and ``val`` folders or with parquet in the hub's layout; with --download streamed
    from the hub, nothing kept. The labelled validation files are the test split; the hub's test files bear no labels.

    Raises:
        UserError: missing or damaged files.
    """
    looked = files.places(options, "imagenet", "imagenet-1k")
    for folder in looked:
        if (folder / "train").is_dir():
            return from_folder(options, folder)
    train = [str(file) for file in files.parquet_files(looked, "train")]
    test = [str(file) for file in files.parquet_files(looked, "validation")]
    if not (train and test) and options.download:
        train, test = _on_the_hub("train"), _on_the_hub("validation")
    if not (train and test):
        raise files.missing(
            options, looked, "train and val folders, or train-*.parquet and validation-*.parquet,", SOURCE
        )
    return streamed(options, train, test)


def streamed(options: DataConfig, train: list[str], test: list[str]) -> Data:
    """A data set that is read from parquet files as it is needed."""
    image, label = parquet.column(train[0], ["image", "img"]), parquet.column(train[0], ["label"])
    names = parquet.class_names(train[0], label)
    if names is None:
        names = tuple(str(k) for k in range(1000))
    size = options.image_size or DEFAULT_SIZE
    shards = {
        part: [Shard(file, parquet.row_count(file)) for file in found]
        for part, found in (("train", train), ("test", test))
    }
    columns = (image, label)
    for split, found in shards.items():
        if not any(shard.members("train" if split == "train" else "all").any() for shard in found):
            raise UserError(f"{found[0].file} holds no rows")
    statistics = statistics_of(_sampled(shards["train"], columns, size))

    def part(where: str, split: str, limit: int | None = None) -> Stream:
        return Stream(shards[where], split, columns, size, statistics, len(names), limit)

    splits = {
        "train": part("train", "train", options.limit),
        "validation": part("train", "validation"),
        "test": part("test", "all"),
    }
    return Data(options.dataset, DataShape(3, size, len(names)), names, *statistics, splits, resized=True)


def _sampled(shards: list[Shard], columns: tuple[str, str], size: int) -> Iterator[Tensor]:
    shards = [shard for shard in shards if shard.members("train").any()]
    for place in sorted({0, len(shards) // 2}):
        shard = shards[place]
        members = np.flatnonzero(shard.members("train"))[:SAMPLED]
        wanted, last = set(members.tolist()), int(members[-1])
        for k, row in enumerate(parquet.rows(shard.file, columns)):
            if k > last:
                break
            if k in wanted:
                name = f"{shard.file}: row {k}"
                yield decoded(parquet.image_and_label(row, columns, name)[0], name, 3, size).unsqueeze(0)


def _on_the_hub(split: str) -> list[str]:
    try:
        from huggingface_hub import HfFileSystem

        return [f"hf://{path}" for path in sorted(HfFileSystem().glob(f"{HUB}/{split}-*.parquet"))]
    except Exception as error:  # no network, no account, terms not accepted
        raise UserError(
            f"--download: imagenet cannot be read from the hub ({type(error).__name__}); see {SOURCE}"
        ) from error

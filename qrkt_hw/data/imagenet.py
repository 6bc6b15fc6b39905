"""ImageNet 2012 (Russakovsky et al., 2015) from folders or streamed from parquet, and any other folder of images.

Images are decoded when they are read, so that memory holds file names or a window of the stream only.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from qrkt_hw.data import parquet
from qrkt_hw.data.base import Data, DataShape, held_out, indexed, located, places, regular, stratified
from qrkt_hw.data.images import decoded, read_files, statistics_of
from qrkt_hw.data.parquet import Shard, Stream
from qrkt_hw.errors import UserError, extras
from qrkt_hw.runs.config import DataConfig

HUB = "datasets/ILSVRC/imagenet-1k/data"
SOURCE = "https://huggingface.co/datasets/ILSVRC/imagenet-1k (accept its terms first)"
DEFAULT_SIZE = 64
# files, or rows of the first and of the middle parquet file, that stand for the training part's mean and deviation
SAMPLED_FILES, SAMPLED_ROWS = 2_000, 1_000


def load(options: DataConfig) -> Data:
    """``DIR/imagenet`` with ``train`` and ``val`` folders or with parquet in the hub's layout; with --download streamed
    from the hub, nothing kept. The labelled validation files are the test split; the hub's test files bear no labels.
    """
    looked = places(options, "imagenet", "imagenet-1k")
    for folder in looked:
        if (folder / "train").is_dir():
            return _from_folder(options, folder)

    def find() -> list[list[str]] | None:
        parts = [parquet.files(looked, split) for split in ("train", "validation")]
        return parts if all(parts) else None

    def download() -> list[list[str]] | None:
        with extras():
            from huggingface_hub import HfFileSystem

        found = [sorted(HfFileSystem().glob(f"{HUB}/{split}-*.parquet")) for split in ("train", "validation")]
        return [[f"hf://{path}" for path in part] for part in found] if all(found) else None

    what = "train and val folders, or train-*.parquet and validation-*.parquet,"
    return _streamed(options, *located(options, looked, what, SOURCE, find, download))


def load_folder(options: DataConfig) -> Data:
    """``folder:PATH``; PATH is taken relative to --data-dir where one is given."""
    return _from_folder(options, (options.data_dir or Path()) / options.dataset.partition(":")[2])


def _from_folder(options: DataConfig, path: Path) -> Data:
    """``PATH/train/CLASS/*`` and ``PATH/test`` (or ``val``), or ``PATH/CLASS/*``, of which a tenth becomes test.

    A ``val`` folder without a ``test`` folder is the test split, as ImageNet is used; validation is a tenth of the
    training part.
    """
    if not path.is_dir():
        raise UserError(
            f"--dataset: no folder {path} with images; give one that holds a folder for each class, or --data-dir"
        )
    if (path / "train").is_dir():
        names, files, labels = _listed(path / "train")
        other = next((path / part for part in ("test", "val", "validation") if (path / part).is_dir()), None)
        if other is None:
            raise UserError(f"--dataset: {path} has a folder train, but no test or val")
        test_names, test_files, test_labels = _listed(other)
        if test_names != names:
            differ = sorted(set(names) ^ set(test_names))
            raise UserError(f"--dataset: {other} and {path / 'train'} do not hold the same classes ({differ[0]})")
    else:
        names, files, labels = _listed(path)
        test, rest = stratified(labels, max(1, round(len(labels) / 10)), salt=1)
        test_files, test_labels, files, labels = files[test], labels[test], files[rest], labels[rest]
    size = options.image_size or DEFAULT_SIZE
    whole = files[held_out(labels, None)[0]]
    sampled = np.unique(np.linspace(0, len(whole) - 1, min(SAMPLED_FILES, len(whole))).astype(int))
    statistics = statistics_of(decoded(file, str(file), 3, size).unsqueeze(0) for file in whole[sampled])
    read = partial(read_files, size=size, statistics=statistics)
    splits = indexed((files, labels), (test_files, test_labels), read, options.limit)
    return Data(options.dataset, DataShape(3, size, len(names)), names, *statistics, splits, resized=True)


def _listed(path: Path) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Class names, image files and their labels, as torchvision lists them."""
    with extras():
        from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(path))
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--dataset: {path} must hold one folder of images per class ({reason})") from error
    files = np.empty(len(found.samples), dtype=object)
    files[:] = [regular(Path(file)) for file, _ in found.samples]
    return tuple(found.classes), files, np.array(found.targets, dtype=np.int64)


def _streamed(options: DataConfig, train: list[str], test: list[str]) -> Data:
    columns = parquet.column(train[0], ["image", "img"]), parquet.column(train[0], ["label"])
    names = parquet.class_names(train[0], columns[1:], [str(k) for k in range(1000)])
    size = options.image_size or DEFAULT_SIZE
    shards = {"train": [Shard(file) for file in train], "all": [Shard(file) for file in test]}
    for split, found in shards.items():
        if not any(shard.members(split).any() for shard in found):
            raise UserError(f"{found[0].file} holds no rows")
    statistics = statistics_of(_sampled(shards["train"], columns, size))
    kept: dict[str, Any] = {"columns": columns, "size": size, "statistics": statistics, "classes": len(names)}
    splits = {
        "train": Stream(shards["train"], "train", limit=options.limit, **kept),
        "validation": Stream(shards["train"], "validation", **kept),
        "test": Stream(shards["all"], "all", **kept),
    }
    return Data(options.dataset, DataShape(3, size, len(names)), names, *statistics, splits, resized=True)


def _sampled(shards: list[Shard], columns: tuple[str, str], size: int) -> Iterator[Tensor]:
    shards = [shard for shard in shards if shard.members("train").any()]
    for place in sorted({0, len(shards) // 2}):
        file = shards[place].file
        wanted = set(np.flatnonzero(shards[place].members("train"))[:SAMPLED_ROWS].tolist())
        for k, (content, _, name) in zip(range(max(wanted) + 1), parquet.samples(file, columns), strict=False):
            if k in wanted:
                yield decoded(content, name, 3, size).unsqueeze(0)

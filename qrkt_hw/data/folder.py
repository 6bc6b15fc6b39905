"""Any folder of images, one sub-folder per class; decoded when read, so that memory holds file names only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qrkt_hw.data.base import Data, DataShape
from qrkt_hw.data.files import regular
from qrkt_hw.data.images import FileImages, decoded, statistics_of
from qrkt_hw.data.memory import held_out
from qrkt_hw.data.split import mixed, stratified
from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import DataConfig

DEFAULT_SIZE = 64
# images whose mean and deviation stand for the training part
SAMPLED = 2_000


def load(options: DataConfig) -> Data:
    """``folder:PATH``; PATH is taken relative to --data-dir where one is given.

    Raises:
        UserError: no such folder, or no images in it.
    """
    name = options.dataset.partition(":")[2]
    if not name:
        raise UserError("--dataset: name the folder, as in folder:path/to/images")
    path = (options.data_dir / name) if options.data_dir is not None else Path(name)
    return from_folder(options, path)


def from_folder(options: DataConfig, path: Path) -> Data:
    """``PATH/train/CLASS/*`` and ``PATH/test`` (or ``val``), or ``PATH/CLASS/*``, of which a tenth becomes test.

    A ``val`` folder without a ``test`` folder is the test split, as ImageNet is used; validation is a tenth of the
    training part.

    Raises:
        UserError: no such folder, no images, or classes that differ between the parts.
    """
    if not path.is_dir():
        raise UserError(f"--dataset: no folder {path} with images")
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
        test_files, test_labels = [files[k] for k in test], labels[test]
        files, labels = [files[k] for k in rest], labels[rest]
    size = options.image_size or DEFAULT_SIZE
    whole, _ = held_out(labels, None)
    statistics = statistics_of(_sampled([files[k] for k in whole], size))
    train, validation = held_out(labels, options.limit)

    def part(found: list[Path], marks: np.ndarray, index: np.ndarray) -> FileImages:
        return FileImages([found[k] for k in index], torch.from_numpy(marks[index]), size, statistics)

    splits = {
        "train": part(files, labels, train),
        "validation": part(files, labels, validation[mixed(len(validation))]),
        "test": part(test_files, test_labels, mixed(len(test_labels))),
    }
    return Data(options.dataset, DataShape(3, size, len(names)), names, *statistics, splits, resized=True)


def _listed(path: Path) -> tuple[tuple[str, ...], list[Path], np.ndarray]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(path))
    except (FileNotFoundError, OSError) as error:
        raise UserError(
            f"--dataset: {path} must hold one folder of images per class ({str(error).splitlines()[0]})"
        ) from error
    for file, _ in found.samples:
        regular(Path(file))
    return (
        tuple(found.classes),
        [Path(file) for file, _ in found.samples],
        np.array([label for _, label in found.samples], dtype=np.int64),
    )


def _sampled(files: list[Path], size: int) -> Iterator[Tensor]:
    for k in np.unique(np.linspace(0, len(files) - 1, min(SAMPLED, len(files))).astype(int)):
        yield decoded(files[k], str(files[k]), 3, size).unsqueeze(0)

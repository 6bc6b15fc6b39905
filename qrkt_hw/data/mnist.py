"""MNIST (LeCun, Cortes and Burges, 1998): 60,000 training and 10,000 test images of 28x28 pixels."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qrkt_hw.data import files
from qrkt_hw.data.base import Data
from qrkt_hw.data.memory import in_memory, resized
from qrkt_hw.data.parquet import read_images
from qrkt_hw.errors import UserError
from qrkt_hw.options.data import DataOptions

SOURCE = "https://huggingface.co/datasets/ylecun/mnist"
PARTS = {"train": "train", "test": "t10k"}


def load(options: DataOptions) -> Data:
    """From the four IDX files (plain or .gz), or parquet in the hub's layout.

    Raises:
        UserError: missing or damaged files.
    """
    looked = [files.root(options) / "mnist", files.root(options) / "MNIST" / "raw", files.root(options)]
    found = _parts(options, looked)
    if found is None and options.download:
        _download(files.root(options))
        found = _parts(options, looked)
    if found is None:
        raise files.missing(options, looked, "IDX or parquet files of MNIST", SOURCE)
    return in_memory(options, [str(k) for k in range(10)], *found)


def _parts(options: DataOptions, looked: list[Path]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    for folder in looked:
        pairs = [
            (_file(folder, f"{p}-images-idx3-ubyte"), _file(folder, f"{p}-labels-idx1-ubyte")) for p in PARTS.values()
        ]
        if any(file is not None for pair in pairs for file in pair):
            return tuple(
                _read_pair(folder, part, pair, options) for part, pair in zip(PARTS.values(), pairs, strict=True)
            )  # type: ignore[return-value]
    parquet = {part: files.parquet_files(looked, part) for part in PARTS}
    if all(parquet.values()):
        return tuple(
            read_images(found, ["image", "img"], ["label"], 1, options.image_size) for found in parquet.values()
        )  # type: ignore[return-value]
    return None


def _file(folder: Path, name: str) -> Path | None:
    for candidate in (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx")):
        if candidate.is_file():
            return candidate
    return None


def _read_pair(
    folder: Path, part: str, pair: tuple[Path | None, Path | None], options: DataOptions
) -> tuple[Tensor, Tensor]:
    images, labels = pair
    if images is None or labels is None:
        lacking = f"{part}-{'images-idx3' if images is None else 'labels-idx1'}-ubyte"
        raise UserError(f"--dataset mnist: {folder} lacks {lacking} (plain or .gz)")
    pixels, marks = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or marks.ndim != 1 or len(pixels) != len(marks):
        raise UserError(f"{labels} is damaged: {len(marks)} labels for {len(pixels)} images")
    return resized(torch.from_numpy(pixels).unsqueeze(1), options.image_size), torch.from_numpy(marks.astype(np.int64))


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file of unsigned bytes, plain or gzip.

    Raises:
        UserError: the file is damaged.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged: it cannot be unpacked") from error
    # magic: two zeros, 8 for unsigned bytes, the number of dimensions; then each dimension, big-endian
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise UserError(f"{path} is damaged: it is not an IDX file of bytes")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[k : k + 4], "big") for k in range(4, start, 4)]
    if len(content) < start or len(content) != start + math.prod(shape):
        raise UserError(f"{path} is damaged: {len(content)} bytes do not hold an array of {'x'.join(map(str, shape))}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _download(folder: Path) -> None:
    from torchvision.datasets import MNIST

    try:
        for train in (True, False):
            MNIST(folder, train=train, download=True)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"--download: MNIST could not be fetched into {folder} ({type(error).__name__}); get it from {SOURCE}"
        ) from error

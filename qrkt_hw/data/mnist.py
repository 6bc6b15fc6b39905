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
from qrkt_hw.runs.config import DataConfig

SOURCE = "https://huggingface.co/datasets/ylecun/mnist"
LARGEST = 2**30  # of an unpacked file
PARTS = {"train": "train", "test": "t10k"}


def load(options: DataConfig) -> Data:
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


def _parts(options: DataConfig, looked: list[Path]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
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
    folder: Path, part: str, pair: tuple[Path | None, Path | None], options: DataConfig
) -> tuple[Tensor, Tensor]:
    images, labels = pair
    if images is None or labels is None:
        lacking = f"{part}-{'images-idx3' if images is None else 'labels-idx1'}-ubyte"
        raise UserError(f"--dataset mnist: {folder} lacks {lacking} (plain or .gz)")
    pixels, marks = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(marks):
        raise UserError(f"{labels} is damaged: {len(marks)} labels for {len(pixels)} images")
    if pixels.shape[1] != pixels.shape[2] or not pixels.size:
        raise UserError(f"{images} holds an array of {_times(pixels.shape)}; images with two equal sides are read")
    return resized(torch.from_numpy(pixels).unsqueeze(1), options.image_size), torch.from_numpy(marks.astype(np.int64))


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array of an IDX file of unsigned bytes, plain or gzip; no more is unpacked than its head promises.

    Raises:
        UserError: the file is damaged, or holds an array of other dimensions, or of more than 1 GiB.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            handle = gzip.GzipFile(fileobj=raw) if packed else raw
            # magic: two zeros, 8 for unsigned bytes, the number of dimensions; then each dimension, big-endian
            head = handle.read(4 + 4 * dimensions)
            if head[:4] != bytes([0, 0, 8, dimensions]) or len(head) < 4 + 4 * dimensions:
                raise UserError(f"{path} is damaged: it is not an IDX file of bytes in {dimensions} dimensions")
            shape = tuple(int.from_bytes(head[k : k + 4], "big") for k in range(4, len(head), 4))
            if math.prod(shape) > LARGEST:
                raise UserError(f"{path} promises an array of {_times(shape)}; at most 1 GiB is read")
            content = handle.read(math.prod(shape) + 1)  # one more than there may be; at the end stands the checksum
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged: it cannot be unpacked") from error
    if len(content) != math.prod(shape):
        raise UserError(f"{path} is damaged: its bytes are not the promised array of {_times(shape)}")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _download(folder: Path) -> None:
    from torchvision.datasets import MNIST

    try:
        for train in (True, False):
            MNIST(folder, train=train, download=True)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"--download: MNIST could not be fetched into {folder} ({type(error).__name__}); get it from {SOURCE}"
        ) from error

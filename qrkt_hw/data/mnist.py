"""Handwritten digits: MNIST (LeCun, Cortes and Burges, 1998), 70,000 of 28x28 pixels, and scikit-learn's 1,797 of 8x8.

torchvision downloads MNIST. It does not read it here: its reader takes unpacked files only, checks them by ``assert``
and sets no bound on their size.
"""

import importlib.util
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from qrkt_hw.data.base import Data, DataShape, located, places, stratified, unzipped
from qrkt_hw.data.images import Part, in_memory, resized, times
from qrkt_hw.data.parquet import read_parts
from qrkt_hw.errors import UserError, extras
from qrkt_hw.runs.config import DataConfig

NAMES = tuple("0123456789")
SOURCE = "https://huggingface.co/datasets/ylecun/mnist"
LARGEST = 2**30  # of an unpacked file
TEST, VALIDATION = 360, 144  # of the 1,797 digits


def load(options: DataConfig) -> Data:
    """MNIST from the four IDX files (plain or .gz), or parquet in the hub's layout."""
    looked = places(options, "mnist", "MNIST/raw")

    def find() -> tuple[Part, Part] | None:
        for folder in looked:
            train, test = (
                (_file(folder, f"{part}-images-idx3-ubyte"), _file(folder, f"{part}-labels-idx1-ubyte"))
                for part in ("train", "t10k")
            )
            if any(path.is_file() for path in (*train, *test)):
                return _read_pair(*train, options.image_size), _read_pair(*test, options.image_size)
        return read_parts(looked, ["image", "img"], ["label"], 1, options.image_size)

    def download() -> None:
        with extras():
            from torchvision.datasets import MNIST

        MNIST(looked[-1], download=True)

    return in_memory(options, NAMES, *located(options, looked, "IDX or parquet files of MNIST", SOURCE, find, download))


def _file(folder: Path, name: str) -> Path:
    """The file under any of its names; ``folder / name`` where there is none."""
    candidates = (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx"))
    return next((path for path in candidates if path.is_file()), candidates[0])


def _read_pair(images: Path, labels: Path, size: int | None) -> Part:
    for path in (images, labels):
        if not path.is_file():
            raise UserError(f"--dataset mnist: {path.parent} lacks {path.name} (plain or .gz)")
    pixels, found = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(found):
        raise UserError(f"{labels} is damaged: {len(found)} labels for {len(pixels)} images")
    if pixels.shape[1] != pixels.shape[2] or not pixels.size:
        raise UserError(f"{images} holds an array of {times(pixels.shape)}; images with two equal sides are read")
    return resized(torch.from_numpy(pixels).unsqueeze(1), size), found.astype(np.int64)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes, plain or gzip; no more is unpacked than its head promises."""
    try:
        with path.open("rb") as raw:
            handle = unzipped(raw)
            # magic: two zeros, 8 for unsigned bytes, the number of dimensions; then each dimension, big-endian
            head = handle.read(4 + 4 * dimensions)
            if head[:4] != bytes([0, 0, 8, dimensions]) or len(head) < 4 + 4 * dimensions:
                raise UserError(f"{path} is damaged: it is not an IDX file of bytes in {dimensions} dimensions")
            shape = tuple(int.from_bytes(head[k : k + 4], "big") for k in range(4, len(head), 4))
            size = math.prod(shape)
            if size > LARGEST:
                raise UserError(f"{path} promises an array of {times(shape)}; at most 1 GiB is read")
            content = handle.read(size + 1)  # one more than there may be; at the end stands the checksum
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged: it cannot be unpacked") from error
    if len(content) != size:
        raise UserError(f"{path} is damaged: its bytes are not the promised array of {times(shape)}")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()


def read_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pixels ``(1797, 8, 8)``, 0 to 16, and labels, as ``sklearn.datasets.load_digits`` gives them (Alpaydin and
    Kaynak, UCI, 1998); without importing scikit-learn, which takes most of a second."""
    found = importlib.util.find_spec("sklearn")
    assert found is not None and found.submodule_search_locations
    table = np.loadtxt(Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def split_indices(labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Indices of the 1,293 training, 144 validation and 360 test digits; stratified, the same for every seed."""
    test, rest = stratified(labels, TEST)
    validation, train = stratified(labels[rest], VALIDATION, salt=1)
    return {"train": rest[train], "validation": rest[validation], "test": test}


def load_digits(options: DataConfig) -> Data:
    """scikit-learn's digits, pixel values 0..16 mapped to [0, 1], then normalised by the training part."""
    pixels, digits = read_digits()
    images, labels = torch.from_numpy(pixels / 16.0).float().unsqueeze(1), torch.from_numpy(digits)
    indices = split_indices(digits)
    mean, std = images[indices["train"]].mean().item(), images[indices["train"]].std().item()
    indices["train"] = indices["train"][: options.limit]
    splits = {name: TensorDataset((images[index] - mean) / std, labels[index]) for name, index in indices.items()}
    return Data("digits", DataShape(1, 8, 10), NAMES, (mean,), (std,), splits)

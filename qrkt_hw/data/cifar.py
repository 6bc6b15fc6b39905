"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 32x32 pixels in colour."""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from qrkt_hw.data import files, parquet
from qrkt_hw.data.base import Data
from qrkt_hw.data.memory import in_memory, resized
from qrkt_hw.errors import UserError
from qrkt_hw.options.data import DataOptions

NAMES_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HUB = {
    "cifar10": "https://huggingface.co/datasets/uoft-cs/cifar10",
    "cifar100": "https://huggingface.co/datasets/uoft-cs/cifar100",
}
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}
MEMBERS = {
    "cifar10": {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}
META = {"cifar10": ("batches.meta", "label_names"), "cifar100": ("meta", "fine_label_names")}


def load(options: DataOptions) -> Data:
    """From the pickled batches (a folder or the .tar.gz), or parquet in the hub's layout.

    Raises:
        UserError: missing or damaged files.
    """
    looked = files.places(options, options.dataset)
    found = _found(options, looked)
    if found is None and options.download:
        _download(options)
        found = _found(options, looked)
    if found is None:
        raise files.missing(
            options, looked, f"{FOLDERS[options.dataset]}, its .tar.gz or parquet files", HUB[options.dataset]
        )
    return in_memory(options, *found)


def _found(options: DataOptions, looked: list[Path]) -> tuple[Any, ...] | None:
    name = options.dataset
    for folder in looked:
        inner = folder / FOLDERS[name]
        if inner.is_dir():
            return _pickled(options, _in_folder(inner))
        if (folder / ARCHIVES[name]).is_file():
            return _pickled(options, _in_archive(folder / ARCHIVES[name]))
    shards = {part: files.parquet_files(looked, part) for part in ("train", "test")}
    if not all(shards.values()):
        return None
    labels = ["label", "fine_label"]
    names = parquet.class_names(str(shards["train"][0]), parquet.column(str(shards["train"][0]), labels))
    if names is None:
        names = NAMES_10 if name == "cifar10" else tuple(str(k) for k in range(100))
    parts = (parquet.read_images(shards[p], ["img", "image"], labels, 3, options.image_size) for p in ("train", "test"))
    return names, *parts


class _Opened(Mapping[str, dict[str, Any]]):
    """Unpickled members by name."""

    def __init__(self, where: Path, read: Any, names: list[str]) -> None:
        self.where, self.read, self.names = where, read, names

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _in_folder(folder: Path) -> _Opened:
    def read(name: str) -> dict[str, Any]:
        try:
            with (folder / name).open("rb") as handle:
                return safe_unpickle(handle, folder / name)
        except FileNotFoundError as error:
            raise UserError(f"{folder} lacks the file {name}") from error

    return _Opened(folder, read, [p.name for p in folder.iterdir()])


def _in_archive(archive: Path) -> _Opened:
    contents: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                handle = tar.extractfile(member) if member.isfile() else None
                name = Path(member.name).name
                if handle is not None and (
                    name.endswith("meta") or "batch_" in name or name in ("train", "test", "test_batch")
                ):
                    contents[name] = safe_unpickle(handle, archive / name)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{archive} is damaged: it cannot be unpacked") from error

    def read(name: str) -> dict[str, Any]:
        if name not in contents:
            raise UserError(f"{archive} lacks the file {name}")
        return contents[name]

    return _Opened(archive, read, list(contents))


class _Arrays(pickle.Unpickler):
    """Dictionaries, lists, strings and NumPy arrays; nothing that could run code."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a data file")
        if name == "_reconstruct":
            module = "numpy._core.multiarray"  # where NumPy 2 keeps it; the old name warns
        return super().find_class(module, name)


def safe_unpickle(handle: IO[bytes], path: Path) -> dict[str, Any]:
    """The dictionary of a CIFAR pickle, keys as text.

    Raises:
        UserError: a damaged file, or one that holds anything but arrays, lists, numbers and strings.
    """
    try:
        value = _Arrays(handle, encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: item for key, item in value.items()}
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{path} is damaged, or no CIFAR file ({type(error).__name__})") from error


def _pickled(options: DataOptions, members: _Opened) -> tuple[Any, ...]:
    file, key = META[options.dataset]
    label = "labels" if options.dataset == "cifar10" else "fine_labels"
    try:
        names = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in members[file][key])
    except KeyError as error:
        raise UserError(f"{members.where / file} is damaged: it lacks {key}") from error
    parts = []
    for part in ("train", "test"):
        pixels: list[np.ndarray] = []
        labels: list[int] = []
        for name in MEMBERS[options.dataset][part]:
            content = members[name]
            try:
                pixels.append(np.asarray(content["data"], np.uint8).reshape(-1, 3, 32, 32))
                labels.extend(int(k) for k in content[label])
            except (KeyError, ValueError, TypeError) as error:
                raise UserError(f"{members.where / name} is damaged: no images and labels in it") from error
            if sum(map(len, pixels)) != len(labels):
                raise UserError(f"{members.where / name} is damaged: not as many labels as images")
        images: Tensor = torch.from_numpy(np.concatenate(pixels))
        parts.append((resized(images, options.image_size), torch.tensor(labels)))
    return names, *parts


def _download(options: DataOptions) -> None:
    from torchvision.datasets import CIFAR10, CIFAR100

    folder = files.root(options)
    try:
        (CIFAR10 if options.dataset == "cifar10" else CIFAR100)(folder, download=True)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"--download: {options.dataset} could not be fetched into {folder} ({type(error).__name__}); "
            f"get it from {HUB[options.dataset]}"
        ) from error

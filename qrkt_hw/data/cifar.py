"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 32x32 pixels in colour."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from qrkt_hw.data import files, parquet
from qrkt_hw.data.base import Data
from qrkt_hw.data.memory import in_memory, resized
from qrkt_hw.data.pickles import read_pickle
from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import DataConfig

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
# the largest true ones: 148 MiB, and 178 MiB unpacked
LARGEST_FILE, LARGEST_ARCHIVE = 2**28, 2**29
META = {"cifar10": ("batches.meta", "label_names"), "cifar100": ("meta", "fine_label_names")}


def load(options: DataConfig) -> Data:
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


def _found(options: DataConfig, looked: list[Path]) -> tuple[Any, ...] | None:
    name = options.dataset
    for folder in looked:
        inner = folder / FOLDERS[name]
        if inner.is_dir():
            return _pickled(options, _in_folder(inner))
        if (folder / ARCHIVES[name]).is_file():
            wanted = {META[name][0], *MEMBERS[name]["train"], *MEMBERS[name]["test"]}
            return _pickled(options, _in_archive(folder / ARCHIVES[name], wanted))
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
        file = folder / name
        if not file.exists():
            raise UserError(f"{folder} lacks the file {name}")
        if files.regular(file).stat().st_size > LARGEST_FILE:
            raise UserError(f"{file} is larger than {LARGEST_FILE >> 20} MiB, and so no CIFAR file")
        return safe_unpickle(file.read_bytes(), file)

    return _Opened(folder, read, [p.name for p in folder.iterdir()])


class _Bounded:
    """A stream that ends in an error after so many bytes, whatever a small archive would unpack to."""

    def __init__(self, handle: IO[bytes], left: int, name: Path) -> None:
        self.handle, self.left, self.name = handle, left, name

    def read(self, size: int) -> bytes:
        content = self.handle.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise UserError(f"{self.name} unpacks to more than {LARGEST_ARCHIVE >> 20} MiB, and so is no CIFAR archive")
        return content


def _in_archive(archive: Path, wanted: set[str]) -> _Opened:
    contents: dict[str, dict[str, Any]] = {}
    try:
        with archive.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = _Bounded(gzip.GzipFile(fileobj=raw) if packed else raw, LARGEST_ARCHIVE, archive)  # type: ignore[arg-type]
            with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
                for member in tar:
                    name = Path(member.name).name
                    # a sparse member promises any size without bytes for it
                    if not member.isfile() or member.issparse() or member.size > LARGEST_FILE or name not in wanted:
                        continue
                    handle = tar.extractfile(member)
                    assert handle is not None
                    contents[name] = safe_unpickle(handle.read(), archive / name)
            while stream.read(2**20):  # to the end, where the checksum stands
                pass
    except UserError:
        raise
    except Exception as error:  # a damaged archive raises nearly anything
        raise UserError(f"{archive} is damaged: it cannot be unpacked") from error

    def read(name: str) -> dict[str, Any]:
        if name not in contents:
            raise UserError(f"{archive} lacks the file {name}")
        return contents[name]

    return _Opened(archive, read, list(contents))


def safe_unpickle(content: bytes, path: Path) -> dict[str, Any]:
    """The dictionary of a CIFAR pickle, keys as text.

    Raises:
        UserError: a damaged file, or one that holds anything but arrays, lists, numbers and strings.
    """
    try:
        return read_pickle(content)
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{path} is damaged, or no CIFAR file ({error or type(error).__name__})") from error


def _pickled(options: DataConfig, members: _Opened) -> tuple[Any, ...]:
    file, key = META[options.dataset]
    label = "labels" if options.dataset == "cifar10" else "fine_labels"
    listed = members[file].get(key)
    if not (isinstance(listed, list) and listed and all(isinstance(name, (bytes, str)) for name in listed)):
        raise UserError(f"{members.where / file} is damaged: it lacks {key}, a list of names")
    names = tuple(n.decode(errors="replace") if isinstance(n, bytes) else n for n in listed)
    parts = []
    for part in ("train", "test"):
        pixels: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        for name in MEMBERS[options.dataset][part]:
            content, where = members[name], members.where / name
            images, marks = content.get("data"), content.get(label)
            if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == (3072,)):
                raise UserError(f"{where} is damaged: its data are no rows of 3,072 bytes")
            if not isinstance(marks, (list, np.ndarray)) or len(marks) != len(images):
                raise UserError(f"{where} is damaged: not as many labels as images")
            if isinstance(marks, list):
                marks = np.array([k if type(k) is int and -1 <= k < 2**31 else -1 for k in marks], dtype=np.int64)
            if marks.ndim != 1 or (len(marks) and not 0 <= int(marks.min()) <= int(marks.max()) < len(names)):
                raise UserError(f"{where} is damaged: its labels are no numbers from 0 to {len(names) - 1}")
            pixels.append(images.reshape(-1, 3, 32, 32))
            labels.append(marks.astype(np.int64))
        all_pixels, all_labels = (torch.from_numpy(np.concatenate(found)) for found in (pixels, labels))
        parts.append((resized(all_pixels, options.image_size), all_labels))
    return names, *parts


def _download(options: DataConfig) -> None:
    from torchvision.datasets import CIFAR10, CIFAR100

    folder = files.root(options)
    try:
        (CIFAR10 if options.dataset == "cifar10" else CIFAR100)(folder, download=True)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"--download: {options.dataset} could not be fetched into {folder} ({type(error).__name__}); "
            f"get it from {HUB[options.dataset]}"
        ) from error

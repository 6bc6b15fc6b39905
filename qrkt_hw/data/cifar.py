"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 32x32 pixels in colour.

torchvision downloads them. It does not read them here: it unpickles, and a pickle can run any code.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from qrkt_hw.data import parquet
from qrkt_hw.data.base import Data, located, places, regular
from qrkt_hw.data.images import Part, in_memory, resized
from qrkt_hw.errors import UserError
from qrkt_hw.options.data import DataOptions

# the largest true ones: 148 MiB, and 178 MiB unpacked
LARGEST_FILE, LARGEST_ARCHIVE = 2**28, 2**29
NAMES_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _Layout(NamedTuple):
    """Where the published files keep what."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    names: str
    labels: str


LAYOUTS = {
    "cifar10": _Layout(
        "cifar-10-batches-py", "cifar-10-python.tar.gz", tuple(f"data_batch_{k}" for k in range(1, 6)),
        ("test_batch",), "batches.meta", "label_names", "labels",
    ),
    "cifar100": _Layout(
        "cifar-100-python", "cifar-100-python.tar.gz", ("train",), ("test",), "meta", "fine_label_names", "fine_labels"
    ),
}  # fmt: skip


def load(options: DataOptions) -> Data:
    """From the pickled batches (a folder or the .tar.gz), or parquet in the hub's layout.

    Raises:
        UserError: missing or damaged files.
    """
    name, layout, looked = options.dataset, LAYOUTS[options.dataset], places(options, options.dataset)
    wanted = (layout.meta, *layout.train, *layout.test)

    def find() -> tuple[tuple[str, ...], Part, Part] | None:
        for folder in looked:
            if (path := folder / layout.folder).is_dir():
                return _unpickled(layout, path, _in_folder(path, wanted), options.image_size)
            if (path := folder / layout.archive).is_file():
                return _unpickled(layout, path, _in_archive(path, wanted), options.image_size)
        labels = ["label", "fine_label"]
        parts = parquet.read_parts(looked, ["img", "image"], labels, 3, options.image_size)
        if parts is None:
            return None
        names = parquet.class_names(parquet.files(looked, "train")[0], labels)
        if names is None:
            names = NAMES_10 if name == "cifar10" else tuple(map(str, range(100)))
        return names, *parts

    def download() -> None:
        from torchvision import datasets

        (datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100)(looked[-1], download=True)

    what = f"{layout.folder}, its .tar.gz or parquet files"
    source = f"https://huggingface.co/datasets/uoft-cs/{name}"
    return in_memory(options, *located(options, looked, what, source, find, download))


def _in_folder(folder: Path, wanted: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for name in wanted:
        file = folder / name
        if not file.exists():
            raise UserError(f"{folder} lacks the file {name}")
        if regular(file).stat().st_size > LARGEST_FILE:
            raise UserError(f"{file} is larger than {LARGEST_FILE >> 20} MiB, and so no CIFAR file")
        yield name, file.read_bytes()


def _in_archive(archive: Path, wanted: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    try:
        with archive.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            # to the end, where the checksum stands, but no more than a true archive has
            content = (gzip.GzipFile(fileobj=raw) if packed else raw).read(LARGEST_ARCHIVE + 1)
        if len(content) > LARGEST_ARCHIVE:
            raise UserError(f"{archive} unpacks to more than {LARGEST_ARCHIVE >> 20} MiB, and so is no CIFAR archive")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            # a sparse member promises any size without bytes for it
            members = {Path(one.name).name: one for one in tar if one.isfile() and not one.issparse()}
            for name in wanted:
                if name not in members:
                    raise UserError(f"{archive} lacks the file {name}")
                handle = tar.extractfile(members[name])
                yield name, handle.read() if handle else b""
    except UserError:
        raise
    except Exception as error:  # a damaged archive raises nearly anything
        raise UserError(f"{archive} is damaged: it cannot be unpacked") from error


def _unpickled(
    layout: _Layout, where: Path, members: Iterator[tuple[str, bytes]], size: int | None
) -> tuple[tuple[str, ...], Part, Part]:
    contents = {name: _content(content, where / name) for name, content in members}
    listed = contents[layout.meta].get(layout.names)
    if not (isinstance(listed, list) and listed and all(isinstance(name, (bytes, str)) for name in listed)):
        raise UserError(f"{where / layout.meta} is damaged: it lacks {layout.names}, a list of names")
    names = tuple(n.decode(errors="replace") if isinstance(n, bytes) else n for n in listed)

    def part(files: tuple[str, ...]) -> Part:
        pixels, labels = [], []
        for name in files:
            images, found = contents[name].get("data"), contents[name].get(layout.labels)
            damaged = f"{where / name} is damaged"
            if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == (3072,)):
                raise UserError(f"{damaged}: its data are no rows of 3,072 bytes")
            if not isinstance(found, (list, np.ndarray)) or len(found) != len(images):
                raise UserError(f"{damaged}: not as many labels as images")
            if isinstance(found, list):
                found = np.array([k if type(k) is int and -1 <= k < 2**31 else -1 for k in found], dtype=np.int64)
            if found.ndim != 1 or (len(found) and not 0 <= int(found.min()) <= int(found.max()) < len(names)):
                raise UserError(f"{damaged}: its labels are no numbers from 0 to {len(names) - 1}")
            pixels.append(images.reshape(-1, 3, 32, 32))
            labels.append(found.astype(np.int64))
        return resized(torch.from_numpy(np.concatenate(pixels)), size), torch.from_numpy(np.concatenate(labels))

    return names, part(layout.train), part(layout.test)


# -- a pickle that can only hold data ---------------------------------------------------------------------------------

# a batch of CIFAR has up to 400,000; each can take some 100 bytes of memory
MOST_OPCODES = 2_000_000
# of None, booleans, whole numbers, strings, tuples, lists, dictionaries, the memo, globals, their calls and states
OPCODES = b"\x80\x95.(N\x88\x89IKMJL\x8aVX\x8c\x8dBC\x8eSTUpqr\x94ghj}dsu]lae)t\x85\x86\x87c\x93Rb"


class _Type:
    """Stands for ``numpy.dtype``: whole numbers only, byte order as its state says."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        self.code, self.order = _text(code), "="
        if self.code not in ("u1", "i1", "i2", "i4", "i8"):
            raise ValueError(f"numbers of type {self.code!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _text(state[1])


class _Array:
    """Stands for a new ``numpy.ndarray``; its values come with its state."""

    def __init__(self, *_: Any) -> None:
        self.values: np.ndarray = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        if not (isinstance(kind, _Type) and isinstance(shape, tuple) and isinstance(content, bytes)):
            raise ValueError("an array of anything but numbers")
        if not (1 <= len(shape) <= 4 and all(type(n) is int and n >= 0 for n in shape)):
            raise ValueError("an array of no valid shape")
        flat = np.frombuffer(content, np.dtype(kind.order + kind.code))
        self.values = flat.reshape(shape, order="F" if fortran else "C")


def _text(value: str | bytes) -> str:
    if not isinstance(value, (str, bytes)):
        raise ValueError(f"a {type(value).__name__} in the place of a name")
    return value.decode() if isinstance(value, bytes) else value


def _encoded(text: str, encoding: str) -> bytes:
    """Stands for ``_codecs.encode``, by which protocol 2 writes bytes."""
    if not isinstance(text, str) or _text(encoding) != "latin1":
        raise ValueError("a text in another encoding than latin1")
    return text.encode("latin1")


class _Unpickler(pickle._Unpickler):  # in Python: the one in C follows a memo index of any size, and nested keys
    """Takes the opcodes of data alone, and for each global its stand-in above: nothing of the file is run."""

    GLOBALS = {
        "numpy.core.multiarray._reconstruct": _Array,
        "numpy._core.multiarray._reconstruct": _Array,
        "numpy.ndarray": None,
        "numpy.dtype": _Type,
        "_codecs.encode": _encoded,
    }

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.GLOBALS:
            raise ValueError(f"{f'{module}.{name}'[:60]!r} does not belong in a CIFAR file")
        return self.GLOBALS[f"{module}.{name}"]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.dispatch = _Checked(self)  # type: ignore[misc]


class _Checked(dict[int, Any]):
    """The unpickler's own method for each opcode, if the opcode may stand there."""

    def __init__(self, unpickler: Any) -> None:
        super().__init__(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]
        self.unpickler, self.left = unpickler, MOST_OPCODES

    def __getitem__(self, code: int) -> Any:
        stack, self.left = self.unpickler.stack, self.left - 1
        if code not in OPCODES or self.left < 0:
            raise ValueError(f"opcode {code} does not belong in a CIFAR file, or more than {MOST_OPCODES:,} opcodes")
        if code in b"sud":  # items of a dictionary
            for key in stack[-2:-1] if code == ord("s") else stack[::2]:
                _text(key)
        if code == ord("b") and not isinstance(stack[-2], (_Array, _Type)):
            raise ValueError("a state of something that has none")
        return super().__getitem__(code)


def read_pickle(content: bytes) -> dict[str, Any]:
    """The dictionary of a pickle, keys as text; arrays of whole numbers as NumPy arrays, old strings as bytes.

    Raises:
        ValueError: a damaged file, or one with anything else in it.
    """
    try:
        found = _Unpickler(content).load()
        return {_text(key): item.values if isinstance(item, _Array) else item for key, item in found.items()}
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(str(error) or type(error).__name__) from error


def _content(content: bytes, path: Path) -> dict[str, Any]:
    try:
        return read_pickle(content)
    except ValueError as error:
        raise UserError(f"{path} is damaged, or no CIFAR file ({error})") from error

"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 32x32 pixels in colour.

torchvision downloads them. It does not read them here: it unpickles, and a pickle can run any code.
"""

import io
import pickle
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from qrkt_hw.data import parquet
from qrkt_hw.data.base import Data, located, places, regular, unzipped
from qrkt_hw.data.images import Part, in_memory, resized
from qrkt_hw.errors import UserError, extras
from qrkt_hw.runs.config import DataConfig

LARGEST_FILE, LARGEST_ARCHIVE = 2**28, 2**29  # the largest true ones: 148 MiB, and 178 MiB unpacked
NAMES_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _Layout(NamedTuple):
    """Where the published files keep what: members of a folder or archive, and keys of their pickles."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    meta: str
    names: str
    labels: str


BATCHES = tuple(f"data_batch_{k}" for k in range(1, 6))
PLACES_10 = "cifar-10-batches-py", "cifar-10-python.tar.gz", BATCHES, "test_batch", "batches.meta"
PLACES_100 = "cifar-100-python", "cifar-100-python.tar.gz", ("train",), "test", "meta"
LAYOUTS = {
    "cifar10": _Layout(*PLACES_10, "label_names", "labels"),
    "cifar100": _Layout(*PLACES_100, "fine_label_names", "fine_labels"),
}


def load(options: DataConfig) -> Data:
    """From the pickled batches (a folder or the .tar.gz), or parquet in the hub's layout."""
    name, layout, looked = options.dataset, LAYOUTS[options.dataset], places(options, options.dataset)
    wanted = (layout.meta, *layout.train, layout.test)

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
        numbers = tuple(map(str, range(100)))
        file = parquet.files(looked, "train")[0]
        return parquet.class_names(file, labels, NAMES_10 if name == "cifar10" else numbers), *parts

    def download() -> None:
        with extras():
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
            # to the end, where the checksum stands, but no more than a true archive has
            content = unzipped(raw).read(LARGEST_ARCHIVE + 1)
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
    contents: dict[str, dict[str, Any]] = {}
    for name, content in members:
        try:
            contents[name] = read_pickle(content)
        except ValueError as error:
            raise UserError(f"{where / name} is damaged, or no CIFAR file ({error})") from error
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
        return resized(torch.from_numpy(np.concatenate(pixels)), size), np.concatenate(labels)

    return names, part(layout.train), part((layout.test,))


MOST_OPCODES = 2_000_000  # a batch of CIFAR has up to 400,000; each can take some 100 bytes of memory
# of None, booleans, whole numbers, strings, tuples, lists, dictionaries, the memo, globals, their calls and states
OPCODES = b"\x80\x95.(N\x88\x89IKMJL\x8aVX\x8c\x8dBC\x8eSTUpqr\x94ghj}dsu]lae)t\x85\x86\x87c\x93Rb"


def _text(value: str | bytes) -> str:
    if not isinstance(value, (str, bytes)):
        raise ValueError(f"a {type(value).__name__} in the place of a name")
    return value.decode() if isinstance(value, bytes) else value


class _Object:
    """Stands for an array or for its type: keeps what the file says of it."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _array(found: Any) -> Any:
    """The array of whole numbers that an object stands for; anything else as it is."""
    if not isinstance(found, _Object):
        return found
    _, shape, kind, fortran, content = found.state
    dtype = _text(kind.state[1]) + _text(kind.arguments[0])
    if not (re.fullmatch("[<>|=](u1|i[1248])", dtype) and isinstance(content, bytes)):
        raise ValueError("an array of anything but whole numbers")
    if not (1 <= len(shape) <= 4 and all(type(n) is int and n >= 0 for n in shape)):
        raise ValueError("an array of no valid shape")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _encoded(text: str, encoding: str) -> bytes:
    """Stands for ``_codecs.encode``, by which protocol 2 writes bytes."""
    if not isinstance(text, str) or _text(encoding) != "latin1":
        raise ValueError("a text in another encoding than latin1")
    return text.encode("latin1")


GLOBALS = {
    "numpy.core.multiarray._reconstruct": _Object,
    "numpy._core.multiarray._reconstruct": _Object,
    "numpy.ndarray": None,  # an argument of the former
    "numpy.dtype": _Object,
    "_codecs.encode": _encoded,
}


def _checked(code: int) -> Any:
    """The method of Python's unpickler for this opcode, if the opcode may stand there."""

    def read(unpickler: Any) -> None:
        stack, unpickler.left = unpickler.stack, unpickler.left - 1
        if unpickler.left < 0:
            raise ValueError(f"more than {MOST_OPCODES:,} opcodes")
        if code in b"sud":  # items of a dictionary
            for key in stack[-2:-1] if code == ord("s") else stack[::2]:
                _text(key)
        if code == ord("b") and not isinstance(stack[-2], _Object):
            raise ValueError("a state of something that has none")
        pickle._Unpickler.dispatch[code](unpickler)  # type: ignore[attr-defined]

    return read


class _Unpickler(pickle._Unpickler):  # in Python: the one in C follows a memo index of any size, and nested keys
    """Takes the opcodes of data alone, and for each global its stand-in above: nothing of the file is run."""

    dispatch = {code: _checked(code) for code in OPCODES}
    left = MOST_OPCODES

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in GLOBALS:
            raise ValueError(f"{f'{module}.{name}'[:60]!r} does not belong in a CIFAR file")
        return GLOBALS[f"{module}.{name}"]


def read_pickle(content: bytes) -> dict[str, Any]:
    """The dictionary of a pickle, keys as text; arrays of whole numbers as NumPy arrays, old strings as bytes.

    Raises:
        ValueError: a damaged file, or one with anything else in it.
    """
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        return {_text(key): _array(item) for key, item in found.items()}
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(str(error) or type(error).__name__) from error

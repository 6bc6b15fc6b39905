"""What every data set looks like, where its files are found, and how it is split."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import DataConfig

SPLIT_SEED = 20_240_613  # of RandomState, whose stream is frozen by NumPy's compatibility policy
Found = TypeVar("Found")
Finder = Callable[[], Found | None]
Indices = NDArray[np.int64]
Labelled = tuple[Any, Indices]


@dataclass(frozen=True)
class DataShape:
    """What a model must know of its data.

    Attributes:
        channels, image_size: of the images; pixels along a side. Both 0 for text.
        vocabulary, length: of texts: number of token ids, most tokens of a sample. Both 0 for images.
    """

    channels: int
    image_size: int
    classes: int
    vocabulary: int = 0
    length: int = 0

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> DataShape:
        """The shape that a run's ``data.json`` describes."""
        vocabulary, length = len(description.get("vocabulary", ())), description.get("length", 0)
        classes = len(description["class_names"])
        return cls(description["channels"], description["image_size"], classes, vocabulary, length)

    def tokens(self, patch: int) -> int:
        """Tokens of a sample, without class token."""
        return self.length if self.vocabulary else (self.image_size // patch) ** 2


@dataclass(frozen=True)
class Data:
    """A data set, split and normalised.

    Attributes:
        name: as on the command line.
        class_names: in label order.
        mean, std: per channel, of the training part's pixels in [0, 1]. Empty for text.
        splits: ``train``, ``validation``, ``test``: each an :class:`Indexed` or alike, or a
            :class:`qrkt_hw.data.parquet.Stream`, which is read in order.
        resized: images of any size are scaled and cropped to ``shape.image_size``.
        vocabulary: the words of the token ids; made of the training part.
        as_given: the inputs are floats of a user's dataset, taken as they are.
        backbone: a user's module between the inputs and the transformer; ``shape`` is that of its features.
        input_shape: of one input of the backbone.
        labels_sha256: of the labels of a user's dataset, split by split.
    """

    name: str
    shape: DataShape
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: Mapping[str, Dataset[Any]] = field(repr=False)
    resized: bool = False
    vocabulary: tuple[str, ...] = field(default=(), repr=False)
    as_given: bool = False
    backbone: nn.Module | None = field(default=None, repr=False)
    input_shape: tuple[int, ...] = ()
    labels_sha256: str = ""

    def describe(self) -> dict[str, Any]:
        """What a run keeps to use its model without the data (``data.json``)."""
        shape = self.shape
        described: dict[str, Any] = {"dataset": self.name, "channels": shape.channels, "image_size": shape.image_size}
        described |= {"class_names": list(self.class_names), "mean": list(self.mean), "std": list(self.std)}
        if self.resized:
            described["resized"] = True
        if self.vocabulary:
            described |= {"vocabulary": list(self.vocabulary), "length": shape.length}
        if self.as_given:
            described["as_given"] = True
        if self.labels_sha256:
            described["labels_sha256"] = self.labels_sha256
        if self.backbone is not None:
            described["backbone"] = {"class": type(self.backbone).__name__, "input_shape": list(self.input_shape)}
        return described


class Indexed(Dataset[Any]):
    """Samples by index lists, which give ``(inputs, labels)``: images float32 ``(batch, channels, size, size)`` or
    token ids int64 ``(batch, longest)`` padded with 0, and labels int64 ``(batch,)``. ``read`` makes the inputs of a
    batch of what is kept of its samples, an array or tensor."""

    def __init__(self, inputs: Any, labels: Tensor, read: Callable[[Any], Tensor]) -> None:
        self.inputs, self.labels, self.read = inputs, labels, read

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.read(self.inputs[indices]), self.labels[indices]


def places(options: DataConfig, *names: str) -> list[Path]:
    """Folders a data set may lie in: ``DIR/name`` for each name, then ``DIR`` itself (``data`` unless given)."""
    root = options.data_dir or Path("data")
    return [*(root / name for name in names), root]


def located(
    options: DataConfig, looked: Sequence[Path], what: str, source: str, find: Finder[Found], download: Finder[Found]
) -> Found:
    """What ``find`` reads from the files; with --download, where there are none, what ``download`` reads from the hub,
    or what is found after it has written files. Else the folders ``looked`` in, ``what`` is missing and its ``source``
    are named."""
    found, name = find(), options.dataset
    if found is None and options.download:
        try:
            found = download()
        except Exception as error:  # no network, no account, terms not accepted: each library raises its own
            kind = type(error).__name__
            raise UserError(f"--download: {name} could not be fetched ({kind}); get it from {source}") from error
        found = find() if found is None else found
    if found is None:
        folders, advice = ", ".join(map(str, looked)), "" if options.download else ", or add --download"
        get = f"get it from {source} and name its folder with --data-dir{advice}"
        raise UserError(f"--dataset {name}: no {what} in {folders}; {get}")
    return found


def regular(path: Path, name: str = "") -> Path:
    """The path, but of no folder, device or pipe, on which reading would wait for ever; ``name`` is for the error."""
    if path.exists() and not path.is_file():
        raise UserError(f"{name or path} is no file that can be read: it is a folder, a pipe or a device")
    return path


def unzipped(raw: BinaryIO) -> Any:
    """An open file, unpacked as it is read where it is gzip."""
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if packed else raw


def stratified(labels: Indices, count: int, salt: int = 0) -> tuple[Indices, Indices]:
    """Draw ``count`` indices, classes in proportion: the drawn and the remaining ones, both ascending. They depend on
    the labels and ``salt`` alone: never on a run's seed, a library's version or the platform.

    All samples are ranked by their relative place in a fixed random order of their class. So each class gives its share
    rounded to the nearest sample, and the total is exact.
    """
    if not 0 <= count <= len(labels):
        raise ValueError(f"cannot draw {count} of {len(labels)} samples")
    random = np.random.RandomState(SPLIT_SEED + salt)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[random.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.lexsort((labels, place))
    return np.sort(order[:count]), np.sort(order[count:])


def held_out(labels: Indices, limit: int | None, run: int = 1) -> tuple[Indices, Indices]:
    """Indices of the training 90 % and the validation 10 % of a training part, classes in proportion; ``limit`` keeps a
    fixed, proportional part of the first. Validation is drawn as runs of ``run`` samples of a class that follow each
    other, for data whose neighbours are akin; shorter ones where a class has not fifty of them."""
    if len(labels) < 2:
        what = f"a training part of {len(labels)} samples"
        raise UserError(f"--dataset: {what} cannot be split into training and validation")
    run = max(1, min(run, int(np.unique(labels, return_counts=True)[1].min()) // 50))
    runs, classes = np.empty(len(labels), dtype=np.int64), list[int]()  # the run of each sample, the class of each run
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place = np.arange(len(members)) // run
        runs[members] = place + len(classes)
        classes += [int(label)] * (int(place[-1]) + 1)
    drawn, _ = stratified(np.array(classes, dtype=np.int64), max(1, round(len(classes) / 10)))
    held = np.isin(runs, drawn)
    train, validation = np.flatnonzero(~held), np.flatnonzero(held)
    if limit is not None and limit < len(train):
        train = train[stratified(labels[train], limit, salt=2)[0]]
    return train, validation


def indexed(
    train: Labelled, test: Labelled, read: Callable[[Any], Tensor], limit: int | None, run: int = 1, mixed: bool = True
) -> dict[str, Indexed]:
    """The three splits of ``(inputs, labels)``; validation is :func:`held_out` of the training part.

    ``mixed`` puts validation and test into a fixed order: they may come sorted by class, and the first few then hold
    every class, and so does a batch, whose mean would else give the class away.
    """
    kept, validation = held_out(train[1], limit, run)
    tested: Any = slice(None)
    if mixed:
        shuffled = [np.random.RandomState(SPLIT_SEED).permutation(len(part)) for part in (validation, test[1])]
        validation, tested = validation[shuffled[0]], shuffled[1]
    parts = {"train": (train, kept), "validation": (train, validation), "test": (test, tested)}
    return {name: Indexed(x[k], torch.from_numpy(labels[k]), read) for name, ((x, labels), k) in parts.items()}

"""What every data set looks like, and where its files are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import Dataset

from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import DataConfig

Found = TypeVar("Found")


@dataclass(frozen=True)
class DataShape:
    """What a model must know of its data.

    Attributes:
        channels, image_size: of the images; pixels along a side. Both 0 for text.
        classes: number of classes.
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
    """

    name: str
    shape: DataShape
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: Mapping[str, Dataset[Any]] = field(repr=False)
    resized: bool = False
    vocabulary: tuple[str, ...] = field(default=(), repr=False)

    def describe(self) -> dict[str, Any]:
        """What a run keeps to use its model without the data (``data.json``)."""
        described: dict[str, Any] = {"dataset": self.name}
        described |= {"channels": self.shape.channels, "image_size": self.shape.image_size}
        described |= {"class_names": list(self.class_names), "mean": list(self.mean), "std": list(self.std)}
        if self.resized:
            described["resized"] = True
        if self.vocabulary:
            described.update(vocabulary=list(self.vocabulary), length=self.shape.length)
        return described


class Indexed(Dataset[Any]):
    """Samples by index lists, which give ``(inputs, labels)``: images float32 ``(batch, channels, size, size)`` or
    token ids int64 ``(batch, longest)`` padded with 0, and labels int64 ``(batch,)``.

    Args:
        inputs: an array or tensor of what is kept of each sample.
        labels: of each.
        read: makes the inputs of a batch of what is kept.
    """

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
    options: DataConfig,
    looked: Sequence[Path],
    what: str,
    source: str,
    find: Callable[[], Found | None],
    download: Callable[[], Found | None],
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

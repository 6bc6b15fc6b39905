"""What every data set looks like to the rooms above."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset


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
        return cls(
            description["channels"],
            description["image_size"],
            len(description["class_names"]),
            len(description.get("vocabulary", ())),
            description.get("length", 0),
        )

    def tokens(self, patch: int) -> int:
        """Tokens of a sample, without class token."""
        return self.length if self.vocabulary else (self.image_size // patch) ** 2


@dataclass(frozen=True)
class Data:
    """A data set, split and normalised.

    Attributes:
        name: as on the command line.
        shape: what the model must know.
        class_names: in label order.
        mean, std: one per channel, of the training part; pixel values lie in [0, 1] before normalisation. Empty for
            text.
        splits: ``train``, ``validation``, ``test``; an index list gives ``(inputs, labels)``: images float32
            ``(batch, channels, size, size)`` or token ids int64 ``(batch, longest)`` padded with 0, and int64
            ``(batch,)``. A :class:`qrkt_hw.data.stream.Stream` is read in order instead.
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
        described: dict[str, Any] = {
            "dataset": self.name,
            "channels": self.shape.channels,
            "image_size": self.shape.image_size,
            "class_names": list(self.class_names),
            "mean": list(self.mean),
            "std": list(self.std),
        }
        if self.resized:
            described["resized"] = True
        if self.vocabulary:
            described.update(vocabulary=list(self.vocabulary), length=self.shape.length)
        return described

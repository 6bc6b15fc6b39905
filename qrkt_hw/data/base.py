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
        channels, image_size: of the images; pixels along a side.
        classes: number of classes.
    """

    channels: int
    image_size: int
    classes: int


@dataclass(frozen=True)
class Data:
    """A data set, split and normalised.

    Attributes:
        name: as on the command line.
        shape: what the model must know.
        class_names: in label order.
        mean, std: one per channel, of the training part; pixel values lie in [0, 1] before normalisation.
        splits: ``train``, ``validation``, ``test``; an index list gives ``(images, labels)``: float32
            ``(batch, channels, size, size)`` and int64 ``(batch,)``.
    """

    name: str
    shape: DataShape
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: Mapping[str, Dataset[Any]] = field(repr=False)

    def describe(self) -> dict[str, Any]:
        """What a run keeps to use its model without the data (``data.json``)."""
        return {
            "dataset": self.name,
            "channels": self.shape.channels,
            "image_size": self.shape.image_size,
            "class_names": list(self.class_names),
            "mean": list(self.mean),
            "std": list(self.std),
        }

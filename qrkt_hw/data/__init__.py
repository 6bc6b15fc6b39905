"""Data sets by name, read from files in their published formats; a damaged file is a UserError that names it."""

from __future__ import annotations

from collections.abc import Sequence

from qrkt_hw.data import cifar, imagenet, mnist, text
from qrkt_hw.data.base import Data, DataShape
from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import DataConfig

__all__ = ["Data", "DataShape", "load_data"]

IMAGES = {"digits": mnist.load_digits, "mnist": mnist.load, "cifar10": cifar.load, "cifar100": cifar.load}
IMAGES |= {"imagenet": imagenet.load, "folder": imagenet.load_folder}


def load_data(options: DataConfig, vocabulary: Sequence[str] = ()) -> Data:
    """The data set that these options name. ``vocabulary`` is of a trained model, for texts: it gives the token ids,
    whatever the training part holds by now.

    Raises:
        UserError: unknown data set, or files that are missing or damaged.
    """
    options.check_name()
    name = options.dataset.partition(":")[0]
    for flag, given in (("--unique-words", options.unique_words), ("--word-pairs", options.word_pairs)):
        if given and name != "imdb":
            raise UserError(f"{flag}: {options.dataset} has no words")
    return text.load(options, tuple(vocabulary)) if name == "imdb" or vocabulary else IMAGES[name](options)

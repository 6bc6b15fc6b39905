"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qrkt_hw.data import cifar, digits, folder, imagenet, imdb, mnist
from qrkt_hw.data.base import Data
from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import DataConfig

DATASETS: dict[str, Callable[[DataConfig], Data]] = {
    "digits": digits.load,
    "mnist": mnist.load,
    "cifar10": cifar.load,
    "cifar100": cifar.load,
    "imagenet": imagenet.load,
    "imdb": imdb.load,
    "folder": folder.load,
}


def load_data(options: DataConfig, vocabulary: Sequence[str] = ()) -> Data:
    """The data set of these options.

    Args:
        options: of the data.
        vocabulary: of a trained model, for texts: its ids mean these words, whatever the training part holds by now.

    Raises:
        UserError: unknown data set, or files that are missing or damaged.
    """
    options.check_name()
    name = options.dataset.partition(":")[0]
    for flag, given in (("--unique-words", options.unique_words), ("--word-pairs", options.word_pairs)):
        if given and name != "imdb":
            raise UserError(f"{flag}: {options.dataset} has no words")
    return imdb.load(options, tuple(vocabulary)) if vocabulary else DATASETS[name](options)

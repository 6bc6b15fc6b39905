"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qrkt_hw.data import cifar, digits, folder, imagenet, imdb, mnist
from qrkt_hw.data.base import Data
from qrkt_hw.errors import UserError
from qrkt_hw.options.data import DataOptions

DATASETS: dict[str, Callable[[DataOptions], Data]] = {
    "digits": digits.load,
    "mnist": mnist.load,
    "cifar10": cifar.load,
    "cifar100": cifar.load,
    "imagenet": imagenet.load,
    "imdb": imdb.load,
    "folder": folder.load,
}


def load_data(options: DataOptions, vocabulary: Sequence[str] = ()) -> Data:
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
    data = imdb.load(options, tuple(vocabulary)) if vocabulary else DATASETS[name](options)
    # a GAN draws images of one kind, too
    if data.shape.classes < 2 and getattr(options, "model", None) != "gan":
        raise UserError(f"--dataset: {options.dataset} has the one class {data.class_names[0]}; a classifier takes two")
    return data

"""IMDb reviews (Maas et al., 2011): 25,000 training and 25,000 test texts, positive or negative."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from qrkt_hw.data import files, parquet
from qrkt_hw.data.base import Data, DataShape
from qrkt_hw.data.memory import held_out
from qrkt_hw.data.split import mixed
from qrkt_hw.data.text import Texts, encode, vocabulary_of
from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import DataConfig

SOURCE = "https://huggingface.co/datasets/stanfordnlp/imdb"
NAMES = ("neg", "pos")
# reviews of one film and class follow each other: drawn one by one, most of validation's would have kin in training
RUN = 250
Part = tuple[list[str], np.ndarray]


def load(options: DataConfig, vocabulary: tuple[str, ...] = ()) -> Data:
    """From parquet in the hub's layout, or the original ``aclImdb`` folder; the vocabulary is the training part's where
    none is given.

    Raises:
        UserError: missing or damaged files.
    """
    looked = files.places(options, "imdb")
    parts = [_part(looked, split) for split in ("train", "test")]
    if None in parts and options.download:
        parts = [_downloaded(split) for split in ("train", "test")]
    train, test = parts
    if train is None or test is None:
        raise files.missing(options, looked, "train-*.parquet and test-*.parquet, or aclImdb,", SOURCE)
    if not len(test[1]):
        raise UserError(f"--dataset imdb: no test texts in {looked[0]}")
    texts, labels = train
    if not vocabulary:
        whole, _ = held_out(labels, None, RUN)
        vocabulary = vocabulary_of((texts[k] for k in whole), options.vocabulary, pairs=options.word_pairs)
    kept, validation = held_out(labels, options.limit, RUN)

    def split(part: Part, index: np.ndarray) -> Texts:
        reading = {"unique": options.unique_words, "pairs": options.word_pairs}
        ids = encode([part[0][k] for k in index], vocabulary, options.text_length, **reading)
        return Texts(ids, torch.from_numpy(part[1][index]))

    splits = {
        "train": split(train, kept),
        "validation": split(train, validation[mixed(len(validation))]),
        "test": split(test, mixed(len(test[1]))),
    }
    shape = DataShape(0, 0, 2, len(vocabulary), options.text_length)
    return Data(options.dataset, shape, NAMES, (), (), splits, vocabulary=vocabulary)


def _part(looked: list[Path], split: str) -> Part | None:
    for folder in looked:
        original = folder / "aclImdb" / split
        if original.is_dir():
            return _originals(original)
    found = files.parquet_files(looked, split)
    if not found:
        return None
    texts, labels = [], []
    for file in found:
        for k, row in enumerate(parquet.rows(str(file), ["text", "label"])):
            if not isinstance(row["text"], str) or row["label"] not in (0, 1):
                raise UserError(f"{file} is damaged: row {k} is no text with label 0 or 1")
            texts.append(row["text"])
            labels.append(row["label"])
    return texts, np.array(labels, dtype=np.int64)


def _originals(folder: Path) -> Part:
    texts, labels = [], []
    for label, name in enumerate(NAMES):
        for file in sorted((folder / name).glob("*.txt")):
            try:
                texts.append(files.regular(file).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{file} is damaged: it is not text") from error
            labels.append(label)
    if not texts:
        raise UserError(f"--dataset imdb: {folder} holds no pos/*.txt and neg/*.txt")
    return texts, np.array(labels, dtype=np.int64)


def _downloaded(split: str) -> Part:
    import datasets

    try:
        found = datasets.load_dataset("stanfordnlp/imdb", split=split)
    except Exception as error:  # no network, or the hub says no
        raise UserError(
            f"--download: imdb cannot be read from the hub ({type(error).__name__}); get it from {SOURCE}"
        ) from error
    return list(found["text"]), np.array(found["label"], dtype=np.int64)

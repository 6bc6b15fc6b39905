"""Texts as token ids; IMDb reviews (Maas et al., 2011): 25,000 training and 25,000 test texts of two classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qrkt_hw.data import parquet
from qrkt_hw.data.base import Data, DataShape, Indexed, located, places, regular
from qrkt_hw.data.splits import held_out, mixed
from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import DataConfig

PADDING, UNKNOWN = "<pad>", "<unk>"
NAMES = ("neg", "pos")
SOURCE = "https://huggingface.co/datasets/stanfordnlp/imdb"
# reviews of one film and class follow each other: drawn one by one, most of validation's would have kin in training
RUN = 250
Part = tuple[list[str], np.ndarray]
_MARKUP = re.compile(r"<[^<>]{1,40}>")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[!?.,;:()\"]")


def words(text: str) -> list[str]:
    """Lower-case words and marks of punctuation; HTML tags are dropped."""
    return _WORD.findall(_MARKUP.sub(" ", text).lower())


def with_pairs(found: Sequence[str]) -> list[str]:
    """The words, each followed by the pair that it ends: ``a b c`` gives ``a``, ``b``, ``a b``, ``c``, ``b c``."""
    both = list(found[:1])
    for first, second in pairwise(found):
        both += (second, f"{first} {second}")
    return both


def vocabulary_of(texts: Iterable[str], size: int, *, pairs: bool = False) -> tuple[str, ...]:
    """Padding, unknown, then the most frequent words, ``size`` in all (equal counts in the order of the alphabet); with
    ``pairs``, pairs of neighbours are counted among them."""
    counts: Counter[str] = Counter()
    for text in texts:
        found = words(text)
        counts.update(with_pairs(found) if pairs else found)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return (PADDING, UNKNOWN, *(word for word, _ in ranked[: size - 2]))


def encode(
    texts: Sequence[str], vocabulary: Sequence[str], length: int, *, unique: bool = False, pairs: bool = False
) -> Tensor:
    """Token ids ``(texts, length)``, int32: 0 pads, 1 is an unknown word; a text without any word is one unknown.

    Args:
        texts: of any length.
        vocabulary: the words and pairs of words, an id its place.
        length: tokens of a text that are kept.
        unique: keep each id once, where it first appears; ``length`` then counts these.
        pairs: pairs of neighbouring words are tokens too, behind their second word, where the vocabulary has them.
    """
    place = {word: k for k, word in enumerate(vocabulary)}
    ids = np.zeros((len(texts), length), dtype=np.int32)
    for k, text in enumerate(texts):
        read = words(text)
        if pairs:
            read = [token for token in with_pairs(read) if token in place or " " not in token]
        found = [place.get(token, 1) for token in read] or [1]
        found = (list(dict.fromkeys(found)) if unique else found)[:length]
        ids[k, : len(found)] = found
    return torch.from_numpy(ids)


def trimmed(ids: Tensor) -> Tensor:
    """Ids int64 without the columns that are padding in every text."""
    longest = int((ids != 0).sum(1).max()) if len(ids) else 1
    return ids[:, :longest].long()


def load(options: DataConfig, vocabulary: tuple[str, ...] = ()) -> Data:
    """IMDb from parquet in the hub's layout, or the original ``aclImdb`` folder; the vocabulary is the training part's
    where none is given."""
    looked = places(options, "imdb")

    def find() -> tuple[Part, Part] | None:
        train, test = (_part(looked, split) for split in ("train", "test"))
        return None if train is None or test is None else (train, test)

    def download() -> tuple[Part, Part]:
        import datasets

        train, test = (datasets.load_dataset("stanfordnlp/imdb", split=split) for split in ("train", "test"))
        return (list(train["text"]), np.array(train["label"])), (list(test["text"]), np.array(test["label"]))

    what = "train-*.parquet and test-*.parquet, or aclImdb,"
    train, test = located(options, looked, what, SOURCE, find, download)
    if not len(test[1]):
        raise UserError(f"--dataset imdb: no test texts in {looked[0]}")
    texts, labels = train
    if not vocabulary:
        whole, _ = held_out(labels, None, RUN)
        vocabulary = vocabulary_of((texts[k] for k in whole), options.vocabulary, pairs=options.word_pairs)
    kept, validation = held_out(labels, options.limit, RUN)

    def split(part: Part, index: np.ndarray) -> Indexed:
        reading = {"unique": options.unique_words, "pairs": options.word_pairs}
        ids = encode([part[0][k] for k in index], vocabulary, options.text_length, **reading)
        return Indexed(ids, torch.from_numpy(part[1][index]), trimmed)

    splits = {
        "train": split(train, kept),
        "validation": split(train, validation[mixed(len(validation))]),
        "test": split(test, mixed(len(test[1]))),
    }
    shape = DataShape(0, 0, 2, len(vocabulary), options.text_length)
    return Data(options.dataset, shape, NAMES, (), (), splits, vocabulary=vocabulary)


def _part(looked: list[Path], split: str) -> Part | None:
    rows: list[tuple[str, int]] = []
    folders = [folder / "aclImdb" / split for folder in looked if (folder / "aclImdb" / split).is_dir()]
    if folders:
        for file in sorted(folders[0].glob("neg/*.txt")) + sorted(folders[0].glob("pos/*.txt")):
            try:
                rows.append((regular(file).read_text(encoding="utf-8"), NAMES.index(file.parent.name)))
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{file} is damaged: it is not text") from error
        if not rows:
            raise UserError(f"--dataset imdb: {folders[0]} holds no pos/*.txt and neg/*.txt")
    elif files := parquet.files(looked, split):
        for path in files:
            for k, row in enumerate(parquet.rows(path, ["text", "label"])):
                if not isinstance(row["text"], str) or row["label"] not in (0, 1):
                    raise UserError(f"{path} is damaged: row {k} is no text with label 0 or 1")
                rows.append((row["text"], row["label"]))
    else:
        return None
    return [text for text, _ in rows], np.array([label for _, label in rows], dtype=np.int64)

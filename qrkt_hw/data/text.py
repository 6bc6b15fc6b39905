"""Texts as token ids; IMDb reviews (Maas et al., 2011): 25,000 training and 25,000 test texts of two classes."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qrkt_hw.data import parquet
from qrkt_hw.data.base import Data, DataShape, Indexed, Indices, held_out, indexed, located, places, regular
from qrkt_hw.data.images import pair, parts_of
from qrkt_hw.errors import UserError, extras
from qrkt_hw.runs.config import DataConfig

PADDING, UNKNOWN = "<pad>", "<unk>"
NAMES = ("neg", "pos")
SOURCE = "https://huggingface.co/datasets/stanfordnlp/imdb"
# reviews of one film and class follow each other: drawn one by one, most of validation's would have kin in training
RUN = 250
Part = tuple[np.ndarray, np.ndarray]  # texts, labels
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
        counts.update(with_pairs(words(text)) if pairs else words(text))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return (PADDING, UNKNOWN, *(word for word, _ in ranked[: size - 2]))


def encode(
    texts: Sequence[str], vocabulary: Sequence[str], length: int, *, unique: bool = False, pairs: bool = False
) -> Tensor:
    """Token ids ``(texts, length)``, int32, places in the vocabulary: 0 pads, 1 is an unknown word; a text without any
    word is one unknown. ``unique`` keeps each id once, where it first appears; ``length`` then counts these. With
    ``pairs``, pairs of neighbours are tokens too, behind their second word, where the vocabulary has them."""
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
    train, test = _read(options)
    if not vocabulary:
        whole = train[0][held_out(train[1], None, RUN)[0]]
        vocabulary = vocabulary_of(whole, options.vocabulary, pairs=options.word_pairs)
    splits = indexed(train, test, trimmed, options.limit, RUN)
    reading = {"unique": options.unique_words, "pairs": options.word_pairs}
    for part in splits.values():
        part.inputs = encode(part.inputs, vocabulary, options.text_length, **reading)
    shape = DataShape(0, 0, 2, len(vocabulary), options.text_length)
    return Data(options.dataset, shape, NAMES, (), (), splits, vocabulary=vocabulary)


def texts_of(options: DataConfig, split: str) -> list[str]:
    """The texts of a split of IMDb as they were written, in the order of its samples."""
    return [str(text) for text in indexed(*_read(options), trimmed, None, RUN)[split].inputs]


def _read(options: DataConfig) -> tuple[Part, Part]:
    looked = places(options, "imdb")

    def find() -> tuple[Part, Part] | None:
        train, test = (_part(looked, split) for split in ("train", "test"))
        return None if train is None or test is None else (train, test)

    def download() -> tuple[Part, Part]:
        with extras():
            import datasets

        train, test = (datasets.load_dataset("stanfordnlp/imdb", split=split) for split in ("train", "test"))
        return _arrays(train["text"], train["label"]), _arrays(test["text"], test["label"])

    what = "train-*.parquet and test-*.parquet, or aclImdb,"
    train, test = located(options, looked, what, SOURCE, find, download)
    if not len(test[1]):
        raise UserError(f"--dataset imdb: no test texts in {looked[0]}")
    return train, test


def own(
    options: DataConfig, vocabulary: Sequence[str], train: Any, validation: Any = None, test: Any = None,
    names: Sequence[str] | None = None,
) -> Data:  # fmt: skip
    """A user's map-style datasets of ``(text, label)`` as a data set, split as their images are; the vocabulary is the
    training part's where none is given."""
    parts = {"train": train, "validation": validation, "test": test}
    names, chosen, labels, whole = parts_of(options, parts, names)
    texts = {name: [_text(part, k, name) for k in range(len(part))] for name, part in parts.items() if part is not None}
    if not vocabulary:
        vocabulary = vocabulary_of((texts["train"][k] for k in whole), options.vocabulary, pairs=options.word_pairs)

    def split(part: str, index: Indices) -> Indexed:
        reading = {"unique": options.unique_words, "pairs": options.word_pairs}
        ids = encode([texts[part][k] for k in index], vocabulary, options.text_length, **reading)
        return Indexed(ids, torch.from_numpy(labels[part][index]), trimmed)

    shape = DataShape(0, 0, len(names), len(vocabulary), options.text_length)
    splits = {name: split(*place) for name, place in chosen.items()}
    return Data(options.dataset, shape, names, (), (), splits, vocabulary=tuple(vocabulary))


def _text(dataset: Any, index: int, named: str) -> str:
    found = pair(dataset, index, named)[0]
    if not isinstance(found, str):
        raise UserError(f"{named}: an input is {type(found).__name__}; a text model reads str")
    return found


def _part(looked: list[Path], split: str) -> Part | None:
    texts, labels = list[str](), list[int]()
    folders = [folder / "aclImdb" / split for folder in looked if (folder / "aclImdb" / split).is_dir()]
    if folders:
        for file in (file for name in NAMES for file in sorted(folders[0].glob(f"{name}/*.txt"))):
            try:
                texts.append(regular(file).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{file} is damaged: it is not text") from error
            labels.append(NAMES.index(file.parent.name))
        if not texts:
            raise UserError(f"--dataset imdb: {folders[0]} holds no pos/*.txt and neg/*.txt")
        return _arrays(texts, labels)
    files = parquet.files(looked, split)
    for path in files:
        for k, row in enumerate(parquet.rows(path, ["text", "label"])):
            if not isinstance(row["text"], str) or row["label"] not in (0, 1):
                raise UserError(f"{path} is damaged: row {k} is no text with label 0 or 1")
            texts.append(row["text"])
            labels.append(row["label"])
    return _arrays(texts, labels) if files else None


def _arrays(texts: Sequence[str], labels: Sequence[int]) -> Part:
    return np.array(texts, dtype=object), np.array(labels, dtype=np.int64)

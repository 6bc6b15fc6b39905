"""From a text to token ids."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

PADDING, UNKNOWN = "<pad>", "<unk>"
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


class Texts(Dataset[Any]):
    """Token ids in memory; a batch is cut to its longest text."""

    def __init__(self, ids: Tensor, labels: Tensor) -> None:
        self.ids, self.labels = ids, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return trimmed(self.ids[indices]), self.labels[indices]


def trimmed(ids: Tensor) -> Tensor:
    """Ids int64 without the columns that are padding in every text."""
    longest = int((ids != 0).sum(1).max()) if len(ids) else 1
    return ids[:, :longest].long()

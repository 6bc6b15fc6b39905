"""Stratified splits that depend on the labels alone: never on a run's seed, a library's version or the platform."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# RandomState's stream is frozen by NumPy's compatibility policy
SPLIT_SEED = 20_240_613


def stratified(labels: NDArray[np.int64], count: int, salt: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw ``count`` indices with the classes in proportion.

    Within each class the order is a fixed permutation; across classes, samples are ranked by their relative place, so
    each class gives its share rounded to the nearest sample and the total is exact.

    Args:
        labels: ``(samples,)``.
        count: how many to draw.
        salt: another value gives another draw.

    Returns:
        The drawn and the remaining indices, both sorted ascending.

    Raises:
        ValueError: ``count`` exceeds the samples.
    """
    if not 0 <= count <= len(labels):
        raise ValueError(f"cannot draw {count} of {len(labels)} samples")
    random = np.random.RandomState(SPLIT_SEED + salt)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[random.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.lexsort((labels, place))
    return np.sort(order[:count]), np.sort(order[count:])


def mixed(count: int) -> NDArray[np.int64]:
    """A fixed order of ``count`` samples, for parts that come sorted by class: the first few then hold every class, and
    so does a batch, whose mean would else give the class away."""
    return np.random.RandomState(SPLIT_SEED).permutation(count)

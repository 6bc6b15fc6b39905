"""Splits that depend on the labels alone: never on a run's seed, a library's version or the platform."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qrkt_hw.errors import UserError

# RandomState's stream is frozen by NumPy's compatibility policy
SPLIT_SEED = 20_240_613
Indices = NDArray[np.int64]


def stratified(labels: Indices, count: int, salt: int = 0) -> tuple[Indices, Indices]:
    """Draw ``count`` indices with the classes in proportion: the drawn and the remaining ones, both ascending.

    Each class is put into a fixed random order, and all samples are ranked by their relative place in it. So each class
    gives its share rounded to the nearest sample, and the total is exact. Another ``salt`` gives another draw.
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


def mixed(count: int) -> Indices:
    """A fixed order of ``count`` samples, for parts that come sorted by class: the first few then hold every class, and
    so does a batch, whose mean would else give the class away."""
    return np.random.RandomState(SPLIT_SEED).permutation(count)


def held_out(labels: Indices, limit: int | None, run: int = 1) -> tuple[Indices, Indices]:
    """Indices of the training 90 % and the validation 10 % of a training part, classes in proportion.

    Args:
        labels: ``(samples,)``.
        limit: keeps a fixed, proportional part of the first.
        run: validation is drawn as runs of so many samples of a class that follow each other, for data whose
            neighbours are akin; shorter ones where a class has not fifty of them.
    """
    if len(labels) < 2:
        raise UserError(
            f"--dataset: a training part of {len(labels)} samples cannot be split into training and validation"
        )
    run = min(run, int(np.unique(labels, return_counts=True)[1].min()) // 50)
    if run > 1:
        train, validation = _in_runs(labels, run)
    else:
        validation, train = stratified(labels, max(1, round(len(labels) / 10)))
    if limit is not None and limit < len(train):
        train = train[stratified(labels[train], limit, salt=2)[0]]
    return train, validation


def _in_runs(labels: Indices, length: int) -> tuple[Indices, Indices]:
    """Training and validation indices; the latter are a tenth of the runs of each class."""
    runs = np.empty(len(labels), dtype=np.int64)
    classes: list[int] = []  # of each run
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place = np.arange(len(members)) // length
        runs[members] = place + len(classes)
        classes += [int(label)] * (int(place[-1]) + 1)
    drawn, _ = stratified(np.array(classes, dtype=np.int64), max(1, round(len(classes) / 10)))
    held = np.isin(runs, drawn)
    return np.flatnonzero(~held), np.flatnonzero(held)

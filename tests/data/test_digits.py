"""The digits split: stratified, fixed, independent of the seed."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from qrkt_hw.data import load_data
from qrkt_hw.data.base import stratified
from qrkt_hw.data.mnist import read_digits, split_indices
from qrkt_hw.runs.config import Config

pytestmark = pytest.mark.acceptance


def test_counts_cover_all_images_once():
    indices = split_indices(load_digits().target)
    assert {name: len(index) for name, index in indices.items()} == {"train": 1293, "validation": 144, "test": 360}
    assert sorted(np.concatenate(list(indices.values()))) == list(range(1797))


def test_the_file_is_read_as_scikit_learn_reads_it():
    pixels, labels = read_digits()
    bunch = load_digits()
    assert np.array_equal(pixels, bunch.images) and np.array_equal(labels, bunch.target)
    assert tuple(map(str, bunch.target_names)) == load_data(Config().data).class_names


def test_is_stratified():
    labels = load_digits().target
    share = np.bincount(labels) / len(labels)
    for name, index in split_indices(labels).items():
        counts = np.bincount(labels[index], minlength=10)
        assert np.abs(counts - share * len(index)).max() <= 1, name


def test_is_fixed():
    # a golden value on purpose: figures published for this split mean this split
    digest = hashlib.sha256(split_indices(load_digits().target)["test"].astype("<i8").tobytes()).hexdigest()
    assert digest.startswith("eb9a836c8f47f239"), digest


def test_does_not_depend_on_the_seed():
    first, second = (load_data(Config(seed=seed).data) for seed in (0, 1))
    for name in ("train", "validation", "test"):
        for a, b in zip(first.splits[name][:], second.splits[name][:], strict=True):
            assert torch.equal(a, b)


def test_limit_takes_training_images_only():
    data = load_data(Config(limit=10).data)
    assert [len(data.splits[name]) for name in ("train", "validation", "test")] == [10, 144, 360]


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_any_count_is_met_exactly(count):
    labels = np.random.default_rng(0).integers(0, 3, size=100)
    drawn, rest = stratified(labels, count)
    assert len(drawn) == count and len(rest) == 100 - count


def test_more_than_there_is_cannot_be_drawn():
    with pytest.raises(ValueError):
        stratified(np.zeros(3, dtype=int), 4)

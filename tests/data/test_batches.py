"""Batches: an order that seed and epoch decide."""

import pytest
import torch
from torch.utils.data import TensorDataset

from qrkt_hw.data.batches import EpochBatches, loader


@pytest.mark.parametrize(("size", "batch"), [(10, 3), (9, 3), (1, 5), (5, 1)])
def test_every_sample_comes_once(size, batch):
    batches = EpochBatches(size, batch, seed=1)
    drawn = list(batches)
    assert len(drawn) == len(batches)
    assert sorted(i for draw in drawn for i in draw.indices) == list(range(size))
    assert all(len(draw.indices) <= batch for draw in drawn)
    assert [draw.number for draw in drawn] == list(range(len(drawn)))


def test_epochs_differ_and_return():
    batches = EpochBatches(50, 10, seed=1)
    first = orders(batches)
    batches.set_epoch(1)
    second = orders(batches)
    batches.set_epoch(0)
    assert first != second and orders(batches) == first
    assert orders(EpochBatches(50, 10, seed=2)) != first
    assert orders(EpochBatches(6, 4)) == [[0, 1, 2, 3], [4, 5]]


def orders(batches):
    return [draw.indices for draw in batches]


def test_making_an_iterator_leaves_torchs_random_numbers_alone():
    data = loader(TensorDataset(torch.arange(6.0), torch.arange(6)), 4, seed=0)
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    for _ in data:
        pass
    assert torch.equal(torch.rand(3), wanted)

"""What the head reads of the tokens."""

from __future__ import annotations

import pytest
import torch

from qrkt_hw.data.base import DataShape
from qrkt_hw.errors import UserError
from qrkt_hw.models.factory import build_model, count_parameters
from qrkt_hw.nn.embeddings import WeightedPool
from qrkt_hw.runs.config import Config

SMALL = {"hidden": 4, "heads": 2, "qubits": 2, "mlp": 2, "patch": 4}
SHAPE = DataShape(1, 8, 10)


def test_one_map_starts_as_the_mean_and_every_map_is_a_weighted_sum():
    torch.manual_seed(0)
    y = torch.randn(3, 5, 4)
    pool = WeightedPool(5, 4)
    torch.testing.assert_close(pool(y), y.mean(1))
    pool = WeightedPool(5, 4, maps=3)
    torch.testing.assert_close(pool(y), torch.einsum("bth,mth->bmh", y, pool.weight).flatten(1))
    assert pool(y).shape == (3, 12)


def test_only_weighted_pooling_sees_where_a_token_stands():
    torch.manual_seed(0)
    images = torch.randn(6, 1, 8, 8)
    moved = images.roll(4, dims=-1)  # the same patches at other places
    for pool, same in (("mean", True), ("weighted", False)):
        options = Config(**SMALL, positions="none", pool=pool, pool_maps=1 if pool == "mean" else 2)
        model = build_model(options, SHAPE).eval()
        assert torch.allclose(model(images), model(moved), atol=1e-5) is same


def test_its_parameters_are_counted():
    totals = [
        count_parameters(build_model(Config(**SMALL, **choice), SHAPE))["total"]
        for choice in ({}, {"pool": "weighted"}, {"pool": "weighted", "pool_maps": 2})
    ]
    assert totals[1] - totals[0] == 4 * 4
    assert totals[2] - totals[1] == 4 * 4 + 4 * 10


def test_it_is_refused_where_it_means_nothing():
    with pytest.raises(UserError, match="pool: weighted is for images"):
        build_model(Config(model="text", dataset="imdb", pool="weighted"), DataShape(0, 0, 2, vocabulary=9, length=8))
    with pytest.raises(UserError, match="pool_maps: 2 sums need pool weighted"):
        build_model(Config(**SMALL, pool_maps=2), SHAPE)

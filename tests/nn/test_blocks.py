"""Runge-Kutta blocks: claims about order, weights and sharing."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn

from qrkt_hw.nn.blocks import ENHANCED, TABLEAUS, RungeKuttaBlock, Tableau


class Pendulum(nn.Module):
    """A smooth nonlinear field: ``y0' = y1, y1' = -sin(y0)``."""

    def forward(self, y):
        return torch.stack([y[..., 1], -torch.sin(y[..., 0])], dim=-1)


@lru_cache
def after_one_second():
    exact = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    fine = RungeKuttaBlock(Pendulum(), TABLEAUS["rk4"], step=1 / 4096)
    for _ in range(4096):
        exact = fine(exact)
    return exact


def error_after_one_second(tableau, steps):
    y = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    block = RungeKuttaBlock(Pendulum(), tableau, step=1 / steps)
    for _ in range(steps):
        y = block(y)
    return (y - after_one_second()).norm().item()


@pytest.mark.acceptance
@pytest.mark.parametrize("name", ["rk1", "rk2", "rk3", "rk4"])
def test_error_shrinks_with_the_order_of_the_rule(name):
    steps = np.array([16, 32, 64, 128])
    errors = [error_after_one_second(TABLEAUS[name], int(n)) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope - TABLEAUS[name].order) < 0.2


@pytest.mark.acceptance
def test_enhanced_rule_is_what_the_thesis_wrote():
    field, y = Pendulum(), torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k1 = field(y)
    k2 = field(y + k1)
    k3 = field(y + k2)
    k4 = field(y + k3)
    torch.testing.assert_close(RungeKuttaBlock(field, ENHANCED)(y), y + k1 + k4)


@pytest.mark.acceptance
def test_enhanced_rule_is_not_consistent():
    assert ENHANCED.order is None and sum(ENHANCED.b) == 2
    # two units of time pass in a step of one: on y' = 1 the result is off by the step, whatever its size
    constant = RungeKuttaBlock(nn.Module(), ENHANCED, step=0.001)
    constant.fields[0].forward = torch.ones_like  # type: ignore[method-assign]
    moved = constant(torch.zeros(1, dtype=torch.float64))
    assert moved.item() == pytest.approx(0.002)


def test_rules_match_torchdiffeq_where_it_has_them():
    torchdiffeq = pytest.importorskip("torchdiffeq")
    y = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    times = torch.tensor([0.0, 0.5], dtype=torch.float64)
    theirs = torchdiffeq.odeint(lambda _, s: Pendulum()(s), y, times, method="euler")[-1]
    torch.testing.assert_close(RungeKuttaBlock(Pendulum(), TABLEAUS["rk1"], step=0.5)(y), theirs)


@pytest.mark.parametrize(
    ("a", "b", "order"),
    [(((),), (0.5,), 1), (((), (1.0, 2.0)), (0.5, 0.5), 2), (((),), (0.5, 0.5), 1)],
    ids=["weights", "row", "stages"],
)
def test_impossible_tableaus_are_refused(a, b, order):
    with pytest.raises(ValueError):
        Tableau("bad", a, b, order, "")


def test_fields_are_shared_or_one_per_stage():
    assert len(RungeKuttaBlock([Pendulum() for _ in range(4)], TABLEAUS["rk4"]).fields) == 4
    with pytest.raises(ValueError, match="4 stages"):
        RungeKuttaBlock([Pendulum() for _ in range(3)], TABLEAUS["rk4"])

"""Coefficients shared within one forward pass change no value and no derivative, and never outlive the pass."""

import pytest
import torch

from qrkt_hw import QuantumLayer
from qrkt_hw.nn.quantum import evaluate_round
from qrkt_hw.nn.sharing import current, shared_weights


class TwoStages(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(
            QuantumLayer(f, "ry_rz_ring", qubits=2, layers=2, dtype=torch.complex128) for f in (4, 4, 2)
        )

    def forward(self, x):
        for _ in range(2):
            a, b = evaluate_round([(self.layers[0], x), (self.layers[1], x)])
            x = a * b
        return self.layers[2](x[..., :2])

    def shared(self, x):
        with shared_weights(self):
            return self(x)


def test_values_and_gradients_are_those_without_sharing():
    model = TwoStages()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    leaves = [x, *model.parameters()]
    torch.testing.assert_close(model.shared(x), model(x))
    found = torch.autograd.grad(model.shared(x).sum(), leaves)
    wanted = torch.autograd.grad(model(x).sum(), leaves)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_second_derivatives_pass_through_what_is_shared():
    model = TwoStages()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def penalty(forward):
        (slope,) = torch.autograd.grad(forward(x).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), list(model.parameters()))

    for a, b in zip(penalty(model.shared), penalty(model), strict=True):
        torch.testing.assert_close(a, b)


def test_two_passes_can_be_differentiated_one_after_the_other_and_see_new_weights():
    model = TwoStages()
    x = torch.randn(3, 4, dtype=torch.float64)
    first = model.shared(x)
    first.sum().backward()
    model.shared(x).sum().backward()  # no graph is shared between passes
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)
    torch.testing.assert_close(model.shared(x), model(x))
    assert not torch.allclose(model.shared(x), first)


def test_the_pass_ends_with_an_error_too():
    with pytest.raises(RuntimeError), shared_weights(TwoStages()):
        assert current() is not None
        raise RuntimeError
    assert current() is None

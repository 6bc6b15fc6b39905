"""The compound layer: two excitations on a chain, against Qiskit and against two vectors."""

import math

import numpy as np
import pytest
import torch
from qiskit.quantum_info import Statevector

from qrkt_hw import QuantumLayer, circuits
from qrkt_hw.errors import UserError
from qrkt_hw.simulator import simulator
from qrkt_hw.simulator.analysis import cones

NAME = "compound"


@pytest.mark.parametrize("n", range(2, 8))
@pytest.mark.parametrize("method", ["subspace", "auto"])
def test_values_are_those_of_qiskit(n, method):
    template, rng = circuits.build(NAME, n, 2), np.random.default_rng(n)
    x, w = rng.normal(size=(3, 1, n)), rng.normal(size=(1, 2 * n))
    found = simulator(template, torch.complex128, method)(torch.from_numpy(x), torch.from_numpy(w))
    for row, values in zip(x, found[:, 0], strict=True):
        bound = dict(zip(template.parameters, [*row[0], *w[0]], strict=True))
        state = Statevector(template.circuit.assign_parameters(bound))
        wanted = [state.expectation_value(o).real for o in template.observables]
        np.testing.assert_allclose(values.numpy(), wanted, atol=1e-12)


def test_values_are_those_of_two_rotated_vectors():
    n, layers = 7, 3
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=n), rng.normal(size=(layers, n))
    pair, half = np.zeros((n + 1, 2)), (n + 1) // 2
    pair[:half, 0], pair[half:, 1] = half**-0.5, (n + 1 - half) ** -0.5
    order = [*range(0, n, 2), *range(1, n, 2)]
    for angles in (part for layer in w for part in (x, layer)):
        for j in order:
            c, s = math.cos(angles[j]), math.sin(angles[j])
            pair[[j, j + 1]] = np.array([[c, -s], [s, c]]) @ pair[[j, j + 1]]
    layer = QuantumLayer(n, NAME, layers=layers, dtype=torch.complex128, initial_weights=w)
    found = layer(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, 1 - 2 * (pair[:-1] ** 2).sum(1), atol=1e-12)


def test_every_angle_moves_something_from_the_start():
    template = circuits.build(NAME, 6, 2)
    found = cones(template)
    assert {i for one in found for i in one.inputs} == set(range(6))
    assert {i for one in found for i in one.weights} == set(range(12))
    x = torch.zeros(1, 1, 6, dtype=torch.float64, requires_grad=True)  # signs of small features are seen
    values = simulator(template, torch.complex128)(x, torch.zeros(1, 12, dtype=torch.float64))
    matrix = torch.stack([torch.autograd.grad(v, x, retain_graph=True)[0].flatten() for v in values.flatten()])
    assert (matrix.abs().amax(0) > 0.1).sum() >= 5


def test_it_is_differentiable_twice_and_wide():
    layer = QuantumLayer(4, NAME, dtype=torch.complex128, method="subspace")
    x = torch.randn(2, 4, dtype=torch.float64, generator=torch.manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(layer, x) and torch.autograd.gradgradcheck(layer, x)
    wide = QuantumLayer(40, NAME)
    assert wide.method == "subspace" and wide(torch.randn(2, 40)).shape == (2, 40)


def test_one_feature_is_refused():
    with pytest.raises(UserError, match="at least 2 features"):
        circuits.build(NAME, 1, 1)

"""Light cones proved by experiment: what is outside moves nothing, what is inside an exact cone moves the output."""

import numpy as np
import pytest
import torch

from qrkt_hw.circuits import build, names
from qrkt_hw.compiler import lower
from qrkt_hw.compiler.propagation import propagate
from qrkt_hw.simulator import simulator
from qrkt_hw.simulator.analysis import cones, light_cone
from qrkt_hw.simulator.analysis import cones as find
from tests.random_templates import random_template

pytestmark = pytest.mark.acceptance
SIZES = [(1, 1), (2, 1), (3, 1), (4, 2), (6, 1), (6, 2), (5, 3)]


def moved(template, tries=4):
    """``(outputs, inputs + weights)``: the largest change of each output when one parameter is drawn anew."""
    evaluate = simulator(template, torch.complex128)
    rng = np.random.default_rng(5)
    size = len(template.parameters)
    largest = np.zeros((template.num_outputs, size))
    for _ in range(tries):
        base = rng.uniform(-np.pi, np.pi, size)
        sets = np.tile(base, (size + 1, 1))
        sets[np.arange(size) + 1, np.arange(size)] = rng.uniform(-np.pi, np.pi, size)
        inputs = torch.tensor(sets[:, : template.num_inputs])[None]
        values = evaluate(inputs, torch.tensor(sets[:, template.num_inputs :]))[0].numpy()
        largest = np.maximum(largest, np.abs(values[1:] - values[0]).T)
    return largest


def check(template, tries=4):
    changes = moved(template, tries)
    for output, cone in enumerate(find(template)):
        inside = np.zeros(len(template.parameters), dtype=bool)
        inside[[*cone.inputs, *(template.num_inputs + w for w in cone.weights)]] = True
        assert changes[output, ~inside].max(initial=0) < 1e-12
        if cone.exact:
            assert changes[output, inside].min(initial=1) > 1e-9


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_template(name, size):
    check(build(name, *size))


@pytest.mark.parametrize("seed", range(20))
def test_random_templates(seed):
    check(random_template(np.random.default_rng(seed), num_qubits=4))


@pytest.mark.parametrize("name", names())
def test_wide_circuits_are_bounded(name):
    template = build(name, 13, 1)
    check(template, tries=1)
    exact = cones(template)
    for observable, cone in zip(template.observables, exact, strict=True):
        bound = np.flatnonzero(light_cone(lower(template), observable))
        assert set(cone.inputs) <= set(bound.tolist())


def test_propagated_values_and_gradients_are_those_of_the_simulator():
    rng = np.random.default_rng(3)
    for _ in range(10):
        template = random_template(rng, num_qubits=3)
        point = rng.uniform(-np.pi, np.pi, (1, len(template.parameters)))
        inputs = torch.tensor(point[:, : template.num_inputs], requires_grad=True)
        weights = torch.tensor(point[:, template.num_inputs :], requires_grad=True)
        values = simulator(template, torch.complex128)(inputs[None], weights)[0, 0]
        for output, observable in enumerate(template.observables):
            propagated, _ = propagate(lower(template), observable, point, limit=10**6, work=2e8)
            gradients = torch.autograd.grad(
                values[output], (inputs, weights), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            expected = torch.cat([values[output].reshape(1, 1).detach(), *gradients], dim=1)
            assert np.abs(propagated - expected.numpy()).max() < 1e-12


def test_thesis_circuit_is_elementwise_at_one_layer_and_any_width():
    for qubits in (3, 12, 100):
        found = cones(build("qrkt", qubits, 1))
        assert [c.inputs for c in found[1:]] == [(j,) for j in range(1, qubits)]
        assert found[0].inputs == (0, qubits - 1)
        assert all(c.exact for c in found)

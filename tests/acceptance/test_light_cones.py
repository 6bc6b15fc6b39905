"""Light cones proved by experiment: what is outside moves nothing, what is inside an exact cone moves the output."""

import numpy as np
import pytest
import torch

from qrkt_hw.circuits import build, names
from qrkt_hw.compiler import derive, lower
from qrkt_hw.compiler.propagation import propagate
from qrkt_hw.errors import UserError
from qrkt_hw.simulator import simulator
from qrkt_hw.simulator.analysis import cones, light_cone
from qrkt_hw.simulator.analysis import cones as find
from tests.random_templates import random_template

pytestmark = pytest.mark.acceptance
SIZES = [(1, 1), (2, 1), (3, 1), (4, 2), (6, 1), (6, 2), (5, 3)]


def moved(template, tries=4):
    """``(outputs, features + weights)``: the largest change of each output when one of them is drawn anew."""
    derived = derive(template)
    unary = template.encoding != "angle"
    evaluate = simulator(template if unary else derived.template, torch.complex128)
    rng, first = np.random.default_rng(5), template.num_features
    size = first + template.num_weights
    largest = np.zeros((template.num_outputs, size))
    for _ in range(tries):
        base = rng.uniform(-np.pi, np.pi, size)
        sets = np.tile(base, (size + 1, 1))
        sets[np.arange(size) + 1, np.arange(size)] = rng.uniform(-np.pi, np.pi, size)
        split = first
        if not unary:
            sets, split = derived.values(sets), derived.template.num_inputs
        values = evaluate(torch.tensor(sets[None, :, :split]), torch.tensor(sets[:, split:]))
        largest = np.maximum(largest, np.abs(values[0].numpy()[1:] - values[0].numpy()[0]).T)
    return largest


def check(template, tries=4):
    changes = moved(template, tries)
    for output, cone in enumerate(find(template)):
        inside = np.zeros(template.num_features + template.num_weights, dtype=bool)
        inside[[*cone.inputs, *(template.num_features + w for w in cone.weights)]] = True
        assert changes[output, ~inside].max(initial=0) < 1e-12
        if cone.exact:
            assert changes[output, inside].min(initial=1) > 1e-9


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_template(name, size):
    if size[0] == 1 and (name.startswith("orthogonal") or name == "compound"):
        with pytest.raises(UserError, match="at least 2 features"):
            build(name, *size)
        return
    check(build(name, *size))


@pytest.mark.parametrize("seed", range(20))
def test_random_templates(seed):
    check(random_template(np.random.default_rng(seed), num_qubits=4))


@pytest.mark.parametrize("name", names())
def test_wide_circuits_are_bounded(name):
    template = build(name, 13, 1)
    check(template, tries=1)
    derived = derive(template)
    if not derived.trivial:
        return  # its parameters are others
    first = template.num_inputs
    for observable, cone in zip(template.observables, cones(template), strict=True):
        bound = np.flatnonzero(light_cone(lower(derived.template), observable))
        assert {first + w for w in cone.weights} <= set(bound.tolist())
        assert template.encoding != "angle" or set(cone.inputs) <= set(bound.tolist())


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

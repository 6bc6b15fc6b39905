"""The exact simulator against Qiskit's Statevector, and its derivatives against finite differences."""

from collections import Counter

import numpy as np
import pytest
import torch

from qrkt_hw.simulator import METHODS, Simulator
from tests.random_templates import GATES, gate_by_gate, random_template, reference_values

pytestmark = pytest.mark.acceptance
TEMPLATES = 300
names = list(GATES)


def template_of(number: int):
    """Template ``number``: gate ``number mod len(GATES)`` and two more occur for sure; every tenth has one qubit."""
    if number % 10 == 0:
        return random_template(np.random.default_rng(number), num_qubits=1)
    must = [names[(number + k * 17) % len(names)] for k in range(3)]
    return random_template(np.random.default_rng(number), must=must)


def fitting(template):
    return [name for name, method in METHODS.items() if method.supports(template)]


def test_every_standard_gate_occurs_at_least_five_times():
    counts = Counter()
    sizes = set()
    for number in range(TEMPLATES):
        template = template_of(number)
        counts.update(i.operation.name for i in template.circuit.data)
        sizes.add(template.num_qubits)
    assert not {name: counts[GATES[name].name] for name in names if counts[GATES[name].name] < 5}
    assert sizes == set(range(1, 9))


@pytest.mark.parametrize("block", range(10))
def test_equals_statevector(block):
    for number in range(block * TEMPLATES // 10, (block + 1) * TEMPLATES // 10):
        template = template_of(number)
        rng = np.random.default_rng(10_000 + number)
        inputs = rng.uniform(-3, 3, size=(2, 2, template.num_inputs))
        weights = rng.uniform(-3, 3, size=(2, template.num_weights))
        wanted = np.array(
            [[reference_values(template, np.concatenate([inputs[b, g], weights[g]])) for g in (0, 1)] for b in (0, 1)]
        )
        for method in fitting(template):
            for dtype, bound in ((torch.complex64, 1e-5), (torch.complex128, 1e-10)):
                real = torch.float32 if dtype == torch.complex64 else torch.float64
                evaluate = Simulator(template, dtype, method)
                found = evaluate(torch.tensor(inputs, dtype=real), torch.tensor(weights, dtype=real)).numpy()
                difference = np.abs(found - wanted).max()
                assert difference <= bound, (number, method, dtype, difference)
        plain = gate_by_gate(template)(torch.tensor(inputs), torch.tensor(weights)).numpy()
        assert np.abs(plain - wanted).max() <= 1e-10, number


@pytest.mark.parametrize("number", range(30))
def test_gradients_equal_finite_differences(number):
    template = random_template(np.random.default_rng(1_000 + number), num_qubits=1 + number % 5, gates=10)
    rng = np.random.default_rng(number)
    x = torch.tensor(rng.uniform(-3, 3, size=(2, 1, template.num_inputs)), requires_grad=True)
    w = torch.tensor(rng.uniform(-3, 3, size=(1, template.num_weights)), requires_grad=True)
    cotangent = torch.tensor(rng.normal(size=(2, 1, len(template.observables))))
    for method in fitting(template):
        evaluate = Simulator(template, torch.complex128, method)

        def loss(x, w, evaluate=evaluate):
            return (evaluate(x, w) * cotangent).sum()

        grad_x, grad_w = torch.autograd.grad(loss(x, w), (x, w))
        numeric_x = central_differences(lambda t: loss(t, w.detach()), x.detach())
        numeric_w = central_differences(lambda t: loss(x.detach(), t), w.detach())
        assert (grad_x - numeric_x).abs().max() < 1e-6, method
        assert (grad_w - numeric_w).abs().max() < 1e-6, method


def central_differences(function, point, step=1e-5):
    gradients = torch.zeros_like(point)
    for k in range(point.numel()):
        move = torch.zeros(point.numel(), dtype=point.dtype)
        move[k] = step
        move = move.reshape(point.shape)
        gradients.view(-1)[k] = (function(point + move) - function(point - move)) / (2 * step)
    return gradients


@pytest.mark.parametrize("number", range(6))
def test_second_derivatives(number):
    template = random_template(np.random.default_rng(500 + number), num_qubits=1 + number % 3, gates=6)
    rng = np.random.default_rng(number)
    x = torch.tensor(rng.uniform(-3, 3, size=(2, 1, template.num_inputs)), requires_grad=True)
    w = torch.tensor(rng.uniform(-3, 3, size=(1, template.num_weights)), requires_grad=True)
    for method in fitting(template):
        assert torch.autograd.gradgradcheck(Simulator(template, torch.complex128, method), (x, w), atol=1e-5)

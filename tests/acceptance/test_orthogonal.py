"""Orthogonal layers: fast on one core, the same on every backend, and packed on a device with noise and shots."""

import time

import numpy as np
import pytest
import torch

from qrkt_hw import QuantumLayer, backends, circuits
from qrkt_hw.backends.fake import FakeBackend
from qrkt_hw.resources.forecast import forecast
from qrkt_hw.resources.logical import CircuitCall
from qrkt_hw.simulator import simulator

pytestmark = pytest.mark.acceptance
LAYOUTS = ("orthogonal_brick", "orthogonal_butterfly", "orthogonal_pyramid")


@pytest.mark.parametrize(
    ("layout", "layers"), [("orthogonal_pyramid", 1), ("orthogonal_butterfly", 1), ("orthogonal_brick", 16)]
)
def test_64_features_in_one_circuit_take_less_than_20_ms(layout, layers):
    template = circuits.build(layout, 64, layers)
    evaluate = simulator(template)
    x = torch.randn(4096, 1, 64, requires_grad=True)
    w = torch.randn(1, template.num_weights, requires_grad=True)
    before, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(15):
            started = time.thread_time()
            values = evaluate(x, w)
            torch.autograd.backward(values, torch.ones_like(values))
            times.append(time.thread_time() - started)
    finally:
        torch.set_num_threads(before)
    print(f"\n{layout}, {template.num_weights} angles: {1e3 * min(times):.1f} ms")
    assert min(times) < 0.020


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients_are_the_same_on_every_backend_and_rule(layout):
    torch.manual_seed(1)
    exact = QuantumLayer(8, layout, qubits=4, dtype=torch.complex128)
    x = torch.randn(4, 8, dtype=torch.float64)
    x[1], x[2, 2:] = 0, 0
    x.requires_grad_()
    values = exact(x)
    wanted = torch.autograd.grad((values**3).sum(), (x, exact.weight))
    for name in ("exact", "aer_cpu"):
        for rule in ("adjoint", "parameter_shift"):
            place = backends.resolve(name, gradient=rule)
            layer = QuantumLayer(
                8, layout, qubits=4, backend=place, initial_weights=exact.weight, dtype=torch.complex128
            )
            found = layer(x)
            assert torch.allclose(found, values)
            gradients = torch.autograd.grad((found**3).sum(), (x, layer.weight))
            assert all(torch.allclose(a, b) for a, b in zip(gradients, wanted, strict=True)), (name, rule)


def test_a_layer_of_8_features_on_a_noisy_chip():
    """Its error beside brickwork's of equal depth in two-qubit gates, and executions as predicted."""
    torch.manual_seed(2)
    x, errors = torch.randn(12, 8), {}
    for ansatz, layers in (("orthogonal_brick", 4), ("brickwork", 4)):
        exact = QuantumLayer(8, ansatz, layers=layers)
        device = FakeBackend("fake_torino", "fake_torino", shots=1024, method="density_matrix")
        device.rng = np.random.default_rng(3)
        noisy = QuantumLayer(8, ansatz, layers=layers, backend=device, initial_weights=exact.weight)
        planned = forecast([[CircuitCall("layer", noisy.network.evaluated, 1, 1)]], len(x), len(x), device)
        with torch.no_grad():
            difference = noisy(x) - exact(x)
            size = exact(x).norm(dim=-1).mean()
        errors[ansatz] = float(difference.norm(dim=-1).mean() / size)
        assert planned.executions == device.counters.executions
        assert planned.circuits == device.counters.circuits == len(x)
        replicas = len(x) * 1024 / device.counters.executions
        print(f"\n{ansatz}: relative error {errors[ansatz]:.3f}, {replicas:.1f} circuits in an execution")
        assert replicas > 4
    assert all(0 < error < 1 for error in errors.values())

"""Pauli propagation: any width, exact, twice differentiable, and chosen where they are cheapest."""

import time

import pytest
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit

from qrkt_hw import QuantumLayer, circuits
from qrkt_hw.compiler import expand, lower
from qrkt_hw.simulator import Simulator, native, propagated
from tests.random_templates import gate_by_gate


def wide_layer():
    torch.manual_seed(0)
    return QuantumLayer(features=384, ansatz="qrkt", qubits=384, layers=1)


def test_384_qubits_follow_the_closed_form():
    layer = wide_layer()
    assert layer.method == "pauli"
    x = torch.randn(50, 384)
    theta = layer.weight.detach()
    single = theta.cos() * x.sin() + theta.sin() ** 2 * x.cos()
    wanted = torch.cat([(single[:, 0] * single[:, -1])[:, None], single[:, 1:]], dim=1)  # Z_0 becomes X_0 X_{n-1}
    torch.testing.assert_close(layer(x).detach(), wanted, atol=1e-6, rtol=0)


@pytest.mark.acceptance
def test_384_qubits_on_4096_tokens_take_less_than_a_second():
    layer = wide_layer()
    seconds = []
    for _ in range(3):
        x = torch.randn(64, 64, 384, requires_grad=True)
        started = time.process_time()
        layer(x).square().sum().backward()
        seconds.append(time.process_time() - started)
    assert min(seconds) < 1.0, seconds


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("absorb", [True, False])
@pytest.mark.parametrize("name", ["qrkt", "ry_rz_ring", "rx_ring", "efficient_su2", "real_amplitudes", "brickwork"])
def test_every_expansion_equals_the_gates(name, absorb, kernels, monkeypatch):
    template = circuits.build(name, 4, 2)
    expansion = expand(lower(template), template.observables, absorb)
    assert expansion is not None
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, template.num_weights, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(3, 2, 4, dtype=torch.float64)
    gates = gate_by_gate(template)
    wanted = torch.autograd.grad(gates(x, w), (x, w), cotangent)
    monkeypatch.setattr(propagated, "plan", lambda template: (expansion, 1.0))
    if not kernels:
        monkeypatch.setattr(native, "serves", lambda *tensors: False)
    ours = Simulator(template, torch.complex128, "pauli")
    torch.testing.assert_close(ours(x, w), gates(x, w))
    for leaf, gradient in zip((x, w), wanted, strict=True):  # each alone, then both
        torch.testing.assert_close(torch.autograd.grad(ours(x, w), leaf, cotangent)[0], gradient)
    torch.testing.assert_close(torch.autograd.grad(ours(x.detach(), w), w, cotangent)[0], wanted[1])
    torch.testing.assert_close(torch.autograd.grad(ours(x, w.detach()), x, cotangent)[0], wanted[0])
    few = torch.randn(2, 1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(ours, (few, w[:1].detach().requires_grad_()))


def test_a_gradient_penalty_reaches_the_weights():
    layer = QuantumLayer(4, "ry_rz_ring", qubits=4, layers=2, dtype=torch.complex128, method="pauli")
    assert layer.method == "pauli"

    def penalty(evaluate):
        x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 1, 4).requires_grad_()
        w = layer.weight.detach().view(1, -1).requires_grad_()
        values = evaluate(x, w)
        (gradient,) = torch.autograd.grad(values.sum(), x, create_graph=True)
        return torch.autograd.grad((gradient.norm() - 1) ** 2, w)[0]

    ours = Simulator(layer.template, torch.complex128, "pauli")
    torch.testing.assert_close(penalty(ours), penalty(gate_by_gate(layer.template)))


def test_data_behind_an_entangling_gate_cannot_be_propagated():
    template = circuits.build("reuploading", 3, 2)
    assert expand(lower(template), template.observables, True) is None
    assert Simulator(template).method != "pauli"


def test_terms_stay_within_the_limit():
    template = circuits.build("efficient_su2", 6, 3)
    assert expand(lower(template), template.observables, True, limit=100) is None


def test_angles_that_mix_inputs_and_weights():
    x, w = ParameterVector("x", 2), ParameterVector("w", 2)
    circuit = QuantumCircuit(2)
    circuit.rx(0.5 * x[0] + w[0], 0)
    circuit.ry(2 * x[1] - x[0] + 0.3, 1)
    circuit.rz(x[0], 1)
    circuit.rzz(w[1], 0, 1)
    circuit.t(0)
    template = circuits.CircuitTemplate("mixed", circuit, x, w, ("XY", "ZI", "IY"))
    ours, gates = Simulator(template, torch.complex128, "pauli"), gate_by_gate(template)
    a = torch.randn(3, 1, 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(a, b), gates(a, b))
    assert torch.autograd.gradcheck(ours, (a, b))
    assert torch.autograd.gradgradcheck(ours, (a, b))

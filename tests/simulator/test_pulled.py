"""Pulled-back observables: any width, exact, twice differentiable, and chosen where they are cheapest."""

import time

import numpy as np
import pytest
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit

from qrkt_hw import QuantumLayer, circuits
from qrkt_hw.compiler import lower
from qrkt_hw.compiler.propagation import pull_back
from qrkt_hw.simulator import Simulator, pulled
from qrkt_hw.simulator.products import Products


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


@pytest.mark.parametrize("name", ["qrkt", "ry_rz_ring", "rx_ring", "efficient_su2", "real_amplitudes", "brickwork"])
def test_every_plan_equals_gatewise(name, monkeypatch):
    template = circuits.build(name, 4, 2)
    program = lower(template)
    every = pulled.plans(program, template.observables)
    assert {plan.kind for plan in every} >= {"gathered", "split"}
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, template.num_weights, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(3, 2, 4, dtype=torch.float64)
    gatewise = Simulator(template, torch.complex128, "gatewise")
    wanted = torch.autograd.grad(gatewise(x, w), (x, w), cotangent)
    for plan in every:
        monkeypatch.setitem(pulled._plans, program, (template.observables, plan))
        ours = Simulator(template, torch.complex128, "pauli")
        torch.testing.assert_close(ours(x, w), gatewise(x, w))
        for leaf, slope in zip((x, w), wanted, strict=True):  # each alone, then both
            torch.testing.assert_close(torch.autograd.grad(ours(x, w), leaf, cotangent)[0], slope)
        torch.testing.assert_close(torch.autograd.grad(ours(x.detach(), w), w, cotangent)[0], wanted[1])
        torch.testing.assert_close(torch.autograd.grad(ours(x, w.detach()), x, cotangent)[0], wanted[0])
        few = torch.randn(2, 1, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradgradcheck(ours, (few, w[:1].detach().requires_grad_()))


def test_a_gradient_penalty_reaches_the_weights():
    layer = QuantumLayer(4, "ry_rz_ring", qubits=4, layers=2, dtype=torch.complex128, method="pauli")
    assert layer.method == "pauli"

    def penalty(method):
        x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 1, 4).requires_grad_()
        w = layer.weight.detach().view(1, -1).requires_grad_()
        values = Simulator(layer.template, torch.complex128, method)(x, w)
        (slope,) = torch.autograd.grad(values.sum(), x, create_graph=True)
        return torch.autograd.grad((slope.norm() - 1) ** 2, w)[0]

    torch.testing.assert_close(penalty("pauli"), penalty("gatewise"))


def test_data_behind_an_entangling_gate_cannot_be_pulled_back():
    template = circuits.build("reuploading", 3, 2)
    assert pull_back(lower(template), template.observables, True) is None
    assert Simulator(template).method != "pauli"


def test_terms_stay_within_the_limit():
    template = circuits.build("efficient_su2", 6, 3)
    assert pull_back(lower(template), template.observables, True, limit=100) is None


def test_angles_that_mix_inputs_and_weights():
    x, w = ParameterVector("x", 2), ParameterVector("w", 2)
    circuit = QuantumCircuit(2)
    circuit.rx(0.5 * x[0] + w[0], 0)
    circuit.ry(2 * x[1] - x[0] + 0.3, 1)
    circuit.rz(x[0], 1)
    circuit.rzz(w[1], 0, 1)
    circuit.t(0)
    template = circuits.CircuitTemplate("mixed", circuit, x, w, ("XY", "ZI", "IY"))
    ours, gatewise = (Simulator(template, torch.complex128, method) for method in ("pauli", "gatewise"))
    a = torch.randn(3, 1, 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(a, b), gatewise(a, b))
    assert torch.autograd.gradcheck(ours, (a, b))
    assert torch.autograd.gradgradcheck(ours, (a, b))


def test_products_share_pairs_and_match_numpy():
    rng = np.random.default_rng(0)
    lists = [[1, 2, 3], [1, 2, 4], [], [5], [1, 2, 3, 4, 5, 5]]
    table = torch.tensor(rng.normal(size=(6, 2, 3)))
    table[0] = 1
    products = Products(lists, 6, torch.float64)
    kept: list[torch.Tensor] = []
    wanted = np.stack([np.prod(table.numpy()[entry], axis=0) for entry in lists])
    np.testing.assert_allclose(products.forward(table, kept).numpy(), wanted)
    cotangent = torch.tensor(rng.normal(size=(5, 2, 3)))
    leaf = table.clone().requires_grad_()
    (slope,) = torch.autograd.grad(products.forward(leaf), leaf, cotangent)
    torch.testing.assert_close(products.pull(cotangent, kept), slope)
    alike = [[1, 2, 3, 4, k] for k in range(5, 25)]
    assert Products(alike, 25, torch.float64).multiplications < 20 * 4  # each alone takes four

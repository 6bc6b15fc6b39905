"""Gradients on backends that can only be evaluated."""

import numpy as np
import pytest
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit

from qrkt_hw import QuantumLayer, circuits
from qrkt_hw.backends import Call, resolve
from qrkt_hw.circuits import CircuitTemplate
from qrkt_hw.compiler import derive, rule_for, split
from qrkt_hw.nn.attention import project_together
from qrkt_hw.nn.quantum import QuantumProjection
from qrkt_hw.nn.remote import SPSA, Adjoint, ParameterShift, Wanted
from tests.random_templates import GATES, random_template

SYMBOLIC = sorted(name for name, gate in GATES.items() if gate.params)


def shifted(call, backend, rule=None):
    rule = rule or ParameterShift()
    return rule.jacobian(call, Wanted(), backend.run(rule.calls(call, Wanted())))


def exact_jacobian(call):
    return Adjoint().jacobian(call, Wanted(), [])


def call_for(template, samples=2, seed=0):
    return Call(template, np.random.default_rng(seed).normal(size=(samples, 1, len(template.parameters))))


@pytest.mark.acceptance
@pytest.mark.parametrize("seed", range(30))
def test_parameter_shift_on_aer_is_the_derivative_on_random_templates(seed):
    """Every parameterised gate of the standard library occurs, controlled rotations in every third template."""
    must = [SYMBOLIC[seed % len(SYMBOLIC)], ["crx", "cry", "crz"][seed % 3]]
    template = random_template(np.random.default_rng(seed), num_qubits=None if seed % 5 else 4, must=must)
    call = call_for(template, seed=seed)
    np.testing.assert_allclose(shifted(call, resolve("aer_cpu")), exact_jacobian(call), atol=1e-6)


@pytest.mark.acceptance
@pytest.mark.parametrize("ansatz", circuits.names())
def test_parameter_shift_is_the_derivative_on_every_template(ansatz):
    call = call_for(derive(circuits.build(ansatz, 4, 2)).template)
    np.testing.assert_allclose(shifted(call, resolve("aer_cpu")), exact_jacobian(call), atol=1e-9)


def controlled():
    w = ParameterVector("w", 1)
    circuit = QuantumCircuit(2)
    circuit.ry(0.9, 0)
    circuit.ry(0.5, 1)
    circuit.crx(2 * w[0] + 0.3, 0, 1)
    circuit.h(0)  # the control's coherence rotates with half the angle
    return CircuitTemplate("controlled", circuit, (), w)


def test_a_controlled_rotation_takes_four_terms_and_two_would_be_wrong():
    call = call_for(controlled())
    (rule,) = split(call.template).rules
    assert rule.frequencies == (0.5, 1.0) and len(rule.shifts) == 2
    np.testing.assert_allclose(shifted(call, resolve("aer_cpu")), exact_jacobian(call), atol=1e-10)
    parts = split(call.template)
    angles = call.values @ parts.jacobian.T + parts.offsets
    up, down = resolve("aer_cpu").run([Call(parts.template, angles + s * np.pi / 2) for s in (1, -1)])
    two_terms = (up - down)[..., None] / 2 * parts.jacobian[0, 0]
    assert np.abs(two_terms - exact_jacobian(call)).max() > 1e-2


@pytest.mark.parametrize("frequencies", [(1.0,), (0.5, 1.0), (1.0, 2.0, 3.0), (0.5, 1.0, 1.5), (1.0, 2.3), (0.7,)])
def test_a_rule_differentiates_its_frequencies(frequencies):
    rule = rule_for(frequencies)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, len(frequencies)))

    def f(x):
        return sum(p * np.cos(w * x) + q * np.sin(w * x) for w, p, q in zip(frequencies, a, b, strict=True)) + 0.3

    derivative = sum(w * (q * np.cos(w * 0.4) - p * np.sin(w * 0.4)) for w, p, q in zip(frequencies, a, b, strict=True))
    found = sum(c * (f(0.4 + s) - f(0.4 - s)) for c, s in zip(rule.coefficients, rule.shifts, strict=True))
    assert found == pytest.approx(derivative, abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_a_split_template_is_the_same_circuit(seed):
    template = random_template(np.random.default_rng(seed), num_qubits=3)
    call, parts = call_for(template), split(template)
    angles = call.values @ parts.jacobian.T + parts.offsets
    found, wanted = (resolve("exact").run([c])[0] for c in (Call(parts.template, angles), call))
    np.testing.assert_allclose(found, wanted, atol=1e-10)


def spsa_error(rule_type, directions=64):
    """Relative error of the mean estimate over fixed random directions, against the true derivatives along them."""
    call = call_for(circuits.build("ry_rz_ring", 3, 1), samples=8)
    exact, backend = exact_jacobian(call), resolve("aer_cpu")
    found, wanted = [], []
    for seed in range(directions):
        rule = rule_type(1e-3, np.random.default_rng(seed))
        jacobian = shifted(call, backend, rule)
        signs = rule.direction(call)
        found.append(np.einsum("...op,...p->...o", jacobian, signs) / signs.shape[-1])
        wanted.append(np.einsum("...op,...p->...o", exact, signs))
    return np.abs(np.mean(found, 0) - np.mean(wanted, 0)).mean() / np.abs(np.mean(wanted, 0)).mean()


class WrongSign(SPSA):
    """A planted error: the step backwards is taken for the step forwards."""

    def calls(self, call, wanted):
        return [Call(c.template, c.values[::-1], c.tag) for c in super().calls(call, wanted)]


@pytest.mark.acceptance
def test_spsa_follows_the_derivative_along_fixed_directions_and_a_wrong_sign_is_seen():
    assert spsa_error(SPSA) < 0.05
    assert spsa_error(WrongSign) > 1


def test_spsa_over_all_directions_is_the_gradient():
    """The mean over all sign vectors is the gradient up to the square of the step."""
    template = circuits.build("brickwork", 1, 1)
    call = call_for(template, samples=1)
    size = call.values.shape[-1]
    total = np.zeros((1, 1, template.num_outputs, size))
    for code in range(2**size):
        rule = SPSA(1e-3, np.random.default_rng(0))
        rule.signs = np.array([[1.0 if code >> k & 1 else -1.0 for k in range(size)]])
        total += shifted(call, resolve("aer_cpu"), rule)
    np.testing.assert_allclose(total / 2**size, exact_jacobian(call), atol=1e-5)


@pytest.mark.parametrize("gradient", ["adjoint", "parameter_shift"])
def test_a_layer_on_aer_has_the_gradients_of_the_exact_layer(gradient):
    torch.manual_seed(0)
    exact = QuantumLayer(features=6, ansatz="ry_rz_ring", qubits=3, layers=1, dtype=torch.complex128)
    aer = QuantumLayer(
        features=6, ansatz="ry_rz_ring", qubits=3, layers=1, dtype=torch.complex128, initial_weights=exact.weight,
        backend=resolve("aer_cpu", gradient=gradient),
    )  # fmt: skip
    x = torch.randn(4, 2, 6, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(4, 2, 6, dtype=torch.float64)
    found, wanted = (torch.autograd.grad(layer(x), (x, layer.weight), cotangent) for layer in (aer, exact))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def test_a_round_is_one_run_forward_and_one_backward():
    backend = resolve("aer_cpu", gradient="parameter_shift")
    layers = [QuantumLayer(features=4, ansatz=a, qubits=2, backend=backend) for a in ("qrkt", "brickwork", "qrkt")]
    x = torch.randn(3, 4)
    values = project_together([(QuantumProjection(layer, scale=False), x) for layer in layers])
    assert backend.counters.rounds == 1
    sum(v.sum() for v in values).backward()
    assert backend.counters.rounds == 2
    assert all(layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32 for layer in layers)


def test_only_needed_derivatives_are_evaluated():
    def circuits_used(x_needs, weight_needs):
        backend = resolve("aer_cpu", gradient="parameter_shift")
        layer = QuantumLayer(features=2, ansatz="brickwork", qubits=2, backend=backend)
        layer.weight.requires_grad_(weight_needs)
        values = layer(torch.zeros(1, 2, requires_grad=x_needs))
        before = backend.counters.circuits
        values.sum().backward()
        return backend.counters.circuits - before

    template = circuits.build("brickwork", 2, 1)
    inputs, weights = 2 * template.num_inputs, 2 * template.num_weights
    assert circuits_used(True, True) == inputs + weights
    assert circuits_used(True, False) == inputs
    assert circuits_used(False, True) == weights


def test_a_second_derivative_is_refused_rather_than_wrong():
    layer = QuantumLayer(features=2, ansatz="brickwork", qubits=2, backend=resolve("aer_cpu"))
    x = torch.randn(1, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="aer_cpu are not twice differentiable"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)


def test_adjoint_on_a_sampling_noisy_backend_is_the_noiseless_gradient():
    noisy = QuantumLayer(
        features=2, ansatz="brickwork", qubits=2, backend=resolve("fake_lima", shots=64, seed=0), dtype=torch.complex128
    )
    exact = QuantumLayer(features=2, ansatz="brickwork", qubits=2, initial_weights=noisy.weight, dtype=torch.complex128)
    x = torch.randn(3, 2, dtype=torch.float64)
    found, wanted = (torch.autograd.grad(layer(x).sum(), layer.weight)[0] for layer in (noisy, exact))
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(noisy(x), exact(x), atol=1e-3)


def test_parameter_shift_on_a_noisy_backend_is_the_gradient_through_the_noise():
    shift = QuantumLayer(features=2, ansatz="ry_rz_ring", qubits=2, dtype=torch.complex128,
                         backend=resolve("fake_lima", gradient="parameter_shift"))  # fmt: skip
    through = QuantumLayer(features=2, ansatz="ry_rz_ring", qubits=2, backend=resolve("fake_lima"),
                           initial_weights=shift.weight, dtype=torch.complex128)  # fmt: skip
    assert through.method == "superoperator"
    x = torch.randn(3, 2, dtype=torch.float64)
    found, wanted = (torch.autograd.grad(layer(x).sum(), layer.weight)[0] for layer in (shift, through))
    torch.testing.assert_close(found, wanted, atol=1e-8, rtol=0)


def test_a_gradient_penalty_through_an_orthogonal_layer_elsewhere_is_that_of_the_exact_layer():
    torch.manual_seed(4)
    exact = QuantumLayer(6, ansatz="orthogonal_brick", qubits=3, layers=3, dtype=torch.complex128)
    features, found = torch.randn(3, 6, dtype=torch.float64), []
    for backend in ("exact", "aer_cpu"):
        layer = QuantumLayer(6, exact.template, backend=backend, initial_weights=exact.weight, dtype=torch.complex128)
        x = features.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((layer(x)[:, :4] ** 3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad((gradient**2).sum() + layer(x).sum(), (x, layer.weight)))
    assert all(torch.allclose(*pair, rtol=1e-9, atol=1e-9) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_dtype_go_through_an_orthogonal_layer_elsewhere(kind):
    exact = QuantumLayer(6, ansatz="orthogonal_brick", qubits=3)
    elsewhere = QuantumLayer(6, exact.template, backend="aer_cpu", initial_weights=exact.weight)
    x = (torch.linspace(-6, 6, 12).view(2, 6) * 1e4).to(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, wanted = elsewhere(x), exact(x)
    assert found.dtype == wanted.dtype and torch.allclose(found, wanted, rtol=1e-6, atol=0.05)

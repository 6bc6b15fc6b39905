"""Templates under Qiskit Machine Learning: its default feature map, gradients that are not asked for, missing parts."""

import numpy as np
import pytest
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.circuit.library import real_amplitudes, zz_feature_map
from qiskit.quantum_info import SparsePauliOp
from qiskit_machine_learning import QiskitMachineLearningError
from qiskit_machine_learning.algorithms import NeuralNetworkClassifier, NeuralNetworkRegressor
from qiskit_machine_learning.connectors import TorchConnector
from qiskit_machine_learning.optimizers import COBYLA, L_BFGS_B

from qrkt_hw import backends
from qrkt_hw.circuits import CircuitTemplate, build
from qrkt_hw.nn.quantum import QuantumLayer, TemplateNetwork
from tests.random_templates import reference_values


def zz_template(qubits=2, observables=()):
    encoding, ansatz = zz_feature_map(qubits), real_amplitudes(qubits, reps=1)
    circuit = encoding.compose(ansatz)
    return CircuitTemplate("zz", circuit, tuple(encoding.parameters), tuple(ansatz.parameters), observables)


def reuploading():
    """Products of inputs and weights, and functions of weights alone."""
    x, w = ParameterVector("x", 2), ParameterVector("w", 3)
    circuit = QuantumCircuit(2)
    circuit.ry(x[0] * w[0] + w[1], 0)
    circuit.rx(x[1] ** 2, 1)
    circuit.cx(0, 1)
    circuit.rz(w[2].sin(), 1)
    circuit.ry(w[1], 1)
    circuit.rx((x[0] * x[1]).cos() * w[2], 0)
    return CircuitTemplate("mixed", circuit, x, w, ("ZI", "IX", "YY"))


def shifting():
    backend = backends.get("aer_cpu")
    backend.gradient = "parameter_shift"
    return backend


def numeric(f, at, step=1e-5):
    return np.stack([(f(at + step * e) - f(at - step * e)) / (2 * step) for e in np.eye(len(at))], axis=-1)


@pytest.mark.parametrize("make", [zz_template, reuploading])
@pytest.mark.parametrize("where", [lambda: backends.get("exact"), shifting], ids=["exact", "parameter_shift"])
def test_angles_that_are_not_linear_are_exact_on_every_backend(make, where):
    template, backend, rng = make(), where(), np.random.default_rng(1)
    x = rng.uniform(-2, 2, (3, 2 * template.num_inputs))
    w = rng.uniform(-3, 3, 2 * template.num_weights)
    halves = [
        [reference_values(template, [*a, *b]) for a, b in zip(np.split(row, 2), np.split(w, 2), strict=True)]
        for row in x
    ]
    wanted = np.array(halves).reshape(3, -1)
    network = TemplateNetwork(template, backend, groups=2)
    np.testing.assert_allclose(network.forward(x, w), wanted, atol=1e-9)
    by_input, by_weight = network.backward(x, w)
    for row in range(3):
        gradients = numeric(lambda v: network.forward(v, w)[0], x[row])
        np.testing.assert_allclose(by_input[row], gradients, atol=1e-6)
        gradients = numeric(lambda v, row=row: network.forward(x[row], v)[0], w)
        np.testing.assert_allclose(by_weight[row], gradients, atol=1e-6)
    layer = QuantumLayer(x.shape[1], ansatz=template, backend=backend, dtype=torch.complex128, initial_weights=w)
    features = torch.tensor(x, requires_grad=True)
    values = layer(features)
    np.testing.assert_allclose(values.detach(), wanted, atol=1e-9)
    cotangent = torch.tensor(rng.normal(size=wanted.shape))
    found = torch.autograd.grad(values, (features, layer.weight), cotangent)
    np.testing.assert_allclose(found[0], np.einsum("so,soi->si", cotangent, by_input), atol=1e-9)
    np.testing.assert_allclose(found[1], np.einsum("so,sow->w", cotangent, by_weight), atol=1e-9)


@pytest.mark.parametrize("make", [zz_template, reuploading])
def test_second_derivatives_of_such_angles(make):
    template = make()
    layer = QuantumLayer(2 * template.num_inputs, ansatz=template, dtype=torch.complex128)
    x = torch.rand(2, 2 * template.num_inputs, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda a, _: layer(a), (x, layer.weight))
    float32 = QuantumLayer(2 * template.num_inputs, ansatz=template, initial_weights=layer.weight.detach())
    assert float32(x.float()).dtype == torch.float32
    np.testing.assert_allclose(float32(x.float()).detach(), layer(x).detach(), atol=1e-4)


@pytest.mark.parametrize("where", [lambda: backends.get("exact"), shifting], ids=["exact", "parameter_shift"])
def test_a_classifier_and_a_regressor_train_with_the_zz_feature_map(where):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (12, 2))
    parity = SparsePauliOp("ZZ")
    network = TemplateNetwork(zz_template(observables=parity), where(), input_gradients=False)
    secret = rng.uniform(-2, 2, network.num_weights)
    target = network.forward(x, secret)
    start = secret + rng.uniform(-0.5, 0.5, len(secret))
    labels = np.sign(target).reshape(-1)
    classifier = NeuralNetworkClassifier(network, optimizer=COBYLA(maxiter=40), initial_point=start)
    before = np.mean(np.sign(network.forward(x, start)).reshape(-1) == labels)
    assert classifier.fit(x, labels).score(x, labels) >= before
    regressor = NeuralNetworkRegressor(network, optimizer=L_BFGS_B(maxiter=40), initial_point=start)
    assert regressor.fit(x, target).score(x, target) > 0.99  # by gradients, so they must be right


def test_gradients_that_are_not_asked_for_cost_no_circuits():
    backend = shifting()
    template = build("qrkt", 4, 1)
    network = TemplateNetwork(template, backend)
    x, w = np.random.default_rng(0).uniform(-1, 1, (8, 4)), np.arange(4.0)

    def circuits(of):
        before = backend.counters.circuits
        return of(), backend.counters.circuits - before

    (by_input, by_weight), full = circuits(lambda: network.backward(x, w))
    network.input_gradients = False
    (none, again), fewer = circuits(lambda: network.backward(x, w))
    assert none is None and by_input.shape == (8, 4, 4)
    np.testing.assert_allclose(again, by_weight, atol=1e-12)
    assert (full, fewer) == (8 * 2 * 12, 8 * 2 * 8)  # RY(x), RX(w), RZ(w): two shifts of each


@pytest.mark.parametrize("input_gradients", [False, True])
def test_stock_connector_behind_a_convolution(input_gradients):
    network = TemplateNetwork(zz_template(), backends.get("exact"), input_gradients=input_gradients)
    connector = TorchConnector(network)
    images = torch.rand(3, 1, 2, 2)
    x = torch.nn.Conv2d(1, 1, 1)(images).flatten(1)[:, :2] if input_gradients else images.flatten(2)[..., :2]
    connector(x).sum().backward()  # without input gradients, three axes pass as well
    assert connector.weight.grad is not None and torch.isfinite(connector.weight.grad).all()


def test_circuits_without_inputs_or_without_weights():
    w = ParameterVector("w", 2)
    circuit = QuantumCircuit(2)
    circuit.ry(w[0], 0)
    circuit.rx(w[1], 1)
    circuit.cx(0, 1)
    for backend in (backends.get("exact"), shifting()):
        network = TemplateNetwork(CircuitTemplate("t", circuit, (), w), backend)
        np.testing.assert_allclose(
            network.forward(None, [0.3, 0.4])[0], reference_values(network.template, [0.3, 0.4]), atol=1e-9
        )
        none, by_weight = network.backward(None, [0.3, 0.4])
        gradients = numeric(lambda v, n=network: n.forward(None, v)[0], np.array([0.3, 0.4]))
        assert none is None
        np.testing.assert_allclose(by_weight[0], gradients, atol=1e-6)
        network = TemplateNetwork(CircuitTemplate("t", circuit, w, ()), backend)
        for weights in (None, []):
            found = network.forward([[0.3, 0.4], [0.5, 0.6]], weights)
            np.testing.assert_allclose(found[1], reference_values(network.template, [0.5, 0.6]), atol=1e-9)
        by_input, none = network.backward([0.3, 0.4], None)
        assert none is None
        np.testing.assert_allclose(by_input[0], gradients, atol=1e-6)
        network.input_gradients = False
        assert network.backward([0.3, 0.4], None) == (None, None)
        layer = QuantumLayer(4, ansatz=network.template, backend=backend)
        x = torch.tensor([[0.3, 0.4, 0.5, 0.6]], requires_grad=True)
        np.testing.assert_allclose(
            layer(x).detach().numpy().reshape(2, 2), [network.forward([0.3, 0.4], [])[0], found[1]], atol=1e-6
        )
        assert torch.isfinite(torch.autograd.grad(layer(x).sum(), x)[0]).all()
        fixed = circuit.assign_parameters([0.3, 0.4])
        network = TemplateNetwork(CircuitTemplate("t", fixed, (), ()), backend)
        np.testing.assert_allclose(network.forward(None, None)[0], reference_values(network.template, []), atol=1e-9)
        assert network.backward(None, None) == (None, None)


def test_missing_inputs_and_weights_are_refused_in_a_sentence():
    network = TemplateNetwork(build("qrkt", 2, 1), backends.get("exact"))
    for call in (network.forward, network.backward):
        with pytest.raises(QiskitMachineLearningError, match="takes 2 inputs, not 0"):
            call(None, [0.1, 0.2])
        with pytest.raises(QiskitMachineLearningError, match="takes 2 weights, not 0"):
            call([0.1, 0.2], None)
        with pytest.raises(QiskitMachineLearningError, match="takes 2 inputs, not 1"):
            call(0.1, [0.1, 0.2])

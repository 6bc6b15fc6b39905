"""QuantumLayer: a torch module that agrees with the stock TorchConnector."""

import copy
import pickle

import pytest
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit_machine_learning.connectors import TorchConnector

from qrkt_hw import QuantumLayer
from qrkt_hw.circuits import CircuitTemplate, names
from qrkt_hw.errors import UserError
from qrkt_hw.nn.attention import project_together
from qrkt_hw.nn.quantum import QuantumProjection


@pytest.mark.acceptance
@pytest.mark.parametrize("ansatz", names())
def test_stock_torch_connector_gives_the_same_values_and_gradients(ansatz):
    torch.manual_seed(0)
    ours = QuantumLayer(features=6, ansatz=ansatz, qubits=3, layers=2)
    stock = TorchConnector(ours.neural_network, initial_weights=ours.weight.detach().numpy())
    x = torch.randn(5, 6, requires_grad=True)
    values, wanted = ours(x), stock(x)
    cotangent = torch.randn_like(values)
    torch.testing.assert_close(values, wanted, atol=2e-6, rtol=0)
    found = torch.autograd.grad(values, (x, ours.weight), cotangent)
    expected = torch.autograd.grad(wanted, (x, stock.weight), cotangent)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_is_a_torch_connector_with_one_parameter():
    layer = QuantumLayer(features=6, ansatz="qrkt", qubits=6, layers=1, backend="exact", dtype=torch.complex64)
    assert isinstance(layer, TorchConnector)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert list(layer.state_dict()) == ["weight"]
    assert layer.weight.shape == (6,)


@pytest.mark.parametrize("lead", [(), (1,), (4,), (2, 3), (2, 0)])
def test_keeps_leading_axes(lead):
    assert QuantumLayer(features=6, qubits=3)(torch.zeros(*lead, 6)).shape == (*lead, 6)


def test_copies_are_independent_and_keep_working():
    layer = QuantumLayer(features=4, qubits=2)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight.add_(1.0)
    x = torch.randn(3, 4)
    assert not torch.allclose(layer(x), twin(x))
    assert twin.weight is twin._parameters["weight"]


@pytest.mark.parametrize("ansatz", names())
@pytest.mark.parametrize("layers", [1, 3])
def test_copies_and_pickles_of_a_layer_in_use_give_the_same(ansatz, layers):
    layer = QuantumLayer(8, ansatz=ansatz, qubits=4, layers=layers)
    x = torch.randn(5, 8)
    values = layer(x)  # its compiled evaluator holds addresses now
    values.sum().backward()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.weight is not layer.weight
        torch.testing.assert_close(twin(x), values, rtol=0, atol=0)


def test_double_precision_follows_the_dtype():
    layer = QuantumLayer(features=4, qubits=4, dtype=torch.complex128)
    assert layer(torch.zeros(2, 4, dtype=torch.float64)).dtype == torch.float64


def test_layers_evaluated_together_equal_layers_evaluated_alone():
    layers = [QuantumLayer(features=f, ansatz=a, qubits=2) for f, a in ((4, "qrkt"), (6, "qrkt"), (4, "brickwork"))]
    inputs = [torch.randn(5, layer.features) for layer in layers]
    together = project_together(
        [(QuantumProjection(layer, scale=False), x) for layer, x in zip(layers, inputs, strict=True)]
    )
    for layer, x, values in zip(layers, inputs, together, strict=True):
        torch.testing.assert_close(values, layer(x))


def test_a_template_of_ones_own():
    x, w = ParameterVector("x", 2), ParameterVector("w", 1)
    circuit = QuantumCircuit(2)
    circuit.ry(x[0], 0)
    circuit.ry(x[1], 1)
    circuit.crx(w[0], 0, 1)
    layer = QuantumLayer(features=4, ansatz=CircuitTemplate("mine", circuit, x, w, ("ZZ",)))
    assert layer(torch.randn(3, 4)).shape == (3, 2)


def test_wrong_sizes_say_so():
    with pytest.raises(UserError, match="multiple"):
        QuantumLayer(features=6, qubits=4)
    with pytest.raises(ValueError, match=r"\(\.\.\., 6\)"):
        QuantumLayer(features=6)(torch.zeros(2, 5))

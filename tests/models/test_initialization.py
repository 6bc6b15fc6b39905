"""Angles to begin with that let a signal through: against closed forms, and against angles as drawn."""

import math

import pytest
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit

from qrkt_hw import QuantumLayer
from qrkt_hw.circuits import CircuitTemplate, names
from qrkt_hw.errors import UserError
from qrkt_hw.models.initialization import condition, linear_part


def logdet(layer):
    torch.manual_seed(7)
    c = linear_part(layer, 4096)
    return torch.linalg.slogdet(c @ c.mT + 1e-6 * torch.eye(c.shape[-1])).logabsdet.mean()


def rotations(num_qubits, layers):
    """RY(x) RY(w): ``<Z> = cos(x + w)``, whose linear part for standard normal x is ``-sin(w) exp(-1/2)``."""
    x, w = ParameterVector("x", num_qubits), ParameterVector("w", num_qubits)
    circuit = QuantumCircuit(num_qubits)
    for k in range(num_qubits):
        circuit.ry(x[k], k)
        circuit.ry(w[k], k)
    return CircuitTemplate("rotations", circuit, tuple(x), tuple(w))


def test_linear_part_of_single_rotations():
    torch.manual_seed(0)
    layer = QuantumLayer(6, ansatz=rotations(3, 1), qubits=3)
    expected = torch.diag_embed(-layer.weight.detach().view(2, 3).sin() * math.exp(-0.5))
    torch.testing.assert_close(linear_part(layer, 200_000), expected, rtol=0, atol=0.015)


def test_rotations_end_at_the_sine():
    torch.manual_seed(0)
    layer = QuantumLayer(6, ansatz=rotations(3, 1), qubits=3)
    condition([layer])
    assert (layer.weight.detach().sin().abs() > 0.95).all()


@pytest.mark.parametrize("ansatz", names())
@pytest.mark.parametrize("layers", [1, 2])
def test_every_ansatz_passes_more_or_as_little(ansatz, layers):
    torch.manual_seed(0)
    layer = QuantumLayer(24, ansatz=ansatz, qubits=4, layers=layers)
    before = logdet(layer)
    condition([layer])
    assert logdet(layer) > before - 1  # circuits that pass no signal stay where they were, but for the samples' errors


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("qubits", [2, 3, 4, 6])
def test_brickwork_passes_all_directions(qubits, layers):
    torch.manual_seed(0)
    layer = QuantumLayer(4 * qubits, ansatz="brickwork", qubits=qubits, layers=layers)
    drawn = torch.linalg.svdvals(linear_part(layer, 4096))[:, -1].mean()
    condition([layer])
    passed = torch.linalg.svdvals(linear_part(layer, 4096))[:, -1].mean()
    assert drawn < 0.3 and passed > 0.4


def test_layers_together_and_any_backend_and_the_generator_decides():
    def made(backend):
        torch.manual_seed(3)
        layers = [QuantumLayer(4, ansatz=a, qubits=2, backend=backend) for a in ("brickwork", "qrkt", "brickwork")]
        condition(layers)
        return torch.cat([layer.weight for layer in layers])

    assert torch.equal(made("exact"), made("exact"))
    assert torch.equal(made("exact"), made("fake_torino"))


def test_more_observables_than_inputs_and_fewer():
    def template(observables):
        from qiskit.quantum_info import SparsePauliOp

        base = rotations(2, 1)
        return CircuitTemplate("t", base.circuit, base.inputs, base.weights, tuple(map(SparsePauliOp, observables)))

    for observables in (("IZ",), ("IZ", "ZI", "ZZ")):
        layer = QuantumLayer(4, ansatz=template(observables), qubits=2)
        condition([layer])
        assert linear_part(layer).shape == (2, len(observables), 2)
        assert layer.weight.isfinite().all()


def test_a_run_begins_there_each_time_and_only_its_angles_differ():
    from qrkt_hw import backends
    from qrkt_hw.data import load_data
    from qrkt_hw.runs.config import Config
    from qrkt_hw.training.fit import fresh_model

    def begun(angles):
        options = Config(ansatz="brickwork", hidden=8, heads=2, mlp=4, limit=50, initial_angles=angles, seed=5)
        return fresh_model(options, load_data(options.data), backends.get("exact")).state_dict()

    one, again, drawn = begun("conditioned"), begun("conditioned"), begun("uniform")
    assert all(torch.equal(one[name], again[name]) for name in one)
    for name in one:
        assert torch.equal(one[name], drawn[name]) != name.endswith("layer.weight"), name


def test_wide_circuits_are_refused():
    with pytest.raises(UserError, match=r"initial_angles: .* 13"):
        condition([QuantumLayer(13, ansatz="qrkt", qubits=13)])

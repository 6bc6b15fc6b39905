"""What is kept of a circuit on a device is found again for the same circuit only."""

import numpy as np
import pytest
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.circuit.library import UnitaryGate

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.circuits import build
from qrkt_hw.resources.logical import fingerprint


def template(change=lambda circuit: None, name="x", qubits=2):
    inputs = ParameterVector(name, qubits)
    circuit = QuantumCircuit(qubits)
    for qubit in range(qubits):
        circuit.ry(inputs[qubit], qubit)
    change(circuit)
    circuit.cx(0, 1)
    return CircuitTemplate("mine", circuit, inputs, ())


def block(angle):
    inner = QuantumCircuit(1, name="block")
    inner.rx(angle, 0)
    return lambda circuit: circuit.append(inner.to_gate(), [0])


def unitary(angle, qubits):
    phases = np.exp(1j * angle * (np.arange(2**qubits) == 500 % 2**qubits))
    return lambda circuit: circuit.append(UnitaryGate(np.diag(phases)), range(qubits))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (template(block(0.1)), template(block(0.2))),  # gates of one name that do not do the same
        (template(unitary(1e-10, 2)), template(unitary(2e-10, 2))),
        (template(unitary(0.1, 6), qubits=6), template(unitary(0.2, 6), qubits=6)),
        (template(), template(lambda circuit: circuit.barrier())),  # the transpiler does not cross it
        (template(lambda circuit: circuit.barrier(0)), template(lambda circuit: circuit.barrier(1))),
        (build("qrkt", 4, 1), build("qrkt", 4, 2)),
    ],
)
def test_other_circuits_have_other_fingerprints(one, other):
    assert fingerprint(one) != fingerprint(other)


def test_names_of_parameters_do_not_matter():
    assert fingerprint(template(name="x")) == fingerprint(template(name="input"))

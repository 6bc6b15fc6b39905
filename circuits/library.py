"""Wrapping an ansatz of Qiskit's circuit library as a template."""

from __future__ import annotations

from qiskit.circuit import ParameterVector, QuantumCircuit
from qrkt_hw.circuits.template import CircuitTemplate, angle_encoding


def behind_angle_encoding(name: str, ansatz: QuantumCircuit, *, topology: str, reference: str) -> CircuitTemplate:
    """RY(x_j) on every qubit, then ``ansatz``; its parameters become the weights, in the ansatz' own order."""
    circuit, inputs = angle_encoding(ansatz.num_qubits)
    weights = ParameterVector("theta", ansatz.num_parameters)
    circuit.compose(ansatz.assign_parameters(list(weights)), inplace=True)
    return CircuitTemplate(name, circuit, inputs, weights, topology=topology, reference=reference)

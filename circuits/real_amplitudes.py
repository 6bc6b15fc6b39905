"""Qiskit's ``real_amplitudes`` (RY layers and CX) behind an angle encoding."""

from qiskit.circuit.library import real_amplitudes

from qrkt_hw.ansatz import CircuitTemplate, behind_angle_encoding

NAME = "real_amplitudes"
REFERENCE = "qiskit.circuit.library.real_amplitudes, entanglement 'linear'"


def template(num_qubits: int, layers: int = 1) -> CircuitTemplate:
    """``(layers + 1) * num_qubits`` weights."""
    ansatz = real_amplitudes(num_qubits, entanglement="linear", reps=layers)
    return behind_angle_encoding(NAME, ansatz, topology="chain", reference=REFERENCE)

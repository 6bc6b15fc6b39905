"""Qiskit's ``efficient_su2`` (RY and RZ layers and CX) behind an angle encoding."""

from qiskit.circuit.library import efficient_su2

from qrkt_hw.ansatz import CircuitTemplate, behind_angle_encoding

NAME = "efficient_su2"
REFERENCE = "qiskit.circuit.library.efficient_su2, entanglement 'linear'; Kandala et al., Nature 549, 242 (2017)"


def template(num_qubits: int, layers: int = 1) -> CircuitTemplate:
    """``2 * (layers + 1) * num_qubits`` weights; the last layer of RZ does not move a Z measurement."""
    ansatz = efficient_su2(num_qubits, entanglement="linear", reps=layers)
    return behind_angle_encoding(NAME, ansatz, topology="chain", reference=REFERENCE)

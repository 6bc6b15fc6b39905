"""Data re-uploading: the features enter again in every layer, so outputs are Fourier series of degree ``layers``."""

from qiskit.circuit import ParameterVector

from qrkt_hw.ansatz import CircuitTemplate, ring

NAME = "reuploading"
REFERENCE = "Perez-Salinas et al., Quantum 4, 226 (2020); Schuld, Sweke, Meyer, Physical Review A 103, 032430 (2021)"


def template(num_qubits: int, layers: int = 1) -> CircuitTemplate:
    """``2 * layers * num_qubits`` weights. Per layer: RY(x_j), RZ, CX ring, RY."""
    from qiskit.circuit import QuantumCircuit

    circuit = QuantumCircuit(num_qubits)
    inputs = ParameterVector("x", num_qubits)
    weights = ParameterVector("theta", 2 * layers * num_qubits)
    angles = iter(weights)
    for _ in range(layers):
        for j in range(num_qubits):
            circuit.ry(inputs[j], j)
            circuit.rz(next(angles), j)
        for pair in ring(num_qubits):
            circuit.cx(*pair)
        for j in range(num_qubits):
            circuit.ry(next(angles), j)
    return CircuitTemplate(NAME, circuit, inputs, weights, topology="ring", reference=REFERENCE)

"""The predecessor of the thesis' VQC: RX encoding, layers of RX and a CNOT ring."""

from qiskit.circuit import ParameterVector

from qrkt_hw.ansatz import CircuitTemplate, angle_encoding, ring

NAME = "rx_ring"
REFERENCE = "Comajoan Cara et al., Quantum Vision Transformers for Quark-Gluon Classification, Axioms 13(5) 323, 2024"


def template(num_qubits: int, layers: int = 1) -> CircuitTemplate:
    """``layers * num_qubits`` weights."""
    circuit, inputs = angle_encoding(num_qubits, axis="x")
    weights = ParameterVector("theta", layers * num_qubits)
    for layer in range(layers):
        for j in range(num_qubits):
            circuit.rx(weights[layer * num_qubits + j], j)
        for pair in ring(num_qubits):
            circuit.cx(*pair)
    return CircuitTemplate(NAME, circuit, inputs, weights, topology="ring", reference=REFERENCE)

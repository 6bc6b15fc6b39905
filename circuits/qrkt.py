"""The thesis' VQC: RY encoding, RX and RZ by the same angle on every qubit, then an interleaved H/CNOT ring."""

from qiskit.circuit import ParameterVector

from qrkt_hw.ansatz import CircuitTemplate, angle_encoding

NAME = "qrkt"
REFERENCE = "QRKT-GAN, bachelor thesis, POLITEHNICA Bucharest, 2024"


def template(num_qubits: int, layers: int = 1) -> CircuitTemplate:
    """``layers * num_qubits`` weights. For two qubits the ring is a single CNOT(0, 1), without H.

    At one layer and three or more qubits the ring is Clifford and every output but the first depends on one input only:
    ``<Z_j> = cos(theta) sin(x_j) + sin(theta)^2 cos(x_j)``. Use more layers for a circuit that mixes features.
    """
    circuit, inputs = angle_encoding(num_qubits)
    weights = ParameterVector("theta", layers * num_qubits)
    for layer in range(layers):
        for j in range(num_qubits):
            theta = weights[layer * num_qubits + j]
            circuit.rx(theta, j)
            circuit.rz(theta, j)
        if num_qubits == 2:
            circuit.cx(0, 1)
        elif num_qubits > 2:
            for j in range(num_qubits):
                circuit.h(j)
                circuit.cx(j, (j + 1) % num_qubits)
    return CircuitTemplate(NAME, circuit, inputs, weights, topology="ring", reference=REFERENCE)

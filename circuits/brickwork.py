"""A chain-topology brickwork that fits heavy-hex and square lattices without a SWAP."""

from qiskit.circuit import ParameterVector

from qrkt_hw.ansatz import CircuitTemplate, angle_encoding

NAME = "brickwork"
REFERENCE = "alternating layered ansatz, Cerezo et al., Nature Communications 12, 1791 (2021), with CZ"


def template(num_qubits: int, layers: int = 1) -> CircuitTemplate:
    """``2 * layers * num_qubits`` weights: per layer RZ, then RY by qubit, CZ on even pairs, then on odd pairs.

    A last half layer is not needed: every layer ends with RY behind the CZ gates, in front of the Z measurement.
    """
    circuit, inputs = angle_encoding(num_qubits)
    weights = ParameterVector("theta", 2 * layers * num_qubits)
    angles = iter(weights)
    for _ in range(layers):
        for j in range(num_qubits):
            circuit.rz(next(angles), j)
            circuit.sx(j)
        for start in (0, 1):
            for j in range(start, num_qubits - 1, 2):
                circuit.cz(j, j + 1)
        for j in range(num_qubits):
            circuit.ry(next(angles), j)
    return CircuitTemplate(NAME, circuit, inputs, weights, topology="chain", reference=REFERENCE)

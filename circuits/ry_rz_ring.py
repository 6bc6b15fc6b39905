"""RY encoding, then layers of RY and RZ with a CX ring: the circuit-14 family without controlled rotations."""

from qiskit.circuit import ParameterVector

from qrkt_hw.ansatz import CircuitTemplate, angle_encoding, ring

NAME = "ry_rz_ring"
REFERENCE = "hardware-efficient ansatz after Kandala et al., Nature 549, 242 (2017), with a ring of CX"


def template(num_qubits: int, layers: int = 1) -> CircuitTemplate:
    """``2 * layers * num_qubits`` weights: per layer RY angles, then RZ angles, in qubit order.

    Each layer is RZ, ring, RY: the RZ comes before the entangler, where it is not lost to the Z measurement.
    """
    circuit, inputs = angle_encoding(num_qubits)
    weights = ParameterVector("theta", 2 * layers * num_qubits)
    angles = iter(weights)
    for _ in range(layers):
        for j in range(num_qubits):
            circuit.rz(next(angles), j)
        for pair in ring(num_qubits):
            circuit.cx(*pair)
        for j in range(num_qubits):
            circuit.ry(next(angles), j)
    return CircuitTemplate(NAME, circuit, inputs, weights, topology="ring", reference=REFERENCE)

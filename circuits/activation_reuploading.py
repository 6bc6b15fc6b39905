"""An activation function per feature: one qubit each, into which the feature enters again and again."""

from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qrkt_hw.ansatz import CircuitTemplate

NAME = "activation_reuploading"
REFERENCE = "Jiang, Huang, Chen, Goan, arXiv:2509.14026 (data re-uploading activations)"
RANGE = 4.0  # values lie between -RANGE and RANGE

# by repetitions: angles of w, b, then c, w, b for each further one, fitted on [-3, 3] by least squares
IDENTITY = {  # largest errors 0.14, 0.026, 0.005
    1: (0.2661, -1.5708),
    2: (-0.6062, 0.0, 0.5127, 0.282, 1.5708),
    3: (0.0813, -1.5708, -1.1975, -0.5831, 0.0, -1.3973, -0.4474, 0.0),
}
GELU = {  # 0.055, 0.004; one repetition is a cosine, which has no such shape
    2: (-0.5372, -0.8964, -0.9259, 0.3673, 2.2068),
    3: (0.3282, 0.7778, -2.2891, 1.272, -0.0507, 1.1812, -0.1632, -1.9811),
}


def template(num_qubits: int, layers: int = 1) -> CircuitTemplate:
    """``3 * layers - 1`` weights a qubit: RY(w x + b), then RZ(c), RY(w x + b) for each further repetition.

    Output j is ``4 <Z_j>``, a Fourier series of feature j alone whose frequencies are sums of the trained ``w``. Angles
    to begin with: ``identity``, the default, and from two layers on ``gelu``; from the fourth repetition on they are 0.
    """
    inputs, each = ParameterVector("x", num_qubits), 3 * layers - 1
    weights = ParameterVector("theta", num_qubits * each)
    circuit = QuantumCircuit(num_qubits)
    for j, feature in enumerate(inputs):
        angles = iter(weights[j * each : (j + 1) * each])
        for layer in range(layers):
            if layer:
                circuit.rz(next(angles), j)
            circuit.ry(next(angles) * feature, j)
            circuit.ry(next(angles), j)
    read = [SparsePauliOp.from_sparse_list([("Z", [j], RANGE)], num_qubits) for j in range(num_qubits)]
    initial = {
        name: (*fitted[min(layers, 3)], *[0.0] * (3 * (layers - 3))) * num_qubits
        for name, fitted in {"identity": IDENTITY, "gelu": GELU}.items()
        if min(layers, 3) in fitted
    }
    return CircuitTemplate(
        NAME, circuit, inputs, weights, tuple(read), topology="none", reference=REFERENCE, initial=initial
    )

"""A circuit that reads products of many features on one qubit: for ``--attention higher-order``, over tokens."""

import math

from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qrkt_hw.ansatz import CircuitTemplate

NAME = "higher_order"
REFERENCE = "our own variant, after Xu, Li, Zeng, Paisley, Zhao, arXiv:2606.11673"


def template(num_qubits: int, layers: int = 1) -> CircuitTemplate:
    """``layers * (num_qubits + 1)`` weights. Per layer: RY(x_j), RZZ of every feature's qubit with the read-out qubit,
    RZ and H on that one.

    ``num_qubits`` features take one qubit more, the read-out; all begin in ``|+>``. The only output is its ``<Z>``.
    With one layer that is the real part of ``exp(i c) * prod_j (cos a_j - i sin a_j sin x_j)``: every product of sines,
    such as the parity of any subset where features are 90 degrees or -90; classically a product of n complex numbers.
    Only with more layers does it hold what has no such form. The published circuit joins all pairs of qubits.

    Angles begin at 45 degrees (``balanced``), where no product is smaller than another.
    """
    inputs, weights = ParameterVector("x", num_qubits), ParameterVector("theta", layers * (num_qubits + 1))
    circuit, angles = QuantumCircuit(num_qubits + 1), iter(weights)
    circuit.h(range(num_qubits + 1))
    for _ in range(layers):
        for j, feature in enumerate(inputs):
            circuit.ry(feature, j)
            circuit.rzz(next(angles), j, num_qubits)
        circuit.rz(next(angles), num_qubits)
        circuit.h(num_qubits)
    read = SparsePauliOp.from_sparse_list([("Z", [num_qubits], 1.0)], num_qubits + 1)
    initial = {"balanced": (math.pi / 4,) * len(weights)}
    return CircuitTemplate(
        NAME, circuit, inputs, weights, (read,), topology="star", reference=REFERENCE, initial=initial
    )

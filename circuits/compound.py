"""Compound layer: two excitations that move on a chain by Givens rotations, some by features and some by weights."""

import math

from qiskit.circuit import ParameterVector, QuantumCircuit

from qrkt_hw.ansatz import CircuitTemplate, rbs, z_observables

NAME = "compound"
REFERENCE = "our own variant, after the compound transformer of Cherrat et al., Quantum 8, 1265 (2024)"


def template(num_qubits: int, layers: int = 1) -> CircuitTemplate:
    """``layers * num_qubits`` weights: per layer RBS(x_j), then RBS(theta_j), each on the neighbours j and j + 1.

    - Input: ``num_qubits`` features as angles, on one qubit more, without a reference qubit: the weight stays 2.
    - Loader: none of features; fixed rotations spread one excitation evenly over each half of the chain, so that every
      angle moves something and keeps its sign.
    - Observables: Z on every qubit but the last, whose value follows from the others', as there are two excitations.

    Classically: ``(n + 1 choose 2)`` amplitudes, which are the 2 x 2 minors (the compound matrix) of an orthogonal
    matrix. As all gates join neighbours, the values need only that matrix: ``<Z_j> = 1 - 2 (u_j^2 + v_j^2)`` of two
    orthogonal vectors u and v. Raises ValueError: fewer than two features, whose two excitations could not move.
    """
    if num_qubits < 2:
        raise ValueError(f"two excitations need at least 2 features to move, not {num_qubits}")
    size, middle = num_qubits + 1, (num_qubits + 1) // 2
    inputs, weights = ParameterVector("x", num_qubits), ParameterVector("theta", layers * num_qubits)
    circuit = QuantumCircuit(size)
    for half in (range(middle), range(middle, size)):
        circuit.x(half.start)
        for j in half[:-1]:
            rbs(circuit, math.acos(1 / math.sqrt(half.stop - j)), j, j + 1)
    pairs = [*range(0, num_qubits, 2), *range(1, num_qubits, 2)]
    for layer in range(layers):
        for j in pairs:
            rbs(circuit, inputs[j], j, j + 1)
        for j in pairs:
            rbs(circuit, weights[layer * num_qubits + j], j, j + 1)
    return CircuitTemplate(
        NAME, circuit, inputs, weights, z_observables(size)[:-1], topology="chain", reference=REFERENCE
    )

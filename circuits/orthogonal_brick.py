"""Orthogonal layer, brick layout: Givens rotations between neighbours on a chain, which a heavy-hex chip has."""

from qrkt_hw.ansatz import CircuitTemplate, orthogonal

NAME = "orthogonal_brick"
REFERENCE = "Kerenidis, Landman, Mathur, arXiv:2106.07198; Cherrat et al., Quantum 8, 1265 (2024)"


def template(num_qubits: int, layers: int = 1) -> CircuitTemplate:
    """An angle per pair: layers alternate between pairs that start at even and at odd features.

    ``num_qubits`` features take one qubit more, the reference. The outputs are an orthogonal matrix times the features;
    as many layers as features reach every rotation.
    """
    bricks = [[(j, j + 1) for j in range(layer % 2, num_qubits - 1, 2)] for layer in range(layers)]
    return orthogonal(NAME, num_qubits, bricks, topology="chain", reference=REFERENCE)

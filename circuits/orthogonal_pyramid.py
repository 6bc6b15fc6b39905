"""Orthogonal layer, pyramid layout: neighbours on a chain, and all n (n - 1) / 2 angles of a rotation of n features."""

from qrkt_hw.ansatz import CircuitTemplate, orthogonal

NAME = "orthogonal_pyramid"
REFERENCE = "Kerenidis, Landman, Mathur, arXiv:2106.07198"


def template(num_qubits: int, layers: int = 1) -> CircuitTemplate:
    """``n (n - 1) / 2`` angles, depth ``2 n - 3``: every rotation of the features, each once.

    ``num_qubits`` features take one qubit more, the reference. More layers add angles and no other rotation.
    """
    depth = range(max(2 * num_qubits - 3, 0))
    steps = [[(j, j + 1) for j in range(num_qubits - 1) if abs(d - (num_qubits - 2)) <= num_qubits - 2 - j
              and (d - j) % 2 == 0] for d in depth]  # fmt: skip
    return orthogonal(NAME, num_qubits, steps * layers, topology="chain", reference=REFERENCE)

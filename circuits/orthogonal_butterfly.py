"""Orthogonal layer, butterfly layout: Givens rotations at distances 1, 2, 4, ..., as in a fast Fourier transform."""

from qrkt_hw.ansatz import CircuitTemplate, orthogonal

NAME = "orthogonal_butterfly"
REFERENCE = "Cherrat et al., Quantum 8, 1265 (2024)"


def template(num_qubits: int, layers: int = 1) -> CircuitTemplate:
    """``n / 2 * log2(n)`` angles per layer where n is a power of two; every output depends on every feature.

    ``num_qubits`` features take one qubit more, the reference. Features are loaded by a tree of depth ``log2(n)``.
    Devices whose qubits have few neighbours need SWAP gates for it.
    """
    distances = [2**k for k in range((num_qubits - 1).bit_length())]
    stages = [[(j, j + d) for j in range(num_qubits - d) if not j & d] for d in distances]
    return orthogonal(
        NAME, num_qubits, stages * layers, topology="hypercube", reference=REFERENCE, encoding="unary_tree"
    )

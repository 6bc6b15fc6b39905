"""Statevectors of a lowered template for many parameter values at once, in NumPy.

What the analysis needs of a simulator: states, and exact derivatives by the adjoint method (Jones and Gacon 2020,
arXiv:2009.02823). Training uses the torch simulator instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from qiskit.quantum_info import SparsePauliOp

from qrkt_hw.compiler.program import Fixed, Program, Rotation

Complex = NDArray[np.complex128]


def states(program: Program, values: NDArray[np.float64]) -> Complex:
    """States ``(batch, 2^n)``, qubit 0 least significant, from ``|0...0>``.

    Args:
        program: the lowered circuit.
        values: ``(batch, inputs + weights)``.
    """
    psi = np.zeros((len(values), 2**program.num_qubits), dtype=complex)
    psi[:, 0] = 1
    for step in program.steps:
        psi = _forward(step, psi, values, program.num_qubits)
    return psi


def jacobian(
    program: Program, observables: Sequence[SparsePauliOp], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Derivatives ``(batch, observables, inputs + weights)`` of the expectation values."""
    psi = states(program, values)
    result = np.zeros((len(values), len(observables), values.shape[1]))
    bras = [apply_observable(observable, psi) for observable in observables]
    for step in reversed(program.steps):
        if isinstance(step, Rotation):
            turned = apply_pauli(step.pauli, step.qubits, psi)
            for place, bra in enumerate(bras):
                # d<O>/d(angle) = Im <O psi| P |psi>
                slope = np.einsum("bi,bi->b", bra.conj(), turned).imag
                for index, factor in step.angle.terms:
                    result[:, place, index] += factor * slope
        psi = _backward(step, psi, values, program.num_qubits)
        bras = [_backward(step, bra, values, program.num_qubits) for bra in bras]
    return result


def expectations(observables: Sequence[SparsePauliOp], psi: Complex) -> NDArray[np.float64]:
    """``(batch, observables)``."""
    columns = [np.einsum("bi,bi->b", psi.conj(), apply_observable(o, psi)).real for o in observables]
    return np.stack(columns, axis=1)


def apply_observable(observable: SparsePauliOp, psi: Complex) -> Complex:
    """``O psi``, ``(batch, 2^n)``."""
    terms = observable.to_sparse_list()
    return sum((c * apply_pauli(word, tuple(qubits), psi) for word, qubits, c in terms), np.zeros_like(psi))


def apply_pauli(word: str, qubits: tuple[int, ...], psi: Complex) -> Complex:
    """``P psi``; letter k of ``word`` acts on ``qubits[k]``."""
    flip = sum(1 << q for letter, q in zip(word, qubits, strict=True) if letter in "XY")
    signs = sum(1 << q for letter, q in zip(word, qubits, strict=True) if letter in "ZY")
    index = np.arange(psi.shape[1])
    phase = 1j ** word.count("Y") * (1.0 - 2.0 * (np.bitwise_count((index ^ flip) & signs) & 1))
    return phase * psi[:, index ^ flip]


def _forward(step: Fixed | Rotation, psi: Complex, values: NDArray[np.float64], n: int) -> Complex:
    if isinstance(step, Fixed):
        return _apply(step.matrix, step.qubits, psi, n)
    return _rotate(step, psi, angles(step, values))


def _backward(step: Fixed | Rotation, psi: Complex, values: NDArray[np.float64], n: int) -> Complex:
    if isinstance(step, Fixed):
        return _apply(step.matrix.conj().T, step.qubits, psi, n)
    return _rotate(step, psi, -angles(step, values))


def angles(step: Rotation, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles ``(batch,)`` of a rotation."""
    total = np.full(len(values), step.angle.offset)
    for index, factor in step.angle.terms:
        total += factor * values[:, index]
    return total


def _rotate(step: Rotation, psi: Complex, angle: NDArray[np.float64]) -> Complex:
    half = angle[:, None] / 2
    return np.cos(half) * psi - 1j * np.sin(half) * apply_pauli(step.pauli, step.qubits, psi)


def _apply(matrix: Complex, qubits: tuple[int, ...], psi: Complex, n: int) -> Complex:
    k = len(qubits)
    axes = [n - q for q in reversed(qubits)]  # axis 0 is the batch; the first qubit is the least significant
    front = np.moveaxis(psi.reshape(-1, *([2] * n)), axes, range(1, k + 1))
    turned = matrix @ front.reshape(len(psi), 2**k, -1)
    return np.moveaxis(turned.reshape(front.shape), range(1, k + 1), axes).reshape(psi.shape)

"""Vectors over Pauli strings: how rotations and channels move ``<Q>``, and how an observable is pulled back.

A state of n qubits is the real vector ``r[Q] = tr(Q rho)`` over all ``4^n`` Pauli strings. Digit q of the index, base
4, is the letter on qubit q: I=0, X=1, Z=2, Y=3 (x bit + 2 * z bit), so that a product of strings is an exclusive or.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qrkt_hw.compiler import Program, Rotation
from qrkt_hw.simulator.gatewise import Angles
from qrkt_hw.simulator.tables import Tables

LETTERS = "IXZY"
_MATRICES = np.array(
    [[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[1, 0], [0, -1]], [[0, -1j], [1j, 0]]], dtype=complex
)  # fmt: skip
# P Q = _PHASES[P, Q] * (P xor Q)
_PHASES = np.array([[np.trace(_MATRICES[a ^ b] @ _MATRICES[a] @ _MATRICES[b]) / 2 for b in range(4)] for a in range(4)])


@dataclass(frozen=True, eq=False)
class Channel:
    """A fixed map of states: ``transfer`` is real ``(4^k, 4^k)``, ``qubits[0]`` the least significant digit."""

    transfer: NDArray[np.float64]
    qubits: tuple[int, ...]


def transfer_matrix(superoperator: NDArray[np.complex128]) -> NDArray[np.float64]:
    """The Pauli transfer matrix ``(4^k, 4^k)`` of a superoperator in Qiskit's column-stacking convention."""
    columns = _vectors(round(np.log2(len(superoperator)) / 2))
    return np.real(columns.conj().T @ superoperator @ columns) / len(columns) ** 0.5


def superoperator(transfer: NDArray[np.float64]) -> NDArray[np.complex128]:
    """The superoperator ``(4^k, 4^k)``, column-stacking, of a Pauli transfer matrix."""
    columns = _vectors(round(np.log2(len(transfer)) / 2))
    return columns @ transfer @ columns.conj().T / len(columns) ** 0.5


@lru_cache(maxsize=8)
def _vectors(qubits: int) -> NDArray[np.complex128]:
    """Column-stacked Pauli strings, one a column."""
    words = [np.eye(1, dtype=complex)]
    for _ in range(qubits):  # the last factor added is the most significant digit
        words = [np.kron(_MATRICES[letter], word) for letter in range(4) for word in words]
    return np.stack([word.flatten(order="F") for word in words], axis=1)


def embedded(channel: Channel, qubits: tuple[int, ...]) -> NDArray[np.float64]:
    """The transfer matrix of a channel on more qubits, the identity on the others."""
    n, k = len(qubits), len(channel.qubits)
    axes = [n - 1 - qubits.index(q) for q in reversed(channel.qubits)]
    cube = np.eye(4**n).reshape([4] * n + [4**n])
    front = np.moveaxis(cube, axes, range(k))
    turned = (channel.transfer @ front.reshape(4**k, -1)).reshape(front.shape)
    return np.moveaxis(turned, range(k), axes).reshape(4**n, 4**n)


def unitary_transfer(matrix: NDArray[np.complex128]) -> NDArray[np.float64]:
    """The Pauli transfer matrix of a unitary ``(2^k, 2^k)``."""
    return transfer_matrix(np.kron(matrix.conj(), matrix).astype(np.complex128))


def rotation_action(
    pauli: str, qubits: tuple[int, ...], num_qubits: int
) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Under ``exp(-i angle/2 P)``: ``r'[Q] = (1 - anti[Q] (1 - cos)) r[Q] + sin sign[Q] r[Q ^ flip]``.

    Returns:
        ``flip``, ``anti`` (1 where Q anticommutes with P, else 0) and ``sign``, both ``(4^n,)``.
    """
    index = np.arange(4**num_qubits)
    flip, phase = 0, np.full(len(index), 1j)
    for letter, qubit in zip(pauli, qubits, strict=True):
        code = LETTERS.index(letter)
        flip |= code << (2 * qubit)
        phase = phase * _PHASES[code, (index >> (2 * qubit)) & 3]
    # i P Q is Hermitian exactly where P and Q anticommute
    sign = np.round(phase.real)
    return flip, np.abs(sign), sign


class PauliSteps(Tables):
    """Applies steps to vectors ``(groups, 4^n, batch)``; or, ``pulling``, their adjoints in reverse to observables."""

    def __init__(self, steps: Sequence[Channel | Rotation], program: Program, real: torch.dtype, pulling: bool) -> None:
        super().__init__()
        self.num_qubits = program.num_qubits
        self.steps = list(reversed(steps)) if pulling else list(steps)
        rotations = [s for s in self.steps if isinstance(s, Rotation)]
        self.angles = Angles(rotations, program, real) if rotations else None
        index = np.arange(4**self.num_qubits)
        for place, step in enumerate(self.steps):
            if isinstance(step, Channel):
                self.add(f"matrix{place}", step.transfer.T if pulling else step.transfer, real)
                continue
            flip, anti, sign = rotation_action(step.pauli, step.qubits, self.num_qubits)
            self.add(f"anti{place}", anti[:, None], real)
            self.add(f"sign{place}", (-sign if pulling else sign)[:, None], real)
            self.add(f"flip{place}", index ^ flip, torch.long)

    def __call__(self, vectors: Tensor, inputs: Tensor | None, weights: Tensor) -> Tensor:
        tables = self.on(weights.device)
        if self.angles is not None:
            angles = self.angles(inputs, weights)
            missing, sines = (1 - angles.cos()).unsqueeze(2), angles.sin().unsqueeze(2)
        rotation = 0
        for place, step in enumerate(self.steps):
            if isinstance(step, Channel):
                vectors = self._apply(vectors, tables[f"matrix{place}"], step.qubits)
                continue
            turned = vectors.index_select(1, tables[f"flip{place}"])
            kept = vectors - (tables[f"anti{place}"] * missing[rotation]) * vectors
            vectors = kept + (tables[f"sign{place}"] * sines[rotation]) * turned
            rotation += 1
        return vectors

    def _apply(self, vectors: Tensor, matrix: Tensor, qubits: tuple[int, ...]) -> Tensor:
        groups, size, batch = vectors.shape
        n, k = self.num_qubits, len(qubits)
        axes = [n - q for q in reversed(qubits)]
        front = vectors.reshape(groups, *([4] * n), batch).movedim(axes, list(range(1, k + 1)))
        turned = torch.matmul(matrix, front.reshape(groups, 4**k, -1))
        return turned.reshape(front.shape).movedim(list(range(1, k + 1)), axes).reshape(groups, size, batch)

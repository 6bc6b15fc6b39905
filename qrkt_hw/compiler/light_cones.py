"""Which inputs and weights an observable depends on, by pulling it back through the circuit.

In the Heisenberg picture a Clifford gate turns a Pauli string into one other, and a rotation about a Pauli string that
anticommutes with it into two. Where the strings stay few, the observable is known as a function of all parameters and
its derivatives with it: a parameter is in the cone where the derivative at random points is not zero, which holds with
probability one for a function that moves. Where they become too many, a statevector answers the same question for few
qubits, and the causal cone (every parameter of a gate that can reach the observable) bounds it for many.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from qiskit.quantum_info import SparsePauliOp

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.compiler.derived import derive
from qrkt_hw.compiler.program import PAULIS, Fixed, Program, Rotation, lower
from qrkt_hw.compiler.states import jacobian

LARGEST_SUM = 2048  # Pauli strings up to which an observable is pulled back
LARGEST_STATE = 12  # qubits up to which a statevector decides instead
# numbers touched over all observables, some seconds' worth; beyond, the causal cone bounds what they depend on
LARGEST_WORK = 2e8
LARGEST_GATE = 3  # qubits of a fixed gate through which strings are pulled
POINTS = 3
TOLERANCE = 1e-13
_CODES = "IXZY"  # x bit + 2 * z bit


@dataclass(frozen=True)
class Cone:
    """What one observable depends on.

    Attributes:
        inputs, weights: indices, sorted.
        exact: each of them moves the observable at almost every point; else they are all that can, "at most".
        strings: most Pauli strings the observable became on its way back; 0 where they were too many to follow.
    """

    inputs: tuple[int, ...]
    weights: tuple[int, ...]
    exact: bool
    strings: int


@lru_cache(maxsize=256)
def cones(template: CircuitTemplate) -> tuple[Cone, ...]:
    """The cone of every observable of a template, in order.

    Raises:
        ValueError: the template cannot be lowered.
    """
    derived = derive(template)
    program = lower(derived.template)
    drawn = derived.points(POINTS, seed=20)
    points, chain = derived.values(drawn), None if derived.trivial else derived.jacobian(drawn)

    def moving(slopes: NDArray[np.float64]) -> NDArray[np.bool_]:
        by_parameter = slopes if chain is None else np.einsum("ps,psk->pk", slopes, chain)
        return np.asarray((np.abs(by_parameter) > TOLERANCE).any(axis=0))

    found: list[Cone] = []
    by_state: NDArray[np.float64] | None = None
    for place, observable in enumerate(template.observables):
        pulled = pull_back(program, observable, points, work=LARGEST_WORK / len(template.observables))
        if pulled is not None:
            moves, strings, exact = moving(pulled[0][:, 1:]), pulled[1], True
        elif program.num_qubits <= LARGEST_STATE and _state_work(program, len(template.observables)) <= LARGEST_WORK:
            if by_state is None:
                by_state = jacobian(program, template.observables, points)
            moves, strings, exact = moving(by_state[:, place]), 0, True
        else:
            reached = causal_cone(program, observable)
            moves = reached if chain is None else (chain[:, reached] != 0).any(axis=(0, 1))
            strings, exact = 0, False
        where = np.flatnonzero(moves)
        split = np.searchsorted(where, template.num_inputs)
        inputs, weights = where[:split].tolist(), (where[split:] - template.num_inputs).tolist()
        found.append(Cone(tuple(inputs), tuple(weights), exact, strings))
    return tuple(found)


def _state_work(program: Program, observables: int) -> float:
    return len(program.steps) * (1.0 + observables) * POINTS * 2**program.num_qubits


def causal_cone(program: Program, observable: SparsePauliOp) -> NDArray[np.bool_]:
    """Parameters of gates that can reach the observable, ``(inputs + weights,)``."""
    reached = {q for _, qubits, c in observable.to_sparse_list() if c for q in qubits}
    moves = np.zeros(program.num_inputs + program.num_weights, dtype=bool)
    for step in reversed(program.steps):
        if reached.isdisjoint(step.qubits):
            continue
        reached.update(step.qubits)
        if isinstance(step, Rotation):
            moves[[i for i, c in step.angle.terms if c]] = True
    return moves


def pull_back(
    program: Program,
    observable: SparsePauliOp,
    points: NDArray[np.float64],
    limit: int = LARGEST_SUM,
    work: float = LARGEST_WORK,
) -> tuple[NDArray[np.float64], int] | None:
    """Value and derivatives of an observable at the points given, by its Pauli strings at the circuit's start.

    Args:
        program: the lowered circuit.
        observable: on all its qubits.
        points: ``(points, inputs + weights)``.
        limit: give up beyond this many strings.
        work: give up beyond this many numbers touched.

    Returns:
        ``(points, 1 + inputs + weights)``: the value, then its derivatives; and the most strings there were. None where
        they became too many, took too much work, or a fixed gate is too wide.
    """
    rows = _Strings(observable, program.num_qubits, points)
    widest = len(rows.x)
    for step in reversed(program.steps):
        if not rows.touches(step.qubits):
            continue
        work -= rows.coefficients.size
        if work < 0:
            return None
        if isinstance(step, Rotation):
            rows.rotate(step)
        elif len(step.qubits) > LARGEST_GATE:
            return None
        else:
            rows.conjugate(step)
        widest = max(widest, len(rows.x))
        if widest > limit:
            return None
    return rows.at_start(), widest


class _Strings:
    """A sum of Pauli strings: bits ``(strings, qubits)`` and coefficients ``(strings, points, 1 + parameters)``."""

    def __init__(self, observable: SparsePauliOp, num_qubits: int, points: NDArray[np.float64]) -> None:
        self.points = points
        terms = observable.simplify().to_sparse_list()
        self.x = np.zeros((len(terms), num_qubits), dtype=bool)
        self.z = np.zeros((len(terms), num_qubits), dtype=bool)
        self.coefficients = np.zeros((len(terms), len(points), 1 + points.shape[1]))
        for row, (word, qubits, coefficient) in enumerate(terms):
            for letter, qubit in zip(word, qubits, strict=True):
                self.x[row, qubit], self.z[row, qubit] = letter in "XY", letter in "ZY"
            self.coefficients[row, :, 0] = coefficient.real
        self._see()

    def _see(self) -> None:
        self.support = set(np.flatnonzero((self.x | self.z).any(0)).tolist())

    def touches(self, qubits: tuple[int, ...]) -> bool:
        return not self.support.isdisjoint(qubits)

    def rotate(self, step: Rotation) -> None:
        """``Q -> cos(angle) Q - i sin(angle) Q P`` where P and Q anticommute."""
        on = list(step.qubits)
        codes = [_CODES.index(letter) for letter in step.pauli]
        phase = np.ones(len(self.x), dtype=complex)
        for qubit, code in zip(on, codes, strict=True):
            phase = phase * _PHASES[self.x[:, qubit] + 2 * self.z[:, qubit], code]
        anti = np.abs(phase.imag) > 0.5  # -i Q P is Hermitian exactly where they anticommute, and then +- a string
        if not anti.any():
            return
        slopes = np.zeros(self.points.shape[1])
        for index, slope in step.angle.terms:
            slopes[index] += slope
        angle = self.points @ slopes + step.angle.offset
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        old = self.coefficients[anti]
        change = old[..., :1] * slopes  # d(angle) of the parameters
        kept, turned = cos * old, sin * old
        kept[..., 1:] -= sin * change
        turned[..., 1:] += cos * change
        turned *= phase.imag[anti, None, None]
        x, z = self.x[anti].copy(), self.z[anti].copy()
        for qubit, code in zip(on, codes, strict=True):
            x[:, qubit] ^= bool(code & 1)
            z[:, qubit] ^= bool(code & 2)
        self.coefficients[anti] = kept
        self.x, self.z = np.concatenate([self.x, x]), np.concatenate([self.z, z])
        self.coefficients = np.concatenate([self.coefficients, turned])
        self._merge()

    def conjugate(self, step: Fixed) -> None:
        """``Q -> U^dagger Q U``: one string for a Clifford gate, several for others."""
        on = list(step.qubits)
        weights = 4 ** np.arange(len(on))
        local = ((self.x[:, on] + 2 * self.z[:, on]) * weights).sum(1)
        transfer = _transfer(step.matrix.tobytes(), len(step.matrix))
        parts = []
        for code in np.unique(local):
            rows = local == code
            for image in np.flatnonzero(np.abs(transfer[code]) > 1e-12):
                x, z = self.x[rows].copy(), self.z[rows].copy()
                letters = (image // weights) % 4
                x[:, on], z[:, on] = (letters & 1).astype(bool), (letters & 2).astype(bool)
                parts.append((x, z, self.coefficients[rows] * transfer[code, image]))
        branched = sum(len(p[0]) for p in parts) > len(self.x)
        self.x, self.z, self.coefficients = (np.concatenate([p[k] for p in parts]) for k in range(3))
        if branched:
            self._merge()
        else:
            self._see()

    def _merge(self) -> None:
        bits = np.packbits(np.concatenate([self.x, self.z], axis=1), axis=1)
        _, first, which = np.unique(bits, axis=0, return_index=True, return_inverse=True)
        merged = np.zeros((len(first), *self.coefficients.shape[1:]))
        np.add.at(merged, which.reshape(-1), self.coefficients)
        alive = (np.abs(merged) > 1e-15).any(axis=(1, 2))
        self.x, self.z, self.coefficients = self.x[first][alive], self.z[first][alive], merged[alive]
        self._see()

    def at_start(self) -> NDArray[np.float64]:
        """The sum in ``|0...0>``, where strings of I and Z are 1 and others 0."""
        return self.coefficients[~self.x.any(1)].sum(0)


# P Q = _PHASES[P, Q] * (P xor Q), with letters by their codes
_PHASES = np.array(
    [[np.trace(PAULIS[_CODES[a ^ b]] @ PAULIS[_CODES[a]] @ PAULIS[_CODES[b]]) / 2 for b in range(4)] for a in range(4)]
)


@lru_cache(maxsize=512)
def _transfer(content: bytes, size: int) -> NDArray[np.float64]:
    """``[Q, R]``: how much of the string R is in ``U^dagger Q U``; real ``(4^k, 4^k)``."""
    unitary = np.frombuffer(content, dtype=complex).reshape(size, size)
    words = [np.eye(1, dtype=complex)]
    for _ in range(size.bit_length() - 1):  # the last letter is the most significant digit
        words = [np.kron(PAULIS[letter], word) for letter in _CODES for word in words]
    stack = np.stack(words)
    pulled = unitary.conj().T @ stack @ unitary
    return np.real(np.einsum("aij,bji->ab", pulled, stack, optimize=True)) / size

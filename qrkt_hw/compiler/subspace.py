"""Lowering a circuit whose gates keep the Hamming weight: it stays among ``(n choose k)`` basis states.

It begins with X on k qubits, in front of everything else on them. Then come Givens rotations (``XXPlusYYGate``),
rotations about Z, phases, and fixed gates that keep the weight (swap, iswap, any such matrix).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qrkt_hw.ansatz import CircuitTemplate, definition_of, remembered, standard_name, unary_angles
from qrkt_hw.compiler.program import LARGEST_FIXED, TOLERANCE, Affine, affine, is_symbolic, matrix_of

LARGEST = 2**18  # basis states
IDLE = ("barrier", "delay", "id", "global_phase")
# diagonal gates: factor of each parameter in exp(-i angle factor), by the bits of the gate's qubits
_DIAGONAL: dict[str, Callable[..., Any]] = {
    "rz": lambda a: 0.5 - a, "p": lambda a: 0.0 - a, "u1": lambda a: 0.0 - a, "cp": lambda a, b: 0.0 - a * b,
    "cu1": lambda a, b: 0.0 - a * b, "crz": lambda a, b: a * (0.5 - b), "rzz": lambda a, b: 0.5 - (a ^ b),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Diagonal:
    """Amplitude k is multiplied by ``exp(-i angle factor[k])``."""

    angle: Affine
    factor: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.factor)


@dataclass(frozen=True, eq=False)
class Givens:
    """``a, b`` become ``cos a - conj(phase) sin b`` and ``phase sin a + cos b`` for all pairs of amplitudes."""

    angle: Affine  # of the rotation
    phase: complex
    first: NDArray[np.int64]
    second: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True, eq=False)
class Matrix:
    """Amplitude ``rows[k]`` gets ``values[k]`` times amplitude ``columns[k]``, added up."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[np.complex128]

    def __len__(self) -> int:
        return len(self.values)


class Basis:
    """The basis states of a weight, in increasing order of their numbers.

    Attributes:
        bits: ``(states, qubits)``.
    """

    def __init__(self, qubits: int, weight: int) -> None:
        size = math.comb(qubits, weight)
        if size > LARGEST:
            raise _NoSubspace(f"{weight} excitations on {qubits} qubits have {size:,} states, more than {LARGEST:,}")
        chosen = np.array(list(itertools.combinations(range(qubits), weight)), dtype=np.intp).reshape(size, weight)
        self.bits = np.zeros((size, qubits), dtype=bool)
        np.put_along_axis(self.bits, chosen, True, axis=1)
        # the number of states below one whose excitation c (from 1) is on qubit p, the lower ones aside
        counts = [[min(math.comb(p, c), size) for c in range(weight + 1)] for p in range(qubits)]
        self._below = np.array(counts, dtype=np.int64).reshape(qubits, weight + 1)
        self.bits = self.bits[np.argsort(self.rank(self.bits))]

    def rank(self, bits: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Places in the basis of states ``(count, qubits)`` (combinatorial number system)."""
        below = self._below[np.arange(bits.shape[1]), np.cumsum(bits, axis=1, dtype=np.int16) * bits]
        return (below * bits).sum(axis=1)

    def flipped(self, chosen: NDArray[np.int64], qubits: Sequence[int]) -> NDArray[np.int64]:
        """Places of chosen states with some qubits flipped."""
        bits = self.bits[chosen]
        bits[:, list(qubits)] ^= True
        return self.rank(bits)


@dataclass(frozen=True, eq=False)
class SubspaceProgram:
    """A circuit on the basis states of one weight.

    Attributes:
        size: number of basis states.
        start: which of them the circuit starts in.
        steps: in order of time.
        readings: each observable within the subspace.
        loading: number of steps that load the features of a unary encoding; 0 of others.
        weight: the Hamming weight of its basis states.
    """

    size: int
    start: int
    steps: tuple[Diagonal | Givens | Matrix, ...]
    readings: tuple[Matrix, ...]
    loading: int = 0
    weight: int = 0

    @property
    def real(self) -> bool:
        """Whether all amplitudes are real."""
        return all(
            not s.phase.imag if isinstance(s, Givens) else isinstance(s, Matrix) and not s.values.imag.any()
            for s in self.steps
        )


class _NoSubspace(ValueError):
    """The circuit leaves the subspace."""


@remembered
def subspace(template: CircuitTemplate) -> SubspaceProgram | None:
    """The template's program; None where a gate changes the weight, or there are more than 2^18 basis states.

    Raises ValueError: a unary encoding whose circuit does not load the features, or whose outputs are not linear in
    them.
    """
    try:
        found = _lowered(template)
    except _NoSubspace as error:
        if template.encoding == "angle":
            return None
        raise ValueError(f"a unary encoding needs gates that keep the Hamming weight: {error}") from error
    if template.encoding != "angle":
        _check_unary(template, found)
    return found


def _lowered(template: CircuitTemplate) -> SubspaceProgram:
    circuit, index = template.circuit, {parameter: i for i, parameter in enumerate(template.parameters)}
    gates = [(i.operation, tuple(circuit.find_bit(q).index for q in i.qubits)) for i in circuit.data]
    used, flipped, rest = set[int](), set[int](), []
    for gate, qubits in gates:
        if standard_name(gate) == "x" and not used.intersection(qubits):
            flipped ^= set(qubits)
            continue
        if standard_name(gate) not in IDLE:
            used.update(qubits)
            rest.append((gate, qubits))
    basis = _basis(template.num_qubits, len(flipped))
    steps, loading = list[Diagonal | Givens | Matrix](), 0
    for gate, qubits in rest:
        found = list(_steps(gate, qubits, basis, index))
        steps += found
        if any(i < template.num_inputs for step in found if not isinstance(step, Matrix) for i, _ in step.angle.terms):
            loading = len(steps)
    readings = tuple(_reading(o.to_sparse_list(), basis) for o in template.observables)
    start = int(basis.rank(np.isin(np.arange(template.num_qubits), list(flipped))[None])[0])
    # of a single feature: the rotation that splits off the reference
    loading = 0 if template.encoding == "angle" else max(loading, 1)
    return SubspaceProgram(len(basis.bits), start, tuple(steps), readings, loading, len(flipped))


_basis = lru_cache(maxsize=16)(Basis)


def _steps(gate: Any, qubits: tuple[int, ...], basis: Basis, index: dict) -> Iterator[Any]:
    known = standard_name(gate)
    if known in IDLE:
        return
    if known in _DIAGONAL:
        factor = _DIAGONAL[known](*basis.bits[:, qubits].T.astype(int))
        yield Diagonal(affine(gate.params[0], index, gate.name), np.asarray(factor, dtype=float))
    elif known == "xx_plus_yy":
        yield from _givens(gate, qubits, basis, index)
    elif is_symbolic(gate) or len(qubits) > LARGEST_FIXED:
        definition = definition_of(gate)
        if definition is None or known:
            raise _NoSubspace(f"gate {gate.name!r} does not keep the weight")
        for inner in definition.data:
            on = tuple(qubits[definition.find_bit(q).index] for q in inner.qubits)
            yield from _steps(inner.operation, on, basis, index)
    else:
        yield _fixed(gate, qubits, basis)


def _givens(gate: Any, qubits: tuple[int, ...], basis: Basis, index: dict) -> Iterator[Any]:
    angle, beta = (affine(p, index, gate.name) for p in gate.params)
    one, other = basis.bits[:, qubits].T
    turned = 0.0 if beta.terms else beta.offset
    phase = -1j * complex(math.cos(turned), math.sin(turned))
    phase = complex(*(round(part) if abs(part - round(part)) < 1e-15 else part for part in (phase.real, phase.imag)))
    first = np.flatnonzero(one & ~other)
    if beta.terms:  # a rotation about Z before and after
        yield Diagonal(beta, 0.0 - one)
    yield Givens(angle * 0.5, phase, first, basis.flipped(first, qubits))
    if beta.terms:
        yield Diagonal(beta, one.astype(float))


def _fixed(gate: Any, qubits: tuple[int, ...], basis: Basis) -> Matrix:
    """A gate without parameters within the subspace."""
    matrix = matrix_of(gate)
    weights = np.array([k.bit_count() for k in range(len(matrix))])
    if np.abs(matrix[weights[:, None] != weights[None, :]]).max(initial=0.0) > TOLERANCE:
        raise _NoSubspace(f"gate {gate.name!r} does not keep the weight")
    local = basis.bits[:, qubits] @ (1 << np.arange(len(qubits)))
    parts = []
    for into, out in np.argwhere((matrix != 0) & (weights[:, None] == weights[None, :])):
        chosen = np.flatnonzero(local == out)
        rows = basis.flipped(chosen, [q for k, q in enumerate(qubits) if (into ^ out) >> k & 1])
        parts.append((rows, chosen, np.full(len(chosen), matrix[into, out])))
    return Matrix(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _reading(terms: list[tuple[str, list[int], complex]], basis: Basis) -> Matrix:
    """The part of a sum of Pauli strings that stays within the subspace."""
    parts = []
    for word, qubits, coefficient in terms:
        pairs = list(zip(word, qubits, strict=True))
        flips = [q for letter, q in pairs if letter in "XY"]
        # as many excitations must go as come
        stays = 2 * basis.bits[:, flips].sum(axis=1) == len(flips)
        chosen = np.flatnonzero(stays)
        factor = np.full(len(chosen), complex(coefficient))
        for letter, q in pairs:
            if letter in "YZ":
                factor *= (1 - 2 * basis.bits[chosen, q].astype(int)) * (1j if letter == "Y" else 1)
        parts.append((basis.flipped(chosen, flips), chosen, factor))
    rows, columns, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Matrix(rows.astype(np.int64), columns.astype(np.int64), values.astype(complex))


def _check_unary(template: CircuitTemplate, program: SubspaceProgram) -> None:
    """That the circuit loads its features and reads what is linear in them."""
    n = template.num_features
    if template.num_qubits != n + 1 or program.size != n + 1:
        raise ValueError(f"a unary encoding of {n} features needs {n + 1} qubits and one X, on the reference qubit 0")
    features = np.random.default_rng(n).normal(size=n)
    angles, state = unary_angles(template.encoding, features), np.zeros(n + 1, dtype=complex)
    state[program.start] = 1
    for step in program.steps[: program.loading]:
        state = _applied(step, state, angles)
    wanted = np.array([1.0, *(features / np.linalg.norm(features))]) / math.sqrt(2)
    if np.abs(state - wanted).max() > 1e-9:
        raise ValueError(f"the circuit does not begin with qrkt_hw.ansatz.unary_encoding({n}, {template.encoding!r})")
    coupled = any(
        0 in (*step.first, *step.second) if isinstance(step, Givens)
        else isinstance(step, Matrix) and bool(((step.rows == 0) != (step.columns == 0)).any())
        for step in program.steps[program.loading :]
    )  # fmt: skip
    if coupled or any(((r.rows == 0) == (r.columns == 0)).any() for r in program.readings):
        raise ValueError("outputs are not linear in the features: leave the reference qubit 0 alone, and read it with "
                         "X or Y in every observable")  # fmt: skip


def _applied(step: Any, state: NDArray[np.complex128], inputs: NDArray[np.float64]) -> NDArray[np.complex128]:
    result = state.copy()
    if isinstance(step, Matrix):
        result[:] = 0
        np.add.at(result, step.rows, step.values * state[step.columns])
        return result
    if any(i >= len(inputs) for i, _ in step.angle.terms):
        raise ValueError("weights must come after the encoding")
    angle = step.angle.offset + sum(c * inputs[i] for i, c in step.angle.terms)
    if isinstance(step, Diagonal):
        return state * np.exp(-1j * angle * step.factor)
    a, b, c, s = state[step.first], state[step.second], math.cos(angle), math.sin(angle)
    result[step.first], result[step.second] = c * a - np.conj(step.phase) * s * b, step.phase * s * a + c * b
    return result

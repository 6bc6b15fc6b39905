"""A program as rotations about Pauli strings alone: Clifford gates are carried to the end, into the observables.

``R(P) C = C R(C+ P C)``: a rotation behind a Clifford gate is a rotation about another Pauli string in front of it.
What remains at the end acts on the observables, which stay Pauli strings. Rotations that no observable sees, and those
that do nothing to ``|0>``, fall away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from qiskit.quantum_info import SparsePauliOp

from qrkt_hw.compiler.program import Affine, Fixed, Program, Rotation
from qrkt_hw.compiler.propagation import LARGEST_GATE, LETTERS, conjugation_table


@dataclass(frozen=True)
class Turn:
    """``exp(-i angle/2 sign P)`` with ``P = i^|x & z| X^x Z^z``; bit q of x and z belongs to qubit q."""

    x: int
    z: int
    sign: int
    angle: Affine


@dataclass(frozen=True)
class Reading:
    """``factor * <P>`` belongs to the value of ``observable``."""

    observable: int
    factor: float
    x: int
    z: int


@dataclass(frozen=True)
class Frame:
    """Turns and matrices that are no Clifford gates, in the order of time, and what is read behind them."""

    steps: tuple[Turn | Fixed, ...]
    readings: tuple[Reading, ...]


_frames: WeakKeyDictionary[Program, tuple[Sequence[SparsePauliOp], Frame]] = WeakKeyDictionary()


def frame(program: Program, observables: Sequence[SparsePauliOp]) -> Frame:
    """The frame of a lowered template; remembered per program."""
    held = _frames.get(program)
    if held is None or held[0] is not observables:
        held = _frames[program] = (observables, _frame(program, observables))
    return held[1]


def _frame(program: Program, observables: Sequence[SparsePauliOp]) -> Frame:
    steps: list[Turn | Fixed] = []
    pending: list[tuple[Fixed, tuple]] = []
    for step in program.steps:
        if isinstance(step, Rotation):
            x, z = _masks(step.pauli, step.qubits)
            steps.append(_turn(x, z, step.angle, pending))
            continue
        table = _clifford(step)
        if table is not None:
            pending.append((step, table))
            continue
        single = _single_rotation(step)
        if single is not None:
            steps.append(_turn(*single, pending))
            continue
        steps += [held for held, _ in pending]
        pending = []
        steps.append(step)
    readings: dict[tuple[int, int, int], float] = {}
    for m, operator in enumerate(observables):
        for pauli, coefficient in zip(operator.paulis, operator.coeffs, strict=True):
            x, z, sign = _back(_bits(pauli.x), _bits(pauli.z), 1, pending)
            readings[m, x, z] = readings.get((m, x, z), 0.0) + sign * float(coefficient.real)
    kept = tuple(Reading(m, factor, x, z) for (m, x, z), factor in readings.items())
    return Frame(tuple(_seen(_effective(steps), kept)), kept)


def _turn(x: int, z: int, angle: Affine, pending: list[tuple[Fixed, tuple]]) -> Turn:
    x, z, sign = _back(x, z, 1, pending)
    return Turn(x, z, sign, angle)


def _back(x: int, z: int, sign: int, pending: list[tuple[Fixed, tuple]]) -> tuple[int, int, int]:
    """``C+ P C`` for all gates in the list, the last one first."""
    for gate, table in reversed(pending):
        k = len(gate.qubits)
        mask = sum(1 << q for q in gate.qubits)
        if not (x | z) & mask:
            continue
        local = sum(((x >> q & 1) | (z >> q & 1) << k) << i for i, q in enumerate(gate.qubits))
        ((image, coefficient),) = table[local]
        x = (x & ~mask) | sum((image >> i & 1) << q for i, q in enumerate(gate.qubits))
        z = (z & ~mask) | sum((image >> (i + k) & 1) << q for i, q in enumerate(gate.qubits))
        sign = sign if coefficient > 0 else -sign
    return x, z, sign


def _clifford(gate: Fixed) -> tuple | None:
    """The gate's conjugation table, where every Pauli string becomes one Pauli string."""
    if len(gate.qubits) > LARGEST_GATE:
        return None
    table = conjugation_table(gate.matrix, len(gate.qubits))
    return table if all(len(images) == 1 for images in table) else None


def _single_rotation(gate: Fixed) -> tuple[int, int, Affine] | None:
    """``(x, z, angle)`` of a fixed gate that is a rotation about one Pauli string, up to a phase."""
    k = len(gate.qubits)
    if k > LARGEST_GATE:
        return None
    size = 2**k
    index = np.arange(size)
    found: list[tuple[int, int, complex]] = []
    for x in range(size):
        column = gate.matrix[index ^ x, index]  # entry [row = k ^ x, column = k]
        for z in range(size):
            signs = 1.0 - 2.0 * np.array([(int(i) & z).bit_count() & 1 for i in index])
            weight = complex(np.sum(column * signs)) / size * (-1j) ** ((x & z).bit_count() % 4)
            if abs(weight) > 1e-14:
                found.append((x, z, weight))
    if len(found) != 2 or found[0][:2] != (0, 0):
        return None
    (_, _, identity), (x, z, weight) = found
    ratio = 1j * weight / identity  # tan of half the angle
    if abs(ratio.imag) > 1e-13 * max(1.0, abs(ratio)):
        return None
    wide = [sum((mask >> i & 1) << q for i, q in enumerate(gate.qubits)) for mask in (x, z)]
    return wide[0], wide[1], Affine(offset=2 * float(np.arctan(ratio.real)))


def _commute(x: int, z: int, other_x: int, other_z: int) -> bool:
    return ((x & other_z).bit_count() + (z & other_x).bit_count()) & 1 == 0


def _seen(steps: Sequence[Turn | Fixed], readings: Sequence[Reading]) -> list[Turn | Fixed]:
    """Without turns that commute with everything behind them."""
    kept: list[Turn | Fixed] = []
    behind = {(r.x, r.z) for r in readings}
    matrix = False
    for step in reversed(steps):
        if isinstance(step, Turn):
            if not matrix and all(_commute(step.x, step.z, *other) for other in behind):
                continue
            behind.add((step.x, step.z))
        else:
            matrix = True
        kept.append(step)
    return kept[::-1]


def _effective(steps: Sequence[Turn | Fixed]) -> list[Turn | Fixed]:
    """Without turns about Z strings that commute with everything in front of them: ``|0>`` gets a mere phase."""
    kept: list[Turn | Fixed] = []
    before: set[tuple[int, int]] = set()
    matrix = False
    for step in steps:
        if isinstance(step, Turn):
            if not matrix and step.x == 0 and all(_commute(0, step.z, *other) for other in before):
                continue
            before.add((step.x, step.z))
        else:
            matrix = True
        kept.append(step)
    return kept


def _masks(word: str, qubits: Sequence[int]) -> tuple[int, int]:
    pairs = [(LETTERS[letter], q) for letter, q in zip(word, qubits, strict=True)]
    return sum(bits[0] << q for bits, q in pairs), sum(bits[1] << q for bits, q in pairs)


def _bits(values: np.ndarray) -> int:
    return int(sum(1 << int(q) for q in np.flatnonzero(values)))

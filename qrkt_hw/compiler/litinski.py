"""The Litinski transformation: Clifford gates are absorbed into the observables, Pauli rotations remain.

``R(P) C = C R(C+ P C)``: a rotation behind a Clifford gate is a rotation about another Pauli string in front of it.
Rotations that no observable sees, and those that do nothing to ``|0>``, fall away. Qiskit's pass of that name refuses
other gates than Clifford gates and rotations; here they stay as matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from qiskit.quantum_info import Operator, SparsePauliOp

from qrkt_hw.ansatz import CircuitTemplate, remembered
from qrkt_hw.compiler.program import Affine, Fixed, Program, Rotation, lower
from qrkt_hw.compiler.propagation import LARGEST_GATE, Images, String, conjugation_table, heisenberg, masks, terms_of


@dataclass(frozen=True)
class PauliRotation:
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
class Absorbed:
    """Rotations, and matrices that are neither those nor Clifford gates, in order of time; what is read behind them."""

    steps: tuple[PauliRotation | Fixed, ...]
    readings: tuple[Reading, ...]


@remembered
def absorb(template: CircuitTemplate) -> Absorbed:
    """The transformed circuit of a template."""
    steps: list[PauliRotation | Fixed] = []
    pending: list[tuple[Fixed, Callable[[String], Images | None]]] = []

    def back(string: String) -> tuple[int, int, int]:
        """``C+ P C`` for all pending gates, the last one first: x, z and sign."""
        sign = 1.0
        for _, images in reversed(pending):
            found = images(string)
            if found is not None:
                ((string, coefficient, _),) = found
                sign *= coefficient
        return *string, 1 if sign > 0 else -1

    for step in lower(template).steps:
        if isinstance(step, Rotation):
            steps.append(PauliRotation(*back(masks(step.pauli, step.qubits)), step.angle))
        elif _is_clifford(step):
            pending.append((step, heisenberg(step)))
        elif (found := _single_rotation(step)) is not None:
            steps.append(PauliRotation(*back(found[0]), found[1]))
        else:
            steps += [gate for gate, _ in pending]
            pending = []
            steps.append(step)
    readings: dict[tuple[int, int, int], float] = {}
    for m, operator in enumerate(template.observables):
        for string, coefficient in terms_of(operator):
            x, z, sign = back(string)
            readings[m, x, z] = readings.get((m, x, z), 0.0) + sign * coefficient
    kept = tuple(Reading(m, factor, x, z) for (m, x, z), factor in readings.items())
    effective = _without_idle(steps, set(), only_z=True)
    seen = _without_idle(effective[::-1], {(r.x, r.z) for r in kept}, only_z=False)
    return Absorbed(tuple(seen[::-1]), kept)


def rotations(program: Program) -> tuple[PauliRotation | Fixed, ...]:
    """The steps of a program as they are, its rotations by bits: for those who want the state itself."""
    return tuple(
        PauliRotation(*masks(s.pauli, s.qubits), 1, s.angle) if isinstance(s, Rotation) else s for s in program.steps
    )


def _is_clifford(gate: Fixed) -> bool:
    """Whether every Pauli string becomes one Pauli string."""
    return len(gate.qubits) <= LARGEST_GATE and all(len(images) == 1 for images in conjugation_table(gate.matrix))


def _single_rotation(gate: Fixed) -> tuple[String, Affine] | None:
    """String and angle of a fixed gate that is a rotation about one Pauli string, up to a phase."""
    if len(gate.qubits) > LARGEST_GATE:
        return None
    found = SparsePauliOp.from_operator(Operator(gate.matrix), atol=1e-14, rtol=0)
    if len(found) != 2 or found.paulis[0].x.any() or found.paulis[0].z.any():
        return None
    ratio = 1j * found.coeffs[1] / found.coeffs[0]  # tan of half the angle
    if abs(ratio.imag) > 1e-13 * max(1.0, abs(ratio)):
        return None
    word = found.paulis[1].to_label()[::-1]
    return masks(word, gate.qubits), Affine(offset=2 * float(np.arctan(ratio.real)))


def _without_idle(
    steps: Sequence[PauliRotation | Fixed], others: Iterable[String], only_z: bool
) -> list[PauliRotation | Fixed]:
    """Without rotations, about Z strings where ``only_z``, that commute with ``others`` and all that came before.

    In order of time: |0> gets a mere phase. In reverse, with the strings that are read: no observable sees them.
    """
    kept: list[PauliRotation | Fixed] = []
    passed, matrix = set(others), False
    for step in steps:
        if isinstance(step, Fixed):
            matrix = True
        else:
            idle = not (matrix or (only_z and step.x))
            if idle and all(((step.x & z).bit_count() + (step.z & x).bit_count()) & 1 == 0 for x, z in passed):
                continue
            passed.add((step.x, step.z))
        kept.append(step)
    return kept

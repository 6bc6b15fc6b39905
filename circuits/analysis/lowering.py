"""Lowering a template to two kinds of steps: fixed unitaries and Pauli rotations.

Every parameterised gate of Qiskit's standard library is a product of rotations ``exp(-i angle/2 P)`` about Pauli
strings P up to a global phase, which no expectation value sees. A controlled rotation, for example, is two commuting
rotations: ``CRX(a) = exp(-i a/4 X_t) exp(+i a/4 Z_c X_t)``. What simulates, shifts or pulls back a template needs only
these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Barrier, CircuitInstruction, Delay, Operation, Parameter, ParameterExpression, QuantumCircuit
from qiskit.quantum_info import Operator
from qrkt_hw.circuits.template import CircuitTemplate

LARGEST_FIXED = 6  # qubits up to which an unknown gate is taken as one matrix


@dataclass(frozen=True)
class Affine:
    """``sum(coefficient * parameters[index]) + offset``, an angle in radians."""

    terms: tuple[tuple[int, float], ...] = ()
    offset: float = 0.0

    def __mul__(self, factor: float) -> Affine:
        return Affine(tuple((i, c * factor) for i, c in self.terms), self.offset * factor)

    def __add__(self, other: Affine) -> Affine:
        merged: dict[int, float] = {}
        for index, coefficient in (*self.terms, *other.terms):
            merged[index] = merged.get(index, 0.0) + coefficient
        return Affine(tuple(merged.items()), self.offset + other.offset)


@dataclass(frozen=True)
class Rotation:
    """``exp(-i angle/2 P)``; letter k of ``pauli`` acts on ``qubits[k]``.

    ``instruction`` is the place in ``template.circuit.data`` of the gate it comes from.
    """

    pauli: str
    qubits: tuple[int, ...]
    angle: Affine
    instruction: int = -1

    def matrix(self) -> NDArray[np.complex128]:
        """The matrix of a rotation whose angle has no parameter, ``(2^k, 2^k)``, first qubit least significant."""
        word = np.eye(1, dtype=complex)
        for letter in self.pauli:
            word = np.kron(PAULIS[letter], word)
        half = self.angle.offset / 2
        return math.cos(half) * np.eye(len(word)) - 1j * math.sin(half) * word


@dataclass(frozen=True, eq=False)
class Fixed:
    """A gate without parameters: ``matrix`` is ``(2^k, 2^k)``, ``qubits[0]`` least significant (Qiskit's order)."""

    matrix: NDArray[np.complex128]
    qubits: tuple[int, ...]
    name: str = "unitary"
    instruction: int = -1


Step = Fixed | Rotation


@dataclass(frozen=True, eq=False)
class Program:
    """A lowered template.

    Attributes:
        steps: in the order of time.
        num_qubits, num_inputs, num_weights: of the template. Parameter index i is input i, then weight i - num_inputs.
    """

    steps: tuple[Step, ...]
    num_qubits: int
    num_inputs: int
    num_weights: int

    def uses_inputs(self, step: Step) -> bool:
        return isinstance(step, Rotation) and any(i < self.num_inputs for i, _ in step.angle.terms)

    @property
    def rotations(self) -> tuple[Rotation, ...]:
        """The steps that carry parameters, in order."""
        return tuple(s for s in self.steps if isinstance(s, Rotation))


PAULIS = {
    "I": np.eye(2, dtype=complex),
    "X": np.array([[0, 1], [1, 0]], dtype=complex),
    "Y": np.array([[0, -1j], [1j, 0]], dtype=complex),
    "Z": np.array([[1, 0], [0, -1]], dtype=complex),
}
_IGNORED = {"barrier", "delay", "id", "global_phase"}
# gates that are one rotation about a Pauli string
_SINGLE = {
    "rx": "X", "ry": "Y", "rz": "Z", "p": "Z", "u1": "Z", "rxx": "XX", "ryy": "YY", "rzz": "ZZ", "rzx": "ZX",
}  # fmt: skip
_CONTROLLED = {"crx": "X", "cry": "Y", "crz": "Z"}
_PHASES = {"cp", "cu1"}


@lru_cache(maxsize=512)
def lower(template: CircuitTemplate) -> Program:
    """The program of a template.

    Raises:
        ValueError: a gate's parameter is not linear in the template's parameters, or a parameterised gate has neither a
            known form nor a definition.
    """
    index = {parameter: i for i, parameter in enumerate(template.parameters)}
    steps: list[Step] = []
    for place, instruction in enumerate(template.circuit.data):
        qubits = tuple(template.circuit.find_bit(q).index for q in instruction.qubits)
        steps.extend(_lower(instruction, qubits, index, place))
    return Program(tuple(steps), template.num_qubits, template.num_inputs, template.num_weights)


def _lower(
    instruction: CircuitInstruction, qubits: tuple[int, ...], index: dict[Parameter, int], place: int
) -> Iterator[Step]:
    gate = instruction.operation
    name = gate.name
    # a user's gate may be called "rx" and be something else
    known = name if _is_standard(gate) else ""
    if known in _IGNORED:
        return
    symbolic = any(isinstance(p, ParameterExpression) and p.parameters for p in gate.params)
    if not symbolic and (len(qubits) <= LARGEST_FIXED or gate.definition is None):
        yield Fixed(_matrix(gate), qubits, name, place)
        return
    rotations = _rotations(known, [affine(p, index, name) for p in gate.params] if symbolic else [], qubits)
    if rotations is None:
        yield from _definition(gate.definition, name, qubits, index, place)
        return
    for word, on, angle in rotations:
        step = Rotation(word, on, angle, place)
        yield step if angle.terms else Fixed(step.matrix(), on, f"r{word.lower()}", place)


def _is_standard(gate: Operation) -> bool:
    kind = getattr(gate, "base_class", type(gate))  # the class of a singleton has no module
    return isinstance(gate, (Barrier, Delay)) or kind.__module__.startswith("qiskit.circuit.library")


def _definition(
    definition: QuantumCircuit | None, name: str, qubits: tuple[int, ...], index: dict[Parameter, int], place: int
) -> Iterator[Step]:
    if definition is None:
        raise ValueError(f"gate {name!r} has parameters, no known form and no definition")
    if definition.num_clbits:
        raise ValueError(f"gate {name!r} measures or branches, which a template cannot")
    for inner in definition.data:
        yield from _lower(inner, tuple(qubits[definition.find_bit(q).index] for q in inner.qubits), index, place)


def _rotations(
    name: str, angles: Sequence[Affine], qubits: tuple[int, ...]
) -> list[tuple[str, tuple[int, ...], Affine]] | None:
    """The rotations of a parameterised standard gate in order of time; None where its definition must serve."""
    if name in _SINGLE:
        return [(_SINGLE[name], qubits, angles[0])]
    if name in _CONTROLLED:
        control, target = qubits
        word, half = _CONTROLLED[name], angles[0] * 0.5
        return [(word, (target,), half), ("Z" + word, (control, target), half * -1)]
    if name in _PHASES:
        control, target = qubits
        half = angles[0] * 0.5
        return [("Z", (control,), half), ("Z", (target,), half), ("ZZ", (control, target), half * -1)]
    if name == "r":
        theta, phi = angles
        return [("Z", qubits, phi * -1), ("X", qubits, theta), ("Z", qubits, phi)]
    if name in ("u", "u3"):
        theta, phi, lam = angles
        return [("Z", qubits, lam), ("Y", qubits, theta), ("Z", qubits, phi)]
    if name == "u2":
        phi, lam = angles
        return [("Z", qubits, lam), ("Y", qubits, Affine(offset=math.pi / 2)), ("Z", qubits, phi)]
    return None


def affine(value: ParameterExpression | float, index: dict[Parameter, int], gate: str) -> Affine:
    """A gate's parameter as an affine function of the template's parameters.

    Raises:
        ValueError: it is not linear, or complex.
    """
    if not isinstance(value, ParameterExpression):
        return Affine(offset=float(np.real(value)))
    terms = []
    for parameter in value.parameters:
        slope = value.gradient(parameter)
        if isinstance(slope, ParameterExpression):
            if slope.parameters:
                raise ValueError(f"gate {gate!r}: its parameter {value} is not linear in {parameter.name}")
            slope = slope.numeric()
        if abs(complex(slope).imag) > 0:
            raise ValueError(f"gate {gate!r}: its parameter {value} is complex")
        terms.append((index[parameter], float(complex(slope).real)))
    rest = value.bind({p: 0.0 for p in value.parameters}).numeric() if value.parameters else value.numeric()
    return Affine(tuple(sorted(terms)), float(complex(rest).real))


def _matrix(gate) -> NDArray[np.complex128]:
    try:
        return np.asarray(Operator(gate).data, dtype=complex)
    except Exception as error:
        raise ValueError(f"gate {gate.name!r} has no unitary matrix: {error}") from error

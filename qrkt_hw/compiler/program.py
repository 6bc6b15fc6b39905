"""Lowering a template to two kinds of steps: fixed unitaries and Pauli rotations.

Every parameterised gate of Qiskit's standard library is a product of rotations ``exp(-i angle/2 P)`` about Pauli
strings P up to a global phase, which no expectation value sees. A controlled rotation, for example, is two commuting
rotations: ``CRX(a) = exp(-i a/4 X_t) exp(+i a/4 Z_c X_t)``. What simulates, shifts or pulls back a template needs only
these.

What is lowered is what runs: a gate that a compiler replaces by its definition, such as ``PauliEvolutionGate``, is its
definition here too, not the matrix it approximates. Every lowering checks itself at one random binding of the
parameters against Qiskit's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Parameter, ParameterExpression, QuantumCircuit
from qiskit.circuit.library import PauliEvolutionGate, UnitaryGate, get_standard_gate_name_mapping
from qiskit.quantum_info import Operator
from qiskit.synthesis import QDrift

from qrkt_hw.ansatz import CircuitTemplate, definition_of, remembered, standard_name

LARGEST_FIXED = 6  # qubits up to which an unknown gate is taken as one matrix
LARGEST_CHECKED = 4  # qubits up to which a gate with a definition of its own is compared as a matrix
LONGEST_SHOWN = 80  # letters of an expression in an error
TOLERANCE = 1e-9  # of the comparison with Qiskit's binding


class NotLinear(ValueError):
    """A gate's parameter is no linear function of the template's parameters."""


@dataclass(frozen=True)
class Affine:
    """``sum(coefficient * parameters[index]) + offset``, an angle in radians."""

    terms: tuple[tuple[int, float], ...] = ()
    offset: float = 0.0

    def __mul__(self, factor: float) -> Affine:
        return Affine(tuple((i, c * factor) for i, c in self.terms), self.offset * factor)


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
    """A lowered template, its steps in the order of time; parameter i is input i, then weight i - num_inputs."""

    steps: tuple[Step, ...]
    num_qubits: int
    num_inputs: int
    num_weights: int

    def uses_inputs(self, step: Step) -> bool:
        return isinstance(step, Rotation) and any(i < self.num_inputs for i, _ in step.angle.terms)

    @property
    def rotations(self) -> tuple[Rotation, ...]:
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
ROTATIONS = {*_SINGLE, *_CONTROLLED, *_PHASES, "r", "u", "u3", "u2", "xx_plus_yy"}


@remembered
def lower(template: CircuitTemplate) -> Program:
    """The program of a template.

    Raises ValueError where a gate's parameter is not linear in the template's (:class:`NotLinear`) or not finite, a
    parameterised gate has neither a known form nor a definition, or the result is not what Qiskit computes.
    """
    index = {parameter: i for i, parameter in enumerate(template.parameters)}
    point = {parameter: float(v) for parameter, v in zip(index, _point(len(index)), strict=True)}
    steps: list[Step] = []
    for place, instruction in enumerate(template.circuit.data):
        qubits = tuple(template.circuit.find_bit(q).index for q in instruction.qubits)
        gate = instruction.operation
        try:
            found = list(lower_gate(gate, qubits, index, place))
        except RecursionError as error:
            raise ValueError(f"gate {gate.name!r} is defined by itself") from error
        if is_symbolic(gate) and standard_name(gate) not in ROTATIONS and len(qubits) <= LARGEST_CHECKED:
            _compare(gate, qubits, found, point)
        steps.extend(found)
    return Program(tuple(steps), template.num_qubits, template.num_inputs, template.num_weights)


def is_symbolic(gate) -> bool:
    """Whether a gate has a parameter that is no number yet."""
    return any(isinstance(p, ParameterExpression) and p.parameters for p in getattr(gate, "params", ()))


def lower_gate(gate, qubits: tuple[int, ...], index: dict[Parameter, int], place: int) -> Iterator[Step]:
    """The steps of one gate; errors as :func:`lower`."""
    known = standard_name(gate)  # a user's gate may be called "rx" and be something else
    if known in _IGNORED:
        return
    symbolic = is_symbolic(gate)
    if not symbolic and not _runs_by_definition(gate) and (len(qubits) <= LARGEST_FIXED or definition_of(gate) is None):
        yield Fixed(matrix_of(gate), qubits, gate.name, place)
        return
    if not (symbolic and known in ROTATIONS):
        definition = definition_of(gate)
        if definition is None:
            raise ValueError(f"gate {gate.name!r} has parameters, no known form and no definition")
        if definition.num_clbits:
            raise ValueError(f"gate {gate.name!r} measures or branches, which a template cannot")
        for inner in definition.data:
            on = tuple(qubits[definition.find_bit(q).index] for q in inner.qubits)
            yield from lower_gate(inner.operation, on, index, place)
        return
    _check_table(known)
    for word, on, angle in _rotations(known, [affine(p, index, gate.name) for p in gate.params], qubits):
        step = Rotation(word, on, angle, place)
        yield step if angle.terms else Fixed(step.matrix(), on, f"r{word.lower()}", place)


def _runs_by_definition(gate) -> bool:
    """Whether compilers replace a gate by a circuit that need not have the matrix the gate says it has."""
    if standard_name(gate) or isinstance(gate, UnitaryGate):
        return False
    if isinstance(gate, PauliEvolutionGate):
        if isinstance(gate.synthesis, QDrift):
            raise ValueError(f"gate {gate.name!r} has a random product formula, so each compilation is another circuit")
        return True
    if hasattr(gate, "base_op"):  # an AnnotatedOperation has no definition to follow
        if _runs_by_definition(gate.base_op):
            inner = gate.base_op.name
            raise ValueError(f"gate {inner!r} is annotated; decompose it before it is controlled or inverted")
        return False
    if (definition := definition_of(gate)) is None:
        return False
    own = not type(gate).__module__.startswith("qiskit.")
    return (own and hasattr(gate, "__array__")) or any(_runs_by_definition(i.operation) for i in definition.data)


def _rotations(name: str, angles: Sequence[Affine], on: tuple[int, ...]) -> list[tuple[str, tuple[int, ...], Affine]]:
    """The rotations of a gate of :data:`ROTATIONS`, in order of time."""
    if name in _SINGLE:
        return [(_SINGLE[name], on, angles[0])]
    half = angles[0] * 0.5
    if name in _CONTROLLED:
        return [(_CONTROLLED[name], on[1:], half), ("Z" + _CONTROLLED[name], on, half * -1)]
    if name in _PHASES:
        return [("Z", on[:1], half), ("Z", on[1:], half), ("ZZ", on, half * -1)]
    if name == "xx_plus_yy":
        beta = angles[1]
        if not beta.terms and abs(math.cos(beta.offset)) < 1e-15:  # a Givens rotation of real amplitudes
            turned = half * math.copysign(1.0, math.sin(beta.offset))
            return [("XY", on, turned), ("YX", on, turned * -1)]
        return [("Z", on[:1], beta), ("XX", on, half), ("YY", on, half), ("Z", on[:1], beta * -1)]
    if name == "r":
        theta, phi = angles
        return [("Z", on, phi * -1), ("X", on, theta), ("Z", on, phi)]
    theta, phi, lam = angles if name in ("u", "u3") else (Affine(offset=math.pi / 2), *angles)  # u2
    return [("Z", on, lam), ("Y", on, theta), ("Z", on, phi)]


def affine(value: ParameterExpression | float, index: dict[Parameter, int], gate: str) -> Affine:
    """A gate's parameter as an affine function of the template's parameters; NotLinear where it is none."""
    if not isinstance(value, ParameterExpression):
        return Affine(offset=_real(value, value, gate))
    if isinstance(value, Parameter) and value in index:
        return Affine(((index[value], 1.0),))
    unknown = [p.name for p in value.parameters if p not in index]
    if unknown:
        raise ValueError(f"{where(gate, value)} holds {', '.join(unknown)}, which is no input or weight")
    names = ", ".join(sorted(p.name for p in value.parameters))
    refused = NotLinear(f"{where(gate, value)} is not linear in {names}")
    terms = []
    for parameter in value.parameters:
        try:
            factor = value.gradient(parameter)
        except Exception as error:  # sign(x), for one, has no derivative in Qiskit
            raise refused from error
        if isinstance(factor, ParameterExpression):
            if factor.parameters:
                raise refused
            factor = factor.numeric()
        terms.append((index[parameter], _real(factor, value, gate)))
    draws = _point(len(index))
    point = {p: float(draws[index[p]]) for p in value.parameters}
    moved = sum(factor * draws[i] for i, factor in terms)
    try:
        offset = _at(value, dict.fromkeys(point, 0.0), gate)
    except NotLinear:  # such as x + 1/x - 1/x
        offset = _at(value, {p: 0.5 * v for p, v in point.items()}, gate) - 0.5 * moved
    if abs(offset + moved - _at(value, point, gate)) > TOLERANCE * (1 + abs(offset) + abs(moved)):
        raise refused
    return Affine(tuple(sorted(terms)), offset)


def where(gate: str, value: object) -> str:
    """The subject of an error about a gate's parameter."""
    text = str(value)
    return f"gate {gate!r}: its parameter {text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + '...'}"


def _at(value: ParameterExpression, point: dict[Parameter, float], gate: str) -> float:
    try:
        return _real(value.bind(point).numeric(), value, gate)
    except (ZeroDivisionError, OverflowError, TypeError, RuntimeError) as error:
        raise NotLinear(f"{where(gate, value)} has no value: {error}") from error


def _real(number, shown, gate: str) -> float:
    found = complex(number)
    if found.imag:
        raise ValueError(f"{where(gate, shown)} is complex")
    if not math.isfinite(found.real):
        raise ValueError(f"{where(gate, shown)} is not finite")
    return found.real


@lru_cache(maxsize=64)
def _point(size: int) -> NDArray[np.float64]:
    """The parameter values at which lowered gates are compared with Qiskit's."""
    return np.random.default_rng(size).uniform(0.1, 3.0, size)


@lru_cache(maxsize=64)
def _check_table(name: str) -> None:
    """Compare the rotations of a standard gate with Qiskit's matrix, once for each gate and process."""
    gate = get_standard_gate_name_mapping()[name].to_mutable()
    drawn, qubits = _point(len(gate.params)).tolist(), tuple(range(gate.num_qubits))
    for gate.params in (drawn, [*drawn[:-1], -math.pi / 2]):
        rotations = _rotations(name, [Affine(offset=a) for a in gate.params], qubits)
        if not same_up_to_phase(_product([Rotation(*r) for r in rotations], qubits, []), matrix_of(gate)):
            raise ValueError(f"gate {name!r} is another in this version of Qiskit than the one known here")


def _compare(gate, qubits: tuple[int, ...], steps: Sequence[Step], point: dict[Parameter, float]) -> None:
    """Compare the steps of a gate that has a definition of its own with those of the gate bound by Qiskit."""
    alone = QuantumCircuit(len(qubits))
    alone.append(gate, range(len(qubits)))
    bound = alone.assign_parameters({p: point[p] for p in alone.parameters}).data[0].operation
    values = list(point.values())
    if not same_up_to_phase(_product(steps, qubits, values), _product(lower_gate(bound, qubits, {}, 0), qubits, [])):
        raise ValueError(f"gate {bound.name!r} with parameters is another gate than with the same numbers")


def _product(steps: Iterable[Step], qubits: tuple[int, ...], values: Sequence[float]) -> NDArray[np.complex128]:
    """The matrix of steps on ``qubits`` at these parameter values."""
    circuit = QuantumCircuit(len(qubits))
    for step in steps:
        if isinstance(step, Rotation):
            angle = step.angle.offset + sum(values[i] * factor for i, factor in step.angle.terms)
            matrix = Rotation(step.pauli, step.qubits, Affine(offset=angle)).matrix()
        else:
            matrix = step.matrix
        circuit.append(UnitaryGate(matrix, check_input=False), [qubits.index(q) for q in step.qubits])
    return np.asarray(Operator(circuit).data)


def same_up_to_phase(one: NDArray[np.complex128], other: NDArray[np.complex128]) -> bool:
    """Whether two unitaries differ by a global phase only."""
    overlap = np.vdot(one, other)
    return bool(abs(overlap) > 0 and np.abs(one * (overlap / abs(overlap)) - other).max() < TOLERANCE)


def matrix_of(gate) -> NDArray[np.complex128]:
    """The unitary of a gate without parameters; ValueError where it has none."""
    try:
        matrix = np.asarray(Operator(gate).data, dtype=complex)
    except Exception as error:
        raise ValueError(f"gate {gate.name!r} has no unitary matrix: {error}") from error
    if not np.isfinite(matrix).all():
        raise ValueError(f"gate {gate.name!r} has a parameter that is not finite")
    if np.abs(matrix @ matrix.conj().T - np.eye(len(matrix))).max() > 1e-6:
        raise ValueError(f"gate {gate.name!r} is not unitary")
    return matrix

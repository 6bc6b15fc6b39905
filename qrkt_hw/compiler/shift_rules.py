"""Parameter-shift rules: the circuit with an angle of its own for every parameter slot, and the shifts of each slot.

A slot is one parameter of one gate. As a function of a slot's angle an expectation value is a trigonometric polynomial;
its frequencies follow from the Pauli rotations the gate lowers to. One frequency takes the familiar two terms; a
controlled rotation has two frequencies, 1/2 and 1, and takes four. The general rule: Wierichs, Izaac, Wang, Lin,
Quantum 6, 677 (2022).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Gate, Parameter, ParameterExpression, QuantumCircuit, library
from qiskit.quantum_info import Pauli, SparsePauliOp

from qrkt_hw.ansatz import CircuitTemplate, remembered, standard_name
from qrkt_hw.compiler.program import ROTATIONS, Fixed, Rotation, affine, is_symbolic, lower

_GATES = ("X", "Y", "Z", "XX", "YY", "ZZ", "ZX")  # rotations that are gates of Qiskit's


@dataclass(frozen=True, eq=False)
class Rule:
    """``f'(a) = sum_k coefficients[k] * (f(a + shifts[k]) - f(a - shifts[k]))``, exact for the frequencies given."""

    frequencies: tuple[float, ...]
    shifts: tuple[float, ...]
    coefficients: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Split:
    """A template with one angle per slot.

    Attributes:
        template: all its parameters are inputs, one per slot; same gates and observables as the original.
        jacobian: ``(slots, inputs + weights)``: how each angle depends on the original's parameters.
        offsets: ``(slots,)``: ``angles = values @ jacobian.T + offsets``.
        rules: the shift rule of each slot.
    """

    template: CircuitTemplate
    jacobian: NDArray[np.float64]
    offsets: NDArray[np.float64]
    rules: tuple[Rule, ...]


@remembered
def split(template: CircuitTemplate) -> Split:
    """The template with an angle of its own in every slot."""
    program = lower(template)
    circuit = QuantumCircuit(template.num_qubits)
    slots: list[Parameter] = []
    jacobian, offsets, rules = [], [], []
    size = len(template.parameters)
    index = {parameter: i for i, parameter in enumerate(template.parameters)}

    def slot(terms: Sequence[tuple[int, float]], offset: float, rule: Rule) -> Parameter:
        row = np.zeros(size)
        for i, factor in terms:
            row[i] += factor
        parameter = Parameter(f"angle_{len(slots):04d}")
        slots.append(parameter)
        jacobian.append(row)
        offsets.append(offset)
        rules.append(rule)
        return parameter

    by_instruction: dict[int, list[Fixed | Rotation]] = {}
    for step in program.steps:
        by_instruction.setdefault(step.instruction, []).append(step)
    for place, instruction in enumerate(template.circuit.data):
        gate, qubits = instruction.operation, [template.circuit.find_bit(q).index for q in instruction.qubits]
        if not is_symbolic(gate):
            circuit.append(gate, qubits)
        elif standard_name(gate) in ROTATIONS:  # its rotations are known, so the gate itself runs as it is
            gate = gate.to_mutable()
            gate_rules = _gate_rules(standard_name(gate))
            for k, value in enumerate(gate.params):
                if isinstance(value, ParameterExpression) and value.parameters:
                    angle = affine(value, index, gate.name)
                    gate.params[k] = slot(angle.terms, angle.offset, gate_rules[k])
            circuit.append(gate, qubits)
        else:
            for step in by_instruction.get(place, []):
                if isinstance(step, Fixed):
                    circuit.append(library.UnitaryGate(step.matrix), step.qubits)
                else:
                    angle = slot(step.angle.terms, step.angle.offset, rule_for((1.0,)))
                    circuit.append(_rotation(step.pauli, angle), step.qubits)
    name = f"{template.name} (angles)"
    copy = replace(template, name=name, circuit=circuit, inputs=tuple(slots), weights=(), initial={}, source=None)
    return Split(copy, np.array(jacobian).reshape(len(slots), size), np.array(offsets), tuple(rules))


@lru_cache(maxsize=64)
def rule_for(frequencies: tuple[float, ...]) -> Rule:
    """The shift rule for positive frequencies in increasing order; ``2 * len(frequencies)`` evaluations."""
    count, lowest = len(frequencies), frequencies[0]
    multiples = np.allclose(np.array(frequencies) / lowest, np.arange(1, count + 1))
    base = lowest if multiples else frequencies[-1]
    shifts = np.array([(2 * k + 1) * np.pi / (2 * count * base) for k in range(count)])
    if not multiples:
        shifts = shifts * (count + 1) / count
    matrix = 2 * np.sin(np.outer(frequencies, shifts))
    if np.linalg.cond(matrix) > 1e8:
        raise ValueError(f"no stable shift rule for frequencies {frequencies}")
    coefficients = np.linalg.solve(matrix, np.array(frequencies))
    return Rule(frequencies, tuple(shifts.tolist()), tuple(coefficients.tolist()))


@lru_cache(maxsize=64)
def _gate_rules(name: str) -> list[Rule]:
    """One rule per parameter of a standard gate, from the rotations the gate lowers to."""
    alone = library.get_standard_gate_name_mapping()[name].to_mutable()
    fresh = [Parameter(f"slot{k}") for k in range(len(alone.params))]
    circuit = QuantumCircuit(alone.num_qubits)
    alone.params = list(fresh)
    circuit.append(alone, range(alone.num_qubits))
    rotations = lower(CircuitTemplate(name, circuit, tuple(fresh), ())).rotations
    rules = []
    for k in range(len(fresh)):
        own = [(r, dict(r.angle.terms)[k]) for r in rotations if k in dict(r.angle.terms)]
        rules.append(rule_for(_frequencies(own, one_generator=len(own) == len(rotations))))
    return rules


def _frequencies(rotations: list[tuple[Rotation, float]], one_generator: bool) -> tuple[float, ...]:
    """Frequencies of expectation values in an angle that enters several rotations, each with its factor.

    Where nothing stands between commuting rotations they are one generator, and its level spacings are all there is.
    """
    size = 1 + max(q for r, _ in rotations for q in r.qubits)
    words = [SparsePauliOp.from_sparse_list([(r.pauli, list(r.qubits), c)], num_qubits=size) for r, c in rotations]
    generator = sum(words[1:], start=words[0]) / 2
    pairs = itertools.combinations(words, 2)
    if one_generator and not any((a @ b - b @ a).simplify().coeffs.any() for a, b in pairs):
        levels = np.linalg.eigvalsh(generator.to_matrix())
        gaps = np.abs(levels[:, None] - levels[None, :]).ravel()
    else:  # not one generator: every rotation adds or removes its own frequency
        signs = itertools.product((-1, 0, 1), repeat=len(rotations))
        gaps = np.abs([np.dot(s, [c for _, c in rotations]) for s in signs])
    return tuple(sorted({round(float(g), 9) for g in gaps if g > 1e-9}))


def _rotation(pauli: str, angle: Parameter) -> Gate:
    if pauli in _GATES:
        return getattr(library, f"R{pauli}Gate")(angle)
    return library.PauliEvolutionGate(Pauli(pauli[::-1]), angle / 2)

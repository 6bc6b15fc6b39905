"""Runs ISA circuits by their connected components, exactly, and samples them.

A component of k qubits is a tensor with an axis per qubit: of size 2 for a state, of size 4 (ket + 2 bra) for a density
matrix. What comes behind the last angle that differs from row to row is multiplied out once and shared by the rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import ParameterExpression, QuantumCircuit

SKIPPED = ("barrier", "delay", "id")
SHARED = 8  # qubits of a component up to which the common part is multiplied out


@dataclass(frozen=True)
class Step:
    """A gate on a component's qubits; ``matrix`` is ``(D, D)`` or, where its angle differs by row, ``(rows, D, D)``."""

    matrix: NDArray[np.complex128]
    qubits: tuple[int, ...]


@dataclass(frozen=True)
class Component:
    """Qubits joined by gates: instructions by index, physical qubits, and ``(qubit, clbit)`` pairs that are read."""

    physical: tuple[int, ...]
    instructions: tuple[int, ...]
    reads: tuple[tuple[int, int], ...]


def components(circuit: QuantumCircuit) -> list[Component]:
    """The connected components of a circuit, barriers left aside."""
    parent = list(range(circuit.num_qubits))

    def root(q: int) -> int:
        while parent[q] != q:
            parent[q] = parent[parent[q]]
            q = parent[q]
        return q

    touched: dict[int, None] = {}
    for instruction in circuit.data:
        if instruction.operation.name in ("barrier", "delay"):
            continue
        qubits = [circuit.find_bit(q).index for q in instruction.qubits]
        touched.update(dict.fromkeys(qubits))
        for q in qubits[1:]:
            parent[root(q)] = root(qubits[0])
    parts: dict[int, tuple[list[int], list[int], list[tuple[int, int]]]] = {}
    for q in sorted(touched):
        parts.setdefault(root(q), ([], [], []))[0].append(q)
    for index, instruction in enumerate(circuit.data):
        if instruction.operation.name in ("barrier", "delay"):
            continue
        qubit = circuit.find_bit(instruction.qubits[0]).index
        part = parts[root(qubit)]
        if instruction.operation.name == "measure":
            part[2].append((qubit, circuit.find_bit(instruction.clbits[0]).index))
        else:
            part[1].append(index)
    return [Component(tuple(q), tuple(i), tuple(r)) for q, i, r in parts.values()]


def run(circuit: QuantumCircuit, values: NDArray[np.float64], shots: int, noise: Any, salt: str) -> dict[str, NDArray]:
    """Bits ``(rows, shots, size)`` of every classical register.

    Args:
        circuit: ISA, measured at its end.
        values: ``(rows, parameters)``, in the order of ``circuit.parameters``.
        shots: of each row.
        noise: a ``DeviceNoise``, or None.
        salt: makes the seed, together with the content of what is run.
    """
    rng = np.random.default_rng(int(fingerprint(circuit, values, shots, salt)[:16], 16))
    bits = np.zeros((len(values), shots, circuit.num_clbits), dtype=bool)
    for part in components(circuit):
        if not part.reads:
            continue
        place = {q: k for k, q in enumerate(part.physical)}
        chances = probabilities(circuit, part, values, noise)
        cumulative = np.cumsum(np.clip(chances, 0, None), axis=1)
        cumulative /= cumulative[:, -1:]
        cumulative[:, -1] = 1.0
        rows = np.arange(len(values))[:, None]
        drawn = np.searchsorted((cumulative + rows).ravel(), (rng.random((len(values), shots)) + rows).ravel(), "right")
        drawn = np.minimum(drawn.reshape(len(values), shots) - rows * chances.shape[1], chances.shape[1] - 1)
        for qubit, clbit in part.reads:
            bits[:, :, clbit] = drawn >> place[qubit] & 1
    return {r.name: bits[:, :, [circuit.find_bit(b).index for b in r]] for r in circuit.cregs}


def fingerprint(circuit: QuantumCircuit, values: NDArray[np.float64], shots: int, salt: str) -> str:
    """A hash of what is run: gates, qubits, angles by row, shots."""
    digest = hashlib.sha256(f"{salt}|{shots}|{values.shape}".encode())
    order = {p: k for k, p in enumerate(circuit.parameters)}
    for instruction in circuit.data:
        where = [circuit.find_bit(b).index for b in (*instruction.qubits, *instruction.clbits)]
        angles = [_linear(p, order) if isinstance(p, ParameterExpression) else p for p in instruction.operation.params]
        digest.update(f"{instruction.operation.name}{where}{angles}".encode())
    digest.update(np.ascontiguousarray(values, dtype=np.float64).tobytes())
    return digest.hexdigest()


def probabilities(
    circuit: QuantumCircuit, part: Component, values: NDArray[np.float64], noise: Any
) -> NDArray[np.float64]:
    """``(rows, 2^k)``: the chance of every outcome of a component's qubits, the first qubit least significant."""
    order = {p: k for k, p in enumerate(circuit.parameters)}
    used = sorted(
        {order[q] for i in part.instructions for p in circuit.data[i].operation.params
         if isinstance(p, ParameterExpression) for q in p.parameters}
    )  # fmt: skip
    few = [c for c in used if len(np.unique(values[:, c])) <= max(1, min(12, len(values) // 8))]
    _, groups = np.unique(values[:, few], axis=0, return_inverse=True) if few else (None, np.zeros(len(values), int))
    groups = np.asarray(groups).reshape(-1)
    result = np.zeros((len(values), 2 ** len(part.physical)))
    for group in range(groups.max() + 1 if len(groups) else 0):
        chosen = groups == group
        result[chosen] = _evaluate(circuit, part, values[chosen], noise)
    return result


def _evaluate(circuit: QuantumCircuit, part: Component, values: NDArray[np.float64], noise: Any) -> NDArray[np.float64]:
    qubits, rows = len(part.physical), len(values)
    size = 2 if noise is None else 4
    steps = _steps(circuit, part, values, noise)
    cut, blocked = [], set()
    for index in range(len(steps) - 1, -1, -1):  # what some row-wise angle still waits for comes first
        if steps[index].matrix.ndim == 3 or blocked.intersection(steps[index].qubits) or qubits > SHARED:
            blocked.update(steps[index].qubits)
            cut.append(index)
    first = sorted(cut)
    last = [k for k in range(len(steps)) if k not in set(first)]
    state = np.zeros((rows, *[size] * qubits), dtype=np.complex128)
    state[(slice(None), *[0] * qubits)] = 1
    for k in first:
        state = _apply(state, steps[k].matrix, steps[k].qubits, size)
    if noise is None:
        flat = state.reshape(rows, -1)
        if last:
            whole = np.eye(2**qubits, dtype=np.complex128).reshape(2**qubits, *[2] * qubits)
            for k in last:
                whole = _apply(whole, steps[k].matrix, steps[k].qubits, size)
            flat = flat @ whole.reshape(2**qubits, -1)
        return _reversed(np.abs(flat) ** 2, qubits)
    effects = np.ones((1, 1), dtype=np.complex128)
    for qubit in part.physical:
        one = np.zeros((2, 4), dtype=np.complex128)
        one[:, 0], one[:, 3] = noise.readout[qubit][0], noise.readout[qubit][1]
        effects = np.kron(effects, one)
    effects = effects.reshape(2**qubits, *[4] * qubits)
    for k in reversed(last):
        effects = _apply(effects, steps[k].matrix.T, steps[k].qubits, size)
    return _reversed((state.reshape(rows, -1) @ effects.reshape(2**qubits, -1).T).real, qubits)


def _reversed(table: NDArray[np.float64], qubits: int) -> NDArray[np.float64]:
    """From the first qubit as the most significant axis to the first qubit as the least significant bit."""
    cube = table.reshape(len(table), *[2] * qubits)
    return cube.transpose(0, *range(qubits, 0, -1)).reshape(len(table), -1)


def _apply(state: NDArray, matrix: NDArray, qubits: Sequence[int], size: int) -> NDArray:
    """A gate on axes ``1 + qubit``; the gate's first qubit is its least significant index."""
    axes = [1 + q for q in reversed(qubits)]
    moved = np.moveaxis(state, axes, range(-len(axes), 0))
    shape = moved.shape
    flat = moved.reshape(len(state), -1, size ** len(axes))
    turned = np.swapaxes(matrix, -1, -2)
    flat = flat @ turned
    return np.moveaxis(flat.reshape(shape), range(-len(axes), 0), axes)


def _steps(circuit: QuantumCircuit, part: Component, values: NDArray[np.float64], noise: Any) -> list[Step]:
    place = {q: k for k, q in enumerate(part.physical)}
    order = {p: k for k, p in enumerate(circuit.parameters)}
    steps = []
    for index in part.instructions:
        instruction = circuit.data[index]
        name = instruction.operation.name
        physical = tuple(circuit.find_bit(q).index for q in instruction.qubits)
        qubits = tuple(place[q] for q in physical)
        if name == "reset":
            raise ValueError("the service runs no reset")
        if name not in SKIPPED:
            matrix = _matrix(instruction.operation, values, order)
            steps.append(Step(matrix if noise is None else _superoperator(matrix), qubits))
        error = None if noise is None else noise.gates.get((name, physical))
        if error is not None:
            steps.append(Step(_by_qubit(error, len(qubits)), qubits))
    return steps


def _matrix(operation: Any, values: NDArray[np.float64], order: dict[Any, int]) -> NDArray[np.complex128]:
    if not any(isinstance(p, ParameterExpression) for p in operation.params):
        return np.asarray(operation.to_matrix(), dtype=np.complex128)
    angles = np.stack(
        [_numbers(p, values, order) if isinstance(p, ParameterExpression) else np.full(len(values), float(p))
         for p in operation.params], axis=1,
    )  # fmt: skip
    distinct = np.unique(angles, axis=0)
    if operation.name == "rz":
        half = angles[:, 0] / 2 if len(distinct) > 1 else distinct[:, 0] / 2
        found = np.zeros((len(half), 2, 2), dtype=np.complex128)
        found[:, 0, 0], found[:, 1, 1] = np.exp(-1j * half), np.exp(1j * half)
    else:
        kind = type(operation)
        rows = angles if len(distinct) > 1 else distinct
        found = np.stack([np.asarray(kind(*row).to_matrix(), dtype=np.complex128) for row in rows])
    return found if len(distinct) > 1 else found[0]


def _linear(expression: ParameterExpression, order: dict[Any, int]) -> tuple[float, dict[int, float]] | str:
    """Offset and factors by column; the text of an expression that is not linear."""
    parameters = list(expression.parameters)
    factors = {}
    for parameter in parameters:
        factor = expression.gradient(parameter)
        if isinstance(factor, ParameterExpression):
            if factor.parameters:
                return str(expression)
            factor = factor.numeric()
        factors[order[parameter]] = float(factor.real)
    offset = expression.bind(dict.fromkeys(parameters, 0.0))
    return float(offset.numeric().real), dict(sorted(factors.items()))


def _numbers(
    expression: ParameterExpression, values: NDArray[np.float64], order: dict[Any, int]
) -> NDArray[np.float64]:
    found = _linear(expression, order)
    if isinstance(found, str):
        names = list(expression.parameters)
        return np.array([float(expression.bind({p: row[order[p]] for p in names}).numeric()) for row in values])
    offset, factors = found
    return offset + sum((factor * values[:, column] for column, factor in factors.items()), np.zeros(len(values)))


def _superoperator(matrix: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """``U . U^dagger`` as ``conj(U) (x) U``, then on the axes (ket + 2 bra) of each qubit."""
    qubits = int(math.log2(matrix.shape[-1]))
    batch = matrix.reshape(-1, *matrix.shape[-2:])
    whole = np.einsum("rab,rcd->racbd", batch.conj(), batch).reshape(len(batch), 4**qubits, 4**qubits)
    found = np.stack([_by_qubit(one, qubits) for one in whole]) if qubits > 1 else whole
    return found if matrix.ndim == 3 else found[0]


def _by_qubit(superoperator: NDArray[np.complex128], qubits: int) -> NDArray[np.complex128]:
    """From Qiskit's order of indices (all bra bits above all ket bits) to bra and ket of each qubit side by side."""
    if qubits == 1:
        return superoperator
    axes = [k for q in range(qubits) for k in (q, qubits + q)]  # highest qubit first: its bra, its ket
    cube = superoperator.reshape([2] * (4 * qubits))
    return cube.transpose(axes + [2 * qubits + k for k in axes]).reshape(4**qubits, 4**qubits)

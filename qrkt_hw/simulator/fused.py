"""Few qubits: everything that does not depend on the data becomes one unitary, shared by the whole batch.

The leading rotations that hit fresh qubits give a product state, real where all of them are RY. Runs of steps without
inputs are multiplied together once (on the columns of the identity) and meet the batch as one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

from qrkt_hw.compiler import Fixed, Program, Rotation
from qrkt_hw.simulator.gatewise import Angles, StepsOnState, step_cost
from qrkt_hw.simulator.readout import Readout
from qrkt_hw.simulator.tables import Tables

LARGEST = 8
Step = Fixed | Rotation


def split_encoding(program: Program) -> tuple[dict[int, Rotation], list[Step]]:
    """The first one-qubit rotation by inputs on each untouched qubit, and the remaining steps in order."""
    first: dict[int, Rotation] = {}
    touched: set[int] = set()
    rest: list[Step] = []
    for step in program.steps:
        qubit = step.qubits[0]
        fresh = len(step.qubits) == 1 and qubit not in touched
        if fresh and isinstance(step, Rotation) and step.pauli in ("X", "Y") and program.uses_inputs(step):
            first[qubit] = step
        else:
            rest.append(step)
        touched.update(step.qubits)
    return first, rest


def segments(steps: Sequence[Step], program: Program) -> list[tuple[bool, list[Step]]]:
    """Runs of steps as ``(depends on inputs, steps)``; a step may overtake others on disjoint qubits."""
    runs: list[tuple[bool, list[Step]]] = []
    for step in steps:
        data = program.uses_inputs(step)
        target = len(runs)
        while target > 0:
            if runs[target - 1][0] == data:
                break
            if any(set(s.qubits) & set(step.qubits) for s in runs[target - 1][1]):
                target = len(runs)
                break
            target -= 1
        if 0 < target <= len(runs) and runs[target - 1][0] == data:
            runs[target - 1][1].append(step)
        else:
            runs.append((data, [step]))
    return runs


class ProductState(Tables):
    """The state of the encoding, ``(groups, 2^n, batch)``; real where every rotation is RY."""

    def __init__(self, first: dict[int, Rotation], program: Program, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_qubits = program.num_qubits
        self.places = {qubit: column for column, qubit in enumerate(first)}
        self.paulis = {qubit: rotation.pauli for qubit, rotation in first.items()}
        self.dtype = dtype
        real = torch.zeros((), dtype=dtype).real.dtype
        self.angles = Angles(list(first.values()), program, real) if first else None
        self.is_real = all(p == "Y" for p in self.paulis.values())

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        batch, groups = inputs.shape[0], inputs.shape[1]
        kind = inputs.dtype if self.is_real else self.dtype
        state = torch.ones(groups, 1, batch, dtype=kind, device=inputs.device)
        if self.angles is not None:
            half = self.angles(inputs, weights) * 0.5
            cosines, sines = half.cos(), half.sin()
        for qubit in range(self.num_qubits):
            column = self.places.get(qubit)
            if column is None:
                state = torch.cat([state, torch.zeros_like(state)], dim=1)
                continue
            sine = sines[column] if self.paulis[qubit] == "Y" else sines[column] * -1j
            amplitudes = torch.stack([cosines[column].to(sine.dtype), sine], dim=1)
            state = (amplitudes.unsqueeze(2) * state.unsqueeze(1)).flatten(1, 2)
        return state


class FusedUnitaries:
    """Product state, then per run either one shared unitary or, where data enter again, gate by gate."""

    name: ClassVar[str] = "fused"

    def __init__(self, program: Program, observables: Sequence[SparsePauliOp], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.size = 2**program.num_qubits
        first, rest = split_encoding(program)
        self.start = ProductState(first, program, dtype)
        self.runs = [(data, StepsOnState(steps, program, dtype)) for data, steps in segments(rest, program)]
        self.readout = Readout(observables, program.num_qubits, dtype)

    @staticmethod
    def supports(program: Program, observables: Sequence[SparsePauliOp]) -> bool:
        return program.num_qubits <= LARGEST

    @staticmethod
    def cost(program: Program, observables: Sequence[SparsePauliOp]) -> float:
        size = 2**program.num_qubits
        _, rest = split_encoding(program)
        total = 1e5 + 3e4 * program.num_qubits + 20.0 * size * 256
        for data, steps in segments(rest, program):
            columns = size * (256 if data else size)
            total += sum(step_cost(s, columns) for s in steps)
            total += 0.0 if data else 5e4 + 0.4 * size * size * 256
        # fusing pays only where it saves much: timed on random templates, a near tie is lost
        return 1.6 * total

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        state = self.start(inputs, weights)
        for data, steps in self.runs:
            if data:
                state = steps(state.to(self.dtype), inputs, weights)
                continue
            columns = torch.eye(self.size, dtype=self.dtype, device=inputs.device).expand(weights.shape[0], -1, -1)
            state = product(steps(columns, None, weights), state)
        return self.readout(state)


def product(unitary: Tensor, state: Tensor) -> Tensor:
    """``unitary @ state``; a real state takes one real product with the stacked real and imaginary rows."""
    if state.is_complex():
        return unitary @ state
    stacked = torch.cat([unitary.real, unitary.imag], dim=1) @ state
    real, imag = stacked.chunk(2, dim=1)
    return torch.complex(real, imag)

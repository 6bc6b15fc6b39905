"""Gate by gate on the statevector: works for every template; the other methods are checked against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

from qrkt_hw.compiler import Fixed, Program, Rotation
from qrkt_hw.simulator.readout import Readout
from qrkt_hw.simulator.tables import Tables


class Angles(Tables):
    """Turns parameters into rotation angles: ``angle = inputs @ to_inputs + weights @ to_weights + offset``."""

    def __init__(self, rotations: Sequence[Rotation], program: Program, real_dtype: torch.dtype) -> None:
        super().__init__()
        matrix = np.zeros((program.num_inputs + program.num_weights, len(rotations)))
        for column, rotation in enumerate(rotations):
            for index, coefficient in rotation.angle.terms:
                matrix[index, column] = coefficient
        self.add("to_inputs", matrix[: program.num_inputs], real_dtype)
        self.add("to_weights", matrix[program.num_inputs :], real_dtype)
        self.add("offset", np.array([r.angle.offset for r in rotations]), real_dtype)

    def __call__(self, inputs: Tensor | None, weights: Tensor) -> Tensor:
        """``(rotations, groups, batch)``; without inputs ``(rotations, groups, 1)``."""
        tables = self.on(weights.device)
        angles = weights @ tables["to_weights"] + tables["offset"]
        if inputs is not None:
            angles = inputs @ tables["to_inputs"] + angles
        else:
            angles = angles.unsqueeze(0)
        return angles.permute(2, 1, 0)


def pauli_action(pauli: str, qubits: tuple[int, ...], num_qubits: int) -> tuple[int, NDArray[np.complex128]]:
    """``(P psi)[k] = phase[k] * psi[k ^ flip]``: the flip mask and the phases ``(2^n,)``."""
    flip = 0
    phase = np.ones(2**num_qubits, dtype=complex)
    index = np.arange(2**num_qubits)
    for letter, qubit in zip(pauli, qubits, strict=True):
        bit = (index >> qubit) & 1
        if letter in "XY":
            flip |= 1 << qubit
        if letter == "Y":
            phase = phase * np.where(bit == 1, 1j, -1j)
        elif letter == "Z":
            phase = phase * np.where(bit == 1, -1.0, 1.0)
    return flip, phase


def step_cost(step: Fixed | Rotation, amplitudes: int) -> float:
    """Nanoseconds of a step on that many amplitudes, forward and backward, from timings on one core."""
    factor = 30.0 if isinstance(step, Rotation) else 10.0 * 2 ** len(step.qubits)
    return 8e4 + factor * amplitudes


class StepsOnState(Tables):
    """Applies a list of steps to states ``(groups, 2^n, batch)``."""

    def __init__(self, steps: Sequence[Fixed | Rotation], program: Program, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_qubits = program.num_qubits
        self.steps = list(steps)
        rotations = [s for s in steps if isinstance(s, Rotation)]
        self.angles = Angles(rotations, program, torch.zeros((), dtype=dtype).real.dtype) if rotations else None
        index = np.arange(2**self.num_qubits)
        for place, step in enumerate(steps):
            if isinstance(step, Fixed):
                self.add(f"matrix{place}", step.matrix, dtype)
            else:
                flip, phase = pauli_action(step.pauli, step.qubits, self.num_qubits)
                self.add(f"phase{place}", (-1j * phase)[:, None], dtype)
                if flip:
                    self.add(f"flip{place}", index ^ flip, torch.long)

    def __call__(self, state: Tensor, inputs: Tensor | None, weights: Tensor) -> Tensor:
        tables = self.on(weights.device)
        if self.angles is not None:
            half = self.angles(inputs, weights) * 0.5
            cosines, sines = half.cos().unsqueeze(2), half.sin().unsqueeze(2)
        rotation = 0
        for place, step in enumerate(self.steps):
            if isinstance(step, Fixed):
                state = self._apply(state, tables[f"matrix{place}"], step.qubits)
                continue
            flip = tables.get(f"flip{place}")
            turned = state if flip is None else state.index_select(1, flip)
            state = cosines[rotation] * state + sines[rotation] * (tables[f"phase{place}"] * turned)
            rotation += 1
        return state

    def _apply(self, state: Tensor, matrix: Tensor, qubits: tuple[int, ...]) -> Tensor:
        groups, size, batch = state.shape
        n, k = self.num_qubits, len(qubits)
        # axis of qubit q in (groups, 2, ..., 2, batch) is n - q: qubit 0 is the least significant bit
        axes = [n - q for q in reversed(qubits)]
        cube = state.reshape(groups, *([2] * n), batch)
        front = cube.movedim(axes, list(range(1, k + 1)))
        turned = torch.einsum("ij,gjr->gir", matrix, front.reshape(groups, 2**k, -1))
        return turned.reshape(front.shape).movedim(list(range(1, k + 1)), axes).reshape(groups, size, batch)


class Gatewise:
    """Statevector, one step after another."""

    name: ClassVar[str] = "gatewise"

    def __init__(self, program: Program, observables: Sequence[SparsePauliOp], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.size = 2**program.num_qubits
        self.steps = StepsOnState(program.steps, program, dtype)
        self.readout = Readout(observables, program.num_qubits, dtype)

    @staticmethod
    def supports(program: Program, observables: Sequence[SparsePauliOp]) -> bool:
        return program.num_qubits <= 28

    @staticmethod
    def cost(program: Program, observables: Sequence[SparsePauliOp]) -> float:
        return 1e5 + sum(step_cost(s, 2**program.num_qubits * 256) for s in program.steps)

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        batch, groups = inputs.shape[0], inputs.shape[1]
        start = torch.zeros(groups, self.size, batch, dtype=self.dtype, device=inputs.device)
        start[:, 0] = 1
        return self.readout(self.steps(start, inputs, weights))

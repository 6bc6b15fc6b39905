"""Statevector whose backward pass turns the state back instead of remembering it: memory of two states, for any depth.

The program is brought to rotations about Pauli strings (see :mod:`qrkt_hw.compiler.litinski`). With
``lambda = sum_m g_m O_m psi`` behind a rotation about P, the slope by its angle is ``Im <lambda| P |psi>``; then both
states are turned back and the next rotation's turn comes (Jones and Gacon, arXiv:2009.02823). On a CPU the compiled
routines do it for a few samples at a time; elsewhere torch, over the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

from qrkt_hw.compiler import Program, Rotation
from qrkt_hw.compiler.litinski import Turn, frame
from qrkt_hw.compiler.program import Affine
from qrkt_hw.simulator import native
from qrkt_hw.simulator.fused import FusedUnitaries
from qrkt_hw.simulator.gatewise import Angles, Gatewise
from qrkt_hw.simulator.readout import Readout
from qrkt_hw.simulator.tables import Tables, taking_turns, vjp

LARGEST = 24  # qubits
LARGEST_MATRIX = 6  # qubits of a matrix


class Adjoint:
    """See the module."""

    name: ClassVar[str] = "adjoint"

    def __init__(self, program: Program, observables: Sequence[SparsePauliOp], dtype: torch.dtype) -> None:
        self.program, self.observables, self.dtype = program, observables, dtype
        self.real = torch.zeros((), dtype=dtype).real.dtype
        self.frame = frame(program, observables)
        turns = [step for step in self.frame.steps if isinstance(step, Turn)]
        self.angles = list(dict.fromkeys(turn.angle for turn in turns)) or [Affine()]
        self.place = {angle: k for k, angle in enumerate(self.angles)}
        self.size = 2**program.num_qubits

    @staticmethod
    def supports(program: Program, observables: Sequence[SparsePauliOp]) -> bool:
        return program.num_qubits <= LARGEST and all(
            isinstance(s, Rotation) or len(s.qubits) <= LARGEST_MATRIX for s in program.steps
        )

    @staticmethod
    def cost(program: Program, observables: Sequence[SparsePauliOp]) -> float:
        steps = frame(program, observables).steps
        if native.library() is None:
            return 0.9 * Gatewise.cost(program, observables)
        size = 2**program.num_qubits
        each = sum(1.0 if isinstance(s, Turn) else 1.5 * 2 ** len(s.qubits) for s in steps)
        return 7e4 + 256 * size * (1.7 * each + 1.0 + 0.3 * len(observables))

    @cached_property
    def plain(self) -> FusedUnitaries | Gatewise:
        """The same values in operations that autograd can follow, for derivatives of derivatives."""
        fitting = [m for m in (FusedUnitaries, Gatewise) if m.supports(self.program, self.observables)]
        chosen = min(fitting, key=lambda m: m.cost(self.program, self.observables))
        return chosen(self.program, self.observables, self.dtype)

    @cached_property
    def routine(self) -> native.Routine:
        """The compiled routine of this circuit."""
        rows: list[tuple[int, int, int, int, int, int]] = []  # x, z, sign, angle, qubits of a matrix, its place
        qubits: list[int] = []
        matrices: list[float] = []
        for step in self.frame.steps:
            if isinstance(step, Turn):
                rows.append((step.x, step.z, step.sign, self.place[step.angle], 0, 0))
                qubits += [0] * LARGEST_MATRIX
            else:
                rows.append((0, 0, 1, 0, len(step.qubits), len(matrices)))
                qubits += [*step.qubits, *([0] * (LARGEST_MATRIX - len(step.qubits)))]
                matrices += [*step.matrix.real.ravel().tolist(), *step.matrix.imag.ravel().tolist()]
        p, readings = self.program, self.frame.readings
        columns = np.array(rows, dtype=np.int32).reshape(-1, 6).T
        by_input = [any(i < p.num_inputs for i, _ in angle.terms) for angle in self.angles]
        record = native.Record(
            self.angles,
            native.fields(
                p.num_qubits, p.num_inputs, p.num_weights, len(self.observables), len(rows), len(readings),
                *columns, qubits, matrices or [0.0], [r.x for r in readings], [r.z for r in readings],
                [r.observable for r in readings], [float(r.factor) for r in readings] or [0.0], by_input,
            ),
        )  # fmt: skip
        return native.Routine("circuit", record, self.real)

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        if native.traced(inputs, weights):
            return self.plain(taking_turns(inputs, weights.shape[0]), weights)
        if torch.is_grad_enabled() and (inputs.requires_grad or weights.requires_grad):
            return _Adjoint.apply(inputs, weights, self)
        return self.forward(inputs, weights, False)[0]

    def forward(self, inputs: Tensor, weights: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
        """Values ``(batch, groups, outputs)`` and, to be kept, the final states."""
        if not native.serves(inputs, weights):
            return self.in_torch.forward(taking_turns(inputs, weights.shape[0]), weights, keep)
        batch, groups = inputs.shape[0], weights.shape[0]
        inputs, weights = self._checked(inputs, weights)
        out = inputs.new_empty(batch, groups, len(self.observables))
        states = None
        if keep:
            states = inputs.new_empty(self._kept(batch, groups))
        self.routine.forward(
            inputs.data_ptr(), native.strides(inputs), weights.data_ptr(), batch, groups, out.data_ptr(),
            None if states is None else states.data_ptr(),
        )  # fmt: skip
        return out, states

    def backward(self, inputs: Tensor, weights: Tensor, states: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """Cotangents of inputs and weights; ``states`` are left as they were."""
        if not native.serves(inputs, weights):
            groups = inputs.shape[1]
            by_inputs, by_weights = self.in_torch.backward(
                taking_turns(inputs, weights.shape[0]), weights, states, cotangent
            )
            return by_inputs.unflatten(1, (-1, groups)).sum(1), by_weights
        batch, groups = inputs.shape[0], weights.shape[0]
        inputs, weights = self._checked(inputs, weights)  # hooks on saved tensors may have given back others
        states = native.numbers(states, (self._kept(batch, groups),), self.real, "the states").contiguous()
        shape = (batch, groups, len(self.observables))
        cotangent = native.numbers(cotangent, shape, self.real, "the cotangent").contiguous()
        by_inputs, by_weights = inputs.new_zeros(inputs.shape), torch.empty_like(weights)
        self.routine.backward(
            inputs.data_ptr(), native.strides(inputs), weights.data_ptr(), cotangent.data_ptr(), batch,
            groups, states.data_ptr(), by_inputs.data_ptr(), native.strides(by_inputs),
            by_weights.data_ptr(),
        )  # fmt: skip
        return by_inputs, by_weights

    def _kept(self, batch: int, groups: int) -> int:
        """How many numbers the final states of a call are."""
        columns = native.COLUMNS[self.real]
        return groups * -(-batch // columns) * 2 * self.size * columns

    def _checked(self, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The tensors as the routine reads them.

        Raises:
            ValueError: shapes or precisions that do not fit the circuit or each other.
        """
        among, groups = inputs.shape[1], weights.shape[0]
        if groups % among if among else groups:
            raise ValueError(f"inputs of {among} groups do not fit {groups} weight sets")
        inputs = native.numbers(inputs, (inputs.shape[0], among, self.program.num_inputs), self.real, "inputs")
        weights = native.numbers(weights, (groups, self.program.num_weights), self.real, "weights")
        return inputs, weights.contiguous()

    @cached_property
    def in_torch(self) -> TorchAdjoint:
        """The same by torch's operations."""
        return TorchAdjoint(self)


class TorchAdjoint(Tables):
    """The same in torch, on any device: states ``(groups, 2^n, batch)``."""

    def __init__(self, method: Adjoint) -> None:
        super().__init__()
        self.method = method
        program = method.program
        self.angles = Angles([Rotation("Z", (0,), a) for a in method.angles], program, method.real)
        index = np.arange(method.size)
        for k, step in enumerate(method.frame.steps):
            if isinstance(step, Turn):
                parity = np.array([(int(i) & step.z).bit_count() & 1 for i in index])
                phase = step.sign * (-1j) ** ((step.x & step.z).bit_count() % 4) * (1.0 - 2.0 * parity)
                self.add(f"phase{k}", phase[:, None], method.dtype)
                if step.x:
                    self.add(f"flip{k}", index ^ step.x, torch.long)
            else:
                self.add(f"matrix{k}", step.matrix, method.dtype)
        readings = method.frame.readings
        labels = [_label(r.x, r.z, program.num_qubits) for r in readings]
        own = [
            SparsePauliOp(labels, [r.factor if r.observable == m else 0.0 for r in readings])
            for m in range(len(method.observables))
        ]
        self.readout = Readout(own, program.num_qubits, method.dtype)

    def forward(self, inputs: Tensor, weights: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            cosines, sines = self._waves(inputs, weights)
            state = torch.zeros(
                inputs.shape[1], self.method.size, inputs.shape[0], dtype=self.method.dtype, device=inputs.device
            )
            state[:, 0] = 1
            for k in range(len(self.method.frame.steps)):
                state = self._step(k, state, cosines, sines, 1)
            return self.readout(state), (state if keep else None)

    def backward(self, inputs: Tensor, weights: Tensor, states: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            tables = self.on(inputs.device)
            cosines, sines = self._waves(inputs, weights)
            state = states
            with torch.enable_grad():  # lambda: half the slope of the real part and of the imaginary part
                leaf = torch.view_as_real(state.detach()).clone().requires_grad_()
                value = self.readout(torch.view_as_complex(leaf))
            slope = torch.autograd.grad(value, leaf, cotangent)[0]
            other = torch.view_as_complex(slope.contiguous()) * 0.5
            by_angle = torch.zeros_like(cosines)
            for k in reversed(range(len(self.method.frame.steps))):
                step = self.method.frame.steps[k]
                if isinstance(step, Turn):
                    flip = tables.get(f"flip{k}")
                    turned = tables[f"phase{k}"] * (state if flip is None else state.index_select(1, flip))
                    by_angle[self.method.place[step.angle]] += (other.conj() * turned).imag.sum(1)
                state = self._step(k, state, cosines, sines, -1)
                other = self._step(k, other, cosines, sines, -1)
            angles = self.angles.on(inputs.device)
            by_inputs = by_angle.permute(2, 1, 0) @ angles["to_inputs"].t()
            by_weights = (angles["to_weights"] @ by_angle.sum(2)).t()
            return by_inputs, by_weights

    def _waves(self, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        half = self.angles(inputs, weights) * 0.5
        return half.cos(), half.sin()

    def _step(self, k: int, state: Tensor, cosines: Tensor, sines: Tensor, direction: int) -> Tensor:
        tables, step = self.on(state.device), self.method.frame.steps[k]
        if isinstance(step, Turn):
            place = self.method.place[step.angle]
            flip = tables.get(f"flip{k}")
            turned = tables[f"phase{k}"] * (state if flip is None else state.index_select(1, flip))
            return cosines[place].unsqueeze(1) * state + (sines[place] * (-1j * direction)).unsqueeze(1) * turned
        matrix = tables[f"matrix{k}"]
        n, groups, batch = self.method.program.num_qubits, state.shape[0], state.shape[2]
        axes = [n - q for q in reversed(step.qubits)]
        cube = state.reshape(groups, *([2] * n), batch)
        front = cube.movedim(axes, list(range(1, len(axes) + 1)))
        flat = front.reshape(groups, len(matrix), -1)
        turned = (matrix if direction == 1 else matrix.conj().t()) @ flat
        back = turned.reshape(front.shape).movedim(list(range(1, len(axes) + 1)), axes)
        return back.reshape(state.shape)


class _Adjoint(torch.autograd.Function):
    """One node of the graph; differentiated again it goes through the plain operations."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weights: Tensor, method: Adjoint) -> Tensor:
        values, states = method.forward(inputs, weights, True)
        ctx.method = method
        ctx.save_for_backward(inputs, weights, states)
        return values

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # type: ignore[override]
        inputs, weights, states = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() or native.traced(cotangent):

            def plain(x: Tensor, w: Tensor) -> Tensor:
                return ctx.method.plain(taking_turns(x, w.shape[0]), w)

            return *vjp(plain, (inputs, weights), needs, cotangent), None
        by_inputs, by_weights = ctx.method.backward(inputs, weights, states, cotangent)
        return by_inputs if needs[0] else None, by_weights if needs[1] else None, None


def _label(x: int, z: int, num_qubits: int) -> str:
    letters = {(0, 0): "I", (1, 0): "X", (1, 1): "Y", (0, 1): "Z"}
    return "".join(letters[x >> q & 1, z >> q & 1] for q in reversed(range(num_qubits)))

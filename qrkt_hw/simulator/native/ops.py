"""Expectation values by native kernels: functions of tensors with first derivatives, beside a plain torch reference."""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from qrkt_hw.compiler.program import Affine
from qrkt_hw.simulator import native
from qrkt_hw.simulator.tables import vjp

Reference = Callable[[Tensor, Tensor], Tensor]
Pair = tuple[Tensor | None, Tensor | None]
Sizes = tuple[int, int, int]  # numbers of inputs, weights and observables
Plan = tuple[Sequence[Affine], Sequence[Any]]  # angles, and the other fields of a structure in ``kernels.c``
_Strides = ctypes.c_int64 * 3


class Differentiable(Protocol):
    """A function of inputs ``(batch, groups, inputs)`` and weights ``(groups, weights)`` with a backward pass."""

    def reference(self, inputs: Tensor, weights: Tensor, /) -> Tensor:
        """The same in operations that autograd can follow."""

    def forward(self, inputs: Tensor, weights: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
        """Values ``(batch, groups, observables)`` and, to ``keep``, what :meth:`backward` needs besides the inputs."""

    def backward(self, inputs: Tensor, weights: Tensor, kept: Tensor, cotangent: Tensor, needs: Sequence[bool]) -> Pair:
        """The gradients of inputs and weights, where needed."""


def evaluate(function: Differentiable, inputs: Tensor, weights: Tensor) -> Tensor:
    """The function's values, as one node of the graph where a gradient is wanted."""
    if torch.is_grad_enabled() and (inputs.requires_grad or weights.requires_grad):
        return _Node.apply(inputs, weights, function)
    return function.forward(inputs, weights, False)[0]


class _Node(torch.autograd.Function):
    """Differentiated again it goes through the reference."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weights: Tensor, function: Differentiable) -> Tensor:
        values, saved = function.forward(inputs, weights, True)
        ctx.function = function
        ctx.save_for_backward(inputs, weights, saved)
        return values

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # type: ignore[override]
        inputs, weights, saved = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() or native.traced(cotangent):
            return *vjp(ctx.function.reference, (inputs, weights), needs, cotangent), None
        return *ctx.function.backward(inputs, weights, saved, cotangent, needs), None


class _Kernel:
    """Sizes of a circuit, and tensors as its kernel reads them; hooks on saved tensors may give back others."""

    def __init__(self, sizes: Sizes, real: torch.dtype, reference: Reference) -> None:
        self.num_inputs, self.num_weights, self.num_outputs = sizes
        self.real, self.reference = real, reference

    def arguments(self, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        batch, groups = inputs.shape[0], weights.shape[0]
        inputs = native.numbers(inputs, (batch, groups, self.num_inputs), self.real, "inputs")
        return inputs, native.numbers(weights, (groups, self.num_weights), self.real, "weights").contiguous()

    def cotangent(self, cotangent: Tensor, inputs: Tensor) -> Tensor:
        shape = (*inputs.shape[:2], self.num_outputs)
        return native.numbers(cotangent, shape, self.real, "the cotangent").contiguous()


class PropagatedKernel(_Kernel):
    """Propagated observables: coefficients once for each weight set, then a tape for each sample."""

    def __init__(
        self, sizes: Sizes, real: torch.dtype, reference: Reference, positions: int, coefficients: Plan, tape: Plan
    ) -> None:
        super().__init__(sizes, real, reference)
        self.positions = positions
        self._coefficients = native.Routine("coefficients", real, coefficients[0], *coefficients[1])
        self._tape = native.Routine("tape", real, tape[0], *tape[1])

    def forward(self, inputs: Tensor, weights: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
        inputs, weights = self.arguments(inputs, weights)
        batch, groups = inputs.shape[0], inputs.shape[1]
        coefficients = weights.new_empty(groups, self.positions)
        self._coefficients.forward(weights.data_ptr(), groups, coefficients.data_ptr())
        values = inputs.new_empty(batch, groups, self.num_outputs)
        self._tape.forward(
            inputs.data_ptr(), _Strides(*inputs.stride()), coefficients.data_ptr(), batch, groups, values.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return values, coefficients

    def backward(self, inputs: Tensor, weights: Tensor, kept: Tensor, cotangent: Tensor, needs: Sequence[bool]) -> Pair:
        inputs, weights = self.arguments(inputs, weights)
        batch, groups = inputs.shape[0], inputs.shape[1]
        cotangent = self.cotangent(cotangent, inputs)
        coefficients = native.numbers(kept, (groups, self.positions), self.real, "coefficients").contiguous()
        grad_inputs = inputs.new_zeros(inputs.shape) if needs[0] else None
        grad_coefficients = torch.empty_like(coefficients) if needs[1] else None
        self._tape.backward(
            inputs.data_ptr(), _Strides(*inputs.stride()), coefficients.data_ptr(), cotangent.data_ptr(), batch, groups,
            native.address(grad_inputs), native.address(grad_coefficients), torch.get_num_threads(),
        )  # fmt: skip
        if grad_coefficients is None:
            return grad_inputs, None
        grad_weights = torch.empty_like(weights)
        self._coefficients.backward(weights.data_ptr(), grad_coefficients.data_ptr(), groups, grad_weights.data_ptr())
        return grad_inputs, grad_weights


def _columns(first: Sequence[int], second: Sequence[int]) -> tuple[list[int], list[int]]:
    """For each rotation of two rows of what was the identity: the columns, from and to, where a row can differ from 0.

    The rows of a butterfly's first layer fill up by and by: it costs ``n^2`` instead of ``n^2 log(n)``.
    """
    found = dict[int, tuple[int, int]]()
    ranges = list[tuple[int, int]]()
    for pair in zip(first, second, strict=True):
        lows, highs = zip(*(found.get(row, (row, row + 1)) for row in pair), strict=True)
        ranges.append((min(lows), max(highs)))
        found |= dict.fromkeys(pair, ranges[-1])
    return [low for low, _ in ranges], [high for _, high in ranges]


class GivensKernel(_Kernel):
    """The product of Givens rotations as matrices ``(groups, size, size)``; there are no inputs."""

    def __init__(self, num_weights: int, real: torch.dtype, reference: Reference, size: int, plan: Plan) -> None:
        super().__init__((0, num_weights, size), real, reference)
        angles, pairs = plan
        self._givens = native.Routine("givens", real, angles, size, num_weights, *pairs, *_columns(*pairs))

    def forward(self, inputs: Tensor, weights: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
        _, weights = self.arguments(inputs, weights)
        matrices = weights.new_empty(len(weights), self.num_outputs, self.num_outputs)
        self._givens.forward(weights.data_ptr(), len(weights), matrices.data_ptr())
        return matrices, matrices

    def backward(self, inputs: Tensor, weights: Tensor, kept: Tensor, cotangent: Tensor, needs: Sequence[bool]) -> Pair:
        _, weights = self.arguments(inputs, weights)
        shape = (len(weights), self.num_outputs, self.num_outputs)
        matrices = native.numbers(kept, shape, self.real, "matrices").contiguous()
        cotangent = native.numbers(cotangent, shape, self.real, "the cotangent").contiguous()
        grad_weights = torch.empty_like(weights)
        self._givens.backward(
            weights.data_ptr(), matrices.data_ptr(), cotangent.data_ptr(), len(weights), grad_weights.data_ptr()
        )
        return None, grad_weights


class StatevectorKernel(_Kernel):
    """Expectation values in a statevector, differentiated by the adjoint method."""

    def __init__(self, sizes: Sizes, real: torch.dtype, reference: Reference, num_qubits: int, circuit: Plan) -> None:
        super().__init__(sizes, real, reference)
        self.amplitudes = 2**num_qubits
        self._circuit = native.Routine("circuit", real, circuit[0], *circuit[1])

    def forward(self, inputs: Tensor, weights: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
        inputs, weights = self.arguments(inputs, weights)
        batch, groups = inputs.shape[0], inputs.shape[1]
        values = inputs.new_empty(batch, groups, self.num_outputs)
        states = inputs.new_empty(self._saved(batch, groups)) if keep else None
        self._circuit.forward(
            inputs.data_ptr(), _Strides(*inputs.stride()), weights.data_ptr(), batch, groups, values.data_ptr(),
            native.address(states), torch.get_num_threads(),
        )  # fmt: skip
        return values, states

    def backward(self, inputs: Tensor, weights: Tensor, kept: Tensor, cotangent: Tensor, needs: Sequence[bool]) -> Pair:
        inputs, weights = self.arguments(inputs, weights)
        batch, groups = inputs.shape[0], inputs.shape[1]
        cotangent = self.cotangent(cotangent, inputs)
        states = native.numbers(kept, (self._saved(batch, groups),), self.real, "the states").contiguous()
        if states.data_ptr() % native.ALIGNED:  # a hook on saved tensors gave a part of another one
            states = states.clone()
        grad_inputs = inputs.new_zeros(inputs.shape) if needs[0] else None
        grad_weights = torch.empty_like(weights) if needs[1] else None
        self._circuit.backward(
            inputs.data_ptr(), _Strides(*inputs.stride()), weights.data_ptr(), cotangent.data_ptr(), batch, groups,
            states.data_ptr(), native.address(grad_inputs), native.address(grad_weights), torch.get_num_threads(),
        )  # fmt: skip
        return grad_inputs, grad_weights

    def _saved(self, batch: int, groups: int) -> int:
        """How many numbers the final states of a call are."""
        columns = native.COLUMNS[self.real]
        return groups * -(-batch // columns) * 2 * self.amplitudes * columns

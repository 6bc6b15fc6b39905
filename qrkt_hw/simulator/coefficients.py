"""What a batch shares: polynomials in cosines and sines of the weights, computed once per weight set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qrkt_hw.compiler import Program
from qrkt_hw.compiler.program import Affine, Rotation
from qrkt_hw.compiler.propagation import Monomial
from qrkt_hw.simulator import native
from qrkt_hw.simulator.gatewise import Angles
from qrkt_hw.simulator.products import ONE, Products
from qrkt_hw.simulator.tables import Tables, vjp

LARGEST_PLACE = 2**20  # entries of a dense summation matrix
Part = tuple[int, float, Monomial]  # position, coefficient, factors


class Coefficients(Tables):
    """``out[position] += coefficient * prod(factors)`` over all parts.

    Takes weights ``(groups, weights)`` to ``(groups, positions)``.

    Args:
        parts: what is summed; a factor is 2a for the cosine, 2a + 1 for the sine of ``angles[a]``.
        positions: how many.
        angles: affine in the weights alone wherever a part uses them.
        program: the angles' program.
        real_dtype: of the result.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        positions: int,
        angles: Sequence[Affine],
        program: Program,
        real_dtype: torch.dtype,
    ) -> None:
        super().__init__()
        parts = parts or [(0, 0.0, ())] * min(positions, 1)
        used = sorted({f // 2 for _, _, monomial in parts for f in monomial})
        place = {angle: k for k, angle in enumerate(used)}
        rotations = [Rotation("Z", (0,), angles[a]) for a in used]
        self.angles = Angles(rotations, program, real_dtype) if used else None
        monomials = {monomial: k for k, monomial in enumerate(dict.fromkeys([*(m for _, _, m in parts)] or [()]))}
        lists = [[1 + place[f // 2] + len(used) * (f % 2) for f in monomial] for monomial in monomials]
        self.products = Products(lists, 1 + 2 * len(used), real_dtype) if used else None
        self.positions = positions
        self.num_weights, self.real_dtype = program.num_weights, real_dtype
        self.routine: native.Routine | None = None
        if native.library() is not None and parts:
            lists = [[2 * place[f // 2] + f % 2 for f in monomial] for *_, monomial in parts]
            shift = program.num_inputs
            of_weights = [Affine(tuple((i - shift, c) for i, c in angles[a].terms), angles[a].offset) for a in used]
            starts = np.cumsum([0, *map(len, lists)])
            record = native.Record(
                of_weights,
                native.fields(
                    len(parts), positions, program.num_weights, [p for p, _, _ in parts], starts,
                    [f for entry in lists for f in entry], [float(c) for _, c, _ in parts],
                ),
            )  # fmt: skip
            self.routine = native.Routine("coefficients", record, real_dtype)
        self.dense = positions * len(monomials) <= LARGEST_PLACE
        self.parts = len(parts)
        if self.dense:
            matrix = np.zeros((len(monomials), positions))
            for position, coefficient, monomial in parts:
                matrix[monomials[monomial], position] += coefficient
            self.add("sum", matrix, real_dtype)
        else:
            self.add("position", np.array([p for p, _, _ in parts]), torch.long)
            self.add("source", np.array([monomials[m] for _, _, m in parts]), torch.long)
            self.add("factor", np.array([c for _, c, _ in parts])[:, None], real_dtype)

    def forward(self, weights: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        """``(groups, positions)``; ``kept`` collects what :meth:`pull` needs."""
        tables = self.on(weights.device)
        if self.angles is None or self.products is None:
            values = weights.new_ones(1, weights.shape[0])
        else:
            angles = self.angles(None, weights).squeeze(-1)
            cosines, sines = angles.cos(), angles.sin()
            if kept is not None:
                kept += [cosines, sines]
            values = self.products.forward(torch.cat([torch.ones_like(angles[:1]), cosines, sines]), kept)
        if self.dense:
            return values.t() @ tables["sum"]
        picked = values.index_select(0, tables["source"]) * tables["factor"]
        return (
            picked.new_zeros(self.positions, picked.shape[1]).index_add(0, tables["position"], picked).t().contiguous()
        )

    def pull(self, cotangent: Tensor, kept: Sequence[Tensor]) -> Tensor | None:
        """The cotangent of the weights; None where nothing depends on them."""
        if self.angles is None or self.products is None:
            return None
        tables = self.on(cotangent.device)
        if self.dense:
            by_value = tables["sum"] @ cotangent.t()
        else:
            picked = cotangent.t().index_select(0, tables["position"]) * tables["factor"]
            by_value = picked.new_zeros(self.products.rows, picked.shape[1]).index_add_(0, tables["source"], picked)
        by_row = self.products.pull(by_value, kept[2:])
        cosines, sines = kept[0], kept[1]
        count = len(cosines)
        by_angle = by_row[1 + count :] * cosines - by_row[1 : 1 + count] * sines
        return (self.angles.on(cotangent.device)["to_weights"] @ by_angle).t()

    def __call__(self, weights: Tensor) -> Tensor:
        if self.routine is not None and native.serves(weights):
            return _Compiled.apply(weights, self)
        if native.traced(weights) or not (torch.is_grad_enabled() and weights.requires_grad):
            return self.forward(weights)
        return _Shared.apply(weights, self)


class _Shared(torch.autograd.Function):
    """One node of the graph; differentiated again it goes through the plain operations."""

    @staticmethod
    def forward(ctx, weights: Tensor, coefficients: Coefficients) -> Tensor:
        kept: list[Tensor] = []
        result = coefficients.forward(weights, kept)
        ctx.coefficients = coefficients
        ctx.save_for_backward(weights, *kept)
        return result

    @staticmethod
    def backward(ctx, cotangent: Tensor):  # type: ignore[override]
        weights, *kept = ctx.saved_tensors
        if torch.is_grad_enabled() or native.traced(cotangent):
            return *vjp(ctx.coefficients.forward, (weights,), (True,), cotangent), None
        return ctx.coefficients.pull(cotangent, kept), None


class _Compiled(torch.autograd.Function):
    """The same by the compiled routines."""

    @staticmethod
    def forward(ctx, weights: Tensor, coefficients: Coefficients) -> Tensor:
        shape = (weights.shape[0], coefficients.num_weights)
        weights = native.numbers(weights, shape, coefficients.real_dtype, "weights").contiguous()
        result = weights.new_empty(weights.shape[0], coefficients.positions)
        assert coefficients.routine is not None
        coefficients.routine.forward(weights.data_ptr(), weights.shape[0], result.data_ptr())
        ctx.coefficients = coefficients
        ctx.save_for_backward(weights)
        return result

    @staticmethod
    def backward(ctx, cotangent: Tensor):  # type: ignore[override]
        (weights,), real = ctx.saved_tensors, ctx.coefficients.real_dtype
        if torch.is_grad_enabled() or not native.serves(cotangent):
            return *vjp(ctx.coefficients.forward, (weights,), (True,), cotangent), None
        weights = native.numbers(
            weights, (weights.shape[0], ctx.coefficients.num_weights), real, "weights"
        ).contiguous()
        shape = (weights.shape[0], ctx.coefficients.positions)
        cotangent = native.numbers(cotangent, shape, real, "the cotangent").contiguous()
        result = torch.empty_like(weights)
        ctx.coefficients.routine.backward(weights.data_ptr(), cotangent.data_ptr(), weights.shape[0], result.data_ptr())
        return result, None


__all__ = ["ONE", "Coefficients", "Part"]

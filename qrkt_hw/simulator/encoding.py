"""The table of ones, cosines and sines of the angles by which data enter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qrkt_hw.compiler import Program
from qrkt_hw.compiler.program import Affine, Rotation
from qrkt_hw.simulator.gatewise import Angles
from qrkt_hw.simulator.tables import Tables


class Encoding(Tables):
    """``(groups, 1 + 2 * angles, batch)``: a row of ones, the cosines, the sines.

    Args:
        angles: affine in inputs and weights.
        program: theirs.
        real_dtype: of the table.
    """

    def __init__(self, angles: Sequence[Affine], program: Program, real_dtype: torch.dtype) -> None:
        super().__init__()
        self.num_inputs = program.num_inputs
        self.num_weights = program.num_weights
        self.rows = 1 + 2 * len(angles)
        self.uses_weights = any(i >= program.num_inputs for angle in angles for i, _ in angle.terms)
        # the usual encoding: angle k is an input as it is
        self.plain = all(len(a.terms) == 1 and a.terms[0][1] == 1 and a.offset == 0 for a in angles)
        self.plain = self.plain and not self.uses_weights and len(angles) > 0
        chosen = [a.terms[0][0] for a in angles] if self.plain else []
        self.in_order = chosen == list(range(program.num_inputs))
        self.add("chosen", np.array(chosen, dtype=int), torch.long)
        self.angles = Angles([Rotation("Z", (0,), a) for a in angles], program, real_dtype) if angles else None

    def forward(self, inputs: Tensor, weights: Tensor | None, kept: list[Tensor] | None = None) -> Tensor:
        """The table from inputs ``(batch, groups, inputs)`` and weights ``(groups, weights)``."""
        count = (self.rows - 1) // 2
        if self.plain:
            angles = inputs.permute(1, 2, 0)
            if not self.in_order:
                angles = angles.index_select(1, self.on(inputs.device)["chosen"])
        elif self.angles is not None:
            if weights is None:  # only where no angle depends on them
                weights = inputs.new_zeros(inputs.shape[1], self.num_weights)
            angles = self.angles(inputs, weights).transpose(0, 1)
        else:
            table = inputs.new_ones(inputs.shape[1], 1, inputs.shape[0])
            if kept is not None:
                kept.append(table)
            return table
        if kept is None:
            return torch.cat([torch.ones_like(angles[:, :1]), angles.cos(), angles.sin()], dim=1)
        table = inputs.new_empty(inputs.shape[1], self.rows, inputs.shape[0])
        table[:, 0] = 1
        angles = angles.contiguous()
        torch.cos(angles, out=table[:, 1 : 1 + count])
        torch.sin(angles, out=table[:, 1 + count :])
        kept.append(table)
        return table

    def pull(self, cotangent: Tensor, table: Tensor) -> Tensor:
        """The cotangent of the inputs ``(batch, groups, inputs)``."""
        count = (self.rows - 1) // 2
        if not count:
            return cotangent.new_zeros(cotangent.shape[2], cotangent.shape[0], self.num_inputs)
        slopes = cotangent[:, 1 + count :] * table[:, 1 : 1 + count]
        slopes.addcmul_(cotangent[:, 1 : 1 + count], table[:, 1 + count :], value=-1)
        if self.plain:
            if not self.in_order:
                full = slopes.new_zeros(len(slopes), self.num_inputs, slopes.shape[2])
                slopes = full.index_add_(1, self.on(slopes.device)["chosen"], slopes)
            return slopes.permute(2, 0, 1)
        assert self.angles is not None
        return slopes.permute(2, 0, 1) @ self.angles.on(slopes.device)["to_inputs"].t()

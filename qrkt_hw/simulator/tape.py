"""A pulled-back expansion as a short list of products and sums that the compiled routines run, sample by sample.

The coefficients lie where the torch evaluator of the same expansion keeps them, so that both read the same tensor;
where that holds a coefficient several times, the first place is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qrkt_hw.compiler.program import Affine
from qrkt_hw.compiler.propagation import Monomial, PulledBack
from qrkt_hw.simulator import native

Sum = list[tuple[int, int]]  # (position or -1, node)


class Scales(NamedTuple):
    """Per weight set: factors on the inputs, factors and offsets on the outputs, each ``(groups, ...)`` or None."""

    inputs: Tensor | None = None
    outputs: Tensor | None = None
    offsets: Tensor | None = None


NO_SCALES = Scales()


class Layout(NamedTuple):
    """An expansion, and where a tensor of coefficients holds its numbers; position -1 is the number one.

    Attributes:
        rows: each a sum of (position, monomial of the data).
        strings: each a product of rows.
        readout: each output a sum of (position, string).
    """

    rows: Sequence[Sequence[tuple[int, Monomial]]]
    strings: Sequence[Sequence[int]]
    readout: Sequence[Sum]


class Nodes:
    """Nodes under construction: one, the cosines, the sines, then operations; equal ones are made once."""

    def __init__(self, angles: int) -> None:
        self.first = 1 + 2 * angles
        self.left: list[int] = []
        self.right: list[int] = []
        self.positions: list[int] = []
        self.sources: list[int] = []
        self._made: dict[tuple, int] = {}

    def product(self, factors: Iterable[int]) -> int:
        """The node of a product of nodes; node 0 is one."""
        node = 0
        for factor in factors:
            if factor == 0 or node == 0:
                node = node or factor
                continue
            key = (min(node, factor), max(node, factor))
            if key not in self._made:
                self._made[key] = self._add(*key)
            node = self._made[key]
        return node

    def sum(self, terms: Sum) -> int:
        """The node of ``sum coefficient[position] * node``."""
        key = tuple(terms)
        if len(terms) == 1 and terms[0][0] < 0:
            return terms[0][1]
        if key not in self._made:
            start = len(self.sources)
            self.positions += [position for position, _ in terms]
            self.sources += [node for _, node in terms]
            self._made[key] = self._add(start, -len(self.sources) - 1)
        return self._made[key]

    def _add(self, left: int, right: int) -> int:
        self.left.append(left)
        self.right.append(right)
        return self.first + len(self.left) - 1


class Tape:
    """Values and vector-Jacobian products of an expansion on a CPU.

    Args:
        place: the columns of the data's angles.
        angles: those, in this order; they depend on inputs alone.
        layout: what is summed and multiplied.
        positions: of the coefficients.
        num_inputs: of the circuit.
        real: precision.
    """

    def __init__(
        self,
        place: dict[int, int],
        angles: Sequence[Affine],
        layout: Layout,
        positions: int,
        num_inputs: int,
        real: torch.dtype,
    ) -> None:
        count = len(place)
        nodes = Nodes(count)
        rows, strings, readout = layout

        def data(monomial: Monomial) -> int:
            return nodes.product(1 + place[f // 2] + count * (f % 2) for f in monomial)

        of_row = [nodes.sum([(position, data(monomial)) for position, monomial in row]) for row in rows]
        # rows that occur often come first, so that more strings share their beginnings
        often: dict[int, int] = {}
        for string in strings:
            for r in string:
                often[r] = often.get(r, 0) + 1
        of_string = [nodes.product(of_row[r] for r in sorted(s, key=lambda r: (-often[r], r))) for s in strings]
        outputs = [nodes.sum([(position, of_string[t]) for position, t in entry]) for entry in readout]
        self.outputs = len(outputs)
        self.positions = positions
        self.num_inputs = num_inputs
        self.real = real
        self.operations = len(nodes.left)
        self.terms = len(nodes.sources)
        record = native.Record(
            angles,
            native.fields(
                num_inputs, positions, len(outputs), len(nodes.left),
                nodes.left, nodes.right, nodes.positions, nodes.sources, outputs,
            ),
        )  # fmt: skip
        self._routine = native.Routine("tape", record, real)

    def forward(self, inputs: Tensor, shared: Tensor, scales: Scales = NO_SCALES) -> Tensor:
        """``(batch, groups, outputs)`` of inputs ``(batch, input groups, inputs)``, coefficients ``(groups, ...)``."""
        batch, groups = inputs.shape[0], shared.shape[0]
        inputs, shared, scales = self._checked(inputs, shared, scales)
        out = inputs.new_empty(batch, groups, self.outputs)
        self._routine.forward(
            inputs.data_ptr(), native.strides(inputs), shared.data_ptr(), *map(native.address, scales),
            batch, groups, out.data_ptr(),
        )  # fmt: skip
        return out

    def backward(
        self, inputs: Tensor, shared: Tensor, scales: Scales, cotangent: Tensor, needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """The cotangents of inputs, coefficients and the three scales, where needed."""
        inputs, shared, scales = self._checked(inputs, shared, scales)  # hooks may have given back others
        shape = (inputs.shape[0], shared.shape[0], self.outputs)
        cotangent = native.numbers(cotangent, shape, self.real, "the cotangent").contiguous()
        gradients = [
            torch.zeros(t.shape, dtype=t.dtype) if t is not None and need else None
            for t, need in zip((inputs, shared, *scales), needs, strict=True)
        ]
        by_inputs, by_shared, *by_scales = gradients
        self._routine.backward(
            inputs.data_ptr(), native.strides(inputs), shared.data_ptr(), *map(native.address, scales[:2]),
            cotangent.data_ptr(), inputs.shape[0], shared.shape[0], native.address(by_inputs),
            None if by_inputs is None else native.strides(by_inputs), native.address(by_shared),
            *map(native.address, by_scales),
        )  # fmt: skip
        return gradients

    def _checked(self, inputs: Tensor, shared: Tensor, scales: Scales) -> tuple[Tensor, Tensor, Scales]:
        """The tensors as the routine reads them.

        Raises:
            ValueError: shapes or precisions that do not fit the expansion or each other.
        """
        batch, among, groups = inputs.shape[0], inputs.shape[1], shared.shape[0]
        if groups % among if among else groups:
            raise ValueError(f"inputs of {among} groups do not fit {groups} weight sets")
        inputs = native.numbers(inputs, (batch, among, self.num_inputs), self.real, "inputs")
        shared = native.numbers(shared, (groups, self.positions), self.real, "coefficients").contiguous()
        if scales is not NO_SCALES:
            widths = (self.num_inputs, self.outputs, self.outputs)
            scales = Scales(
                *(
                    None if t is None else native.numbers(t, (groups, width), self.real, name).contiguous()
                    for t, width, name in zip(scales, widths, Scales._fields, strict=True)
                )
            )
        return inputs, shared, scales


def tape_cost(e: PulledBack) -> float:
    """Nanoseconds for a batch of 256, forward and backward."""
    products = sum(max(len(s) - 1, 0) for s in e.strings)
    sums = sum(len(row) for row in e.rows) + len(e.entries)
    angles = len({f // 2 for row in e.rows for *_, monomial in row for f in monomial})
    return 5e4 + 16 * (16.0 * (products + sums) + 270.0 * angles)

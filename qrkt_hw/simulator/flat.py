"""Evaluators of a pulled-back expansion in a handful of kernels, for circuits of few qubits.

Both take the table of ones, cosines and sines ``(groups, rows, batch)`` and matrices of coefficients that the batch
shares. ``Flat`` suits short strings: one matrix product makes all factors of all strings, halves are multiplied until
one is left. ``Split`` suits many strings on few qubits: ``<O_m> = l(x)^T C_m r(x)``, where l and r hold every product
of (1, cos, sin) over the first and the second half of the data's angles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qrkt_hw.compiler.propagation import Monomial, PulledBack
from qrkt_hw.simulator.coefficients import Part
from qrkt_hw.simulator.tape import Layout

LARGEST_FLAT = 6000  # coefficients of the factors
LARGEST_SPLIT = 5000  # coefficients of the outputs


def single_angles(e: PulledBack) -> bool:
    """Whether every one-qubit value is linear in the cosines and sines of the data."""
    return all(len(monomial) <= 1 for row in e.rows for _, _, monomial in row)


class Flat:
    """Factors ``F = K(weights) @ table``, products by halves, outputs ``C(weights) @ products``."""

    def __init__(self, e: PulledBack, outputs: int, place: dict[int, int]) -> None:
        count = len(place)
        self.table = 1 + 2 * count
        self.outputs = outputs
        longest = max((len(s) for s in e.strings), default=1)
        self.levels = max(longest - 1, 0).bit_length()
        self.strings = len(e.strings)
        self.factors = self.strings << self.levels
        self.parts: list[Part] = []
        for t, string in enumerate(e.strings):
            for slot in range(1 << self.levels):
                row = slot * self.strings + t
                terms = e.rows[string[slot]] if slot < len(string) else ((1.0, (), ()),)
                for coefficient, shared, data in terms:
                    self.parts.append((row * self.table + _column(data, place, count), coefficient, shared))
        self.split = self.factors * self.table
        plain = [(m, t) for m, t, c, f in e.entries if c == 1 and not f]
        self.direct = plain == [(m, m) for m in range(outputs)] and len(e.entries) == self.strings == outputs
        if not self.direct:
            self.parts += [(self.split + m * self.strings + t, c, f) for m, t, c, f in e.entries]
        self.positions = self.split + (0 if self.direct else outputs * self.strings)
        self.layout = self._layout(e, place)

    def _layout(self, e: PulledBack, place: dict[int, int]) -> Layout:
        first: dict[int, int] = {}  # the first factor that is row r
        for t, string in enumerate(e.strings):
            for slot, r in enumerate(string):
                first.setdefault(r, slot * self.strings + t)
        rows: list[list[tuple[int, Monomial]]] = []
        for r, terms in enumerate(e.rows):
            if len(terms) == 1 and terms[0][:2] == (1, ()):
                rows.append([(-1, terms[0][2])])
                continue
            start = first.get(r, 0) * self.table
            data = dict.fromkeys(monomial for *_, monomial in terms)
            rows.append([(start + _column(monomial, place, len(place)), monomial) for monomial in data])
        if self.direct:
            return Layout(rows, e.strings, [[(-1, m)] for m in range(self.outputs)])
        pairs = dict.fromkeys((m, t) for m, t, *_ in e.entries)
        readout = [[(self.split + m * self.strings + t, t) for k, t in pairs if k == m] for m in range(self.outputs)]
        return Layout(rows, e.strings, readout)

    @staticmethod
    def cost(e: PulledBack, outputs: int) -> float:
        """Nanoseconds for a batch of 256, forward and backward; infinite where it does not fit."""
        data = {f // 2 for row in e.rows for *_, monomial in row for f in monomial}
        levels = max(max((len(s) for s in e.strings), default=1) - 1, 0).bit_length()
        factors = len(e.strings) << levels
        size = factors * (1 + 2 * len(data))
        if not single_angles(e) or size > LARGEST_FLAT or not e.strings:
            return float("inf")
        return 1.5e5 + 1.5e4 * levels + 256 * (0.15 * size + 5.0 * factors + 0.15 * outputs * len(e.strings))

    def forward(self, table: Tensor, shared: Tensor, kept: list[Tensor] | None) -> Tensor:
        groups = len(table)
        values = torch.bmm(shared[:, : self.split].view(groups, self.factors, self.table), table)
        if kept is not None:
            kept.append(values)
        for _ in range(self.levels):
            half = values.shape[1] // 2
            values = values[:, :half] * values[:, half:]
            if kept is not None:
                kept.append(values)
        if self.direct:
            return values
        return torch.bmm(shared[:, self.split :].view(groups, self.outputs, self.strings), values)

    def pull(
        self, cotangent: Tensor, table: Tensor, shared: Tensor, kept: Sequence[Tensor], needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        groups = len(table)
        by_shared = shared.new_empty(shared.shape) if needs[1] else None
        current = cotangent
        if not self.direct:
            if by_shared is not None:
                torch.bmm(
                    current, kept[-1].transpose(1, 2), out=by_shared[:, self.split :].view(groups, self.outputs, -1)
                )
            matrix = shared[:, self.split :].view(groups, self.outputs, self.strings)
            current = torch.bmm(matrix.transpose(1, 2), current)
        for level in reversed(range(self.levels)):
            values = kept[level]
            half = values.shape[1] // 2
            spread = torch.empty_like(values)
            torch.mul(current, values[:, half:], out=spread[:, :half])
            torch.mul(current, values[:, :half], out=spread[:, half:])
            current = spread
        if by_shared is not None:
            torch.bmm(current, table.transpose(1, 2), out=by_shared[:, : self.split].view(groups, self.factors, -1))
        if not needs[0]:
            return None, by_shared
        matrix = shared[:, : self.split].view(groups, self.factors, self.table)
        return torch.bmm(matrix.transpose(1, 2), current), by_shared


class Split:
    """``<O_m> = l^T C_m r``; for at most six angles of data."""

    def __init__(self, e: PulledBack, outputs: int, place: dict[int, int]) -> None:
        self.outputs = outputs
        self.count = len(place)
        self.right = self.count // 2
        self.left = self.count - self.right
        self.table = 1 + 2 * self.count
        order = {angle: k for k, angle in enumerate(place)}
        self.parts: list[Part] = []
        for m, t, coefficient, shared in e.entries:
            position = m * 3**self.count
            for r in e.strings[t]:
                ((scale, _, (factor,)),) = e.rows[r]
                coefficient *= scale
                # digit of an angle: 0 one, 1 cosine, 2 sine; the first angle is the most significant
                position += (1 + factor % 2) * 3 ** (self.count - 1 - order[factor // 2])
            self.parts.append((position, coefficient, shared))
        self.positions = outputs * 3**self.count
        pairs = {(m, t): position for (m, t, *_), (position, *_) in zip(e.entries, self.parts, strict=True)}
        readout = [[(position, t) for (k, t), position in pairs.items() if k == m] for m in range(outputs)]
        self.layout = Layout([[(-1, row[0][2])] for row in e.rows], e.strings, readout)

    @staticmethod
    def cost(e: PulledBack, outputs: int) -> float:
        """Nanoseconds for a batch of 256, forward and backward; infinite where it does not fit."""
        data = {f // 2 for row in e.rows for *_, monomial in row for f in monomial}
        count = len(data)
        fits = all(len(row) == 1 and not row[0][1] and len(row[0][2]) == 1 for row in e.rows)
        fits = fits and all(len(angles) == len(set(angles)) for angles in map(lambda s: _angles(e, s), e.strings))
        if not fits or count < 2 or outputs * 3**count > LARGEST_SPLIT:
            return float("inf")
        left, right = 3 ** (count - count // 2), 3 ** (count // 2)
        return 2.0e5 + 256 * (0.15 * outputs * left * right + 3.0 * outputs * left + 5.0 * (left + right))

    def forward(self, table: Tensor, shared: Tensor, kept: list[Tensor] | None) -> Tensor:
        groups = len(table)
        cosines, sines = table[:, 1 : 1 + self.count], table[:, 1 + self.count :]
        left = self._products(cosines[:, : self.left], sines[:, : self.left], kept)
        right = self._products(cosines[:, self.left :], sines[:, self.left :], kept)
        middle = torch.bmm(shared.view(groups, self.outputs * left.shape[1], right.shape[1]), right)
        middle = middle.view(groups, self.outputs, left.shape[1], -1)
        if kept is not None:
            kept.append(middle)
        return (middle * left.unsqueeze(1)).sum(2)

    @staticmethod
    def _products(cosines: Tensor, sines: Tensor, kept: list[Tensor] | None) -> Tensor:
        """``(groups, 3^angles, batch)``."""
        threes = torch.stack([torch.ones_like(cosines), cosines, sines], dim=2)
        if kept is not None:
            kept.append(threes)
        values = threes[:, 0]
        for k in range(1, threes.shape[1]):
            values = (values.unsqueeze(2) * threes[:, k].unsqueeze(1)).flatten(1, 2)
            if kept is not None:
                kept.append(values)
        return values

    def pull(
        self, cotangent: Tensor, table: Tensor, shared: Tensor, kept: Sequence[Tensor], needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        groups, _, batch = table.shape
        of_left, of_right, middle = kept[: self.left], kept[self.left : -1], kept[-1]
        left = of_left[-1] if self.left > 1 else of_left[0][:, 0]
        right = of_right[-1] if self.right > 1 else of_right[0][:, 0]
        spread = (cotangent.unsqueeze(2) * left.unsqueeze(1)).flatten(1, 2)
        by_shared = None
        if needs[1]:
            by_shared = torch.bmm(spread, right.transpose(1, 2)).view(groups, -1)
        if not needs[0]:
            return None, by_shared
        by_left = (cotangent.unsqueeze(2) * middle).sum(1)
        matrix = shared.view(groups, self.outputs * left.shape[1], right.shape[1])
        by_right = torch.bmm(matrix.transpose(1, 2), spread)
        by_table = table.new_zeros(groups, self.table, batch)
        self._pull_products(by_left, of_left, by_table, 0)
        self._pull_products(by_right, of_right, by_table, self.left)
        return by_table, by_shared

    def _pull_products(self, current: Tensor, kept: Sequence[Tensor], by_table: Tensor, first: int) -> None:
        threes = kept[0]
        for k in reversed(range(1, threes.shape[1])):
            cube = current.unflatten(1, (-1, 3))
            before = kept[k - 1] if k > 1 else threes[:, 0]
            # the digit 0 stands for one, which has no slope
            by_table[:, 1 + first + k :: self.count][:, :2] = (cube[:, :, 1:] * before.unsqueeze(2)).sum(1)
            current = (cube * threes[:, k].unsqueeze(1)).sum(2)
        by_table[:, 1 + first :: self.count][:, :2] = current[:, 1:]


def _angles(e: PulledBack, string: Sequence[int]) -> list[int]:
    return [f // 2 for r in string for *_, monomial in e.rows[r] for f in monomial]


def _column(data: Monomial, place: dict[int, int], count: int) -> int:
    """The table's row of a single cosine or sine, or of one."""
    if not data:
        return 0
    return 1 + place[data[0] // 2] + count * (data[0] % 2)

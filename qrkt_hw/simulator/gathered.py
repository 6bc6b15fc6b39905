"""The evaluator of a pulled-back expansion for any width: rows are picked, multiplied pair by pair, and summed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qrkt_hw.compiler.propagation import Monomial, PulledBack
from qrkt_hw.simulator.coefficients import Part
from qrkt_hw.simulator.products import ONE, Products
from qrkt_hw.simulator.tables import Tables
from qrkt_hw.simulator.tape import Layout


class Gathered(Tables):
    """One-qubit values, their products, and sums of these per output; data may enter a qubit by several angles."""

    def __init__(self, e: PulledBack, outputs: int, place: dict[int, int], real_dtype: torch.dtype) -> None:
        super().__init__()
        self.outputs = outputs
        self.table = 1 + 2 * len(place)
        monomials: dict[Monomial, int] = {(): ONE}
        for row in e.rows:
            for *_, monomial in row:
                monomials.setdefault(monomial, len(monomials))
        lists = [[1 + place[f // 2] + len(place) * (f % 2) for f in monomial] for monomial in monomials]
        self.data_products: Products | None = None
        if all(len(entry) <= 1 for entry in lists):
            column = {m: (entry or [ONE])[0] for m, entry in zip(monomials, lists, strict=True)}
            rows = self.table
        else:
            self.data_products = Products(lists, self.table, real_dtype)
            column, rows = monomials, len(monomials)
        self.data_rows = rows
        self.parts: list[Part] = []
        scales = np.ones(len(e.rows))
        self.row_terms = 0  # terms of the longest row; 0 where every row is a row of the data table
        if all(len(row) == 1 and not row[0][1] for row in e.rows):
            of_row = [column[row[0][2]] for row in e.rows]
            scales = np.array([row[0][0] for row in e.rows])
        else:
            of_row = list(range(1, len(e.rows) + 1))
            self._rows(e, column)
            rows = 1 + len(e.rows)
        self.split = self.row_terms * (1 + len(e.rows))
        lists = [[of_row[r] for r in string] for string in e.strings]
        self.strings = Products(lists, rows, real_dtype) if lists else None
        entries = [(m, t, c * float(np.prod(scales[list(e.strings[t])])), f) for m, t, c, f in e.entries]
        held = self._readout(entries, len(e.strings))
        count = 1 + len(e.rows)
        by_row = [
            [(k * count + r + 1 if self.row_terms else -1, monomial) for k, (*_, monomial) in enumerate(row)]
            for r, row in enumerate(e.rows)
        ]
        self.layout = Layout(by_row, e.strings, held)

    @staticmethod
    def cost(e: PulledBack, outputs: int) -> float:
        """Nanoseconds for a batch of 256, forward and backward."""
        longest = max((len(s) for s in e.strings), default=0)
        levels = max(longest - 1, 0).bit_length()
        by_row = sum(len(row) for row in e.rows)
        batch = 256 * (6.0 * by_row + 12.0 * len(e.strings) * (1 + (levels > 1)) + 0.3 * outputs * len(e.strings))
        return 3e5 + 4e4 * levels + batch

    def _rows(self, e: PulledBack, column: dict[Monomial, int]) -> None:
        """Row 0 is one; the others sum ``row_terms`` products of a coefficient and a row of the data table."""
        self.row_terms = max(len(row) for row in e.rows)
        count = 1 + len(e.rows)
        sources = np.full((self.row_terms, count), ONE)
        self.parts.append((0, 1.0, ()))
        for r, row in enumerate(e.rows):
            for k, (coefficient, factors, monomial) in enumerate(row):
                sources[k, r + 1] = column[monomial]
                self.parts.append((k * count + r + 1, coefficient, factors))
        self.add("row_sources", sources.reshape(-1), torch.long)

    def _readout(self, entries: list[tuple[int, int, float, Monomial]], strings: int) -> list[list[tuple[int, int]]]:
        """Dense coefficients ``(outputs, strings)``, or for wide circuits a padded list of strings per output.

        Returns:
            For each output its strings with the positions of their coefficients, -1 for one.
        """
        per_output: list[dict[int, int]] = [{} for _ in range(self.outputs)]
        for m, t, _, _ in entries:
            per_output[m].setdefault(t, len(per_output[m]))
        self.width = max((len(held) for held in per_output), default=0)
        first = [next(iter(held), -1) for held in per_output]
        # nothing to combine: output m is string m
        self.direct = first == list(range(strings)) and all(f == () and c == 1 for _, _, c, f in entries)
        self.direct = self.direct and len(entries) == self.outputs
        self.sparse = self.width * 16 < strings and not self.direct
        self.positions = self.split
        if self.direct:
            return [[(-1, m)] for m in range(self.outputs)]
        if not self.sparse:
            self.width = strings
            self.positions += self.outputs * strings
            self.parts += [(self.split + m * strings + t, c, f) for m, t, c, f in entries]
            return [[(self.split + m * strings + t, t) for t in held] for m, held in enumerate(per_output)]
        self.positions += self.outputs * self.width
        chosen = np.zeros((self.width, self.outputs))
        for m, held in enumerate(per_output):
            for t, k in held.items():
                chosen[k, m] = t
        self.add("chosen", chosen.reshape(-1), torch.long)
        self.parts += [(self.split + per_output[m][t] * self.outputs + m, c, f) for m, t, c, f in entries]
        return [[(self.split + k * self.outputs + m, t) for t, k in held.items()] for m, held in enumerate(per_output)]

    def forward(self, table: Tensor, shared: Tensor, kept: list[Tensor] | None) -> Tensor:
        tables = self.on(table.device)
        groups = len(table)
        rows, factors = table.transpose(0, 1), shared.t()
        if self.data_products is not None:
            rows = self.data_products.forward(rows, kept)
        if self.row_terms:
            picked = rows.index_select(0, tables["row_sources"])
            if kept is not None:
                kept.append(picked)
            summands = (picked * factors[: self.split].unsqueeze(-1)).unflatten(0, (self.row_terms, -1))
            rows = summands[0] if self.row_terms == 1 else summands.sum(0)
        values = self.strings.forward(rows, kept) if self.strings is not None else rows[:0]
        if self.direct:
            return values.transpose(0, 1)
        if kept is not None:
            kept.append(values)
        if self.sparse:
            picked = values.index_select(0, tables["chosen"]) * factors[self.split :].unsqueeze(-1)
            return picked.unflatten(0, (self.width, self.outputs)).sum(0).transpose(0, 1)
        matrix = shared[:, self.split :].reshape(groups, self.outputs, self.width)
        return torch.bmm(matrix, values.transpose(0, 1))

    def pull(
        self, cotangent: Tensor, table: Tensor, shared: Tensor, kept: Sequence[Tensor], needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        tables = self.on(cotangent.device)
        by_shared = torch.zeros_like(shared) if needs[1] else None
        factors = shared.t()
        kept = list(kept)
        current = cotangent.transpose(0, 1)
        if not self.direct:
            current = self._pull_readout(cotangent, shared, kept.pop(), by_shared)
        if self.strings is None:
            return torch.zeros_like(table), by_shared
        skip = self.data_products.depth if self.data_products is not None else 0
        picked = kept[skip] if self.row_terms else None
        current = self.strings.pull(current, kept[skip + (picked is not None) :])
        if picked is not None:
            spread = current.unsqueeze(0).expand(self.row_terms, *current.shape)
            if by_shared is not None:
                slopes = (picked.unflatten(0, (self.row_terms, -1)) * spread).flatten(0, 1).sum(-1)
                by_shared[:, : self.split] = slopes.t()
            if not needs[0]:
                return None, by_shared
            spread = (factors[: self.split].unsqueeze(-1).unflatten(0, (self.row_terms, -1)) * spread).flatten(0, 1)
            current = current.new_zeros(self.data_rows, *current.shape[1:])
            current.index_add_(0, tables["row_sources"], spread)
        if not needs[0]:
            return None, by_shared
        if self.data_products is not None:
            current = self.data_products.pull(current, kept[:skip])
        return current.transpose(0, 1), by_shared

    def _pull_readout(self, cotangent: Tensor, shared: Tensor, values: Tensor, by_shared: Tensor | None) -> Tensor:
        if self.sparse:
            chosen = self.on(values.device)["chosen"]
            spread = cotangent.transpose(0, 1).unsqueeze(0).expand(self.width, -1, -1, -1).flatten(0, 1)
            if by_shared is not None:
                by_shared[:, self.split :] = (values.index_select(0, chosen) * spread).sum(-1).t()
            return torch.zeros_like(values).index_add_(0, chosen, spread * shared.t()[self.split :].unsqueeze(-1))
        if by_shared is not None:
            by_shared[:, self.split :] = torch.bmm(cotangent, values.permute(1, 2, 0)).flatten(1)
        matrix = shared[:, self.split :].reshape(len(cotangent), self.outputs, self.width)
        return torch.bmm(matrix.transpose(1, 2), cotangent).transpose(0, 1)

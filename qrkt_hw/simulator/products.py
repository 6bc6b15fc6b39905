"""Many products of rows of a table at once, shared sub-products computed once, with their vector-Jacobian product."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qrkt_hw.simulator.tables import Tables

ONE = 0  # the table's row of ones
DENSE = 2**18  # entries up to which a one-hot matrix product beats index_add


class Products(Tables):
    """``out[k] = prod(table[i] for i in lists[k])`` along the first axis of a table whose row 0 holds ones.

    Pairs are multiplied level by level; a pair that occurs in several lists is multiplied once.
    """

    def __init__(self, lists: Sequence[Sequence[int]], rows: int, real_dtype: torch.dtype) -> None:
        super().__init__()
        self.levels: list[int] = []  # rows that go into each level
        self.dense: list[bool] = []
        current = [list(entry) for entry in lists]
        self.multiplications = 0
        while any(len(entry) > 1 for entry in current) or not self.levels:
            made: dict[tuple[int, int], int] = {(ONE, ONE): ONE}
            following = []
            for entry in current:
                padded = entry + [ONE] * (len(entry) % 2)
                pairs = zip(padded[::2], padded[1::2], strict=True)
                following.append([made.setdefault((a, b), len(made)) for a, b in pairs])
            if all(len(entry) <= 1 for entry in following):  # last level: exactly the lists, in their order
                inverse = {place: pair for pair, place in made.items()}
                ends = [inverse[entry[0]] if entry else (ONE, ONE) for entry in following]
                following = [[] for _ in ends]
            else:
                ends = list(made)
            self._add_level(ends, rows, real_dtype)
            rows, current = len(ends), following
        self.rows = rows
        self.depth = 2 * len(self.levels)  # tensors that forward keeps
        # a single level whose second factors are all one is a mere choice of rows
        if self.choice:
            self.depth = 0

    def _add_level(self, pairs: Sequence[tuple[int, int]], rows: int, real_dtype: torch.dtype) -> None:
        level = len(self.levels)
        first, second = np.array(pairs).reshape(-1, 2).T
        self.add(f"a{level}", first, torch.long)
        self.add(f"b{level}", second, torch.long)
        self.dense.append(rows * len(pairs) <= DENSE)
        if self.dense[-1]:
            for name, chosen in (("A", first), ("B", second)):
                hot = np.zeros((rows, len(pairs)))
                hot[chosen, np.arange(len(pairs))] = 1
                self.add(f"{name}{level}", hot, real_dtype)
        self.choice = not self.levels and bool((second == ONE).all())
        self.levels.append(rows)
        self.multiplications += len(pairs)

    def forward(self, table: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        """``(lists, ...)``; ``kept`` collects what :meth:`pull` needs."""
        tables = self.on(table.device)
        if self.choice:
            return table.index_select(0, tables["a0"])
        for level in range(len(self.levels)):
            left, right = table.index_select(0, tables[f"a{level}"]), table.index_select(0, tables[f"b{level}"])
            if kept is not None:
                kept += [left, right]
            table = left * right
        return table

    def pull(self, cotangent: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The cotangent of the table."""
        if self.choice:
            return self._spread(cotangent, 0, "a")
        for level in reversed(range(len(self.levels))):
            left, right = kept[2 * level], kept[2 * level + 1]
            cotangent = self._spread(cotangent * right, level, "a").add_(self._spread(cotangent * left, level, "b"))
        return cotangent

    def _spread(self, values: Tensor, level: int, side: str) -> Tensor:
        tables = self.on(values.device)
        if self.dense[level] and values[0].numel() <= 64:
            return (tables[f"{side.upper()}{level}"] @ values.flatten(1)).view(-1, *values.shape[1:])
        target = values.new_zeros(self.levels[level], *values.shape[1:])
        return target.index_add_(0, tables[f"{side}{level}"], values)

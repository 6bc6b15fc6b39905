"""Observables pulled back to products of one-qubit values: a handful of kernels for any batch, at any width.

``<O_m> = sum_t C_mt(weights) prod_q b_tq(inputs, weights)``: the coefficients are computed once per weight set, the
one-qubit values and their products for each sample. No object grows with 2^n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

from qrkt_hw.circuits.analysis import Program
from qrkt_hw.circuits.analysis.pullback import Monomial, PulledBack, pull_back
from qrkt_hw.simulator.coefficients import Coefficients, Part
from qrkt_hw.simulator.encoding import Encoding
from qrkt_hw.simulator.products import ONE, Products
from qrkt_hw.simulator.tables import Tables


class Plan(NamedTuple):
    """An expansion and what it costs."""

    expansion: PulledBack
    cost: float


_plans: WeakKeyDictionary[Program, tuple[Sequence[SparsePauliOp], Plan | None]] = WeakKeyDictionary()


def plan(program: Program, observables: Sequence[SparsePauliOp]) -> Plan | None:
    """The cheaper of the two expansions; None where there is none. Remembered per program."""
    held = _plans.get(program)
    if held is not None and held[0] is observables:
        return held[1]
    found = [pull_back(program, observables, absorb) for absorb in (True, False)]
    plans = [Plan(e, _cost(e, len(observables))) for e in found if e is not None]
    best = min(plans, key=lambda p: p.cost, default=None)
    _plans[program] = (observables, best)
    return best


def _cost(e: PulledBack, outputs: int) -> float:
    """Nanoseconds for a batch of 256 forward and backward, from timings on one core."""
    longest = max((len(s) for s in e.strings), default=0)
    levels = max(longest - 1, 0).bit_length()
    by_row = sum(len(row) for row in e.rows)
    batch = 256 * (6.0 * by_row + 10.0 * len(e.strings) * (levels > 0) + 0.3 * outputs * len(e.strings))
    factors = sum(len(f) for *_, f in e.entries) + sum(len(w) for row in e.rows for _, w, _ in row)
    return 3e5 + 4e4 * levels + batch + 20.0 * factors


class PulledBackObservables(Tables):
    """Sums of products of one-qubit values; see the module."""

    name: ClassVar[str] = "pauli"

    def __init__(self, program: Program, observables: Sequence[SparsePauliOp], dtype: torch.dtype) -> None:
        super().__init__()
        found = plan(program, observables)
        if found is None:
            raise ValueError("the observables cannot be pulled back")
        e = found.expansion
        real = torch.zeros((), dtype=dtype).real.dtype
        self.outputs = len(observables)
        data = list(dict.fromkeys(f // 2 for row in e.rows for _, _, monomial in row for f in monomial))
        self.encoding = Encoding([e.angles[a] for a in data], program, real)
        cosine = {a: 1 + k for k, a in enumerate(data)}
        monomials: dict[Monomial, int] = {(): ONE}
        for row in e.rows:
            for _, _, monomial in row:
                monomials.setdefault(monomial, len(monomials))
        lists = [[cosine[f // 2] + len(data) * (f % 2) for f in monomial] for monomial in monomials]
        if all(len(entry) <= 1 for entry in lists):
            self.data_products = None
            place = {m: (entry or [ONE])[0] for m, entry in zip(monomials, lists, strict=True)}
            rows = 1 + 2 * len(data)
        else:
            self.data_products = Products(lists, 1 + 2 * len(data), real)
            place, rows = monomials, len(monomials)
        parts: list[Part] = []
        scales = np.ones(len(e.rows))
        self.row_terms = 0  # terms of the longest row; 0 where every row is a row of the data table
        if all(len(row) == 1 and not row[0][1] for row in e.rows):
            of_row = [place[row[0][2]] for row in e.rows]
            scales = np.array([row[0][0] for row in e.rows])
        else:
            of_row = list(range(1, len(e.rows) + 1))
            parts += self._rows(e, place)
            rows = 1 + len(e.rows)
        self.row_positions = self.row_terms * (1 + len(e.rows))
        lists = [[of_row[r] for r in string] for string in e.strings]
        self.strings = Products(lists, rows, real) if lists else None
        entries = [(m, t, c * float(np.prod(scales[list(e.strings[t])])), f) for m, t, c, f in e.entries]
        parts += self._readout(entries, len(e.strings))
        positions = self.row_positions + self.readout_positions
        self.coefficients = Coefficients(parts, positions, e.angles, program, real)

    @staticmethod
    def supports(program: Program, observables: Sequence[SparsePauliOp]) -> bool:
        return plan(program, observables) is not None

    @staticmethod
    def cost(program: Program, observables: Sequence[SparsePauliOp]) -> float:
        found = plan(program, observables)
        return float("inf") if found is None else found.cost

    def _rows(self, e: PulledBack, place: dict[Monomial, int]) -> list[Part]:
        """Row 0 is one; the others sum ``row_terms`` products of a coefficient and a row of the data table."""
        self.row_terms = max(len(row) for row in e.rows)
        count = 1 + len(e.rows)
        sources = np.full((self.row_terms, count), ONE)
        parts: list[Part] = [(0, 1.0, ())]
        for r, row in enumerate(e.rows):
            for k, (coefficient, factors, monomial) in enumerate(row):
                sources[k, r + 1] = place[monomial]
                parts.append((k * count + r + 1, coefficient, factors))
        self.add("row_sources", sources.reshape(-1), torch.long)
        return parts

    def _readout(self, entries: list[tuple[int, int, float, Monomial]], strings: int) -> list[Part]:
        """Dense coefficients ``(outputs, strings)``, or for wide circuits a padded list of strings per output."""
        per_output: list[dict[int, int]] = [{} for _ in range(self.outputs)]
        for m, t, _, _ in entries:
            per_output[m].setdefault(t, len(per_output[m]))
        longest = max((len(held) for held in per_output), default=0)
        first = [next(iter(held), -1) for held in per_output]
        # nothing to combine: output m is string m
        self.direct = first == list(range(strings)) and all(f == () and c == 1 for _, _, c, f in entries)
        self.direct = self.direct and len(entries) == self.outputs
        self.sparse = longest * 16 < strings and not self.direct
        self.readout_positions = 0
        if self.direct:
            return []
        base = self.row_positions
        if not self.sparse:
            self.width = strings
            self.readout_positions = self.outputs * strings
            return [(base + m * strings + t, c, f) for m, t, c, f in entries]
        self.width = longest
        self.readout_positions = self.outputs * longest
        chosen = np.zeros((longest, self.outputs))
        for m, held in enumerate(per_output):
            for t, k in held.items():
                chosen[k, m] = t
        self.add("chosen", chosen.reshape(-1), torch.long)
        return [(base + per_output[m][t] * self.outputs + m, c, f) for m, t, c, f in entries]

    def prepare(self, weights: Tensor) -> Tensor:
        """What calls with the same weights share."""
        return self.coefficients(weights)

    def __call__(self, inputs: Tensor, weights: Tensor, prepared: Tensor | None = None) -> Tensor:
        shared = self.prepare(weights) if prepared is None else prepared
        if not torch.is_grad_enabled() or self.encoding.uses_weights:
            return self.forward(inputs, weights, shared)
        if not (inputs.requires_grad or shared.requires_grad):
            return self.forward(inputs, weights, shared)
        return _Values.apply(inputs, shared, weights.detach(), self)

    def forward(self, inputs: Tensor, weights: Tensor, shared: Tensor, kept: list | None = None) -> Tensor:
        """``(batch, groups, outputs)``; ``kept`` collects what :meth:`pull` needs."""
        tables = self.on(inputs.device)
        batch, groups = inputs.shape[0], inputs.shape[1]
        notes: list[list[Tensor]] = [[] for _ in range(5)]
        keep = kept is not None
        table = self.encoding.forward(inputs, weights, notes[0] if keep else None)
        if self.data_products is not None:
            table = self.data_products.forward(table, notes[1] if keep else None)
        if self.row_terms:
            picked = table.index_select(0, tables["row_sources"])
            notes[2] = [picked]
            summands = (picked * shared[: self.row_positions].unsqueeze(-1)).unflatten(0, (self.row_terms, -1))
            table = summands[0] if self.row_terms == 1 else summands.sum(0)
        values = self.strings.forward(table, notes[3] if keep else None) if self.strings else table[:0]
        if not self.direct:
            notes[4] = [values]
            values = self._combine(values, shared[self.row_positions :], groups)
        if kept is not None:
            kept += notes
        return values.permute(2, 1, 0).view(batch, groups, self.outputs)

    def _combine(self, values: Tensor, shared: Tensor, groups: int) -> Tensor:
        """``(outputs, groups, batch)``."""
        if self.sparse:
            picked = values.index_select(0, self.on(values.device)["chosen"])
            return (picked * shared.unsqueeze(-1)).unflatten(0, (self.width, self.outputs)).sum(0)
        matrix = shared.t().reshape(groups, self.outputs, self.width)
        return torch.bmm(matrix, values.transpose(0, 1)).transpose(0, 1)

    def pull(self, cotangent: Tensor, shared: Tensor, kept: list, needs: tuple[bool, bool]):
        """The cotangents of inputs and of what is shared, for ``cotangent (batch, groups, outputs)``."""
        tables = self.on(cotangent.device)
        groups = cotangent.shape[1]
        current = cotangent.permute(2, 1, 0)
        by_shared = torch.zeros_like(shared) if needs[1] else None
        if not self.direct:
            current = self._pull_combined(current, shared[self.row_positions :], kept[4][0], groups, by_shared)
        if self.strings is None:
            return torch.zeros_like(cotangent[..., :1]).expand(
                *cotangent.shape[:2], self.encoding.num_inputs
            ), by_shared
        current = self.strings.pull(current, kept[3])
        if self.row_terms:
            spread = current.unsqueeze(0).expand(self.row_terms, *current.shape)
            picked = kept[2][0]
            if by_shared is not None:
                torch.sum((picked.unflatten(0, (self.row_terms, -1)) * spread).flatten(0, 1), -1,
                          out=by_shared[: self.row_positions])  # fmt: skip
            if not needs[0]:
                return None, by_shared
            spread = (shared[: self.row_positions].unsqueeze(-1).unflatten(0, (self.row_terms, -1)) * spread).flatten(
                0, 1
            )
            size = self.data_products.rows if self.data_products else self.encoding.rows
            current = current.new_zeros(size, *current.shape[1:]).index_add_(0, tables["row_sources"], spread)
        if not needs[0]:
            return None, by_shared
        if self.data_products is not None:
            current = self.data_products.pull(current, kept[1])
        return self.encoding.pull(current, kept[0]), by_shared

    def _pull_combined(
        self, current: Tensor, shared: Tensor, values: Tensor, groups: int, by_shared: Tensor | None
    ) -> Tensor:
        if self.sparse:
            chosen = self.on(values.device)["chosen"]
            spread = current.unsqueeze(0).expand(self.width, *current.shape).flatten(0, 1)
            if by_shared is not None:
                by_shared[self.row_positions :] = (values.index_select(0, chosen) * spread).sum(-1)
            return torch.zeros_like(values).index_add_(0, chosen, spread * shared.unsqueeze(-1))
        grouped = current.transpose(0, 1)  # (groups, outputs, batch)
        if by_shared is not None:
            slopes = torch.bmm(grouped, values.permute(1, 2, 0))
            by_shared[self.row_positions :] = slopes.flatten(1).t()
        matrix = shared.t().reshape(groups, self.outputs, self.width)
        return torch.bmm(matrix.transpose(1, 2), grouped).transpose(0, 1)


class _Values(torch.autograd.Function):
    """One node of the graph; differentiated again it goes through the plain operations."""

    @staticmethod
    def forward(ctx, inputs: Tensor, shared: Tensor, weights: Tensor, method: PulledBackObservables) -> Tensor:
        kept: list[list[Tensor]] = []
        result = method.forward(inputs, weights, shared, kept)
        ctx.method = method
        ctx.lengths = [len(part) for part in kept]
        ctx.save_for_backward(inputs, shared, weights, *(t for part in kept for t in part))
        return result

    @staticmethod
    def backward(ctx, cotangent: Tensor):  # type: ignore[override]
        inputs, shared, weights, *rest = ctx.saved_tensors
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        if torch.is_grad_enabled():
            value = ctx.method.forward(inputs, weights, shared)
            wanted = [t for t, need in zip((inputs, shared), needs, strict=True) if need]
            found = iter(
                torch.autograd.grad(
                    value, wanted, cotangent, create_graph=True, allow_unused=True, materialize_grads=True
                )
            )
            return next(found) if needs[0] else None, next(found) if needs[1] else None, None, None
        kept, start = [], 0
        for length in ctx.lengths:
            kept.append(rest[start : start + length])
            start += length
        by_inputs, by_shared = ctx.method.pull(cotangent, shared, kept, needs)
        return by_inputs, by_shared, None, None

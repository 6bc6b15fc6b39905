"""Expectation values by Pauli propagation: products of single-qubit values, a handful of kernels at any width.

``<O_m> = sum_t C_mt(weights) prod_q b_tq(inputs, weights)``: the coefficients are computed once for each weight set,
the single-qubit values and their products for each sample. No object grows with 2^n.
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qrkt_hw.ansatz import CircuitTemplate, remembered
from qrkt_hw.compiler import Affine, Expansion, expand, lower
from qrkt_hw.compiler.propagation import Monomial
from qrkt_hw.simulator import native
from qrkt_hw.simulator.native import ops
from qrkt_hw.simulator.tables import Angles, Tables

Sum = list[tuple[int, int]]  # (position of a coefficient, or -1 for one; what it multiplies)


@remembered
def plan(template: CircuitTemplate) -> tuple[Expansion, float] | None:
    """The cheapest expansion and its estimated nanoseconds for a batch of 256, forward and backward; None if none."""
    program = lower(template)
    found = [e for e in (expand(program, template.observables, absorb) for absorb in (True, False)) if e is not None]
    return min(((e, _cost(e, template)) for e in found), key=lambda p: p[1], default=None)


def _cost(e: Expansion, template: CircuitTemplate) -> float:
    by_row, data = sum(map(len, e.rows)), _data(e)
    if native.library() is not None and not uses_weights(e, template):
        products = sum(max(len(s) - 1, 0) for s in e.strings)
        return 1.35e5 + 51.0 * (products + by_row + len(e.entries)) + 7.7e3 * len(data)
    factors = sum(len(f) for *_, f in e.entries) + sum(len(w) for row in e.rows for _, w, _ in row)
    levels = (max((len(s) for s in e.strings if s), default=1) - 1).bit_length()
    matrix = 0.3 * len(template.observables) * len(e.strings)
    once = 4.5e5 + 25.0 * factors + 4e4 * levels
    return once + 256 * (6.0 * by_row + 12.0 * len(e.strings) * (1 + (levels > 1)) + matrix)


def _data(e: Expansion) -> list[int]:
    """Angles by which data enter, in the order of the inputs."""
    data = {f // 2 for row in e.rows for *_, monomial in row for f in monomial}
    return sorted(data, key=lambda a: (e.angles[a].terms[0][0] if e.angles[a].terms else -1, a))


def uses_weights(e: Expansion, template: CircuitTemplate) -> bool:
    """Whether an angle by which data enter mixes inputs with weights."""
    return any(i >= template.num_inputs for a in _data(e) for i, _ in e.angles[a].terms)


class Layout(NamedTuple):
    """An expansion with its coefficients numbered."""

    rows: list[Sum]  # each a sum of monomials
    monomials: list[Monomial]  # of the data
    readout: list[Sum]  # each output a sum of strings
    parts: list[tuple[int, float, Monomial]]  # (position, constant, monomial of weights); coefficients are their sums
    positions: int  # how many coefficients


def layout(e: Expansion, outputs: int) -> Layout:
    """Number the coefficients; numbers that need not be multiplied get none."""
    parts: list[tuple[int, float, Monomial]] = []
    positions = 0

    def place(terms: list[tuple[float, Monomial]]) -> int:
        nonlocal positions
        if terms == [(1.0, ())]:
            return -1
        parts.extend((positions, constant, monomial) for constant, monomial in terms)
        positions += 1
        return positions - 1

    # rows that are one number times cosines and sines leave that number to the readout
    plain = all(len(row) == 1 and not row[0][1] for row in e.rows)
    scales = np.array([row[0][0] if plain else 1.0 for row in e.rows])
    monomials: dict[Monomial, int] = {}
    rows: list[Sum] = []
    for row in e.rows:
        found: dict[Monomial, list[tuple[float, Monomial]]] = {}
        for constant, factors, monomial in row:
            found.setdefault(monomial, []).append((1.0 if plain else constant, factors))
        rows.append([(place(t), monomials.setdefault(m, len(monomials))) for m, t in found.items()])
    read: list[dict[int, list[tuple[float, Monomial]]]] = [{} for _ in range(outputs)]
    for m, t, constant, factors in e.entries:
        scale = float(np.prod(scales[list(e.strings[t])]))
        read[m].setdefault(t, []).append((constant * scale, factors))
    readout = [[(place(terms), t) for t, terms in held.items()] for held in read]
    return Layout(rows, list(monomials), readout, parts, positions)


class Propagated:
    """Sums of products of single-qubit values; see the module."""

    name: ClassVar[str] = "pauli"

    def __init__(self, template: CircuitTemplate, dtype: torch.dtype) -> None:
        found = plan(template)
        if found is None:
            raise ValueError("the observables spread over too many Pauli strings")
        e = found[0]
        real = torch.zeros((), dtype=dtype).real.dtype
        held = layout(e, template.num_outputs)
        self.reference = Reference(e, held, template, real)
        self.kernel: ops.PropagatedKernel | None = None
        if native.library() is not None and not uses_weights(e, template):
            sizes = (template.num_inputs, template.num_weights, template.num_outputs)
            plans = _coefficients(e, held, template), _tape(e, held, template)
            self.kernel = ops.PropagatedKernel(sizes, real, self.reference, held.positions, *plans)

    @staticmethod
    def supports(template: CircuitTemplate) -> bool:
        return template.encoding == "angle" and plan(template) is not None

    @staticmethod
    def cost(template: CircuitTemplate) -> float:
        found = plan(template)
        return float("inf") if found is None else found[1]

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Values ``(batch, groups, observables)``."""
        if self.kernel is not None and native.serves(inputs, weights):
            return ops.evaluate(self.kernel, inputs, weights)
        return self.reference(inputs, weights)


class Reference(Tables):
    """The same in plain operations of torch: gather, multiply, and one matrix product for each kind of sum."""

    def __init__(self, e: Expansion, held: Layout, template: CircuitTemplate, real: torch.dtype) -> None:
        super().__init__()
        sizes = (template.num_inputs, template.num_weights, real)
        data, used = _data(e), sorted({f // 2 for *_, m in held.parts for f in m})
        self.data = Angles([e.angles[a] for a in data], *sizes)
        self.shared = Angles([e.angles[a] for a in used], *sizes)
        self.positions = held.positions
        self.num_rows, self.num_outputs = len(held.rows), len(held.readout)
        self._index("monomials", [_waves(m, data) for m in held.monomials])
        self._index("strings", [[1 + r for r in string] for string in e.strings])
        self._index("parts", [_waves(m, used) for *_, m in held.parts])
        self.add("constants", np.array([c for _, c, _ in held.parts])[:, None], real)
        self.add("position", np.array([p for p, *_ in held.parts], dtype=int), torch.long)
        self._sums("rows", held.rows, len(held.monomials))
        self._sums("readout", held.readout, len(e.strings))

    def _index(self, name: str, products: Sequence[Sequence[int]]) -> None:
        """Factors ``(factor, product)``, short ones filled up with the table's row 0, which holds ones."""
        longest = max((len(p) for p in products), default=0)
        padded = np.zeros((max(longest, 1), len(products)), dtype=int)
        for k, product in enumerate(products):
            padded[: len(product), k] = product
        self.add(name, padded, torch.long)

    def _sums(self, name: str, sums: Sequence[Sum], width: int) -> None:
        terms = [(row * width + what, position) for row, terms in enumerate(sums) for position, what in terms]
        self.add(f"{name} places", np.array([place for place, _ in terms], dtype=int), torch.long)
        self.add(f"{name} positions", np.array([1 + p for _, p in terms], dtype=int), torch.long)

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        tables = self.on(weights.device)
        constants = self._products("parts", _table(self.shared(None, weights))) * tables["constants"]
        zeros = constants.new_zeros(len(weights), self.positions, 1)
        coefficients = _after_ones(zeros.index_add(1, tables["position"], constants)).squeeze(2)
        values = self._products("monomials", _table(self.data(inputs, weights)))
        rows = _after_ones(self._combined("rows", coefficients, values))
        return self._combined("readout", coefficients, self._products("strings", rows)).permute(2, 0, 1)

    def _products(self, name: str, table: Tensor) -> Tensor:
        """Products of rows of a table ``(groups, rows, batch)``."""
        first, *others = self.on(table.device)[name]
        found = table.index_select(1, first)
        for other in others:
            found = found * table.index_select(1, other)
        return found

    def _combined(self, name: str, coefficients: Tensor, values: Tensor) -> Tensor:
        """Sums of values ``(groups, places, batch)``, each with its coefficient."""
        tables, rows = self.on(values.device), self.num_rows if name == "rows" else self.num_outputs
        chosen = coefficients.index_select(1, tables[f"{name} positions"])
        zeros = chosen.new_zeros(len(chosen), rows * values.shape[1])
        matrix = zeros.index_add(1, tables[f"{name} places"], chosen)
        return torch.bmm(matrix.unflatten(1, (rows, values.shape[1])), values)


def _table(angles: Tensor) -> Tensor:
    """Ones, cosines and sines ``(groups, 1 + 2 * angles, batch)`` of angles ``(angles, groups, batch)``."""
    angles = angles.transpose(0, 1)
    return _after_ones(torch.cat([angles.cos(), angles.sin()], dim=1))


def _after_ones(table: Tensor) -> Tensor:
    """The table ``(groups, rows, batch)`` behind a row of ones."""
    return torch.cat([table.new_ones(table.shape[0], 1, table.shape[2]), table], dim=1)


def _waves(monomial: Monomial, angles: Sequence[int]) -> list[int]:
    """A monomial's rows in the table of these angles."""
    return [1 + angles.index(f // 2) + len(angles) * (f % 2) for f in monomial]


def _coefficients(e: Expansion, held: Layout, template: CircuitTemplate) -> ops.Plan:
    """Angles and fields of the kernel's ``Coefficients``."""
    used = sorted({f // 2 for *_, m in held.parts for f in m})
    shift, place = template.num_inputs, {a: k for k, a in enumerate(used)}
    angles = [Affine(tuple((i - shift, c) for i, c in a.terms), a.offset) for a in (e.angles[a] for a in used)]
    starts = np.cumsum([0, *(len(m) for *_, m in held.parts)]).tolist()
    factors = [2 * place[f // 2] + f % 2 for *_, m in held.parts for f in m]
    positions, constants = [p for p, *_ in held.parts], [float(c) for _, c, _ in held.parts]
    return angles, (len(held.parts), held.positions, template.num_weights, positions, starts, factors, constants)


def _tape(e: Expansion, held: Layout, template: CircuitTemplate) -> ops.Plan:
    """Angles and fields of the kernel's ``Tape``: one, the cosines, the sines, products and sums, each once."""
    data = _data(e)
    left: list[int] = []
    right: list[int] = []
    terms: Sum = []
    made: dict[tuple, int] = {}

    def node(key: tuple, one: int, other: int) -> int:
        if key not in made:
            left.append(one)
            right.append(other)
            made[key] = 2 * len(data) + len(left)
        return made[key]

    def product(factors: Iterable[int]) -> int:
        found = 0  # node 0 is one
        for factor in factors:
            low, high = min(found, factor), max(found, factor)
            found = node((low, high), low, high) if low else high
        return found

    def weighted(sum_of: Sum) -> int:
        if len(sum_of) == 1 and sum_of[0][0] < 0:
            return sum_of[0][1]
        key = ("sum", *sum_of)
        if key not in made:
            start = len(terms)
            terms.extend(sum_of)
            node(key, start, -len(terms) - 1)
        return made[key]

    of_monomial = [product(_waves(m, data)) for m in held.monomials]
    of_row = [weighted([(p, of_monomial[k]) for p, k in row]) for row in held.rows]
    # rows that occur often come first, so that more strings share their beginnings
    often = np.bincount(np.array([r for s in e.strings for r in s], dtype=int), minlength=len(of_row))
    of_string = [product(of_row[r] for r in sorted(s, key=lambda r: (-often[r], r))) for s in e.strings]
    outputs = [weighted([(p, of_string[t]) for p, t in read]) for read in held.readout]
    fields = (
        template.num_inputs, held.positions, len(outputs), len(left), left, right,
        [p for p, _ in terms], [n for _, n in terms], outputs,
    )  # fmt: skip
    return [e.angles[a] for a in data], fields

"""Observables pulled back through a circuit to products of one-qubit values (the Heisenberg picture, term by term).

A Clifford gate takes a Pauli string to a Pauli string, a rotation takes it to at most two, weighted by the cosine and
the sine of its angle: ``U+ Q U = cos(a) Q - i sin(a) Q P`` for ``U = exp(-i a/2 P)`` where P and Q anticommute. On the
product state that the leading one-qubit gates prepare, the value of a string is a product over its qubits. So
``<O_m> = sum_t C_mt(weights) prod_q b_tq(inputs, weights)``, with structure known before any number is. Strings are
pairs of bit masks (x, z), so width costs nothing; only the number of terms does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from qiskit.quantum_info import SparsePauliOp

from qrkt_hw.compiler.program import PAULIS, Affine, Fixed, Program, Rotation, Step

LARGEST_GATE = 3  # qubits of a fixed gate that is pulled through; its table has 16^k entries
SMALLEST = 1e-14
String = tuple[int, int]
# factors of a product, sorted: 2a is the cosine of angle a, 2a + 1 its sine
Monomial = tuple[int, ...]
Terms = dict[String, dict[tuple[int, Monomial], float]]
LETTERS = {"I": (0, 0), "X": (1, 0), "Y": (1, 1), "Z": (0, 1)}


@dataclass(frozen=True, eq=False)
class PulledBack:
    """``<O_m> = sum over entries (m, t) of coefficient * weight monomial * prod over r in strings[t] of rows[r]``.

    Attributes:
        angles: of the factors; a factor is 2 * place for the cosine, 2 * place + 1 for the sine.
        rows: one-qubit values, each a sum of (coefficient, monomial of the weights, monomial of the data).
        strings: products of rows.
        entries: (observable, string, coefficient, monomial of the weights).
    """

    angles: tuple[Affine, ...]
    rows: tuple[tuple[tuple[float, Monomial, Monomial], ...], ...]
    strings: tuple[tuple[int, ...], ...]
    entries: tuple[tuple[int, int, float, Monomial], ...]


class TooManyTerms(Exception):
    """The expansion outgrew its limit, or a step cannot be pulled through."""


def pull_back(
    program: Program, observables: Sequence[SparsePauliOp], absorb: bool, limit: int = 4096
) -> PulledBack | None:
    """The expansion, or None where it has more than ``limit`` terms or data enter behind an entangling gate.

    Args:
        program: a lowered template.
        observables: Hermitian sums of Pauli strings.
        absorb: leading one-qubit gates by weights belong to the one-qubit values (fewer terms where strings are long);
            otherwise to the coefficients, which a whole batch shares.
        limit: of terms.
    """
    try:
        return _Expansion(program, observables, absorb, limit).result()
    except TooManyTerms:
        return None


class _Expansion:
    def __init__(self, program: Program, observables: Sequence[SparsePauliOp], absorb: bool, limit: int) -> None:
        self.program = program
        self.limit = limit
        self.angles: dict[Affine, int] = {}
        self.by_data: set[int] = set()  # places of the angles that depend on inputs
        self.leading, rest = _split(program, absorb)
        if any(program.uses_inputs(step) for step in rest):
            raise TooManyTerms
        terms: Terms = defaultdict(dict)
        for m, operator in enumerate(observables):
            for pauli, coefficient in zip(operator.paulis, operator.coeffs, strict=True):
                held = terms[_mask(pauli.x), _mask(pauli.z)]
                held[m, ()] = held.get((m, ()), 0.0) + float(coefficient.real)
        self.terms = self.through(rest, terms)
        self.sites: dict[tuple[int, int, int], int | None] = {}
        self.rows: list[tuple[tuple[float, Monomial, Monomial], ...]] = []

    def through(self, steps: Sequence[Step], terms: Terms) -> Terms:
        """``terms`` pulled back through ``steps``, the last step first."""
        for step in reversed(steps):
            mask = sum(1 << q for q in step.qubits)
            if isinstance(step, Rotation):
                terms = self._rotate(step, mask, terms)
            else:
                terms = _conjugate(step, mask, terms)
            if sum(map(len, terms.values())) > self.limit:
                raise TooManyTerms
        return terms

    def _rotate(self, step: Rotation, mask: int, terms: Terms) -> Terms:
        px = sum(LETTERS[letter][0] << q for letter, q in zip(step.pauli, step.qubits, strict=True))
        pz = sum(LETTERS[letter][1] << q for letter, q in zip(step.pauli, step.qubits, strict=True))
        angle = self.angles.setdefault(step.angle, len(self.angles))
        if self.program.uses_inputs(step):
            self.by_data.add(angle)
        if not any((x | z) & mask for x, z in terms):
            return terms
        result: Terms = defaultdict(dict)
        for (x, z), held in terms.items():
            if not (x | z) & mask or (((x & pz).bit_count() + (z & px).bit_count()) & 1) == 0:
                _keep(result, (x, z), held)
                continue
            rx, rz = x ^ px, z ^ pz
            power = (x & z).bit_count() + (px & pz).bit_count() - (rx & rz).bit_count() + 2 * (z & px).bit_count() - 1
            _add(result[x, z], held.items(), 1.0, (2 * angle,))
            _add(result[rx, rz], held.items(), 1.0 if power % 4 == 0 else -1.0, (2 * angle + 1,))
        return result

    def site(self, qubit: int, x: int, z: int) -> int | None:
        """The row of a one-qubit value; None where it is zero, -1 where it is one."""
        key = (qubit, x, z)
        if key not in self.sites:
            ends = self.through(self.leading.get(qubit, []), {(x << qubit, z << qubit): {(0, ()): 1.0}})
            parts: dict[tuple[Monomial, Monomial], float] = defaultdict(float)
            for (ex, _), held in ends.items():
                if ex:
                    continue  # <0|X|0> = <0|Y|0> = 0
                for (_, monomial), coefficient in held.items():
                    parts[self._sorted(monomial)] += coefficient
            found = tuple((c, *m) for m, c in parts.items() if abs(c) > SMALLEST)
            if not found:
                self.sites[key] = None
            elif len(found) == 1 and found[0][1:] == ((), ()) and abs(found[0][0] - 1) < SMALLEST:
                self.sites[key] = -1
            else:
                self.rows.append(found)
                self.sites[key] = len(self.rows) - 1
        return self.sites[key]

    def _sorted(self, monomial: Monomial) -> tuple[Monomial, Monomial]:
        """The factors by weights alone, then those that depend on data."""
        data = self.by_data
        return tuple(f for f in monomial if f // 2 not in data), tuple(f for f in monomial if f // 2 in data)

    def result(self) -> PulledBack:
        strings: dict[tuple[int, ...], int] = {}
        entries: dict[tuple[int, int, Monomial], float] = defaultdict(float)
        for (x, z), held in self.terms.items():
            sites = [self.site(q, x >> q & 1, z >> q & 1) for q in _bits(x | z)]
            if None in sites:
                continue
            place = strings.setdefault(tuple(s for s in sites if s is not None and s >= 0), len(strings))
            for (m, monomial), coefficient in held.items():
                entries[m, place, monomial] += coefficient
        kept = tuple((m, t, c, f) for (m, t, f), c in entries.items() if abs(c) > SMALLEST)
        return PulledBack(tuple(self.angles), tuple(self.rows), tuple(strings), kept)


def _split(program: Program, absorb: bool) -> tuple[dict[int, list[Step]], list[Step]]:
    """One-qubit steps in front of everything else on their qubit, and the remaining steps in order of time."""
    leading: dict[int, list[Step]] = defaultdict(list)
    entangled: set[int] = set()
    rest: list[Step] = []
    for step in program.steps:
        if len(step.qubits) == 1 and step.qubits[0] not in entangled:
            leading[step.qubits[0]].append(step)
        else:
            entangled.update(step.qubits)
            rest.append(step)
    if not absorb:
        moved: list[Step] = []
        for steps in leading.values():
            last = max((k for k, s in enumerate(steps) if program.uses_inputs(s)), default=-1)
            moved += steps[last + 1 :]
            del steps[last + 1 :]
        rest = moved + rest
    return leading, rest


def _add(held: dict, items: Iterable, sign: float, factor: Monomial) -> None:
    for (m, monomial), coefficient in items:
        key = (m, tuple(sorted(monomial + factor)) if factor else monomial)
        held[key] = held.get(key, 0.0) + sign * coefficient


def _keep(result: Terms, string: String, held: dict) -> None:
    """Take over a string that a step leaves alone; its terms are not copied, as nobody reads the old ones again."""
    if string in result:
        _add(result[string], held.items(), 1.0, ())
    else:
        result[string] = held


def _conjugate(step: Fixed, mask: int, terms: Terms) -> Terms:
    k = len(step.qubits)
    if k > LARGEST_GATE:
        raise TooManyTerms
    table = conjugation_table(step.matrix, k)
    result: Terms = defaultdict(dict)
    for (x, z), held in terms.items():
        if not (x | z) & mask:
            _keep(result, (x, z), held)
            continue
        local = sum(((x >> q & 1) | (z >> q & 1) << k) << i for i, q in enumerate(step.qubits))
        for image, coefficient in table[local]:
            nx = (x & ~mask) | sum((image >> i & 1) << q for i, q in enumerate(step.qubits))
            nz = (z & ~mask) | sum((image >> (i + k) & 1) << q for i, q in enumerate(step.qubits))
            _add(result[nx, nz], held.items(), coefficient, ())
    return result


def conjugation_table(matrix: np.ndarray, qubits: int) -> tuple[tuple[tuple[int, float], ...], ...]:
    """For each Pauli word, index ``x + 2^k z``: the words of ``U+ Q U`` and their coefficients."""
    return _table(np.ascontiguousarray(matrix, dtype=complex).tobytes(), qubits)


@lru_cache(maxsize=512)
def _table(matrix: bytes, k: int) -> tuple[tuple[tuple[int, float], ...], ...]:
    size = 2**k
    unitary = np.frombuffer(matrix, dtype=complex).reshape(size, size)
    letters = {bits: letter for letter, bits in LETTERS.items()}
    words = []
    for index in range(4**k):
        word = np.eye(1, dtype=complex)
        for i in range(k):
            word = np.kron(PAULIS[letters[index >> i & 1, index >> (i + k) & 1]], word)
        words.append(word)
    every = np.array(words)
    turned = unitary.conj().T @ every @ unitary
    overlap = np.einsum("pij,qji->qp", every, turned).real / size
    return tuple(tuple((int(p), float(row[p])) for p in np.flatnonzero(np.abs(row) > 1e-12)) for row in overlap)


def _bits(mask: int) -> list[int]:
    return [q for q in range(mask.bit_length()) if mask >> q & 1]


def _mask(bits: np.ndarray) -> int:
    return int(sum(1 << int(q) for q in np.flatnonzero(bits)))

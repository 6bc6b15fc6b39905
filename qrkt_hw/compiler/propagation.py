"""Pauli propagation: observables moved back through a circuit in the Heisenberg picture, string by string.

A Clifford gate takes a Pauli string to a Pauli string, a rotation takes it to at most two, weighted by the cosine and
the sine of its angle: ``U+ Q U = cos(a) Q - i sin(a) Q P`` for ``U = exp(-i a/2 P)`` where P and Q anticommute. Strings
are pairs of bit masks (x, z), so width costs nothing; only the number of terms does. :func:`heisenberg` is that rule;
:func:`expand` follows it with symbolic coefficients, :func:`propagate` with numbers and their derivatives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from qiskit.quantum_info import SparsePauliOp

from qrkt_hw.compiler.program import PAULIS, Affine, Program, Rotation, Step

LARGEST_GATE = 3  # qubits of a fixed gate that strings pass; its table has 16^k entries
SMALLEST = 1e-14
LETTERS = {"I": (0, 0), "X": (1, 0), "Y": (1, 1), "Z": (0, 1)}
String = tuple[int, int]
# factors of a product, sorted: 2a is the cosine of angle a, 2a + 1 its sine
Monomial = tuple[int, ...]
Terms = dict[String, dict[tuple[int, Monomial], float]]
# what a string becomes: (string, coefficient, wave); the wave is that of the rotation's angle
Images = tuple[tuple[String, float, int], ...]
NO_WAVE, COSINE, SINE = range(3)


class TooManyTerms(Exception):
    """An expansion outgrew its limit, or no string passes a step."""


def heisenberg(step: Step) -> Callable[[String], Images | None]:
    """The map ``Q -> U+ Q U`` of a step on Pauli strings; None stands for a string that the step leaves alone."""
    qubits, k = step.qubits, len(step.qubits)
    mask = sum(1 << q for q in qubits)
    if isinstance(step, Rotation):
        px, pz = masks(step.pauli, qubits)

        def rotated(string: String) -> Images | None:
            x, z = string
            if ((x & pz).bit_count() + (z & px).bit_count()) & 1 == 0:
                return None
            rx, rz = x ^ px, z ^ pz
            power = (x & z).bit_count() + (px & pz).bit_count() - (rx & rz).bit_count() + 2 * (z & px).bit_count() - 1
            return (string, 1.0, COSINE), ((rx, rz), 1.0 if power % 4 == 0 else -1.0, SINE)

        return rotated
    if k > LARGEST_GATE:
        raise TooManyTerms
    table = conjugation_table(step.matrix)

    def conjugated(string: String) -> Images | None:
        x, z = string
        if not (x | z) & mask:
            return None
        local = sum(((x >> q & 1) | (z >> q & 1) << k) << i for i, q in enumerate(qubits))
        found = []
        for image, coefficient in table[local]:
            nx = (x & ~mask) | sum((image >> i & 1) << q for i, q in enumerate(qubits))
            nz = (z & ~mask) | sum((image >> (i + k) & 1) << q for i, q in enumerate(qubits))
            found.append(((nx, nz), coefficient, NO_WAVE))
        return tuple(found)

    return conjugated


def conjugation_table(matrix: NDArray[np.complex128]) -> tuple[tuple[tuple[int, float], ...], ...]:
    """For each Pauli word of a gate's k qubits, index ``x + 2^k z``: the words of ``U+ Q U`` and their coefficients."""
    return _table(np.ascontiguousarray(matrix, dtype=complex).tobytes(), len(matrix))


@lru_cache(maxsize=512)
def _table(matrix: bytes, size: int) -> tuple[tuple[tuple[int, float], ...], ...]:
    unitary, k = np.frombuffer(matrix, dtype=complex).reshape(size, size), size.bit_length() - 1
    letters = {bits: letter for letter, bits in LETTERS.items()}
    words = []
    for index in range(4**k):
        word = np.eye(1, dtype=complex)
        for i in range(k):
            word = np.kron(PAULIS[letters[index >> i & 1, index >> (i + k) & 1]], word)
        words.append(word)
    every = np.array(words)
    moved = unitary.conj().T @ every @ unitary
    overlap = np.einsum("pij,qji->qp", every, moved).real / size
    return tuple(tuple((int(p), float(row[p])) for p in np.flatnonzero(np.abs(row) > 1e-12)) for row in overlap)


def masks(word: str, qubits: Sequence[int]) -> String:
    """The bits (x, z) of a Pauli word; letter k acts on ``qubits[k]``."""
    pairs = [(LETTERS[letter], q) for letter, q in zip(word, qubits, strict=True)]
    return sum(bits[0] << q for bits, q in pairs), sum(bits[1] << q for bits, q in pairs)


def terms_of(observable: SparsePauliOp) -> list[tuple[String, float]]:
    """The Pauli strings of a Hermitian observable and their coefficients."""
    bits = 1 << np.arange(observable.num_qubits, dtype=object)  # of any width
    paulis = observable.paulis
    return [
        ((int(x @ bits), int(z @ bits)), float(c.real))
        for x, z, c in zip(paulis.x, paulis.z, observable.coeffs, strict=True)
    ]


# ---- with numbers -----------------------------------------------------------


def propagate(
    program: Program, observable: SparsePauliOp, points: NDArray[np.float64], limit: int, work: float
) -> tuple[NDArray[np.float64], int] | None:
    """Value and derivatives ``(points, 1 + parameters)`` of an observable at ``(points, parameters)``, and the most
    strings there were; None beyond ``limit`` strings or ``work`` numbers touched, or where a fixed gate is too wide.
    """
    first = terms_of(observable.simplify())
    strings = [string for string, _ in first]
    coefficients = np.zeros((len(first), len(points), 1 + points.shape[1]))
    coefficients[..., 0] = np.array([c for _, c in first])[:, None]
    widest = len(strings)
    for step in reversed(program.steps):
        mask = sum(1 << q for q in step.qubits)
        if not any((x | z) & mask for x, z in strings):
            continue
        work -= coefficients.size
        if work < 0:
            return None
        try:
            images = heisenberg(step)
        except TooManyTerms:
            return None
        places: dict[String, int] = {}
        moves = [
            (source, places.setdefault(image, len(places)), factor, wave)
            for source, string in enumerate(strings)
            for image, factor, wave in images(string) or ((string, 1.0, NO_WAVE),)
        ]
        source, target, factor, wave = (np.array(column) for column in zip(*moves, strict=True))
        parts = coefficients[source] * factor[:, None, None]
        if isinstance(step, Rotation):
            _weigh(parts, step.angle, points, wave)
        coefficients = np.zeros((len(places), *coefficients.shape[1:]))
        np.add.at(coefficients, target, parts)
        alive = np.asarray((np.abs(coefficients) > 1e-15).any(axis=(1, 2)))
        strings, coefficients = [s for s, kept in zip(places, alive, strict=True) if kept], coefficients[alive]
        widest = max(widest, len(strings))
        if widest > limit:
            return None
    ends = np.array([not x for x, _ in strings], dtype=bool)  # in |0...0> strings of I and Z are 1, others 0
    return coefficients[ends].sum(0), widest


def _weigh(parts: NDArray[np.float64], angle: Affine, points: NDArray[np.float64], wave: NDArray[np.int64]) -> None:
    """Multiply values and derivatives ``(strings, points, 1 + parameters)`` by the cosine or sine of an angle."""
    gradient = np.zeros(points.shape[1])
    for index, factor in angle.terms:
        gradient[index] += factor
    at = points @ gradient + angle.offset
    for kind, value, derivative in ((COSINE, np.cos(at), -np.sin(at)), (SINE, np.sin(at), np.cos(at))):
        old = parts[wave == kind]
        new = value[:, None] * old
        new[..., 1:] += derivative[:, None] * old[..., :1] * gradient
        parts[wave == kind] = new


# ---- with symbols -----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Expansion:
    """``<O_m> = sum over entries (m, t) of coefficient * weight monomial * prod over r in strings[t] of rows[r]``.

    On the product state that the leading one-qubit gates prepare, a string's value is a product over its qubits.

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


def expand(program: Program, observables: Sequence[SparsePauliOp], absorb: bool, limit: int = 4096) -> Expansion | None:
    """The expansion of a lowered template, or None where it has too many terms or data enter behind an entangling gate.

    With ``absorb``, leading one-qubit gates by weights belong to the one-qubit values (fewer terms where strings are
    long); otherwise to the coefficients, which a whole batch shares.
    """
    try:
        return _Expanding(program, observables, absorb, limit).result()
    except TooManyTerms:
        return None


class _Expanding:
    def __init__(self, program: Program, observables: Sequence[SparsePauliOp], absorb: bool, limit: int) -> None:
        self.program, self.limit = program, limit
        self.angles: dict[Affine, int] = {}
        self.by_data: set[int] = set()  # places of the angles that depend on inputs
        self.leading, rest = _split(program, absorb)
        if any(program.uses_inputs(step) for step in rest):
            raise TooManyTerms
        terms: Terms = defaultdict(dict)
        for m, operator in enumerate(observables):
            for string, coefficient in terms_of(operator):
                held = terms[string]
                held[m, ()] = held.get((m, ()), 0.0) + coefficient
        self.terms = self.through(rest, terms)
        self.sites: dict[tuple[int, int, int], int | None] = {}
        self.rows: list[tuple[tuple[float, Monomial, Monomial], ...]] = []

    def through(self, steps: Sequence[Step], terms: Terms) -> Terms:
        """``terms`` propagated through ``steps``, the last step first."""
        for step in reversed(steps):
            factors: tuple[Monomial, ...] = ((),)
            if isinstance(step, Rotation):
                angle = self.angles.setdefault(step.angle, len(self.angles))
                factors = ((), (2 * angle,), (2 * angle + 1,))
                if self.program.uses_inputs(step):
                    self.by_data.add(angle)
            images = heisenberg(step)
            result: Terms = defaultdict(dict)
            for string, held in terms.items():
                found = images(string)
                if found is None and string not in result:
                    result[string] = held  # not copied, as nobody reads the old terms again
                    continue
                for image, sign, wave in found or ((string, 1.0, NO_WAVE),):
                    factor, sums = factors[wave], result[image]
                    for (m, monomial), coefficient in held.items():
                        key = (m, tuple(sorted(monomial + factor)) if factor else monomial)
                        sums[key] = sums.get(key, 0.0) + sign * coefficient
            terms = result
            if sum(map(len, terms.values())) > self.limit:
                raise TooManyTerms
        return terms

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
                    by_weights = tuple(f for f in monomial if f // 2 not in self.by_data)
                    parts[by_weights, tuple(f for f in monomial if f // 2 in self.by_data)] += coefficient
            found = tuple((c, *m) for m, c in parts.items() if abs(c) > SMALLEST)
            one = len(found) == 1 and found[0][1:] == ((), ()) and abs(found[0][0] - 1) < SMALLEST
            if found and not one:
                self.rows.append(found)
            self.sites[key] = None if not found else -1 if one else len(self.rows) - 1
        return self.sites[key]

    def result(self) -> Expansion:
        strings: dict[tuple[int, ...], int] = {}
        entries: dict[tuple[int, int, Monomial], float] = defaultdict(float)
        for (x, z), held in self.terms.items():
            on = [q for q in range((x | z).bit_length()) if (x | z) >> q & 1]
            sites = [self.site(q, x >> q & 1, z >> q & 1) for q in on]
            if None in sites:
                continue
            place = strings.setdefault(tuple(s for s in sites if s is not None and s >= 0), len(strings))
            for (m, monomial), coefficient in held.items():
                entries[m, place, monomial] += coefficient
        kept = tuple((m, t, c, f) for (m, t, f), c in entries.items() if abs(c) > SMALLEST)
        return Expansion(tuple(self.angles), tuple(self.rows), tuple(strings), kept)


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

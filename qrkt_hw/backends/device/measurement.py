"""What is measured: bases that terms share, values from outcome tables, readout errors and their mitigation.

mthree is that of Nation, Kang, Sundaresan and Gambetta, PRX Quantum 2, 040326 (2021), TREX that of van den Berg, Minev
and Temme, Phys. Rev. A 105, 032620 (2022). mthree would submit its calibration itself, past journal and budget; here
it is two ordinary PUBs, which prepare all measured qubits of the packed registers in 0 and in 1, so that a qubit is
calibrated while its neighbours are read too. TREX takes the same two: one is the other with all qubits flipped.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit
from qiskit.primitives import BitArray

from qrkt_hw.ansatz import CircuitTemplate, rbs, remembered
from qrkt_hw.compiler.subspace import subspace
from qrkt_hw.errors import UserError, extras

Floats = NDArray[np.float64]
Counts = NDArray[np.float64] | list[dict[int, int]]  # (rows, 2^qubits) relative frequencies, or counts for each row
CALIBRATION_SHOTS = 16_384  # of each of the two calibration circuits
LARGEST_TABLE = 12  # qubits up to which outcomes are kept as a table of all
READABLE = 0.1  # least difference of a qubit's chances to be read as 1 in its two states; 1 without errors


@dataclass(frozen=True, eq=False)
class Basis:  # one way of measuring all qubits
    letters: tuple[str, ...]  # per qubit ``X``, ``Y`` or ``Z``, qubit 0 first
    # ``(observable, coefficient, mask)``: the observable gains ``coefficient * (-1)^parity(outcome & mask)``
    terms: tuple[tuple[int, float, int], ...]
    mixed: tuple[int, int] | None = None  # two qubits that a Givens rotation by pi / 4 joins before the measurement
    weight: int | None = None  # outcomes of another Hamming weight are errors, and dropped

    def rotated(self, circuit: QuantumCircuit) -> QuantumCircuit:
        """A copy of ``circuit`` after which measuring Z measures this basis."""
        rotated = circuit.copy()
        if self.mixed is not None:
            rbs(rotated, np.pi / 4, *self.mixed)
        for qubit, letter in enumerate(self.letters):
            if letter == "Y":
                rotated.sdg(qubit)
            if letter in "XY":
                rotated.h(qubit)
        return rotated

    def signs(self, observables: int) -> NDArray[np.float64]:
        """``(observables, 2^n)``: what each outcome adds to each observable."""
        index = np.arange(2 ** len(self.letters))
        matrix = np.zeros((observables, len(index)))
        for row, coefficient, mask in self.terms:
            matrix[row] += coefficient * (1.0 - 2.0 * (np.bitwise_count(index & mask) & 1))
        return matrix

    def values(self, outcome: Any, observables: int) -> Floats:
        """``(rows, observables)``: what this basis adds to each observable, by Counts or quasi-probabilities."""
        if isinstance(outcome, np.ndarray):
            # Qiskit's BitArray.expectation_values gives the same, one row and one observable at a time
            return outcome @ self.signs(observables).T
        found = np.zeros((len(outcome), observables))
        for row, one in enumerate(outcome):
            for observable, coefficient, mask in self.terms:
                signed = sum(-p if (state & mask).bit_count() & 1 else p for state, p in one.items())
                found[row, observable] += coefficient * signed / sum(one.values())
        return found


@lru_cache(maxsize=512)
def bases(template: CircuitTemplate) -> tuple[Basis, ...]:
    """The fewest bases a greedy search finds for all observables; one for Z observables.

    ``SparsePauliOp.group_commuting`` groups the terms of one operator; here every term must know its observable.
    """
    found: list[tuple[dict[int, str], list[tuple[int, float, int]]]] = []
    for row, operator in enumerate(template.observables):
        for label, qubits, coefficient in operator.to_sparse_list():
            wanted = dict(zip(qubits, label, strict=True))
            fits = (one for one in found if all(one[0].get(q, letter) == letter for q, letter in wanted.items()))
            letters, terms = next(fits, None) or ({}, [])
            if not terms:
                found.append((letters, terms))
            letters.update(wanted)
            terms.append((row, float(coefficient.real), sum(1 << q for q in qubits)))
    every = range(template.num_qubits)
    return tuple(Basis(tuple(letters.get(q, "Z") for q in every), tuple(terms)) for letters, terms in found)


@remembered
def weight_bases(template: CircuitTemplate) -> tuple[Basis, ...]:
    """Bases in which every outcome of an error-free circuit has its Hamming weight; none where there are no such.

    The circuit keeps its weight, and observables are sums of Z strings and of XX or YY on two qubits. Each of those
    pairs takes a circuit of its own: between states of one weight XX is the difference of Z on both qubits after a
    Givens rotation by a quarter of pi.
    """
    program = subspace(template)
    found: dict[tuple[int, int] | None, list[tuple[int, float, int]]] = {}
    for row, operator in enumerate(template.observables if program is not None else ()):
        for label, qubits, coefficient in operator.to_sparse_list():
            value = float(coefficient.real)
            if not set(label) - {"Z"}:
                found.setdefault(None, []).append((row, value, sum(1 << q for q in qubits)))
            elif label in ("XX", "YY"):
                first, second = sorted(qubits)
                terms = found.setdefault((first, second), [])
                terms += [(row, value / 2, 1 << first), (row, -value / 2, 1 << second)]
            else:
                return ()
    letters = ("Z",) * template.num_qubits
    return tuple(Basis(letters, tuple(terms), pair, program.weight) for pair, terms in found.items() if program)


@lru_cache(maxsize=512)
def flip_codes(basis: Basis) -> tuple[int, ...]:
    """A number for each qubit: in pattern p, qubit q is flipped where ``p & code`` has odd parity.

    Those of the qubits of one term are linearly independent, so that over all patterns every combination of their
    flips is equally frequent; qubits of no term have 0.
    """
    codes = [0] * len(basis.letters)
    masks = [mask for _, _, mask in basis.terms]
    for qubit in range(len(codes)):
        taken = {0}
        for mask in (mask for mask in masks if mask >> qubit & 1):
            span = {0}
            for other in range(qubit):
                span |= {one ^ codes[other] for one in span} if mask >> other & 1 else set()
            taken |= span
        if any(mask >> qubit & 1 for mask in masks):
            codes[qubit] = next(code for code in itertools.count(1) if code not in taken)
    return tuple(codes)


def flipped(basis: Basis, pattern: int) -> list[bool]:
    """Which qubits are flipped in front of their measurement."""
    codes = flip_codes(basis) if pattern else (0,) * len(basis.letters)
    return [bool((pattern & code).bit_count() & 1) for code in codes]


def unflipped(outcome: Counts, flips: Sequence[bool]) -> Counts:
    """What would have been counted without the flips."""
    mask = sum(1 << bit for bit, flip in enumerate(flips) if flip)
    if not mask:
        return outcome
    if isinstance(outcome, np.ndarray):
        return outcome[:, np.arange(outcome.shape[1]) ^ mask]
    return [{state ^ mask: count for state, count in one.items()} for one in outcome]


def selected(outcome: Counts, weight: int) -> Counts:
    """The outcomes of a Hamming weight. Raises UserError: a circuit has none."""
    found: Counts
    if isinstance(outcome, np.ndarray):
        chosen = outcome * (np.bitwise_count(np.arange(outcome.shape[1])) == weight)
        kept = chosen.sum(axis=1, keepdims=True)
        found = chosen / np.where(kept > 0, kept, 1)
        lost = int((kept == 0).sum())
    else:
        found = [{state: count for state, count in one.items() if state.bit_count() == weight} for one in outcome]
        lost = sum(not one for one in found)
    if lost:
        what = f"post-selection drops every shot of {lost} of {len(outcome)} circuits"
        raise UserError(f"--mitigation: {what}, as none has Hamming weight {weight}; give more --shots")
    return found


def sample(probabilities: NDArray[np.float64], shots: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Relative frequencies ``(samples, outcomes)`` of ``shots`` draws from each row."""
    safe = np.clip(probabilities, 0.0, None)
    safe /= safe.sum(axis=-1, keepdims=True)
    return rng.multinomial(shots, safe) / shots


def confuse(probabilities: NDArray[np.float64], readout: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Apply readout errors: ``readout[j][s, b]`` is the chance that qubit j in state s is read as b."""
    qubits = len(readout)
    cube = probabilities.reshape(-1, *([2] * qubits))
    for qubit, matrix in enumerate(readout):
        cube = np.moveaxis(np.tensordot(cube, matrix, axes=([qubits - qubit], [0])), -1, qubits - qubit)
    return cube.reshape(probabilities.shape)


def ones(row: NDArray[np.float64] | dict[int, int], width: int) -> list[float]:
    """How often each bit was read as 1, in the one execution of a calibration."""
    if isinstance(row, dict):
        every = sum(row.values())
        return [sum(n for state, n in row.items() if state >> bit & 1) / every for bit in range(width)]
    states = np.arange(len(row))
    return [float(row[(states >> bit & 1) == 1].sum()) for bit in range(width)]


class Readout:
    """Readout errors of single qubits of a device, learnt from calibration circuits, and what corrects counts."""

    def __init__(self, qubits: int, twirled: bool = False) -> None:
        self.twirled = twirled  # qubits are flipped in patterns: an error damps values by a factor (TREX)
        self.qubits = qubits  # of the device
        self.ones: dict[tuple[int, int], float] = {}  # (qubit, prepared state) -> how often it is read as 1

    @property
    def known(self) -> set[int]:
        return {qubit for qubit, state in self.ones if state == 0 and (qubit, 1) in self.ones}

    def learn(self, state: int, qubits: Sequence[int], ones: Sequence[float]) -> None:
        """Take over how often qubits of the device were read as 1 where all of them were prepared in ``state``."""
        for qubit, share in zip(qubits, ones, strict=True):
            self.ones[qubit, state] = float(share)

    def scaled(self, basis: Basis, qubits: Sequence[int]) -> Basis:
        """The basis for values of twirled readout: each term is divided by the damping of the qubits it is read from.

        Raises UserError: a qubit cannot be corrected.
        """
        self._check(qubits)
        damping = [self.ones[q, 1] - self.ones[q, 0] for q in qubits]

        def of(mask: int) -> float:
            return math.prod(damping[bit] for bit in range(len(qubits)) if mask >> bit & 1)

        return replace(basis, terms=tuple((row, c / of(mask), mask) for row, c, mask in basis.terms))

    def _check(self, qubits: Sequence[int]) -> None:
        """Raises UserError: the readout of a qubit hardly depends on its state, which nothing can correct."""
        for qubit in qubits:
            zero, one = self.ones[qubit, 0], self.ones[qubit, 1]
            if one - zero < READABLE:
                what = f"qubit {qubit} is read as 1 in {zero:.0%} of the shots in state 0 and in {one:.0%} in state 1"
                way = "leave it out by a higher --min-fidelity, or take --mitigation none"
                raise UserError(f"--mitigation: {what}, which cannot be corrected; {way}")

    def corrected(self, counts: Sequence[dict[int, int]], qubits: Sequence[int]) -> list[dict[int, float]]:
        """Quasi-probabilities of outcomes, for counts read on ``qubits`` (bit 0 first)."""
        return self._as_numbers(self._correction(counts, qubits))

    def nearest(self, counts: Sequence[dict[int, int]], qubits: Sequence[int]) -> list[dict[int, float]]:
        """The probability distributions nearest to them."""
        found = self._correction(counts, qubits)
        return self._as_numbers([one.nearest_probability_distribution() for one in found])

    def _as_numbers(self, found: Sequence[Any]) -> list[dict[int, float]]:
        return [{int(text, 2): float(p) for text, p in one.items()} for one in found]

    def _correction(self, counts: Sequence[dict[int, int]], qubits: Sequence[int]) -> Any:
        with extras():
            from mthree import M3Mitigation

        self._check(qubits)
        tool: Any = M3Mitigation()
        tool.num_qubits = self.qubits
        matrices: list[NDArray[np.float32] | None] = [None] * self.qubits
        for qubit in qubits:
            zero, one = self.ones[qubit, 0], self.ones[qubit, 1]
            matrices[qubit] = np.array([[1 - zero, 1 - one], [zero, one]], dtype=np.float32)
        tool.cals_from_matrices(matrices)
        width = len(qubits)
        # mthree inverts among the outcomes it is given: without those that were not seen, few shots give biased values
        unseen = dict.fromkeys(range(2**width if width <= 8 else 0), 0)
        texts = [{format(state, f"0{width}b"): count for state, count in {**unseen, **one}.items()} for one in counts]
        return tool.apply_correction(texts, list(qubits), distance=width if width <= 8 else None)


def expectations(
    outcome: Counts, basis: Basis, outputs: int, shots: int, read: Sequence[int] = (), readout: Readout | None = None
) -> Floats:
    """``(rows, outputs)`` of what was counted on the qubits ``read``, corrected where ``readout`` is given."""
    if basis.weight is not None:
        outcome = selected(outcome, basis.weight)
    if readout is None:
        return basis.values(outcome, outputs)
    if readout.twirled:
        return readout.scaled(basis, read).values(outcome, outputs)
    return basis.values(readout.corrected(counted(outcome, shots), read), outputs)


def shots_of(
    outcome: Counts | BitArray, shots: int, read: Sequence[int], readout: Readout | None, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """``(rows, shots, qubits)`` of what was counted on the qubits ``read``."""
    if isinstance(outcome, BitArray) and readout is None:
        return outcome.to_bool_array(order="little")[:, :shots]  # twirling may take some more
    counts = counted(counts_of(outcome), shots)
    if readout is not None:
        counts = [_rounded(one, shots) for one in readout.nearest(counts, read)]
    found = np.zeros((len(counts), shots, len(read)), dtype=bool)
    for row, one in enumerate(counts):
        if sum(one.values()) != shots:  # more were counted than asked for
            one = _rounded(one, shots)
        states = [[state >> bit & 1 for bit in range(len(read))] for state in one]
        found[row] = rng.permutation(np.repeat(np.array(states, dtype=bool), list(one.values()), axis=0))
    return found


def _rounded(chances: Mapping[int, float], shots: int) -> dict[int, int]:
    """So many shots of a distribution, those left over by rounding down to the outcomes that lost most."""
    exact = np.array(list(chances.values())) * shots / sum(chances.values())
    whole = np.floor(exact).astype(int)
    whole[np.argsort(whole - exact, kind="stable")[: shots - whole.sum()]] += 1
    return dict(zip(chances, whole.tolist(), strict=True))


def counted(outcome: Counts, shots: int) -> list[dict[int, int]]:
    """Counts for each row, where what was counted may be a table of relative frequencies."""
    if not isinstance(outcome, np.ndarray):
        return outcome
    return [{int(k): round(float(row[k]) * shots) for k in np.flatnonzero(row)} for row in outcome]


def counts_of(bits: Counts | BitArray) -> Counts:
    """A ``BitArray`` of shape ``(rows,)`` as a table or, for many qubits, as counts; what is counted, as it is."""
    if not isinstance(bits, BitArray):
        return bits
    read = bits.to_bool_array(order="little")
    if read.shape[-1] <= LARGEST_TABLE:
        size = 2 ** read.shape[-1]
        numbers = read.astype(np.int64) @ (1 << np.arange(read.shape[-1]))
        return np.stack([np.bincount(row, minlength=size) for row in numbers]) / read.shape[-2]
    found = []
    for row in np.packbits(read, axis=-1, bitorder="little"):
        states, times = np.unique(row, axis=0, return_counts=True)
        found.append({int.from_bytes(s.tobytes(), "little"): int(t) for s, t in zip(states, times, strict=True)})
    return found

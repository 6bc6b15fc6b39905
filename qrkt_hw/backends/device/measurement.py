"""What is measured: bases that terms share, values from outcome tables, readout errors and their mitigation.

Mitigation is mthree's: Nation, Kang, Sundaresan and Gambetta, PRX Quantum 2, 040326 (2021). mthree would submit its
calibration itself, past journal and budget; here it is two ordinary PUBs, which prepare all measured qubits of the
packed registers in 0 and in 1, so that a qubit is calibrated while its neighbours are read too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit

from qrkt_hw.ansatz import CircuitTemplate

Floats = NDArray[np.float64]
Counts = NDArray[np.float64] | list[dict[int, int]]  # (rows, 2^qubits) relative frequencies, or counts for each row
CALIBRATION_SHOTS = 16_384  # of each of the two calibration circuits


@dataclass(frozen=True, eq=False)
class Basis:  # one way of measuring all qubits
    letters: tuple[str, ...]  # per qubit ``X``, ``Y`` or ``Z``, qubit 0 first
    # ``(observable, coefficient, mask)``: the observable gains ``coefficient * (-1)^parity(outcome & mask)``
    terms: tuple[tuple[int, float, int], ...]

    def rotated(self, circuit: QuantumCircuit) -> QuantumCircuit:
        """A copy of ``circuit`` behind which measuring Z measures this basis."""
        rotated = circuit.copy()
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
    """Confusion matrices of single qubits of a device, learnt from calibration circuits, and what corrects counts."""

    def __init__(self, qubits: int) -> None:
        self.matrices: list[NDArray[np.float32] | None] = [None] * qubits
        self.ones: dict[tuple[int, int], float] = {}  # (qubit, prepared state) -> how often it is read as 1

    @property
    def known(self) -> set[int]:
        return {q for q, matrix in enumerate(self.matrices) if matrix is not None}

    def learn(self, state: int, qubits: Sequence[int], ones: Sequence[float]) -> None:
        """Take over how often qubits of the device were read as 1 where all of them were prepared in ``state``."""
        for qubit, share in zip(qubits, ones, strict=True):
            self.ones[qubit, state] = float(share)
            zero, one = self.ones.get((qubit, 0)), self.ones.get((qubit, 1))
            if zero is not None and one is not None:
                self.matrices[qubit] = np.array([[1 - zero, 1 - one], [zero, one]], dtype=np.float32)

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
        from mthree import M3Mitigation

        tool: Any = M3Mitigation()
        tool.num_qubits = len(self.matrices)
        tool.cals_from_matrices(self.matrices)
        width = len(qubits)
        texts = [{format(outcome, f"0{width}b"): count for outcome, count in one.items()} for one in counts]
        return tool.apply_correction(texts, list(qubits), distance=width if width <= 8 else None)

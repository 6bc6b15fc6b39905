"""What is measured: Pauli terms that can be read from the same shots, and values from outcome tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit

from qrkt_hw.ansatz import CircuitTemplate


@dataclass(frozen=True, eq=False)
class Basis:
    """One way of measuring all qubits.

    Attributes:
        letters: per qubit ``X``, ``Y`` or ``Z``, qubit 0 first.
        terms: ``(observable, coefficient, mask)``: the observable gains ``coefficient * (-1)^parity(outcome & mask)``.
    """

    letters: tuple[str, ...]
    terms: tuple[tuple[int, float, int], ...]

    def rotated(self, circuit: QuantumCircuit) -> QuantumCircuit:
        """A copy of ``circuit`` behind which measuring Z measures this basis."""
        turned = circuit.copy()
        for qubit, letter in enumerate(self.letters):
            if letter == "Y":
                turned.sdg(qubit)
            if letter in "XY":
                turned.h(qubit)
        return turned

    def signs(self, observables: int) -> NDArray[np.float64]:
        """``(observables, 2^n)``: what each outcome adds to each observable."""
        index = np.arange(2 ** len(self.letters))
        matrix = np.zeros((observables, len(index)))
        for row, coefficient, mask in self.terms:
            matrix[row] += coefficient * (1.0 - 2.0 * (np.bitwise_count(index & mask) & 1))
        return matrix


@lru_cache(maxsize=512)
def bases(template: CircuitTemplate) -> tuple[Basis, ...]:
    """The fewest bases a greedy search finds for all observables; one for Z observables."""
    found: list[tuple[dict[int, str], list[tuple[int, float, int]]]] = []
    for row, operator in enumerate(template.observables):
        for label, qubits, coefficient in operator.to_sparse_list():
            wanted = dict(zip(qubits, label, strict=True))
            mask = sum(1 << q for q in qubits)
            for letters, terms in found:  # noqa: B007 (both are used behind the loop)
                if all(letters.get(q, letter) == letter for q, letter in wanted.items()):
                    break
            else:
                letters, terms = {}, []
                found.append((letters, terms))
            letters.update(wanted)
            terms.append((row, float(coefficient.real), mask))
    return tuple(
        Basis(tuple(letters.get(q, "Z") for q in range(template.num_qubits)), tuple(terms)) for letters, terms in found
    )


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

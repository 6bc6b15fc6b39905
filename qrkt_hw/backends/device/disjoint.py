"""Choosing disjoint sets of qubits: as many as possible, and among as many the best.

Weighted set packing. Few sets are chosen exactly, by an integer programme (HiGHS, through SciPy). Many are chosen
greedily, and then by an iterated local search: a set that is not taken is forced in, those it excludes go, what fits
again is filled in, and the result is kept unless it is worse (Andrade, Resende and Werneck, J. Heuristics 18, 525,
2012). Efforts are counted in steps, not in seconds, so that the same chip gives the same choice on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

EXACT = 300  # sets up to which the choice is exact
STEPS = 700  # of the local search
WORK = 3e8  # its products in all: fewer steps where there are many sets
SEED = 5


def choose(
    member: NDArray[np.bool_], worth: NDArray[np.float64], distances: NDArray[np.float64], guard: int = 0
) -> list[int]:
    """Rows of sets that may be taken together, ascending.

    Args:
        member: ``(sets, qubits)``: which qubits a set holds; all hold equally many.
        worth: ``(sets,)`` in [0, 1]: decides between choices of equally many.
        distances: ``(qubits, qubits)`` on the chip, in couplings.
        guard: sets exclude each other up to this distance; 0: where they share a qubit.
    """
    if not len(member):
        return []
    near = (distances <= guard).astype(np.float32)
    search = _Search(member, worth, near, (distances == 1).astype(np.float32))
    gain = 1.0 + worth / (10.0 * len(distances))  # one set more always counts more than better ones
    starts = [search.fill([], bend) for bend in (0.0, 0.05, 0.3, 2.0)] + [search.sweep()]
    chosen = max(starts, key=lambda rows: float(gain[rows].sum()))
    if len(member) > EXACT:
        return sorted(search.improve(chosen, gain))
    pairs = [(int(a), int(b)) for a, b in zip(*np.nonzero(np.triu(near, 1)), strict=True)]
    exact = _exact(member, gain, pairs)
    return sorted(exact if gain[exact].sum() > gain[chosen].sum() else chosen)


class _Search:
    """Sets, the qubits they hold, those they forbid to others, and those beside them."""

    def __init__(
        self, member: NDArray[np.bool_], worth: NDArray[np.float64], near: NDArray[np.float32], beside: NDArray
    ) -> None:
        held = member.astype(np.float32)
        self.worth = worth
        self.qubits = np.nonzero(member)[1].reshape(len(member), -1)  # (sets, qubits of each), ascending
        self.touch = held @ near > 0
        self.rim = ((held @ beside > 0) & ~member).astype(np.float32)
        self.bound = int(member.any(0).sum()) // self.qubits.shape[1]
        self._excluded: dict[int, NDArray[np.bool_]] = {}

    def excluded(self, row: int) -> NDArray[np.bool_]:
        """``(sets,)``: which sets a set excludes, itself among them."""
        if row not in self._excluded:
            if len(self._excluded) > 2000:  # of 12,000 bytes each at most
                self._excluded.clear()
            self._excluded[row] = self.touch[row][self.qubits].any(1)
        return self._excluded[row]

    def fill(self, chosen: list[int], bend: float) -> list[int]:
        """Add what fits: each time the best set, less ``bend`` for every free qubit beside it."""
        chosen = list(chosen)
        free = np.ones(self.rim.shape[1], dtype=np.float32)
        fits = np.ones(len(self.worth), dtype=bool)
        for row in chosen:
            free[self.touch[row]] = 0
            fits &= ~self.excluded(row)
        rows = np.flatnonzero(fits)
        while len(rows):
            row = int(rows[(self.worth[rows] - bend * (self.rim[rows] @ free)).argmax()])
            chosen.append(row)
            free[self.touch[row]] = 0
            rows = rows[~self.touch[row][self.qubits[rows]].any(1)]
        return chosen

    def sweep(self) -> list[int]:
        """One set behind the other in the order of the qubits' numbers; on a lattice this tiles row by row."""
        chosen: list[int] = []
        rows = np.lexsort(self.qubits.T[::-1])
        while len(rows):
            chosen.append(int(rows[0]))
            rows = rows[~self.touch[rows[0]][self.qubits[rows]].any(1)]
        return chosen

    def improve(self, chosen: list[int], gain: NDArray[np.float64]) -> list[int]:
        """Local search; stops where as many sets are taken as there are qubits for."""
        rng = np.random.default_rng(SEED)
        best = current = chosen
        for _ in range(int(min(STEPS, WORK / self.rim.size))):
            if len(best) >= self.bound:
                break
            # how many of the chosen each set would push out; those that push out one or two lead on
            loss = np.array([self.excluded(row) for row in current]).sum(0)
            loss[current] = 0
            pool = np.flatnonzero((loss > 0) & (loss <= (1 if rng.random() < 0.7 else 2)))
            if not len(pool):
                pool = np.flatnonzero(loss > 0)
            if not len(pool):
                break
            row = int(rng.choice(pool))
            kept = [other for other in current if not self.excluded(row)[other]]
            found = self.fill([*kept, row], (0.0, 0.05, 0.3)[rng.integers(3)])
            if len(found) >= len(current):
                current = found
            if gain[found].sum() > gain[best].sum():
                best = found
        return best


def _exact(member: NDArray[np.bool_], gain: NDArray[np.float64], pairs: list[tuple[int, int]]) -> list[int]:
    """Of the sets that hold a qubit, or either of two qubits within the guard, one at most."""
    rows = [member[:, q] for q in range(member.shape[1])] + [member[:, a] | member[:, b] for a, b in pairs]
    found = milp(
        -gain,
        integrality=np.ones(len(gain)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(sparse.csr_matrix(np.array(rows, dtype=float)), -np.inf, 1),
        options={"node_limit": 100, "mip_rel_gap": 1e-4},
    )
    return [] if found.x is None else [int(row) for row in np.flatnonzero(found.x > 0.5)]

"""Where disjoint replicas of a transpiled circuit fit on a chip, ranked by their errors.

A replica is the same ISA circuit on other qubits, coupled there as its gates need. Every layout is listed
(:func:`embeddings`), those on dead couplings, on badly read qubits or much worse than the best are dropped, and of the
others as many disjoint ones as possible are taken (:func:`choose`). Efforts are counted in steps, not in seconds, so
that the same chip gives the same layout on every machine.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit

from qrkt_hw.backends.device.transpile import IGNORED, active_qubits, couplings, failure, qubits_of

if TYPE_CHECKING:  # scipy.optimize takes a third of a second: only where replicas are placed
    from scipy.optimize import LinearConstraint

DEAD = 0.1  # error of a two-qubit gate from which a coupling is not used
UNREADABLE = 0.2  # error of a readout from which a qubit is not used
MIN_FIDELITY = 0.5  # share of the best replica's ESP
CANDIDATES = 12_000  # layouts among which is chosen
PARTIAL = 120_000  # partial layouts that are continued
EXACT = 300  # sets up to which disjoint ones are chosen exactly
STEPS = 700  # of the local search
WORK = 3e8  # its products in all: fewer steps where there are many sets
SYMMETRIC = ("cz", "swap", "rzz", "rxx", "ryy", "iswap")  # the same with its qubits exchanged

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Places = NDArray[np.int64]  # rows of qubits


@dataclass(frozen=True)
class Replica:  # one place for a circuit
    physical: tuple[int, ...]  # the device's qubits, in the order of the circuit's own active qubits, ascending
    success: float  # estimated success probability there


class Chip:
    """A device's target as arrays."""

    def __init__(self, target: Any) -> None:
        from scipy.sparse.csgraph import shortest_path

        size = self.size = target.num_qubits
        # ``(size, size)``: ``-log(1 - error)`` of the best two-qubit gate in either direction, and where there is one
        self.couplings = np.full((size, size), np.inf)
        for name in target.operation_names:
            for a, b in (qubits for qubits in target[name] or {} if qubits is not None and len(qubits) == 2):
                cost = min(self.couplings[a, b], failure(target, name, (a, b)))
                self.couplings[a, b] = self.couplings[b, a] = cost
        self.coupled = np.isfinite(self.couplings)
        self.reading = np.array([failure(target, "measure", [q]) for q in range(size)])  # the same of the measurement
        self.distances = shortest_path(self.coupled.astype(float), directed=False, unweighted=True)  # in couplings


def place_replicas(
    isa: QuantumCircuit, target: Any, *, min_fidelity: float = MIN_FIDELITY, spacing: int = 0
) -> list[Replica]:
    """Disjoint replicas of an ISA circuit on its device, best first; the circuit's own place need not be among them.

    ``min_fidelity`` is the share of the best replica's ESP that a replica needs. 0 asks for the capacity: nothing is
    left out, dead couplings and bad readout neither. ``spacing`` is how many couplings between two replicas stay
    unused: 0 lets them touch, 1 keeps a coupling from joining two, 2 keeps a qubit between them.
    """
    active = active_qubits(isa)
    if not active:
        return []
    chip = Chip(target)
    place = {qubit: k for k, qubit in enumerate(active)}
    everything = min_fidelity <= 0
    allowed = chip.coupled & (everything | (chip.couplings < -math.log1p(-DEAD)))
    usable = everything | (chip.reading < -math.log1p(-UNREADABLE))
    maps = embeddings(len(active), [(place[a], place[b]) for a, b in couplings(isa)], allowed, usable)
    costs = _costs(isa, place, maps, target)
    maps, costs = _cheapest_of_each_set(maps[np.isfinite(costs)], costs[np.isfinite(costs)])
    if not len(maps):
        return []
    chances = np.exp(-costs)
    kept = np.flatnonzero(chances >= min_fidelity * chances[0])
    if len(kept) > CANDIDATES:  # the better half of what is looked at, and a share of the others all over the chip
        others = np.random.default_rng(len(kept)).choice(kept[CANDIDATES // 2 :], CANDIDATES // 2, replace=False)
        kept = np.concatenate([kept[: CANDIDATES // 2], np.sort(others)])
    member = np.zeros((len(kept), chip.size), dtype=bool)
    member[np.arange(len(kept))[:, None], maps[kept]] = True
    rows = kept[choose(member, chances[kept], chip.distances, spacing)]
    found = [Replica(tuple(int(q) for q in maps[row]), float(chances[row])) for row in rows]
    return sorted(found, key=lambda replica: (-replica.success, replica.physical))


def directed(target: Any, name: str, qubits: tuple[int, ...]) -> tuple[int, ...]:
    """The order in which the device has a gate; symmetric gates may be turned round. Raises ValueError: it has none."""
    entries = target[name] if name in target.operation_names else {}
    if entries is None or None in (entries or {}) or qubits in entries:
        return qubits
    if name in SYMMETRIC and qubits[::-1] in entries:
        return qubits[::-1]
    raise ValueError(f"no {name} on qubits {qubits}")


def _costs(isa: QuantumCircuit, place: dict[int, int], maps: Places, target: Any) -> Floats:
    """``-log(ESP)`` of every layout; infinite where a gate does not exist."""
    gates = [i for i in isa.data if i.operation.name not in IGNORED]
    counts = Counter((i.operation.name, tuple(place[q] for q in qubits_of(isa, i))) for i in gates)
    tables = {(name, width): _table(name, width, target) for name, width in {(n, len(own)) for n, own in counts}}
    total = np.zeros(len(maps))
    for (name, own), count in counts.items():
        total += count * tables[name, len(own)][tuple(maps[:, k] for k in own)]
    return total


def _table(name: str, width: int, target: Any) -> Floats:
    """``-log(1 - error)`` of a gate on all qubits of a device, one axis for each qubit it takes."""
    entries = target[name]
    if not entries or None in entries:
        return np.zeros((target.num_qubits,) * width)  # on all qubits, without errors
    table = np.full((target.num_qubits,) * width, np.inf)
    for qubits in entries:
        table[qubits] = failure(target, name, qubits)
        if width == 2 and name in SYMMETRIC and qubits[::-1] not in entries:
            table[qubits[::-1]] = table[qubits]
    return table


def _cheapest_of_each_set(maps: Places, costs: Floats) -> tuple[Places, Floats]:
    """Of layouts on the same qubits the best; all by ascending cost."""
    order = np.argsort(costs, kind="stable")
    maps, costs = maps[order], costs[order]
    held = np.sort(maps, axis=1)
    base = int(maps.max(initial=0)) + 1
    if base ** maps.shape[1] < 2**63:  # a set as one number: many times faster to compare than rows
        held = held @ base ** np.arange(maps.shape[1], dtype=np.int64)
    _, first = np.unique(held, axis=0, return_index=True)
    first.sort()
    return maps[first], costs[first]


def embeddings(width: int, pairs: Sequence[tuple[int, int]], allowed: Mask, usable: Mask) -> Places:
    """``(layouts, width)``: the chip's qubit for each of the circuit's.

    The circuit's qubits are placed one after another, each beside one that is placed already; all partial layouts are
    rows of one array. Where they become too many, an even random share is continued, so that what is found covers the
    chip. ``pairs`` are those of the circuit's ``width`` qubits that are coupled, each once; ``allowed`` ``(qubits,
    qubits)``, symmetric, are the chip's couplings that may be used, ``usable`` ``(qubits,)`` its qubits.
    """
    if width == 0:
        return np.zeros((0, 0), dtype=np.int64)
    rng = np.random.default_rng(11)
    near = [{b for pair in pairs if a in pair for b in pair if b != a} for a in range(width)]
    reach = allowed & usable[:, None] & usable[None, :]
    degrees = reach.sum(1)
    neighbours = np.full((len(reach), max(1, int(degrees.max(initial=0)))), -1, dtype=np.int64)
    for qubit, row in enumerate(reach):
        neighbours[qubit, : degrees[qubit]] = np.flatnonzero(row)
    rows = np.full((1, width), -1, dtype=np.int64)
    for vertex in _order(near):
        placed = [other for other in near[vertex] if rows.size and rows[0, other] >= 0]
        every = np.broadcast_to(np.flatnonzero(usable), (len(rows), int(usable.sum())))
        options = neighbours[rows[:, placed[0]]] if placed else every
        which, column = np.nonzero(options >= 0)
        choice = options[which, column]
        fits = (rows[which] != choice[:, None]).all(1) & (degrees[choice] >= len(near[vertex]))
        for other in placed[1:]:
            fits &= reach[rows[which, other], choice]
        which, choice = which[fits], choice[fits]
        if len(which) > PARTIAL:
            share = np.sort(rng.choice(len(which), PARTIAL, replace=False))
            which, choice = which[share], choice[share]
        rows = rows[which]
        rows[:, vertex] = choice
        if not len(rows):
            break
    return rows


def _order(near: Sequence[set[int]]) -> list[int]:
    """Each vertex behind a neighbour where its component has one; those with most placed neighbours first."""
    order: list[int] = []
    left = set(range(len(near)))
    while left:
        placed = set(order)
        order.append(max(left, key=lambda v: (len(near[v] & placed), len(near[v]), -v)))
        left.remove(order[-1])
    return order


def choose(member: Mask, worth: Floats, distances: Floats, spacing: int = 0) -> list[int]:
    """Rows of disjoint sets, ascending: as many as possible, and among as many the best (weighted set packing).

    Few sets are chosen exactly, by an integer programme (HiGHS, through SciPy). Many are chosen greedily, and then by
    an iterated local search: a set that is not taken is forced in, those it excludes go, what fits again is filled in,
    and the result is kept unless it is worse (Andrade, Resende and Werneck, J. Heuristics 18, 525, 2012).

    ``member`` ``(sets, qubits)`` says which qubits a set holds, and all hold equally many; ``worth`` ``(sets,)`` in
    [0, 1] decides between choices of equally many. Sets exclude each other where their qubits have at most ``spacing``
    couplings between them by ``distances`` ``(qubits, qubits)``; 0: where they share a qubit.
    """
    if not len(member):
        return []
    near = distances <= spacing
    search = _Search(member, worth, near.astype(np.float32), (distances == 1).astype(np.float32))
    gain = 1.0 + worth / (10.0 * len(distances))  # one set more always counts more than better ones
    starts = [search.fill([], bend) for bend in (0.0, 0.05, 0.3, 2.0)] + [search.sweep()]
    chosen = max(starts, key=lambda rows: float(gain[rows].sum()))
    if len(member) > EXACT:
        return sorted(search.improve(chosen, gain))
    exact = solved(-gain, [at_most_one(member, near)], node_limit=100, mip_rel_gap=1e-4) or []
    return sorted(exact if gain[exact].sum() > gain[chosen].sum() else chosen)


class _Search:
    """Sets, the qubits they hold, those they forbid to others, and those beside them."""

    def __init__(self, member: Mask, worth: Floats, near: NDArray, beside: NDArray) -> None:
        held = member.astype(np.float32)
        self.worth = worth
        self.qubits = np.nonzero(member)[1].reshape(len(member), -1)  # (sets, qubits of each), ascending
        self.touch = held @ near > 0
        self.rim = ((held @ beside > 0) & ~member).astype(np.float32)
        self.bound = int(member.any(0).sum()) // self.qubits.shape[1]
        self._excluded: dict[int, Mask] = {}

    def excluded(self, row: int) -> Mask:
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

    def improve(self, chosen: list[int], gain: Floats) -> list[int]:
        """Local search; stops where as many sets are taken as there are qubits for."""
        rng = np.random.default_rng(5)
        best = current = chosen
        for _ in range(int(min(STEPS, WORK / self.rim.size))):
            if len(best) >= self.bound:
                break
            # how many of the chosen each set would push out; those that push out one or two lead on
            loss = np.array([self.excluded(row) for row in current]).sum(0)
            loss[current] = 0
            few = np.flatnonzero((loss > 0) & (loss <= (1 if rng.random() < 0.7 else 2)))
            pool = few if len(few) else np.flatnonzero(loss > 0)
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


def at_most_one(member: Mask, near: Mask) -> "LinearConstraint":
    """Of the sets that hold a qubit, or either of two qubits that are near each other, one at most."""
    from scipy import sparse
    from scipy.optimize import LinearConstraint

    pairs = zip(*np.nonzero(np.triu(near, 1)), strict=True)
    rows = [*member.T, *(member[:, a] | member[:, b] for a, b in pairs)]
    return LinearConstraint(sparse.csr_matrix(np.array(rows, dtype=float)), -np.inf, 1)


def solved(costs: Floats, constraints: "list[LinearConstraint]", **options: float) -> list[int] | None:
    """The cheapest choice that meets the constraints, ascending; None where there is none."""
    from scipy.optimize import Bounds, milp

    found = milp(costs, integrality=np.ones(len(costs)), bounds=Bounds(0, 1), constraints=constraints, options=options)
    return None if found.x is None else [int(row) for row in np.flatnonzero(found.x > 0.5)]

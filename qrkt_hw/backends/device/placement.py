"""Where disjoint copies of a transpiled circuit fit on a chip, ranked by their errors.

A copy is the same ISA circuit on other qubits: the pairs it couples must be coupled there, in the direction its gates
need. Dead couplings and qubits that are read badly are never used, copies much worse than the best are dropped, and of
what is left as many disjoint copies as possible are taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit

from qrkt_hw.backends.device.calibration import IGNORED, failure
from qrkt_hw.backends.device.disjoint import choose
from qrkt_hw.backends.device.embedding import embeddings

DEAD = 0.1  # error of a two-qubit gate from which a coupling is not used
UNREADABLE = 0.2  # error of a readout from which a qubit is not used
QUALITY = 0.5  # share of the best copy's success probability
CANDIDATES = 12_000  # layouts among which is chosen
SYMMETRIC = ("cz", "swap", "rzz", "rxx", "ryy", "iswap")  # the same with its qubits exchanged


@dataclass(frozen=True)
class Copy:
    """One place for a circuit.

    Attributes:
        physical: the device's qubits, in the order of the circuit's own active qubits, ascending.
        success: estimated success probability there.
    """

    physical: tuple[int, ...]
    success: float


def active_qubits(isa: QuantumCircuit) -> tuple[int, ...]:
    """Physical qubits that a transpiled circuit acts on or measures, ascending."""
    found = {isa.find_bit(q).index for i in isa.data if i.operation.name not in IGNORED for q in i.qubits}
    return tuple(sorted(found))


def couplings(isa: QuantumCircuit) -> list[tuple[int, int]]:
    """Pairs of physical qubits joined by two-qubit gates, each once, ascending."""
    pairs = {
        tuple(sorted(isa.find_bit(q).index for q in i.qubits))
        for i in isa.data
        if len(i.qubits) == 2 and i.operation.name not in IGNORED
    }
    return sorted((a, b) for a, b in pairs)


def place_copies(isa: QuantumCircuit, target: Any, *, quality: float = QUALITY, guard: int = 0) -> list[Copy]:
    """Disjoint copies of an ISA circuit on its device, best first; the circuit's own place need not be among them.

    Args:
        isa: transpiled to ``target``; measurements count where it has them.
        target: the device.
        quality: the share of the best copy's success probability that a copy needs. 0 asks for the capacity: nothing
            is left out, dead couplings and bad readout neither.
        guard: couplings between two copies that stay unused: 0 lets them touch, 1 keeps a coupling from joining two
            copies, 2 keeps a qubit between them.
    """
    active = active_qubits(isa)
    if not active:
        return []
    chip = Chip.of(target)
    place = {qubit: k for k, qubit in enumerate(active)}
    pairs = [(place[a], place[b]) for a, b in couplings(isa)]
    allowed, usable = chip.coupled, np.ones(chip.size, dtype=bool)
    if quality > 0:
        allowed = chip.coupled & (chip.couplings < -math.log1p(-DEAD))
        usable = chip.reading < -math.log1p(-UNREADABLE)
    maps = embeddings(len(active), pairs, allowed, usable)
    counts = _counts(isa, place)
    costs = _costs(counts, maps, target)
    maps, costs = maps[np.isfinite(costs)], costs[np.isfinite(costs)]
    maps, costs = _cheapest_of_each_set(maps, costs)
    if not len(maps):
        return []
    chances = np.exp(-costs)
    kept = np.flatnonzero(chances >= quality * chances[0])
    if len(kept) > CANDIDATES:  # the better half of what is looked at, and a share of the others all over the chip
        others = np.random.default_rng(len(kept)).choice(kept[CANDIDATES // 2 :], CANDIDATES // 2, replace=False)
        kept = np.concatenate([kept[: CANDIDATES // 2], np.sort(others)])
    member = np.zeros((len(kept), chip.size), dtype=bool)
    member[np.arange(len(kept))[:, None], maps[kept]] = True
    rows = kept[choose(member, chances[kept], chip.distances, guard)]
    found = [Copy(tuple(int(q) for q in maps[row]), float(chances[row])) for row in rows]
    return sorted(found, key=lambda copy: (-copy.success, copy.physical))


@dataclass(frozen=True, eq=False)
class Chip:
    """A device as arrays.

    Attributes:
        size: qubits.
        coupled: ``(size, size)``: where a two-qubit gate exists in either direction.
        couplings: ``(size, size)``: ``-log(1 - error)`` of the best two-qubit gate there.
        reading: ``(size,)``: the same of the measurement.
        distances: ``(size, size)`` in couplings.
    """

    size: int
    coupled: NDArray[np.bool_]
    couplings: NDArray[np.float64]
    reading: NDArray[np.float64]
    distances: NDArray[np.float64]

    @classmethod
    def of(cls, target: Any) -> Chip:
        """The chip behind a target."""
        size = target.num_qubits
        costs = np.full((size, size), np.inf)
        for name in target.operation_names:
            for qubits in target[name] or {}:
                if qubits is not None and len(qubits) == 2:
                    a, b = qubits
                    costs[a, b] = costs[b, a] = min(costs[a, b], failure(target, name, qubits))
        coupled = np.isfinite(costs)
        reading = np.array([failure(target, "measure", [q]) for q in range(size)])
        return cls(size, coupled, costs, reading, _distances(coupled))


def _distances(coupled: NDArray[np.bool_]) -> NDArray[np.float64]:
    from scipy.sparse.csgraph import shortest_path

    return shortest_path(coupled.astype(float), directed=False, unweighted=True)


def _counts(isa: QuantumCircuit, place: dict[int, int]) -> dict[tuple[str, tuple[int, ...]], int]:
    counts: dict[tuple[str, tuple[int, ...]], int] = {}
    for instruction in isa.data:
        if instruction.operation.name not in IGNORED:
            key = (instruction.operation.name, tuple(place[isa.find_bit(q).index] for q in instruction.qubits))
            counts[key] = counts.get(key, 0) + 1
    return counts


def _costs(counts: dict[tuple[str, tuple[int, ...]], int], maps: NDArray[np.int64], target: Any) -> NDArray[np.float64]:
    """``-log(success)`` of every layout; infinite where a gate does not exist."""
    tables: dict[tuple[str, int], NDArray[np.float64]] = {}
    total = np.zeros(len(maps))
    for (name, own), count in counts.items():
        if (name, len(own)) not in tables:
            tables[(name, len(own))] = _table(name, len(own), target)
        total += count * tables[(name, len(own))][tuple(maps[:, k] for k in own)]
    return total


def _table(name: str, width: int, target: Any) -> NDArray[np.float64]:
    entries = target[name]
    if not entries or None in entries:
        return np.zeros((target.num_qubits,) * width)  # on all qubits, without errors
    table = np.full((target.num_qubits,) * width, np.inf)
    for qubits in entries:
        table[qubits] = failure(target, name, qubits)
        if width == 2 and name in SYMMETRIC and qubits[::-1] not in entries:
            table[qubits[::-1]] = table[qubits]
    return table


def _cheapest_of_each_set(
    maps: NDArray[np.int64], costs: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
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


def directed(target: Any, name: str, qubits: tuple[int, ...]) -> tuple[int, ...]:
    """The order of qubits in which the device has a gate; symmetric gates may be turned round.

    Raises:
        ValueError: the device has no such gate there.
    """
    entries = target[name] if name in target.operation_names else {}
    if entries is None or None in (entries or {}) or qubits in entries:
        return qubits
    if name in SYMMETRIC and qubits[::-1] in entries:
        return qubits[::-1]
    raise ValueError(f"no {name} on qubits {qubits}")

"""Where disjoint copies of a transpiled circuit fit on a chip, ranked by their errors.

A copy is the same ISA circuit on other qubits: the pairs it couples must be coupled there. Copies that fit are found as
subgraphs of the coupling map (VF2, in rustworkx); then they are taken greedily: in one attempt the best by calibration
first, in others those that leave the fewest free neighbours behind, and the attempt with the most good copies is kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rustworkx as rx
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit

from qrkt_hw.execution.calibration import IGNORED, failure

GOOD = 0.5  # share of the best copy's success probability
LARGEST_SEARCH = 24_000  # embeddings that are looked at at once
SMALL = 8  # qubits; larger circuits are searched in smaller portions


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
    found = {
        isa.find_bit(q).index for i in isa.data if i.operation.name not in IGNORED for q in i.qubits
    }  # fmt: skip
    return tuple(sorted(found))


def couplings(isa: QuantumCircuit) -> list[tuple[int, int]]:
    """Pairs of physical qubits joined by two-qubit gates, each once, ascending."""
    pairs = {
        tuple(sorted(isa.find_bit(q).index for q in i.qubits))
        for i in isa.data
        if len(i.qubits) == 2 and i.operation.name not in IGNORED
    }
    return sorted((a, b) for a, b in pairs)


def place_copies(isa: QuantumCircuit, target: Any, most: int | None = None) -> list[Copy]:
    """Disjoint copies of an ISA circuit on its device, best first; the circuit's own place need not be among them.

    Args:
        isa: transpiled to ``target``.
        target: the device.
        most: stop at so many.
    """
    active, pairs = active_qubits(isa), couplings(isa)
    device = device_graph(target)
    if not active:
        return []
    limit = LARGEST_SEARCH if len(active) <= SMALL else LARGEST_SEARCH // 4
    found: list[Copy] = []
    free = list(range(len(device)))
    while len(free) >= len(active):
        maps = _embeddings(active, pairs, device, free, limit)
        if not len(maps):
            break
        costs = _costs(isa, active, maps, target)
        attempts = [_greedy(maps, costs, device, compact) for compact in (0.0, 0.02, 0.1, 1.0, 10.0)]
        best = max(attempts, key=lambda rows: _worth(costs[rows]))
        found += [Copy(tuple(int(q) for q in maps[row]), math.exp(-costs[row])) for row in best]
        if len(maps) < limit:
            break  # all were seen; else go on where qubits are left
        free = sorted(set(free) - {q for copy in found for q in copy.physical})
    return sorted(found, key=lambda copy: -copy.success)[:most]


def good_copies(copies: Sequence[Copy]) -> list[Copy]:
    """Copies with at least half the success probability of the best."""
    return [copy for copy in copies if copy.success >= GOOD * copies[0].success]


def device_graph(target: Any) -> rx.PyGraph:
    """The chip: a node per qubit, an edge where a two-qubit gate exists in either direction."""
    graph: rx.PyGraph = rx.PyGraph(multigraph=False)
    graph.add_nodes_from(range(target.num_qubits))
    for name in target.operation_names:
        entries = target[name]
        for qubits in entries or {}:
            if qubits is not None and len(qubits) == 2:
                graph.add_edge(qubits[0], qubits[1], None)
    return graph


def _embeddings(
    active: Sequence[int], pairs: Sequence[tuple[int, int]], device: rx.PyGraph, free: Sequence[int], limit: int
) -> NDArray[np.int64]:
    """``(embeddings, active qubits)``: every way (up to a limit) to lay the circuit's couplings on free qubits."""
    place = {qubit: k for k, qubit in enumerate(active)}
    pattern: rx.PyGraph = rx.PyGraph(multigraph=False)
    pattern.add_nodes_from(range(len(active)))
    pattern.add_edges_from([(place[a], place[b], None) for a, b in pairs])
    if not pairs:
        size = len(active)
        return np.array([free[k : k + size] for k in range(0, len(free) - size + 1, size)])
    rows = []
    for mapping in itertools.islice(
        rx.vf2_mapping(device.subgraph(list(free)), pattern, subgraph=True, induced=False), limit
    ):
        row = [0] * len(active)
        for physical, own in mapping.items():
            row[own] = free[physical]
        rows.append(row)
    return np.array(rows, dtype=np.int64).reshape(-1, len(active))


def _costs(isa: QuantumCircuit, active: Sequence[int], maps: NDArray[np.int64], target: Any) -> NDArray[np.float64]:
    """``-log(success)`` of every embedding."""
    place = {qubit: k for k, qubit in enumerate(active)}
    counts: dict[tuple[str, tuple[int, ...]], int] = {}
    for instruction in isa.data:
        if instruction.operation.name not in IGNORED:
            key = (instruction.operation.name, tuple(place[isa.find_bit(q).index] for q in instruction.qubits))
            counts[key] = counts.get(key, 0) + 1
    size = target.num_qubits
    tables: dict[tuple[str, int], NDArray[np.float64]] = {}
    total = np.zeros(len(maps))
    for (name, own), count in counts.items():
        if (name, len(own)) not in tables:
            tables[(name, len(own))] = _table(name, len(own), size, target)
        total += count * tables[(name, len(own))][tuple(maps[:, k] for k in own)]
    return total


def _table(name: str, width: int, size: int, target: Any) -> NDArray[np.float64]:
    table = np.zeros((size,) * width)
    for qubits in target[name] or {}:
        if qubits is None or len(qubits) != width:
            continue
        table[qubits] = failure(target, name, qubits)
        if width == 2 and qubits[::-1] not in target[name]:
            table[qubits[::-1]] = table[qubits]  # the other direction takes the same two-qubit gate
    return table


def _greedy(maps: NDArray[np.int64], costs: NDArray[np.float64], device: rx.PyGraph, compact: float) -> list[int]:
    """Rows of disjoint embeddings: each time that of least cost plus ``compact`` for every free neighbour it leaves."""
    size = len(device)
    adjacent = np.zeros((size, size), dtype=np.float32)
    for a, b in device.edge_list():
        adjacent[a, b] = adjacent[b, a] = 1
    member = np.zeros((len(maps), size), dtype=np.float32)
    member[np.arange(len(maps))[:, None], maps] = 1
    free = np.ones(size, dtype=np.float32)
    alive = np.ones(len(maps), dtype=bool)
    beside = (member @ adjacent > 0) & (member == 0) if compact else None
    chosen: list[int] = []
    while alive.any():
        score = costs.copy()
        if beside is not None:
            score = score + compact * (beside @ free)
        score[~alive] = np.inf
        row = int(score.argmin())
        chosen.append(row)
        free[maps[row]] = 0
        alive &= member[:, maps[row]].sum(1) == 0
    return chosen


def _worth(costs: NDArray[np.float64]) -> tuple[int, int, float]:
    """How good a set of copies is: how many are good, how many there are, and their mean success."""
    chances = np.exp(-costs)
    return int((chances >= GOOD * chances.max()).sum()), len(costs), float(chances.mean())

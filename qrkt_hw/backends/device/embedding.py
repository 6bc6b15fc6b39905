"""Every way to lay a small circuit's couplings on a chip, found for all of them at once.

The circuit's qubits are placed one after another, each beside one that is placed already; all partial layouts are kept
as rows of one array. Where they become too many, an even random share goes on, so that what is found covers the chip.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LARGEST = 120_000  # partial layouts that go on
SEED = 11


def embeddings(
    width: int, pairs: Sequence[tuple[int, int]], allowed: NDArray[np.bool_], usable: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """``(layouts, width)``: the chip's qubit for each of the circuit's.

    Args:
        width: qubits of the circuit.
        pairs: which of them are coupled, each once.
        allowed: ``(qubits, qubits)``, symmetric: where the chip has a coupling that may be used.
        usable: ``(qubits,)``: which of the chip's qubits may be used.
    """
    if width == 0:
        return np.zeros((0, 0), dtype=np.int64)
    rng = np.random.default_rng(SEED)
    near: list[set[int]] = [set() for _ in range(width)]
    for a, b in pairs:
        near[a].add(b)
        near[b].add(a)
    order = _order(near)
    reach = allowed & usable[:, None] & usable[None, :]
    degrees = reach.sum(1)
    lists = np.full((len(reach), max(1, int(degrees.max(initial=0)))), -1, dtype=np.int64)
    for qubit, row in enumerate(reach):
        lists[qubit, : degrees[qubit]] = np.flatnonzero(row)
    rows = np.full((1, width), -1, dtype=np.int64)
    for vertex in order:
        placed = [other for other in near[vertex] if rows.size and rows[0, other] >= 0]
        if placed:
            options = lists[rows[:, placed[0]]]
        else:
            options = np.broadcast_to(np.flatnonzero(usable), (len(rows), int(usable.sum())))
        which, column = np.nonzero(options >= 0)
        choice = options[which, column]
        fits = (rows[which] != choice[:, None]).all(1) & (degrees[choice] >= len(near[vertex]))
        for other in placed[1:]:
            fits &= reach[rows[which, other], choice]
        which, choice = which[fits], choice[fits]
        if len(which) > LARGEST:
            share = np.sort(rng.choice(len(which), LARGEST, replace=False))
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

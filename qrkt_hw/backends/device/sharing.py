"""Which copies a round's circuits use, and how many executions that takes. Known before anything is built or run."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

Key = TypeVar("Key", bound=Hashable)
TRIES = 24


@dataclass(frozen=True)
class Share:
    """Circuits that run side by side.

    Attributes:
        executions: how often the chip runs, shots aside.
        copies: ``(kind, place of the copy in that kind's list)``, in the order of their registers.
    """

    executions: int
    copies: tuple[tuple[Hashable, int], ...]


def share(
    counts: Mapping[Key, int], copies: Mapping[Key, Sequence[tuple[int, ...]]], near: NDArray[np.bool_] | None = None
) -> list[Share]:
    """As few executions as the copies allow.

    Args:
        counts: for each kind of circuit how many parameter sets it is run for.
        copies: for each kind the qubits of its disjoint copies, best first.
        near: ``(qubits, qubits)``: which qubits may not be used by two copies at once, the diagonal included; None:
            only the same.

    Returns:
        One share a kind, or, where that saves executions, one share for all kinds: then copies of different kinds
        stand side by side on the chip.
    """
    kinds = [kind for kind, count in counts.items() if count]
    apart = [_alone(kind, counts[kind], len(copies[kind])) for kind in kinds]
    total = sum(one.executions for one in apart)
    if len(kinds) < 2 or total < 2:
        return apart
    low = max(max(one.executions for one in apart), -(-sum(counts[k] * 1000 // len(copies[k]) for k in kinds) // 1000))
    for executions in list(range(low, total))[:TRIES]:
        wanted = {kind: -(-counts[kind] // executions) for kind in kinds}
        found = _together(wanted, copies, near)
        if found is not None:
            return [Share(executions, tuple(found))]
    return apart


def _alone(kind: Hashable, count: int, copies: int) -> Share:
    executions = -(-count // copies)
    used = -(-count // executions)
    return Share(executions, tuple((kind, place) for place in range(used)))


def _together(
    wanted: Mapping[Key, int], copies: Mapping[Key, Sequence[tuple[int, ...]]], near: NDArray[np.bool_] | None
) -> list[tuple[Hashable, int]] | None:
    """So many copies of each kind, none in another's way, better ones first; None where they do not fit."""
    listed = [(kind, place) for kind in wanted for place in range(len(copies[kind]))]
    size = 1 + max(q for kind in wanted for physical in copies[kind] for q in physical)
    size = size if near is None else len(near)
    held = np.zeros((len(listed), size), dtype=bool)
    for row, (kind, place) in enumerate(listed):
        held[row, list(copies[kind][place])] = True
    cliques = [held[:, q] for q in range(size)]
    if near is not None:
        cliques += [held[:, a] | held[:, b] for a, b in zip(*np.nonzero(np.triu(near, 1)), strict=True)]
    kinds = np.array([[row_kind == kind for row_kind, _ in listed] for kind in wanted], dtype=float)
    exactly = np.array([wanted[kind] for kind in wanted], dtype=float)
    found = milp(
        np.array([1.0 + 0.01 * place for _, place in listed]),
        integrality=np.ones(len(listed)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(np.array(cliques, dtype=float), -np.inf, 1),
            LinearConstraint(kinds, exactly, exactly),
        ],
        options={"node_limit": 200},
    )
    if found.x is None:
        return None
    return [listed[row] for row in np.flatnonzero(found.x > 0.5)]

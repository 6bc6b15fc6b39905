"""The contract every backend keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qrkt_hw.circuits.template import CircuitTemplate


@dataclass(frozen=True, eq=False)
class Call:
    """One template to be evaluated for many parameter values.

    Attributes:
        template: the circuit and its observables.
        values: float64 ``(..., inputs + weights)``, in the order of ``template.parameters``; bound by Parameter.
        tag: what the call is for, such as ``blocks.0.query``; shows in progress, journals and reports.
    """

    template: CircuitTemplate
    values: NDArray[np.float64]
    tag: str = ""

    def __post_init__(self) -> None:
        wanted = self.template.num_inputs + self.template.num_weights
        if self.values.ndim < 1 or self.values.shape[-1] != wanted:
            raise ValueError(f"values must be (..., {wanted}), not {self.values.shape}")

    @property
    def samples(self) -> int:
        """How many parameter sets are evaluated."""
        return int(np.prod(self.values.shape[:-1], dtype=np.int64))


@dataclass
class Counters:
    """What a backend has done since it was made: counted where it happens.

    Attributes:
        rounds: calls of :meth:`Backend.run`; each waits for the one before it.
        circuits: parameter sets evaluated.
        executions: circuits x shots on a device; 0 without sampling.
        seconds: wall time spent inside the backend.
    """

    rounds: int = 0
    circuits: int = 0
    executions: int = 0
    seconds: float = 0.0


class Backend(ABC):
    """Evaluates templates somewhere.

    Attributes:
        name: its name in ``backends.yaml``.
        shots: samples per circuit; None where values are exact.
        differentiable: the torch simulator computes exactly the same values, so layers go straight through it.
        target: what to transpile to; None where no transpilation is needed.
        counters: circuits, executions, rounds and seconds so far.
    """

    name: str
    shots: int | None = None
    differentiable: bool = False
    target: Any = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.counters = Counters()

    @abstractmethod
    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        """Expectation values of each call, float64 ``(..., observables)``.

        Calls given together are independent of each other: a backend may pack, submit and await them together.
        """

    @contextmanager
    def open(
        self, journal: Any = None, budget: Any = None, progress: Callable[[str], None] | None = None
    ) -> Iterator[Backend]:
        """Hold what a run of many rounds needs (session, limits); here nothing is needed."""
        yield self


@dataclass
class Description:
    """How a backend is shown in a listing."""

    name: str
    kind: str
    qubits: int | None = None
    shots: int | None = None
    available: bool = True
    remark: str = field(default="")

"""The contract every backend keeps."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qrkt_hw.ansatz import CircuitTemplate, by_angles
from qrkt_hw.backends.entries import Gradient
from qrkt_hw.errors import in_words


class TensorFunction(Protocol):
    """A template on tensors: ``(..., groups, inputs)`` and ``(groups, weights)`` to ``(..., groups, values)``."""

    @property
    def method(self) -> Any: ...

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Call:
    """One template to be evaluated for many parameter values."""

    template: CircuitTemplate  # the circuit and its observables; of a unary encoding, by its angles
    # float64 ``(..., inputs + weights)``, in the order of ``template.parameters``; bound by Parameter
    values: NDArray[np.float64]
    tag: str = ""  # what the call is for, such as ``blocks.0.query``; shows in progress, journals and reports
    shots: int | None = None  # samples of each circuit on a device; None for the device's own number

    def __post_init__(self) -> None:
        object.__setattr__(self, "template", by_angles(self.template))
        wanted = self.template.num_inputs + self.template.num_weights
        if self.values.ndim < 1 or self.values.shape[-1] != wanted:
            raise ValueError(f"values must be (..., {wanted}), not {self.values.shape}")

    @property
    def samples(self) -> int:
        return int(np.prod(self.values.shape[:-1], dtype=np.int64))


@dataclass
class Counters:
    """What a backend has done since it was made: counted where it happens."""

    rounds: int = 0  # calls of :meth:`Backend.run`; each waits for the one before it
    circuits: int = 0  # circuits evaluated: parameter sets x measurement bases
    executions: int = 0  # circuits x shots on a device; 0 without sampling
    seconds: float = 0.0  # wall time spent inside the backend


class Backend(ABC):
    """Evaluates templates somewhere."""

    name: str  # its name in ``backends.yaml``
    kind: str = "backend"  # what it is, such as ``exact simulator``
    shots: int | None = None  # samples per circuit; None where values are exact
    gradient: Gradient = "adjoint"  # how layers differentiate where they cannot go straight through :meth:`simulator`
    perturbation: float = 0.1  # size of the SPSA step in radians
    # :meth:`simulator` computes exactly what :meth:`run` returns, so layers go straight through it
    differentiable: bool = False
    target: Any = None  # what to transpile to; None where no transpilation is needed
    bills: bool = False  # its time costs money: it runs only while it is held open, and its jobs are journalled
    max_seconds: float | None = None  # QPU seconds that one run may use where no flag says otherwise; None for no limit
    batch: int | None = None  # samples that an inference passes through a model together, where it is planned for it
    mitigation_set: bool = False  # its entry, or a key in its place, says how errors are mitigated; ``none`` included
    fell_back_from: str | None = None  # the backend that was asked for and could not be used; None otherwise
    # its entry, or that of the backend asked for, is from ``./backends.yaml``; commands say so
    working_entry: bool = False
    # carries out simulations that are independent of each other, like ``map``; several processes that evaluate the same
    # calls may divide them. None: the backend does not ask for it
    spread: Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]] | None = None
    notice: str | None = None  # what the user must be told about this backend; None where there is nothing

    def __init__(self, name: str) -> None:
        self.name = name
        self.counters = Counters()
        self._progress: Callable[[str], None] | None = None

    def __deepcopy__(self, memo: dict) -> Backend:
        return self  # a place, not a value: copies of a model run there too

    @abstractmethod
    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        """Expectation values of each call, float64 ``(..., observables)``.

        Calls given together are independent of each other: a backend may pack, submit and await them together.
        """

    def simulator(
        self, template: CircuitTemplate, dtype: torch.dtype = torch.complex64, method: str = "auto"
    ) -> TensorFunction | None:
        """A differentiable function with exactly the values of :meth:`run`; None where the template has none."""
        return None

    @property
    def stand_in(self) -> Backend | None:
        """A differentiable backend with the same values, through which a training goes; None: it goes through this."""
        return None

    def about(self) -> dict[str, Any]:
        """What a report says: ``name, kind, shots, gradient``; ``device`` and ``calibrated`` where it has them."""
        keys = ("name", "kind", "shots", "gradient", *(("fell_back_from",) if self.fell_back_from else ()))
        return {key: getattr(self, key) for key in keys}

    @contextmanager
    def open(
        self, journal: Any = None, budget: Any = None, progress: Callable[[str], None] | None = None
    ) -> Iterator[Backend]:
        """Hold what many circuit batches need.

        ``journal`` keeps finished work, so that it is not paid for twice (simulators repeat instead); ``budget`` limits
        QPU time and money; ``progress`` is told in a few words what is being waited for.
        """
        with self.reporting(progress):
            yield self

    @contextmanager
    def reporting(self, progress: Callable[[str], None] | None) -> Iterator[None]:
        """Tell ``progress`` of each circuit batch, and its ``update``, where it has one, of waits within a batch."""
        before, self._progress = self._progress, progress
        try:
            yield
        finally:
            self._progress = before

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed training counts and samples as if it had never stopped."""
        return {"counters": asdict(self.counters)}

    def restore(self, state: dict[str, Any]) -> None:
        c = state["counters"]
        self.counters = Counters(int(c["rounds"]), int(c["circuits"]), int(c["executions"]), float(c["seconds"]))

    def circuits_for(self, template: CircuitTemplate) -> int:
        """How many circuits one parameter set takes: one per measurement basis."""
        return 1

    def begin_batch(self, circuits: int, tags: Sequence[str]) -> None:
        """Count a circuit batch and tell whoever watches what is waited for."""
        self.counters.rounds += 1
        self.counters.circuits += circuits
        self.counters.executions += circuits * (self.shots or 0)
        if self._progress is not None:
            named = ", ".join(in_words(tag for tag in tags if tag).values())
            self._progress(f"{circuits:,} circuits on {self.name}" + (f": {named}" if named else ""))

    def _tell(self, text: str) -> None:
        update = getattr(self._progress, "update", None)
        if update is not None:
            update(text)


class LocalBackend(Backend):  # evaluates call after call on this machine and counts
    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        started = time.perf_counter()
        circuits = sum(call.samples * self.circuits_for(call.template) for call in calls)
        self.begin_batch(circuits, [call.tag for call in calls])
        values = []
        for call in calls:
            shape = (*call.values.shape[:-1], call.template.num_outputs)
            values.append(self._evaluate(call).reshape(shape) if call.samples else np.zeros(shape))
        self.counters.seconds += time.perf_counter() - started
        return values

    @abstractmethod
    def _evaluate(self, call: Call) -> NDArray[np.float64]:
        """Values ``(samples, observables)`` of a call."""

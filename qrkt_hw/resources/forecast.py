"""What an inference will take on a device, by the same packer that will run it; and what would fit a limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from qrkt_hw.backends import Backend, Call
from qrkt_hw.data.base import DataShape
from qrkt_hw.errors import UserError
from qrkt_hw.execution.budget import PLAN, Budget
from qrkt_hw.execution.pricing import JOB_SECONDS, LARGEST_JOB, prices
from qrkt_hw.resources.trace import Asked


@dataclass(frozen=True)
class Forecast:
    """An inference before it is run.

    Attributes:
        samples: images or texts.
        rounds: calls that wait for each other.
        jobs: submitted.
        circuits: as asked, before packing.
        executions: of the chip, calibrations of readout included.
        seconds: QPU seconds by IBM's formula.
        usd: price at pay-as-you-go.
    """

    samples: int
    rounds: int
    jobs: int
    circuits: int
    executions: int
    seconds: float
    usd: float

    def lines(self, device: str) -> list[str]:
        """As a user reads it."""
        listed = prices()
        return [
            f"plan for {device}: {self.samples:,} samples, {self.circuits:,} circuits in {self.rounds} rounds, "
            f"{self.jobs} jobs, {self.executions:,} executions",
            f"about {self.seconds:.1f} QPU seconds, {self.usd:,.2f} USD at pay-as-you-go prices of {listed.date}; "
            "nothing is submitted",
        ]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def rounds_of(model: nn.Module, shape: DataShape) -> list[list[Asked]]:
    """What one sample asks for, round by round; the model's layers are put back where they were."""
    from qrkt_hw.models.build import quantum_layers, set_backend
    from qrkt_hw.resources.trace import CountingBackend, trace

    layers = quantum_layers(model)
    if not layers:
        return []
    own = [layer.backend for layer in layers]
    counter = CountingBackend()
    set_backend(model, counter)
    try:
        return trace(model, counter, shape)
    finally:
        for layer, backend in zip(layers, own, strict=True):
            layer.backend = backend  # type: ignore[assignment]


def forecast(rounds: Sequence[Sequence[Asked]], samples: int, batch: int, backend: Backend) -> Forecast:
    """Rounds, executions, time and price on a device.

    Args:
        rounds: of one sample.
        samples: in all.
        batch: samples that go through the model together.
        backend: a device or a snapshot with shots.
    """
    packer = backend.packer.planner()  # type: ignore[attr-defined]
    delay = backend.default_rep_delay  # type: ignore[attr-defined]
    sizes = [batch] * (samples // batch) + ([samples % batch] if samples % batch else [])
    jobs = circuits = executions = count = 0
    seconds = 0.0
    for size in sizes:
        for asked in rounds:
            calls = [
                Call(a.template, np.zeros((a.circuits * size, a.template.num_inputs + a.template.num_weights)), a.tag)
                for a in asked
            ]
            batches = packer.batches(calls)
            used = sum(b.executions * packer.shots_of(b) for b in batches)
            here = max(1, -(-used // LARGEST_JOB))
            count, jobs, executions = count + 1, jobs + here, executions + used
            circuits += sum(c.samples * backend.circuits_for(c.template) for c in calls)
            seconds += JOB_SECONDS * here + sum(packer.seconds(b, delay) for b in batches)
            for b in batches if packer.readout is not None else ():
                for piece in b.pieces if b.calibration is not None else ():
                    packer.readout.learn(b.calibration, piece.read, [float(b.calibration)] * len(piece.read))
    usd = seconds * prices().plans[PLAN].usd_per_second
    return Forecast(samples, count, jobs, circuits, executions, seconds, usd)


def check(plan: Forecast, budget: Budget, rounds: Sequence[Sequence[Asked]], batch: int, backend: Backend) -> None:
    """Refuse a plan that exceeds the budget.

    Raises:
        UserError: by how much, and what would fit.
    """
    limit = budget.limit
    if limit is None or plan.seconds <= limit:
        return
    shots = int(backend.shots or 0)
    fewer = _largest(plan.samples - 1, lambda n: forecast(rounds, n, batch, backend).seconds <= limit)
    offers = [f"--limit {fewer}"] if fewer else []
    packer = backend.packer  # type: ignore[attr-defined]
    try:

        def fits(number: int) -> bool:
            packer.shots = number
            return forecast(rounds, plan.samples, batch, backend).seconds <= limit

        less = _largest(shots - 1, fits)
    finally:
        packer.shots = shots
    offers += [f"--shots {less}"] if less else []
    would = f"{' or '.join(offers)} would fit" if offers else "not even one sample or one shot would fit"
    raise UserError(
        f"{budget.named}: the plan takes {plan.seconds:.1f} s ({plan.usd:,.2f} USD), {plan.seconds - limit:.1f} s too "
        f"many; {would}, as may a model with fewer rounds or copies that are smaller (qrkt-hw resources --compare)"
    )


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``most`` that fits, by bisection; 0 where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low

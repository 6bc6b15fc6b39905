"""The forecast of an inference on a device, by the same packer that will run it; and what would fit a limit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qrkt_hw.backends import Backend, Call
from qrkt_hw.backends.device.budget import PLAN, Budget, prices
from qrkt_hw.backends.device.pubs import jobs_of
from qrkt_hw.data.base import DataShape
from qrkt_hw.errors import UserError
from qrkt_hw.nn.runge_kutta import TABLEAUS
from qrkt_hw.resources.logical import Stages, stages_of
from qrkt_hw.runs.config import Config


@dataclass(frozen=True)
class Forecast:
    """An inference before it is run.

    Attributes:
        samples: images or texts.
        rounds: circuit batches, each submitted after the one before.
        jobs: submitted.
        circuits: before packing.
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
            f"plan for {device}: {self.samples:,} samples, {self.circuits:,} circuits in {self.rounds} circuit "
            f"batches, {self.jobs} jobs, {self.executions:,} executions",
            f"about {self.seconds:.1f} QPU seconds, {self.usd:,.2f} USD at pay-as-you-go prices of {listed.date}; "
            "nothing is submitted",
        ]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def forecast(
    stages: Stages,
    samples: int,
    batch: int,
    backend: Backend,
    *,
    shots: int | None = None,
    pack: bool | None = None,
) -> Forecast:
    """Circuit batches, executions, time and price on a device.

    Args:
        stages: of one sample.
        samples: in all.
        batch: samples that go through the model together.
        backend: a device or a fake backend with shots.
        shots, pack: in place of the backend's.
    """
    packer = backend.packer.planner(shots, pack)  # type: ignore[attr-defined]
    delay = backend.default_rep_delay  # type: ignore[attr-defined]
    sizes = [batch] * (samples // batch) + ([samples % batch] if samples % batch else [])
    jobs = circuits = executions = count = 0
    seconds = 0.0
    for size in sizes:
        for stage in stages:
            calls = [
                Call(c.template, np.zeros((c.circuits * size, len(c.template.parameters))), c.layer) for c in stage
            ]
            pubs = packer.allocate(calls)
            here = jobs_of(pubs, delay, backend.job_limits)  # type: ignore[attr-defined]
            count, jobs = count + 1, jobs + len(here)
            executions += sum(pub.executions for pub in pubs)
            circuits += sum(c.samples * backend.circuits_for(c.template) for c in calls)
            seconds += sum(here)
            for pub in pubs:
                for slot in pub.slots if pub.calibration is not None else ():
                    packer.readout.learn(pub.calibration, slot.read, [float(pub.calibration)] * len(slot.read))
    usd = seconds * prices().plans[PLAN].usd_per_second
    return Forecast(samples, count, jobs, circuits, executions, seconds, usd)


def check(
    plan: Forecast,
    budget: Budget,
    stages: Stages,
    batch: int,
    backend: Backend,
    cheaper: Callable[[float], str | None] = lambda limit: None,
) -> None:
    """Refuse a plan that exceeds the budget.

    Args:
        cheaper: of a limit in seconds: in words, a model that would fit; None where none is known.

    Raises:
        UserError: by how much, and what would fit.
    """
    limit = budget.limit
    if limit is None or plan.seconds <= limit:
        return

    def takes(samples: int = plan.samples, shots: int | None = None, pack: bool | None = None) -> float:
        return forecast(stages, samples, batch, backend, shots=shots, pack=pack).seconds

    fewer = _largest(plan.samples - 1, lambda n: takes(n) <= limit)
    less = _largest(int(backend.shots or 0) - 1, lambda n: takes(shots=n) <= limit)
    offers = [f"--limit {fewer}"] if fewer else []
    offers += [f"--shots {less}"] if less else []
    local = getattr(backend, "account", backend) is None  # the client simulates the whole chip: never packed
    if not backend.packer.packs and not local and takes(pack=True) <= limit:  # type: ignore[attr-defined]
        offers.append("packing (no --no-pack, pack: true)")
    would = f"{' or '.join(offers)} would fit" if offers else "not even one sample or one shot would fit"
    other = cheaper(limit)
    raise UserError(
        f"{budget.named}: the plan takes {plan.seconds:.1f} s ({plan.usd:,.2f} USD), {plan.seconds - limit:.1f} s too "
        f"many; {would}; {other or 'no cheaper model is known'} (qrkt-hw resources --compare weighs models)"
    )


def cheaper_model(
    options: Config, shape: DataShape, samples: int, batch: int, backend: Backend, limit: float
) -> str | None:
    """Like the model of ``options``, but within ``limit`` QPU seconds: fewer stages or blocks, at last chain circuits.

    Returns:
        A sentence with the flags to train it and what it takes; None where none of those tried fits.
    """
    from qrkt_hw.models.build import build_model

    stages, blocks = TABLEAUS[options.model.rk].stages, getattr(options.model, "rk_blocks", 0)
    tried: list[dict[str, Any]] = [
        {"rk": rk} for rk in ("rk3", "rk2", "rk1") if blocks and TABLEAUS[rk].stages < stages
    ]
    tried += [{"rk_blocks": n} for n in sorted({blocks // 2, 1}, reverse=True) if 0 < n < blocks]
    if blocks:
        tried.append({"rk": "rk1", "rk_blocks": 1})
        tried.append({"rk": "rk1", "rk_blocks": 1, "ansatz": "brickwork", "layers": 1})
    for change in tried:
        if options.replace(**change) == options:
            continue
        with suppress(UserError):
            model = build_model(options.replace(**change), shape, backend)
            plan = forecast(stages_of(model, shape), samples, batch, backend)
            if plan.seconds <= limit:
                flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in change.items())
                return f"a model trained with {flags} would take {plan.seconds:.1f} s"
    return None


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``most`` that fits, by bisection; 0 where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low

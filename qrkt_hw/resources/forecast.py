"""The forecast of an inference on a device, by the same packer that will run it; and what would fit a limit."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from qrkt_hw.backends import Call
from qrkt_hw.backends.budget import PLAN, Budget, prices
from qrkt_hw.backends.device.packing import DeviceBackend
from qrkt_hw.backends.device.pubs import jobs_of
from qrkt_hw.data.base import DataShape
from qrkt_hw.errors import UserError
from qrkt_hw.nn.runge_kutta import TABLEAUS
from qrkt_hw.resources.logical import Stages, stages_of
from qrkt_hw.runs.config import Config


@dataclass(frozen=True)
class Forecast:
    """An inference before it is run."""

    samples: int  # images or texts
    rounds: int  # circuit batches, each submitted after the one before
    jobs: int
    circuits: int  # before packing
    executions: int  # of the chip, calibrations of readout included
    seconds: float  # QPU seconds by IBM's formula
    usd: float  # at pay-as-you-go prices

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
    backend: DeviceBackend,
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
    packer = backend.packer.planner(shots, pack)
    delay = backend.default_rep_delay
    sizes = [batch] * (samples // batch) + ([samples % batch] if samples % batch else [])
    jobs = circuits = executions = count = 0
    seconds = 0.0
    for size in sizes:
        for stage in stages:
            calls = [
                Call(c.template, np.zeros((c.circuits * size, len(c.template.parameters))), c.layer) for c in stage
            ]
            pubs = packer.allocate(calls)
            here = jobs_of(pubs, delay, backend.job_limits)
            count, jobs = count + 1, jobs + len(here)
            executions += sum(pub.executions for pub in pubs)
            circuits += sum(c.samples * backend.circuits_for(c.template) for c in calls)
            seconds += sum(here)
            for pub in pubs:
                if pub.calibration is not None and packer.readout is not None:
                    for slot in pub.slots:
                        packer.readout.learn(pub.calibration, slot.read, [float(pub.calibration)] * len(slot.read))
    usd = seconds * prices().plans[PLAN].usd_per_second
    return Forecast(samples, count, jobs, circuits, executions, seconds, usd)


def plan(
    model: nn.Module,
    options: Config,
    shape: DataShape,
    samples: int,
    batch: int,
    backend: DeviceBackend,
    budget: Budget | None,
    refuse: bool = True,
) -> Forecast:
    """The forecast of an inference of a model, which has these options and reads data of this shape.

    Args:
        samples, batch: images or texts in all, and of them those that go through the model together.
        budget: limits from flags; without any those of the backend count.
        refuse: whether a forecast beyond the limits is an error.

    Raises UserError: the forecast exceeds a limit: by how much, and what would fit.
    """
    stages = stages_of(model, shape)
    found, budget = forecast(stages, samples, batch, backend), Budget.of(backend, budget)
    limit = None if budget is None else budget.limit
    if not refuse or budget is None or limit is None or found.seconds <= limit:
        return found

    def fits(n: int = samples, shots: int | None = None, pack: bool | None = None) -> bool:
        return forecast(stages, n, batch, backend, shots=shots, pack=pack).seconds <= limit

    fewer, less = _largest(samples - 1, fits), _largest((backend.shots or 0) - 1, lambda n: fits(shots=n))
    offers = [f"--limit {fewer}"] if fewer else []
    offers += [f"--shots {less}"] if less else []
    local = getattr(backend, "account", backend) is None  # the client simulates the whole chip: never packed
    if not backend.packer.packs and not local and fits(pack=True):
        offers.append("packing (no --no-pack, pack: true)")
    would = f"{' or '.join(offers)} would fit" if offers else "not even one sample or one shot would fit"
    other = _cheaper_model(options, shape, samples, batch, backend, limit) or "no cheaper model is known"
    raise UserError(
        f"{budget.named}: the plan takes {found.seconds:.1f} s ({found.usd:,.2f} USD), {found.seconds - limit:.1f} s "
        f"too many; {would}; {other} (qrkt-hw resources --compare weighs models)"
    )


def _cheaper_model(
    options: Config, shape: DataShape, samples: int, batch: int, backend: DeviceBackend, limit: float
) -> str | None:
    """Like the model of ``options``, but within ``limit`` QPU seconds: fewer stages or blocks, at last chain circuits.

    Returns:
        A sentence with the flags to train it and what it takes; None where none of those tried fits.
    """
    from qrkt_hw.models.factory import build_model

    stages, blocks = TABLEAUS[options.model.rk].stages, getattr(options.model, "rk_blocks", 0)
    tried: list[dict[str, Any]] = [{"rk": rk} for rk in ("rk3", "rk2", "rk1") if TABLEAUS[rk].stages < stages]
    tried += [{"rk_blocks": n} for n in sorted({blocks // 2, 1}, reverse=True) if 0 < n < blocks]
    least = {"rk": "rk1", "rk_blocks": 1}
    tried += [least, {**least, "ansatz": "brickwork", "layers": 1}]
    for change in tried if blocks else ():
        if options.replace(**change) == options:
            continue
        with suppress(UserError):
            model = build_model(options.replace(**change), shape, backend)
            seconds = forecast(stages_of(model, shape), samples, batch, backend).seconds
            if seconds <= limit:
                flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in change.items())
                return f"a model trained with {flags} would take {seconds:.1f} s"
    return None


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``most`` that fits, by bisection; 0 where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low

"""What an inference or anybody's PUBs take on a device, by the packer that will run them; and what fits a limit."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from qrkt_hw.backends import Backend, Call
from qrkt_hw.backends.budget import PLAN, Budget, prices
from qrkt_hw.backends.device.journal import begun_terms
from qrkt_hw.backends.device.measurement import LARGEST_TABLE
from qrkt_hw.backends.device.packing import DeviceBackend
from qrkt_hw.backends.device.pubs import filled, jobs_of
from qrkt_hw.backends.several import Devices
from qrkt_hw.data.base import DataShape
from qrkt_hw.errors import UserError
from qrkt_hw.nn.blocks import TABLEAUS
from qrkt_hw.resources.logical import Stages, stages_of
from qrkt_hw.runs.config import Config

BATCH = 256  # samples that go through a model together at least
HELD = 2**26  # numbers of a batch in memory: 512 MiB


@dataclass(frozen=True)
class Forecast:
    """An inference before it is run."""

    samples: int  # images or texts
    rounds: int  # circuit batches, each submitted after the one before
    jobs: int
    circuits: int  # before packing
    executions: int  # of the chip, calibrations of readout included
    seconds: float  # QPU seconds by the larger of IBM's formulas
    usd: float  # at pay-as-you-go prices
    fitted: int = 0  # images to which the model is fine-tuned before, all that it takes included above
    repeated: int = 0  # samples that are evaluated twice, included above

    def lines(self, device: str) -> list[str]:
        """As a user reads it."""
        listed = prices()
        first = f" ({self.repeated:,} of them twice)" if self.repeated else ""
        first += f" after {self.fitted:,} training images" if self.fitted else ""
        return [
            f"plan for {device}: {self.samples:,} samples{first}, {self.circuits:,} circuits in {self.rounds} circuit "
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
    stage_shots: Sequence[int] = (),
    fitted: int = 0,
    repeated: int = 0,
) -> Forecast:
    """Circuit batches, executions, time and price on a device.

    Args:
        stages: of one sample.
        samples: in all.
        batch: samples that go through the model together.
        backend: a device or a fake backend with shots.
        shots, pack: in place of the backend's.
        stage_shots: of each stage, in place of both.
        fitted: images to which the model is fine-tuned first.
        repeated: samples that are evaluated again.
    """
    packer = backend.packer.planner(shots, pack)
    delay = backend.default_rep_delay
    sizes = [min(batch, n - start) for n in (fitted, samples, repeated) for start in range(0, n, batch)]
    jobs = circuits = executions = count = 0
    seconds = 0.0
    for size in sizes:
        for place, stage in enumerate(stages):
            own = stage_shots[place] if stage_shots else None
            calls = [
                Call(c.template, np.zeros((c.circuits * size, len(c.template.parameters))), c.layer, own) for c in stage
            ]
            pubs = packer.allocate(calls)
            here = jobs_of(pubs, delay, backend.job_limits)
            count, jobs = count + 1, jobs + len(here)
            executions += sum(pub.executions for pub in pubs)
            circuits += sum(c.samples * backend.circuits_for(c.template) for c in calls)
            seconds += sum(here)
            packer.expect(pubs)
    usd = seconds * prices().plans[PLAN].usd_per_second
    return Forecast(samples, count, jobs, circuits, executions, seconds, usd, fitted, repeated)


def largest_batch(
    stages: Stages, samples: int, most: int, backend: DeviceBackend, stage_shots: Sequence[int] = ()
) -> int:
    """Samples that go through a model together: from :data:`BATCH` to ``most``, as one job of each stage holds them.

    A job has an overhead, so that fewer and larger ones take less QPU time. What is counted is held in memory: at most
    :data:`HELD` a stage. All batches are about equally large. Other arguments as in :func:`forecast`.
    """
    packer, tried = backend.packer.planner(), min(samples, BATCH)
    share = tried / most
    for place, stage in enumerate(stages):
        own = stage_shots[place] if stage_shots else None
        calls = [Call(c.template, np.zeros((c.circuits * tried, len(c.template.parameters))), "", own) for c in stage]
        pubs = [pub for pub in packer.allocate(calls) if pub.calibration is None]
        for shots in {pub.shots for pub in pubs}:  # of each a job of its own
            alike = [pub for pub in pubs if pub.shots == shots]
            share = max(share, filled(alike, backend.job_limits, backend.default_rep_delay))
        held = [pub.rows * max(2 ** min(len(s.read), LARGEST_TABLE), pub.shots) for pub in pubs for s in pub.slots]
        share = max(share, sum(held) / HELD)
    size = max(BATCH, int(0.98 * tried / share))  # a little less: it is packed anew
    return -(-samples // -(-samples // size))


def samples_in_memory(model: nn.Module, shape: DataShape) -> int:
    """Samples whose largest input or output of a module has :data:`HELD` / 8 numbers: several are held."""
    sizes = [1]

    def see(_: nn.Module, given: Any, output: Any) -> None:
        sizes.extend(one.numel() for one in (*given, output) if isinstance(one, Tensor))

    handles = [module.register_forward_hook(see) for module in model.modules()]
    try:
        stages_of(model, shape)
    finally:
        for handle in handles:
            handle.remove()
    return max(1, HELD // 8 // max(sizes))


def enlarge_batch(
    model: nn.Module, shape: DataShape, samples: int, backend: Backend, stage_shots: Sequence[int] = (),
    journal: Path | None = None,
) -> None:  # fmt: skip
    """Set the samples that go through a model together on a device that samples; ``journal`` is that of a resume, which
    has those it was begun with."""
    if not (isinstance(backend, DeviceBackend) and backend.shots):
        return
    if journal is None or not journal.is_file():
        most = samples_in_memory(model, shape)
        backend.batch = largest_batch(stages_of(model, shape), samples, most, backend, stage_shots)
        return
    kept = begun_terms(journal, "infer").get("batch")  # more and smaller ones would be dearer
    backend.batch = kept if isinstance(kept, int) and 2 * kept > min(samples, BATCH) else None


def plan(
    model: nn.Module,
    options: Config,
    shape: DataShape,
    samples: int,
    batch: int,
    backend: DeviceBackend,
    budget: Budget | None,
    refuse: bool = True,
    stage_shots: Sequence[int] = (),
    fitted: int = 0,
    repeated: int = 0,
) -> Forecast:
    """The forecast of an inference of a model, which has these options and reads data of this shape.

    Args:
        samples, batch: images or texts in all, and of them those that go through the model together.
        budget: limits from flags; without any those of the backend count.
        refuse: whether a forecast beyond the limits is an error.
        stage_shots: of each sequential stage, in place of the backend's.
        fitted: images to which the model is fine-tuned first.
        repeated: samples that are evaluated again.

    Raises UserError: the forecast exceeds a limit: by how much, and what would fit.
    """
    stages = stages_of(model, shape)
    more: Any = {"fitted": fitted, "repeated": repeated}
    found = forecast(stages, samples, batch, backend, stage_shots=stage_shots, **more)
    budget = Budget.of(backend, budget)
    limit = None if budget is None else budget.limit
    if not refuse or budget is None or limit is None or found.seconds <= limit:
        return found

    most = backend.shots or 1

    def scaled(shots: int) -> list[int]:
        return [max(1, n * shots // most) for n in stage_shots]

    def seconds(n: int = samples, shots: int = most, pack: bool | None = None) -> float:
        own, twice = scaled(shots), {**more, "repeated": min(n, repeated)}
        return forecast(stages, n, batch, backend, shots=shots, pack=pack, stage_shots=own, **twice).seconds

    def fits(shots: int) -> bool | None:
        """None with fewer shots than the mitigation takes."""
        try:
            return seconds(shots=shots) <= limit
        except UserError:
            return None

    fewer = _largest(samples - 1, lambda n: seconds(n) <= limit)
    less = _largest(most - 1, lambda n: fits(n) is not False)
    offers = [f"--limit {fewer}"] if fewer else []
    if less and fits(less):
        offers.append(f"--shots-per-stage {','.join(map(str, scaled(less)))}" if stage_shots else f"--shots {less}")
    local = getattr(backend, "account", backend) is None  # the client simulates the whole chip: never packed
    if not backend.packer.packs and not local and seconds(pack=True) <= limit:
        offers.append("packing (no --no-pack, pack: true)")
    would = f"{' or '.join(offers)} would fit" if offers else "not even one sample or one shot would fit"
    other = _cheaper_model(options, shape, samples, batch, backend, limit, more) or "no cheaper model is known"
    raise UserError(
        f"{budget.named}: the plan takes {found.seconds:.1f} s ({found.usd:,.2f} USD), {found.seconds - limit:.1f} s "
        f"too many; {would}; {other} (qrkt-hw resources --compare weighs models)"
    )


@dataclass(frozen=True)
class Shared:
    """The forecast of an inference on several devices: of each, and of all together, ``whole``."""

    each: dict[str, Forecast]
    whole: Forecast

    def lines(self, device: str) -> list[str]:
        """As a user reads it."""
        listed = [line for name, one in self.each.items() for line in one.lines(name)[:1]]
        priced = [f"  about {one.seconds:.1f} QPU seconds, {one.usd:,.2f} USD" for one in self.each.values()]
        both = [line for pair in zip(listed, priced, strict=True) for line in pair]
        return [*both, *self.whole.lines(f"all {len(self.each)} devices")]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {**self.whole.record(), "devices": {name: one.record() for name, one in self.each.items()}}


def share(
    model: nn.Module, shape: DataShape, samples: int, batch: int, devices: Devices, budget: Budget, refuse: bool = True
) -> Shared:
    """Share out samples so that all devices are planned to work equally long; the devices keep their numbers.

    Args:
        samples, batch: images or texts in all, and of them those that go through the model together.
        budget: limits from flags.
        refuse: whether a forecast beyond them is an error.

    Raises UserError: the forecast exceeds a limit.
    """
    stages = stages_of(model, shape)

    def on(name: str, count: int) -> Forecast:
        return forecast(stages, count, batch, devices.devices[name])

    rates = {}
    for name in devices.devices:  # a + b x samples seconds
        least, most = on(name, 1).seconds, on(name, samples).seconds
        slope = max((most - least) / max(1, samples - 1), 1e-9)
        rates[name] = (least - slope, slope)

    def shared(count: int) -> dict[str, int]:
        chosen = dict(rates)
        while True:  # who would have none waits no longer than the others work
            time = (count + sum(a / b for a, b in chosen.values())) / sum(1 / b for _, b in chosen.values())
            idle = [name for name, (a, _) in chosen.items() if a >= time]
            if not idle or len(chosen) == 1:
                break
            for name in idle:
                del chosen[name]
        exact = {name: (time - a) / b for name, (a, b) in chosen.items()}
        ends = np.round(np.cumsum(list(exact.values()))).astype(int).tolist()
        ends[-1] = count
        sizes = dict(zip(exact, np.diff([0, *ends]).tolist(), strict=True))
        return {name: sizes[name] for name in rates if sizes.get(name)}

    def planned(count: int) -> Shared:
        each = {name: on(name, size) for name, size in shared(count).items()}
        sums = {key: sum(getattr(one, key) for one in each.values())
                for key in ("samples", "jobs", "circuits", "executions", "seconds", "usd")}  # fmt: skip
        return Shared(each, Forecast(rounds=max(one.rounds for one in each.values()), **sums))  # type: ignore[arg-type]

    found, limit = planned(samples), budget.limit
    devices.shares, devices.portion = {name: one.samples for name, one in found.each.items()}, batch
    if not refuse or limit is None or found.whole.seconds <= limit:
        return found
    fewer = _largest(samples - 1, lambda count: planned(count).whole.seconds <= limit)
    would = f"--limit {fewer} would fit" if fewer else "not even one sample would fit"
    raise UserError(
        f"{budget.named}: the plan takes {found.whole.seconds:.1f} s ({found.whole.usd:,.2f} USD) on all devices, "
        f"{found.whole.seconds - limit:.1f} s too many; {would}"
    )


def _cheaper_model(
    options: Config, shape: DataShape, samples: int, batch: int, backend: DeviceBackend, limit: float,
    more: Mapping[str, Any],
) -> str | None:  # fmt: skip
    """Like the model of ``options``, but within ``limit`` QPU seconds: fewer stages or blocks, at last chain circuits;
    ``more`` is for :func:`forecast`.

    Returns:
        A sentence with the flags to train it and what it takes; None where none of those tried fits.
    """
    from qrkt_hw.models.factory import build_model

    stages, blocks = TABLEAUS[options.model.rk].stages, getattr(options.model, "rk_blocks", 0)
    tried: list[dict[str, Any]] = [{"rk": rk} for rk in ("rk3", "rk2", "rk1") if TABLEAUS[rk].stages < stages]
    tried += [{"rk_blocks": n} for n in sorted({blocks // 2, 1}, reverse=True) if 0 < n < blocks]
    least = {"rk": "rk1", "rk_blocks": 1}
    chain: dict[str, Any] = {"ansatz": "brickwork", "attention_ansatz": "brickwork", "mlp_ansatz": "brickwork"}
    chain |= {"layers": 1, "mlp_layers": 1}
    tried += [least, least | {key: value for key, value in chain.items() if getattr(options.circuit, key) is not None}]
    for change in tried if blocks else ():
        if options.replace(**change) == options:
            continue
        with suppress(UserError):
            model = build_model(options.replace(**change), shape, backend)
            seconds = forecast(stages_of(model, shape), samples, batch, backend, **more).seconds
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


@dataclass(frozen=True)
class PubEstimate:
    """One PUB on the device."""

    qubits: int  # of the circuit as given
    two_qubit_gates: int  # after transpiling, of the measurement basis that has most
    depth: int  # of its two-qubit gates
    circuits: int  # parameter sets x measurement bases
    shots: int  # of each
    replicas: int  # that can run side by side; 1 where it is not packed


@dataclass(frozen=True)
class Estimate:
    """What PUBs take on a device in one run, before anything is sent."""

    device: str
    pubs: tuple[PubEstimate, ...]
    circuits: int  # of all PUBs; fewer where observables are read from the same shots
    executions: int  # of the chip, calibrations of readout included
    jobs: int
    seconds: float  # QPU seconds by the larger of IBM's formulas; 0 durations where a device says none
    usd: float  # at the plan's prices
    plan: str
    limits: tuple[str, ...]  # that the run would hit, a sentence each

    def __str__(self) -> str:
        priced = f"{self.usd:,.2f} USD ({self.plan}, prices of {prices().date})"
        lines = [
            f"on {self.device}: {self.circuits:,} circuits, {self.executions:,} executions, {self.jobs:,} jobs, "
            f"about {self.seconds:.1f} QPU seconds, {priced}; nothing is sent"
        ]
        for number, pub in enumerate(self.pubs):
            side = f"{pub.replicas} side by side" if pub.replicas > 1 else "not packed"
            lines.append(
                f"  PUB {number}: {pub.qubits} qubits, {pub.two_qubit_gates:,} two-qubit gates in {pub.depth:,} "
                f"layers, {pub.circuits:,} circuits of {pub.shots:,} shots, {side}"
            )
        return "\n".join([*lines, *(f"  limit: {limit}" for limit in self.limits)])

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def estimate(
    pubs: Iterable[Any],
    backend: Any,
    *,
    plan: str = PLAN,
    shots: int | None = None,
    precision: float | None = None,
    budget: Budget | None = None,
    **device: Any,
) -> Estimate:
    """What a list of PUBs takes on a device, without sending anything.

    Args:
        pubs: all of a sampler or all of an estimator, as their ``run`` takes them.
        backend: a PackedSampler or PackedEstimator that will run them, or what those take as their backend.
        plan: whose prices count: ``open``, ``payg``, ``flex`` or ``premium``.
        shots, precision: of PUBs that do not say theirs.
        budget: a limit to compare with.
        device: keys of ``backends.yaml``, as the primitives take them.

    Raises UserError (PubError where a PUB is wrong): what ``run`` would raise before it sends anything.
    """
    from qrkt_hw.primitives import PackedEstimator, PackedSampler

    listed = prices().plans
    if plan not in listed:
        raise UserError(f"plan: {plan!r} is none of {', '.join(listed)}")
    given = list(pubs)
    primitive = backend
    if not isinstance(backend, PackedSampler | PackedEstimator):
        made: Any = PackedEstimator if any(_of_estimator(pub) for pub in given) else PackedSampler
        primitive = made(backend, budget=budget, **device)
    found = primitive.coerced(given, precision if isinstance(primitive, PackedEstimator) else shots)
    work, _ = primitive.planned(found)
    held = primitive.backend
    packer = held.packer.planner()
    packer.readout = deepcopy(held.packer.readout)  # what is calibrated already
    parts = [*packer.allocate(work.calls), *work.whole]
    here = jobs_of(parts, held.default_rep_delay, held.job_limits)
    executions, seconds = sum(one.executions for one in parts), sum(here)
    usd = seconds * listed[plan].usd_per_second
    alone = [_alone(primitive, pub) for pub in found]
    circuits = sum(c.samples * held.circuits_for(c.template) for c in work.calls) + sum(p.rows for p in work.whole)
    limits = _limits(parts, here, held, listed[plan].free_seconds, plan, budget or primitive.budget)
    return Estimate(packer.device, tuple(alone), circuits, executions, len(here), seconds, usd, plan, tuple(limits))


def _of_estimator(pub: Any) -> bool:
    """Whether a PUB has observables; numbers and mappings of parameters are values."""
    from qiskit.circuit import QuantumCircuit
    from qiskit.primitives.containers.estimator_pub import EstimatorPub

    if isinstance(pub, EstimatorPub):
        return True
    if isinstance(pub, QuantumCircuit) or not isinstance(pub, tuple | list) or len(pub) < 2 or pub[1] is None:
        return False
    if isinstance(pub[1], Mapping) and isinstance(pub[0], QuantumCircuit):
        names = {parameter.name for parameter in pub[0].parameters}
        keys = [key for one in pub[1] for key in (one if isinstance(one, tuple) else (one,))]
        return not {getattr(key, "name", key) for key in keys} <= names
    try:
        np.asarray(pub[1], dtype=float)
    except (TypeError, ValueError):
        return not hasattr(pub[1], "as_array")  # of a BindingsArray
    return False


def _alone(primitive: Any, pub: Any) -> PubEstimate:
    work, _ = primitive.planned([pub])
    packer = primitive.backend.packer
    groups = [packer.group(call.template, basis) for call in work.calls for basis in packer.bases(call.template)]
    isa = [group.placed.circuit for group in groups] + [one.circuit for one in work.whole]
    gates = [one.num_nonlocal_gates() for one in isa]
    depth = [one.depth(lambda gate: len(gate.qubits) == 2) for one in isa]
    circuits = sum(call.samples * len(packer.bases(call.template)) for call in work.calls)
    circuits += sum(p.rows for p in work.whole)
    replicas = min((len(group.replicas) for group in groups), default=1) if not work.whole else 1
    shots = primitive.shots_of(pub)
    return PubEstimate(pub.circuit.num_qubits, max(gates, default=0), max(depth, default=0), circuits, shots, replicas)


def _limits(parts: Any, jobs: list[float], held: Any, free: float, plan: str, budget: Budget | None) -> list[str]:
    seconds, limits, found = sum(jobs), held.job_limits, []
    if budget is not None and budget.limit is not None and budget.billed + seconds > budget.limit:
        found.append(f"{budget.named}: the run takes {seconds:.1f} s and {budget.left:.1f} s are left")
    if free and seconds > free:
        found.append(f"plan {plan}: the run takes {seconds:.1f} s of its {free:.0f} free seconds")
    whole = len({one.shots for one in parts})
    if len(jobs) > whole:
        most = f"{limits.executions:,} executions, {limits.size:,} bytes and {limits.seconds:,.0f} QPU seconds"
        found.append(f"a job: it holds {most} at most, so the run is split into {len(jobs):,} jobs")
    return found

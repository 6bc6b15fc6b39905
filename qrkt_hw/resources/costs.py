"""Part 3 of the report: executions, QPU time and price of inference and of training, in three ways of submitting."""

from __future__ import annotations

from collections.abc import Callable

from qrkt_hw.backends.device.budget import DEFAULT_DELAY, prices, usage
from qrkt_hw.backends.device.pubs import allocate
from qrkt_hw.resources.schema import Circuit, Cost, Device, Logical, Placed

WAYS = ("estimator", "broadcast", "packed")
METHODS = ("adjoint", "parameter_shift", "spsa")


def costs(
    logical: Logical, device: Device, level: int, *, shots: int, images: int, steps: int, batch: int
) -> list[Cost]:
    """Every task on a device, each in three ways.

    Args:
        logical: the circuits and rounds of one image.
        device: with the circuits transpiled at ``level``.
        level: optimisation level.
        shots: samples per circuit.
        images: inferred together.
        steps: of training; 0 leaves training out.
        batch: images of a step.
    """
    placed = {p.circuit: p for p in device.circuits if p.level == level}
    tasks: list[tuple[str, int, list[Callable[[Circuit], int]]]] = [
        (f"infer {images:,}", images, [lambda circuit: 1]),
    ]
    for method in METHODS if steps else ():
        tasks.append((f"train {steps:,} {method}", batch * steps, passes(method)))
    found = []
    for task, samples, forms in tasks:
        for way in WAYS:
            found.append(
                _cost(logical, device, level, placed, task, samples, steps if "train" in task else 1, forms, way, shots)
            )
    return found


def passes(method: str) -> list[Callable[[Circuit], int]]:
    """For every pass of a training step, the circuits it takes for each parameter set of the forward pass.

    The adjoint method differentiates the noiseless simulator on this machine and uses the device for the forward pass.
    """
    forward: Callable[[Circuit], int] = lambda circuit: 1  # noqa: E731
    if method == "adjoint":
        return [forward]
    if method == "spsa":
        return [forward, lambda circuit: 2]
    return [forward, lambda circuit: circuit.shifts]


def _cost(
    logical: Logical,
    device: Device,
    level: int,
    placed: dict[int, Placed],
    task: str,
    samples: int,
    repeats: int,
    forms: list[Callable[[Circuit], int]],
    way: str,
    shots: int,
) -> Cost:
    """``samples`` parameter sets in all, in ``repeats`` equal goes through all rounds."""
    delay = DEFAULT_DELAY if device.rep_delay is None else device.rep_delay
    rounds = jobs = circuits = executions = 0
    seconds = quick = 0.0
    each = samples // repeats
    for factor in forms:
        for requests in logical.rounds:
            sent, submissions, busy = 0, 0 if way == "estimator" else 1, 0.0
            together: dict[tuple[int, int], int] = {}  # circuit and basis -> parameter sets
            for request in requests:
                circuit, place = logical.circuits[request.circuit], placed[request.circuit]
                sets = request.circuits * each * factor(circuit)
                if way == "packed":
                    for basis in range(circuit.bases):
                        together[request.circuit, basis] = together.get((request.circuit, basis), 0) + sets
                    continue
                count = sets * (circuit.outputs if way == "estimator" else circuit.bases)
                submissions += request.layers if way == "estimator" else 0
                sent += count
                busy += count * place.duration
            if way == "packed":
                copies = {key: [tuple(c) for c in placed[key[0]].basis_copies[key[1]]] for key in together}
                for one in allocate(together, copies):
                    sent += one.executions
                    busy += one.executions * max(placed[key[0]].duration for key, _ in one.replicas)  # type: ignore[index]
            if sent:
                used = usage(sent * shots, delay, busy / sent, submissions)
                rounds += submissions
                jobs += used.jobs
                circuits += sent
                executions += used.executions
                seconds += used.seconds
                quick += used.seconds_quick
    plans = prices().plans
    return Cost(
        device=device.name,
        level=level,
        task=task,
        way=way,
        rounds=rounds * repeats,
        jobs=jobs * repeats,
        circuits=circuits * repeats,
        executions=executions * repeats,
        seconds=seconds * repeats,
        seconds_quick=quick * repeats,
        usd={name: plan.usd_per_second * seconds * repeats for name, plan in plans.items()},
    )

"""Circuits on a device: transpiled, rated by the calibration, priced and drawn."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.budget import DEFAULT_DELAY, prices, usage
from qrkt_hw.backends.device.cache import digest, remember, versions
from qrkt_hw.backends.device.pubs import allocate
from qrkt_hw.backends.device.transpile import SEED
from qrkt_hw.errors import UserError
from qrkt_hw.resources.schema import Circuit, Cost, Device, Logical, Placed, Report, StageCall

WAYS = ("estimator", "broadcast", "packed")
# for every pass of a training step, the circuits it takes for each parameter set of the forward pass; the adjoint
# method differentiates the noiseless simulator on this machine and uses the device for the forward pass only
PASSES: dict[str, list[Callable[[Circuit], int]]] = {
    "adjoint": [lambda circuit: 1],
    "parameter_shift": [lambda circuit: 1, lambda circuit: circuit.shifts],
    "spsa": [lambda circuit: 1, lambda circuit: 2],
}


def on_device(
    circuits: Sequence[Circuit],
    templates: Callable[[], Sequence[CircuitTemplate]],
    name: str,
    levels: Sequence[int],
    seed: int = SEED,
) -> Device:
    """Part 2 of the report: every circuit on a device; what is transpiled is kept in the user's cache folder.

    Args:
        circuits: as written.
        templates: gives their templates, in that order.
        name: of a backend.
        levels: optimisation levels of the transpiler.
        seed: of the transpiler.

    Raises UserError: no such device, or a circuit that does not fit it.
    """
    known = device_name(name)
    if known is None:
        return Device(name=name, qubits=None, calibrated=None, rep_delay=None, simulated=True, circuits=[])
    device = cache(lambda: device_of(known))

    def keep(kind: str, key: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if not known.startswith("fake_"):  # a live device is calibrated anew every day
            return compute()
        return remember(kind, digest(known, key, versions()), compute)

    facts = keep("devices", "facts", lambda: _facts(device()))
    placed = []
    for place, circuit in enumerate(circuits):
        if circuit.qubits > facts["qubits"]:
            raise UserError(
                f"--backend: {name} has {facts['qubits']} qubits; ansatz {circuit.template!r} takes {circuit.qubits}"
            )
        for level in levels:

            def compute(place: int = place, level: int = level) -> dict[str, Any]:
                return place_circuit(templates()[place], device(), level, seed).model_dump(mode="json")

            found = keep("transpiled", [circuit.fingerprint, level, seed], compute)
            placed.append(Placed.model_validate({**found, "circuit": place}))
    return Device(name=name, **facts, simulated=False, circuits=placed)


def device_name(backend: str) -> str | None:
    """The device behind a backend's name; None for a simulator that takes circuits as written.

    Raises UserError: no such backend."""
    if backend.startswith("fake_"):
        return backend
    found = device_of(backend)
    if found.target is None:
        return None
    return backend if found.bills else found.device.name


def device_of(name: str) -> Any:
    """The device of that name, with its ``target``."""
    if name.startswith("fake_"):
        from qrkt_hw.backends.device.transpile import fake_device, fake_names, no_fake

        if name not in fake_names():
            raise UserError(f"--backend: {no_fake(name)}")
        return fake_device(name)
    from qrkt_hw.backends.registry import resolve

    return resolve(name)


def _facts(device: Any) -> dict[str, Any]:
    from qrkt_hw.backends.device.transpile import calibration_date

    delay = getattr(device, "default_rep_delay", None)
    return {
        "qubits": device.num_qubits,
        "calibrated": calibration_date(device),
        "rep_delay": None if delay is None else float(delay),
    }


def place_circuit(template: CircuitTemplate, device: Any, level: int, seed: int = SEED) -> Placed:
    """A template on a device, all its qubits measured, by Qiskit's preset pass manager."""
    from qrkt_hw.backends.device.layout import place_replicas
    from qrkt_hw.backends.device.measurement import bases
    from qrkt_hw.backends.device.packing import Packer
    from qrkt_hw.backends.device.transpile import active_qubits, cone_success, couplings, read_from, success, transpiled
    from qrkt_hw.resources.logical import two_qubit_figures

    target = device.target
    packer = Packer(target, device=device.name, level=level, shots=1)
    circuits = [transpiled(template, basis, target, level, seed=seed) for basis in bases(template)]
    packed = [packer.replicas(circuit) for circuit in circuits]
    isa, replicas = circuits[0], packed[0]
    layout = read_from(isa)
    reads = [sorted({layout[q] for _, qubits, _ in o.to_sparse_list() for q in qubits}) for o in template.observables]
    outputs = cone_success(isa, target, reads)
    return Placed(
        circuit=0,
        level=level,
        seed=seed,
        physical=list(active_qubits(isa)),
        layout=layout,
        couplings=[list(pair) for pair in couplings(isa)],
        gates={str(name): int(count) for name, count in isa.count_ops().items() if name != "barrier"},
        duration=float(isa.estimate_duration(target)),
        success=success(isa, target),
        output_success=outputs,
        predicted_error=predicted_error(template, outputs),
        copies=len(place_replicas(isa, target, min_fidelity=0)),
        good_copies=len(replicas),
        copy_success=[round(replica.success, 9) for replica in replicas],
        copy_qubits=[list(replica.physical) for replica in replicas],
        basis_copies=[[list(replica.physical) for replica in found] for found in packed],
        **two_qubit_figures(isa),
    )


def predicted_error(template: CircuitTemplate, output_success: Sequence[float]) -> float | None:
    """Root mean square of the error that noise is expected to make, over outputs and random parameters.

    Noise draws an expectation value towards zero, so it loses about the chance of a failure in its light cone times
    its own size. ``benchmarks/predicted_error.py`` says how well that ranks circuits. None where states are too large.
    """
    from qrkt_hw.simulator.analysis import LARGEST, typical_values

    if template.num_qubits > LARGEST:
        return None
    lost = (1 - np.asarray(output_success)) * typical_values(template)
    return float(np.sqrt((lost**2).mean()))


def costs(
    logical: Logical, device: Device, level: int, *, shots: int, images: int, steps: int, batch: int
) -> list[Cost]:
    """Part 3 of the report: inference and training on a device, each submitted in three ways.

    Args:
        logical: the circuits and sequential stages of one image.
        device: with the circuits transpiled at ``level``.
        level: optimisation level.
        shots: samples per circuit.
        images: inferred together.
        steps: of training; 0 leaves training out.
        batch: images of a step.
    """
    placed = {p.circuit: p for p in device.circuits if p.level == level}
    delay = DEFAULT_DELAY if device.rep_delay is None else device.rep_delay

    def cost(task: str, samples: int, repeats: int, passes: list[Callable[[Circuit], int]], way: str) -> Cost:
        """Of so many samples that go through the model together, again and again."""
        parts = []
        for shifted in passes:
            for stage in logical.rounds:
                sets = {c.circuit: c.circuits * samples * shifted(logical.circuits[c.circuit]) for c in stage}
                sent, busy, batches = _submitted(way, stage, sets, logical.circuits, placed)
                if sent:
                    parts.append((batches, sent, usage(sent * shots, delay, busy / sent, batches)))
        seconds = repeats * sum(used.seconds for _, _, used in parts)
        return Cost(
            device=device.name,
            level=level,
            task=task,
            way=way,
            rounds=repeats * sum(batches for batches, _, _ in parts),
            jobs=repeats * sum(used.jobs for _, _, used in parts),
            circuits=repeats * sum(sent for _, sent, _ in parts),
            executions=repeats * sum(used.executions for _, _, used in parts),
            seconds=seconds,
            seconds_long=repeats * sum(used.seconds_long for _, _, used in parts),
            seconds_quick=repeats * sum(used.seconds_quick for _, _, used in parts),
            usd={name: plan.usd_per_second * seconds for name, plan in prices().plans.items()},
        )

    tasks = [(f"infer {images:,}", images, 1, PASSES["adjoint"])]
    if steps:
        tasks += [(f"train {steps:,} {gradient}", batch, steps, passes) for gradient, passes in PASSES.items()]
    return [cost(*task, way) for task in tasks for way in WAYS]


def _submitted(
    way: str, stage: Sequence[StageCall], sets: dict[int, int], circuits: Sequence[Circuit], placed: dict[int, Placed]
) -> tuple[int, float, int]:
    """Circuits that are sent for so many parameter sets of each circuit, their seconds on the chip, circuit batches."""
    if way == "packed":
        slots = {
            (circuit, basis): [tuple(replica) for replica in placed[circuit].basis_copies[basis]]
            for circuit in sets
            for basis in range(circuits[circuit].bases)
        }
        allocations = allocate({slot: sets[slot[0]] for slot in slots}, slots)
        longest = [max(placed[slot[0]].duration for slot, _ in one.replicas) for one in allocations]  # type: ignore[index]
        busy = sum(one.executions * seconds for one, seconds in zip(allocations, longest, strict=True))
        return sum(one.executions for one in allocations), busy, 1
    each = {c: count * (circuits[c].outputs if way == "estimator" else circuits[c].bases) for c, count in sets.items()}
    busy = sum(count * placed[circuit].duration for circuit, count in each.items())
    return sum(each.values()), busy, sum(call.layers for call in stage) if way == "estimator" else 1


def draw(reports: Sequence[Report], path: Path) -> Path:
    """The layout of the widest circuit of the first report on its first device, at the highest optimisation level.

    Raises UserError: no device was named, or the file cannot be written."""
    from qrkt_hw.backends.device.transpile import failure
    from qrkt_hw.plots.charts import plot_layout

    report = reports[0]
    device = next((d for d in report.devices if d.circuits), None)
    if device is None:
        raise UserError("--plot: a layout needs a device; name one with --backend, such as fake_torino")
    placed = max(device.circuits, key=lambda p: (p.level, len(p.physical)))
    circuit = report.logical.circuits[placed.circuit]
    target = device_of(device.name).target
    edges = _edges(target)
    try:
        return plot_layout(
            f"{circuit.template} on {circuit.qubits} qubits of {device.name}, level {placed.level}: "
            f"{placed.two_qubit_gates} two-qubit gates, ESP {placed.success:.3f}",
            _positions(target.num_qubits, [(a, b) for a, b, _ in edges]),
            edges,
            [failure(target, "measure", [q]) for q in range(target.num_qubits)],
            placed.physical,
            [(a, b) for a, b in placed.couplings],
            placed.copy_qubits,
            path,
        )
    except OSError as error:
        raise UserError(f"--plot: {path} cannot be written: {error.strerror}") from error


def _edges(target: Any) -> list[tuple[int, int, float]]:
    """Coupled pairs, each once, with the error of their two-qubit gate."""
    from qrkt_hw.backends.device.transpile import failure

    found: dict[tuple[int, int], float] = {}
    for name in target.operation_names:
        for qubits in target[name] or {}:
            if qubits is not None and len(qubits) == 2:
                a, b = sorted(qubits)
                found[a, b] = max(found.get((a, b), 0.0), failure(target, name, qubits))
    return [(a, b, error) for (a, b), error in sorted(found.items())]


def _positions(size: int, edges: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    """Where to draw the qubits: rows for IBM's lattices, a spring layout for others.

    IBM numbers its chips row by row, so a row is a chain of consecutive numbers. Between rows of a heavy-hex lattice
    lie single qubits that couple up and down; on a square lattice a row couples to the next directly.
    """
    joined = set(edges)
    rows: list[list[int]] = []
    for qubit in range(size):
        if rows and (qubit - 1, qubit) in joined:
            rows[-1].append(qubit)
        else:
            rows.append([qubit])
    near: dict[int, list[int]] = {q: [] for q in range(size)}
    for a, b in edges:
        near[a].append(b)
        near[b].append(a)
    places: dict[int, tuple[float, float]] = {}
    level = 0.0
    for row, before in zip(rows, [[], *rows], strict=False):
        if before and len(row) + len(before) > 2:
            level -= 1.0
        shift = next((places[n][0] - k for k, q in enumerate(row) for n in near[q] if n in places), 0.0)
        places.update({q: (shift + k, level) for k, q in enumerate(row)})
    if len(set(places.values())) < size or len(rows) > size / 2:
        import rustworkx as rx

        graph: rx.PyGraph = rx.PyGraph()
        graph.add_nodes_from(range(size))
        graph.add_edges_from([(a, b, None) for a, b in edges])
        return [(10 * x, 10 * y) for x, y in rx.spring_layout(graph, seed=1).values()]
    return [places[q] for q in range(size)]

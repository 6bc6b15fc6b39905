"""Circuits on a device: transpiled, timed, judged by the calibration; kept in the user's cache folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.device.cache import digest, remember, versions
from qrkt_hw.errors import UserError
from qrkt_hw.resources.schema import Device, Placed
from qrkt_hw.resources.subject import Subject

SEED = 7  # of the transpiler


def on_device(subject: Subject, name: str, levels: tuple[int, ...], seed: int = SEED) -> Device:
    """Part 2 of the report: every circuit of the subject on a device.

    Args:
        subject: what is reported on.
        name: of a backend.
        levels: optimisation levels of the transpiler.
        seed: of the transpiler.

    Raises:
        UserError: no such device, or a circuit that does not fit it.
    """
    snapshot = snapshot_name(name)
    if snapshot is None:
        return Device(name=name, qubits=None, calibrated=None, rep_delay=None, simulated=True, circuits=[])
    live = not snapshot.startswith("fake_")

    def keep(kind: str, key: Any, compute):  # a live device is calibrated anew every day
        return compute() if live else remember(kind, digest(snapshot, key, versions()), compute)

    facts = keep("devices", "facts", lambda: _facts(device_of(snapshot)))
    placed = []
    for place, circuit in enumerate(subject.description.logical.circuits):
        if circuit.qubits > facts["qubits"]:
            raise UserError(
                f"--backend: {name} has {facts['qubits']} qubits; ansatz {circuit.template!r} takes {circuit.qubits}"
            )
        for level in levels:
            found = keep(
                "transpiled",
                [circuit.fingerprint, level, seed],
                lambda c=place, v=level: place_circuit(subject.template(c), device_of(snapshot), v, seed).model_dump(
                    mode="json"
                ),
            )
            placed.append(Placed.model_validate({**found, "circuit": place}))
    return Device(name=name, **facts, simulated=False, circuits=placed)


def snapshot_name(name: str) -> str | None:
    """The device behind a backend's name; None for a simulator that takes circuits as written.

    Raises:
        UserError: no such backend.
    """
    if name.startswith("fake_"):
        return name
    from qrkt_hw.backends.registry import resolve

    backend = resolve(name)
    target = getattr(backend, "target", None)
    snapshot = getattr(backend, "snapshot", None)
    if snapshot is not None:
        return snapshot.name
    return None if target is None else name


def place_circuit(template: CircuitTemplate, device: Any, level: int, seed: int = SEED) -> Placed:
    """A template on a device, all its qubits measured, by Qiskit's preset pass manager."""
    from qrkt_hw.backends.device.calibration import cone_success, success
    from qrkt_hw.backends.device.measurement import bases
    from qrkt_hw.backends.device.packing import Packer
    from qrkt_hw.backends.device.placement import active_qubits, couplings, place_copies
    from qrkt_hw.backends.device.transpiling import read_from, transpiled
    from qrkt_hw.resources.logical import two_qubit_figures

    target = device.target
    packer = Packer(target, device=device.name, level=level, shots=1)
    circuits = [transpiled(template, basis, target, level, seed=seed) for basis in bases(template)]
    packed = [packer.copies(circuit) for circuit in circuits]
    isa, copies = circuits[0], packed[0]
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
        copies=len(place_copies(isa, target, quality=0)),
        good_copies=len(copies),
        copy_success=[round(copy.success, 9) for copy in copies],
        copy_qubits=[list(copy.physical) for copy in copies],
        basis_copies=[[list(copy.physical) for copy in found] for found in packed],
        **two_qubit_figures(isa),
    )


def predicted_error(template: CircuitTemplate, output_success: Sequence[float]) -> float | None:
    """Root mean square of the error that noise is expected to make, over outputs and random parameters.

    Noise draws an expectation value towards zero, so it loses about the chance of a failure in its causal cone times
    its own size. ``benchmarks/predicted_error.py`` says how well that ranks circuits. None where states are too large.
    """
    from qrkt_hw.simulator.analysis import LARGEST, typical_values

    if template.num_qubits > LARGEST:
        return None
    lost = (1 - np.asarray(output_success)) * typical_values(template)
    return float(np.sqrt((lost**2).mean()))


def device_of(name: str) -> Any:
    """The device behind a name, with its ``target``."""
    from qrkt_hw.backends.device.devices import fake_device

    if name.startswith("fake_"):
        return fake_device(name)
    from qrkt_hw.backends.registry import resolve

    return resolve(name)


def _facts(device: Any) -> dict[str, Any]:
    properties = device.properties() if callable(getattr(device, "properties", None)) else None
    date = getattr(properties, "last_update_date", None)
    delay = getattr(device, "default_rep_delay", None)
    return {
        "qubits": device.num_qubits,
        "calibrated": None if date is None else date.isoformat(),
        "rep_delay": None if delay is None else float(delay),
    }

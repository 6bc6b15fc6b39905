"""Submitted programs and their results in the client's true formats, read and written by its own schemas."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from ibm_quantum_schemas.common import CompressedTensorModel
from ibm_quantum_schemas.executor import version_2_0
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit
from qiskit_ibm_runtime.quantum_program.params_converters import QUANTUM_PROGRAM_PARAMS_CONVERTERS

from tests.ibm_service import devices, engine


class Rejected(Exception):
    """The job cannot be run as it was submitted."""


@dataclass
class Item:
    """One circuit of a program with its arguments; twirled ones come as a samplex that draws them."""

    circuit: QuantumCircuit
    arguments: NDArray[np.float64]
    flips: dict[str, NDArray[np.bool_]]
    shape: tuple[int, ...]

    @property
    def rows(self) -> NDArray[np.float64]:
        return self.arguments.reshape(int(np.prod(self.shape, dtype=int)), -1)


@dataclass
class Program:
    """What a job asks for."""

    items: list[Item]
    shots: int
    rep_delay: float | None
    raw: Any
    version: str
    content: str

    @property
    def executions(self) -> int:
        return sum(len(item.rows) for item in self.items) * self.shots


def read(params: dict[str, Any], device: str, largest: int = 10_000_000) -> Program:
    """Decode the parameters of a submitted job and check them against the device.

    Raises:
        Rejected: an unknown schema, a circuit that is not in the device's gates, or too many executions.
    """
    version = params.get("schema_version", "")
    if version not in QUANTUM_PROGRAM_PARAMS_CONVERTERS:
        raise Rejected(f"unknown schema version {version!r}")
    converter = QUANTUM_PROGRAM_PARAMS_CONVERTERS[version]
    model = converter.model.model_validate(params)
    program, options = converter.decoder(model)
    content = hashlib.sha256(f"{device}|{program.shots}".encode())
    items = []
    for item in program.items:
        circuit = item.circuit
        if hasattr(item, "samplex"):
            seed = int(hashlib.sha256(repr(item.samplex_arguments).encode()).hexdigest()[:16], 16)
            drawn = _draw(item, np.random.default_rng(seed))
            arguments = drawn.pop("parameter_values")
            flips = {k: v for k, v in drawn.items() if k.startswith("measurement_flips.")}
            one = Item(circuit, np.asarray(arguments, dtype=np.float64), flips, tuple(item.shape))
        else:
            given = np.asarray(item.circuit_arguments, dtype=np.float64)
            one = Item(circuit, given, {}, given.shape[:-1])
        _check(circuit, device)
        content.update(engine.fingerprint(circuit, one.rows, program.shots, "").encode())
        items.append(one)
    delay = getattr(options.execution, "rep_delay", None)
    found = Program(items, program.shots, delay, model.quantum_program, version, content.hexdigest())
    if found.executions > largest:
        raise Rejected(f"{found.executions} executions exceed the limit of {largest}")
    return found


def _draw(item: Any, rng: np.random.Generator) -> dict[str, Any]:
    from qiskit_ibm_runtime.fake_provider.executor.broadcast_sample import broadcast_sample

    item.samplex.finalize()
    return broadcast_sample(item.samplex, item.samplex_arguments, tuple(item.shape), rng)


def _check(circuit: QuantumCircuit, device: str) -> None:
    target = devices.target(device)
    for instruction in circuit.data:
        name = instruction.operation.name
        qubits = tuple(circuit.find_bit(q).index for q in instruction.qubits)
        if name not in ("barrier", "delay") and not target.instruction_supported(name, qubits):
            raise Rejected(f"instruction {name} on qubits {qubits} is not supported by {device}")


def seconds(program: Program, device: str) -> float:
    """QPU seconds: 2 s a job, and repetition delay plus duration, or 0.35 ms, for every execution: what is more."""
    target = devices.target(device)
    delay = devices.rep_delay(device) if program.rep_delay is None else program.rep_delay
    long = short = 0.0
    for item in program.items:
        count = len(item.rows) * program.shots
        long += count * (delay + duration(item.circuit, target))
        short += count * 3.5e-4
    return 2.0 + max(long, short)


def duration(circuit: QuantumCircuit, target: Any) -> float:
    """Seconds of a circuit, gates as soon as their qubits are free."""
    free = [0.0] * circuit.num_qubits
    for instruction in circuit.data:
        qubits = [circuit.find_bit(q).index for q in instruction.qubits]
        start = max((free[q] for q in qubits), default=0.0)
        name = instruction.operation.name
        if name == "delay":
            length = float(instruction.operation.duration) * (target.dt if instruction.operation.unit == "dt" else 1.0)
        elif name == "barrier":
            length = 0.0
        else:
            entry = target[name].get(tuple(qubits))
            length = getattr(entry, "duration", None) or 0.0
        for q in qubits:
            free[q] = start + length
    return max(free, default=0.0)


def execute(program: Program, device: str, noise: Any) -> str:
    """Run a program; the JSON that ``GET /jobs/ID/results`` answers."""
    data, parts = [], []
    started = datetime.now(UTC)
    for index, item in enumerate(program.items):
        found = engine.run(item.circuit, item.rows, program.shots, noise, device + ("" if noise is None else "~"))
        results = {}
        for name, bits in found.items():
            shaped = bits.reshape(*item.shape, program.shots, bits.shape[-1])
            results[name] = CompressedTensorModel.from_numpy(shaped)
        # twirled measurements are flipped by the circuit itself; the client undoes that
        results.update({name: CompressedTensorModel.from_numpy(values) for name, values in item.flips.items()})
        data.append({"results": results, "metadata": {}})
        size = len(item.rows)
        parts.append({"idx_item": index, "size": size, "permutation": list(range(len(item.shape))),
                      "element_range": (0, size, 1)})  # fmt: skip
    if program.version != "v2.0":
        raise Rejected(f"results of schema {program.version} are not made here")
    model = version_2_0.QuantumProgramResultModel(
        data=data,  # type: ignore[arg-type]
        metadata={"chunk_timing": [{"start": started, "stop": datetime.now(UTC), "parts": parts}]},  # type: ignore[arg-type]
        passthrough_data=program.raw.passthrough_data,
        semantic_role=program.raw.semantic_role,
    )
    return model.model_dump_json()

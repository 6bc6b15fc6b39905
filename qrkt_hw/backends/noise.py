"""The noise of a device as superoperators, from its calibration, built once and kept in the user's cache folder.

The models are qiskit-aer's (depolarising plus thermal relaxation per gate, confusion per readout). The cache holds
plain arrays (npz, read without pickle); a damaged or outdated file is built anew.
"""

import hashlib
import io
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import Kraus, Operator, SuperOp

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.device.cache import cache_folder, store
from qrkt_hw.backends.device.measurement import Basis, Floats
from qrkt_hw.backends.device.transpile import FOLDABLE, PlacedCircuit, calibration_date, fake_device, qubits_of
from qrkt_hw.compiler import Fixed, lower
from qrkt_hw.errors import extras
from qrkt_hw.simulator import noisy

FORMAT = 2  # 2: with a checksum


@dataclass(frozen=True, eq=False)
class DeviceNoise:
    """Noise after every gate and readout of a device."""

    # ``(name, qubits) -> (4^k, 4^k)`` superoperator in Qiskit's convention, applied after the ideal gate
    gates: dict[tuple[str, tuple[int, ...]], NDArray[np.complex128]]
    readout: Floats  # ``(qubits, 2, 2)``: chance to read b in state s at ``[qubit, s, b]``
    idle: float = 0.0  # Z rotation of idle qubits, radians per second


Noise = DeviceNoise | None


@lru_cache(maxsize=8)
def device_noise(name: str) -> DeviceNoise:
    """The noise of a fake backend. Raises UserError: no such fake backend."""
    device = fake_device(name)
    versions = [metadata.version(package) for package in ("qiskit", "qiskit-aer", "qiskit-ibm-runtime")]
    text = "|".join([str(FORMAT), *versions, str(calibration_date(device))])
    path = cache_folder() / "noise" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
    found = _read(path, device.num_qubits)
    if found is None:
        found = _build(device)
        _write(path, found)
    return found


def with_errors(noise: DeviceNoise | None, target: Any, coherent: float, idle: float) -> DeviceNoise:
    """Noise with coherent errors added.

    Two-qubit gates over-rotate by the share ``coherent`` of their angle, idle qubits rotate about Z by ``idle`` radians
    per second.
    """
    gates = {} if noise is None else dict(noise.gates)
    for name in set(FOLDABLE) & set(target.operation_names) if coherent else ():
        unitary = Operator(target.operation_from_name(name)).power(coherent)
        for qubits in target[name]:
            before = np.eye(16) if noise is None else noise.gates.get((name, qubits), np.eye(16))
            gates[name, qubits] = before @ SuperOp(unitary).data
    readout = np.tile(np.eye(2), (target.num_qubits, 1, 1)) if noise is None else noise.readout
    return DeviceNoise(gates, readout, idle)


def _build(device: Any) -> DeviceNoise:
    with extras():
        from qiskit_aer.noise.device import basic_device_gate_errors, basic_device_readout_errors

    with warnings.catch_warnings(action="ignore"):  # calibrations that break T2 <= 2 T1 are cut, with a warning each
        errors = basic_device_gate_errors(target=device.target)
    listed = [one for one in errors if one[0] not in ("reset", "measure", "delay")]
    gates = {(name, tuple(qubits)): error_superoperator(error) for name, qubits, error in listed}
    readout = np.tile(np.eye(2), (device.num_qubits, 1, 1))
    for qubits, error in basic_device_readout_errors(target=device.target):
        readout[qubits[0]] = error.probabilities
    return DeviceNoise(gates, readout)


def error_superoperator(error: Any) -> NDArray[np.complex128]:
    """What ``error.to_quantumchannel()`` returns, ``(4^k, 4^k)``, some twenty times faster for device errors."""
    total = np.zeros((4**error.num_qubits, 4**error.num_qubits))
    for circuit, probability in zip(error.circuits, error.probabilities, strict=True):
        transfer = np.eye(len(total))
        for instruction in circuit.data:
            qubits = tuple(circuit.find_bit(q).index for q in instruction.qubits)
            transfer = _transfer(instruction.operation, qubits, error.num_qubits) @ transfer
        total += probability * transfer
    return noisy.superoperator(total)


_KNOWN: dict[tuple[Any, ...], Floats] = {}


def _transfer(operation: Any, qubits: tuple[int, ...], of: int) -> Floats:
    """The transfer matrix of an operation on some of so many qubits."""
    key = (operation.name, operation.params[0] if operation.name == "pauli" else "", qubits, of)
    found = _KNOWN.get(key)
    if found is None:
        channel = noisy.Channel(noisy.transfer_matrix(np.asarray(SuperOp(operation).data)), qubits)
        found = noisy.embedded(channel, tuple(range(of)))
        if operation.name != "kraus":
            _KNOWN[key] = found
    return found


def _write(path: Path, noise: DeviceNoise) -> None:
    arrays: dict[str, Any] = {"readout": noise.readout}
    for name in sorted({n for n, _ in noise.gates}):
        chosen = [(qubits, s) for (n, qubits), s in noise.gates.items() if n == name]
        arrays[f"{name}.qubits"] = np.array([q for q, _ in chosen], dtype=np.int64)
        arrays[f"{name}.superoperators"] = np.stack([s for _, s in chosen])
    arrays["sha256"] = _sum(arrays)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    store(path, file.getvalue())


def _read(path: Path, num_qubits: int) -> DeviceNoise | None:
    """None where there is no sound file."""
    with suppress(Exception):  # zip, zlib and npz raise of many kinds what damaged bytes make of them: it is built anew
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        if not np.array_equal(arrays.pop("sha256"), _sum(arrays)):
            return None
        gates = {}
        for name in (key.removesuffix(".superoperators") for key in arrays if key.endswith(".superoperators")):
            qubits, maps = arrays[f"{name}.qubits"], arrays[f"{name}.superoperators"]
            if maps.ndim != 3 or maps.shape != (len(qubits), 4 ** qubits.shape[1], 4 ** qubits.shape[1]):
                return None
            gates.update({(name, tuple(int(q) for q in on)): m for on, m in zip(qubits, maps, strict=True)})
        readout = arrays["readout"]
        if readout.shape == (num_qubits, 2, 2) and all(np.isfinite(a).all() for a in arrays.values()):
            return DeviceNoise(gates, readout)
    return None


def _sum(arrays: dict[str, Any]) -> NDArray[np.uint8]:
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype} {array.shape} ".encode())
        found.update(array.tobytes())
    return np.frombuffer(found.digest(), dtype=np.uint8)


def noisy_circuit(
    template: CircuitTemplate, placed: PlacedCircuit, noise: Noise, effects: Floats
) -> noisy.NoisyCircuit:
    """The placed circuit as rotations and channels; after every gate its noise."""
    # a transpiler may drop parameters that no longer matter, which a template may not
    read: Any = SimpleNamespace(circuit=placed.circuit, parameters=template.parameters, num_qubits=len(placed.physical),
                                num_inputs=template.num_inputs, num_weights=template.num_weights)  # fmt: skip
    program = lower(read)
    by_instruction: dict[int, list[noisy.NoisyStep]] = {}
    for step in program.steps:
        lowered = noisy.Channel(noisy.unitary_transfer(step.matrix), step.qubits) if isinstance(step, Fixed) else step
        by_instruction.setdefault(step.instruction, []).append(lowered)
    steps: list[noisy.NoisyStep] = []
    for index, instruction in enumerate(placed.circuit.data):
        steps.extend(by_instruction.get(index, []))
        qubits, error = _error(instruction, placed, noise)
        if error is not None:
            steps.append(noisy.Channel(noisy.transfer_matrix(error), qubits))
    return noisy.NoisyCircuit(tuple(noisy.fuse(steps)), len(placed.physical), effects)


def noisy_instructions(placed: PlacedCircuit, noise: Noise, kind: type[SuperOp | Kraus] = SuperOp) -> QuantumCircuit:
    """The placed circuit with an instruction for its error after every noisy gate.

    Aer's density matrix takes superoperators, and its statevector Kraus operators.
    """
    circuit = placed.circuit.copy_empty_like()
    for instruction in placed.circuit.data:
        if instruction.operation.name != "delay":
            circuit.append(instruction)
        qubits, error = _error(instruction, placed, noise)
        if error is not None:
            circuit.append(kind(SuperOp(error)).to_instruction(), qubits)
    return circuit


def _error(instruction: Any, placed: PlacedCircuit, noise: Noise) -> tuple[tuple[int, ...], Any]:
    """The qubits of an instruction, and the noise after it."""
    qubits = qubits_of(placed.circuit, instruction)
    if noise is not None and noise.idle and instruction.operation.name == "delay":
        angle = noise.idle * instruction.operation.duration
        return qubits, np.diag([1, np.exp(1j * angle), np.exp(-1j * angle), 1])
    there = (instruction.operation.name, tuple(placed.physical[q] for q in qubits))
    return qubits, None if noise is None else noise.gates.get(there)


def readout(placed: PlacedCircuit, noise: Noise, flips: Sequence[bool] = ()) -> list[Floats]:
    """Confusion ``(2, 2)`` of each measured qubit, that of an X gate in front of it included where it is flipped."""
    return confusion([placed.physical[q] for q in placed.measured], noise, flips)


def confusion(qubits: Sequence[int], noise: Noise, flips: Sequence[bool] = ()) -> list[Floats]:
    """Confusion ``(2, 2)`` of qubits of the device, as :func:`readout`."""
    found = [np.eye(2) if noise is None else noise.readout[q] for q in qubits]
    for place in np.flatnonzero(flips).tolist():
        error = None if noise is None else noise.gates.get(("x", (qubits[place],)))
        ideal = np.eye(4)[[3, 0]]  # |1><1| and |0><0|, column by column
        states = ideal if error is None else ideal @ error.T
        found[place] = np.clip(states[:, [0, 3]].real, 0, None) @ found[place]
    return found


def observable_effects(basis: Basis, observables: int, placed: PlacedCircuit, noise: Noise) -> Floats:
    """``(4^n, observables)``: what measuring the basis reads, readout errors included, over Pauli strings."""
    total = np.zeros((4 ** len(placed.physical), observables))
    signs = [matrix[:, 0] - matrix[:, 1] for matrix in readout(placed, noise)]  # mean sign read in each state
    for row, coefficient, mask in basis.terms:
        read = {placed.measured[q]: sign for q, sign in enumerate(signs) if mask >> q & 1}
        total[:, row] += coefficient * _diagonal(read, len(placed.physical))
    return total


def outcome_effects(placed: PlacedCircuit, noise: Noise, flips: Sequence[bool] = ()) -> Floats:
    """``(4^n, 2^m)``: the chance of every outcome of the m qubits of the template, over Pauli strings."""
    where = list(zip(range(len(placed.measured)), placed.measured, readout(placed, noise, flips), strict=True))
    reads = [{at: matrix[:, outcome >> q & 1] for q, at, matrix in where} for outcome in range(2 ** len(where))]
    return np.stack([_diagonal(read, len(placed.physical)) for read in reads], axis=1)


def _diagonal(read: dict[int, Floats], qubits: int) -> Floats:
    """The product of diagonal matrices on the qubits named, the identity on others, over Pauli strings ``(4^n,)``."""
    vector = np.ones(1)
    for qubit in range(qubits):
        zero, one = read.get(qubit, (1.0, 1.0))
        vector = np.kron(np.array([(zero + one) / 2, 0.0, (zero - one) / 2, 0.0]), vector)
    return vector

"""The noise of a device as superoperators, from its calibration, built once and kept in the user's cache folder.

The models are qiskit-aer's (depolarising plus thermal relaxation per gate, confusion per readout). The cache holds
plain arrays (npz, read without pickle); a damaged or outdated file is built anew.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.quantum_info import SuperOp

from qrkt_hw.backends.device.cache import cache_folder
from qrkt_hw.backends.device.devices import fake_device
from qrkt_hw.simulator.noisy import Channel, embedded, superoperator, transfer_matrix

FORMAT = 2  # 2: with a checksum


@dataclass(frozen=True, eq=False)
class DeviceNoise:
    """Noise behind every gate and readout of a device.

    Attributes:
        gates: ``(name, qubits) -> (4^k, 4^k)`` superoperator in Qiskit's convention, applied behind the ideal gate.
        readout: ``(qubits, 2, 2)``: chance to read b in state s at ``[qubit, s, b]``.
    """

    gates: dict[tuple[str, tuple[int, ...]], NDArray[np.complex128]]
    readout: NDArray[np.float64]


@lru_cache(maxsize=8)
def device_noise(name: str) -> DeviceNoise:
    """The noise of a device snapshot.

    Raises:
        UserError: no such snapshot.
    """
    device = fake_device(name)
    path = cache_folder() / "noise" / f"{name}-{_fingerprint(device)}.npz"
    found = _read(path, device.num_qubits)
    if found is None:
        found = _build(device)
        _write(path, found)
    return found


def calibration_date(device: Any) -> str | None:
    """When the device was calibrated, ISO 8601; None where it does not say."""
    properties = device.properties() if callable(getattr(device, "properties", None)) else None
    date = getattr(properties, "last_update_date", None)
    return date.isoformat() if date is not None else None


def _fingerprint(device: Any) -> str:
    versions = [metadata.version(p) for p in ("qiskit", "qiskit-aer", "qiskit-ibm-runtime") if _installed(p)]
    text = "|".join([str(FORMAT), *versions, str(calibration_date(device))])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _build(device: Any) -> DeviceNoise:
    from qiskit_aer.noise.device import basic_device_gate_errors, basic_device_readout_errors

    gates = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # calibrations that break T2 <= 2 T1 are cut to it, with a remark each
        errors = basic_device_gate_errors(target=device.target)
    for name, qubits, error in errors:
        if name not in ("reset", "measure", "delay"):
            gates[(name, tuple(qubits))] = error_superoperator(error)
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
            channel = Channel(_transfer(instruction.operation), qubits)
            transfer = embedded(channel, tuple(range(error.num_qubits))) @ transfer
        total += probability * transfer
    return superoperator(total)


def _transfer(operation: Any) -> NDArray[np.float64]:
    key = operation.name + (operation.params[0] if operation.name == "pauli" else "")
    if operation.name == "kraus":
        return transfer_matrix(np.asarray(SuperOp(operation).data))
    if key not in _KNOWN:
        _KNOWN[key] = transfer_matrix(np.asarray(SuperOp(operation).data))
    return _KNOWN[key]


_KNOWN: dict[str, NDArray[np.float64]] = {}


def _write(path: Path, noise: DeviceNoise) -> None:
    arrays: dict[str, Any] = {"readout": noise.readout}
    for name in sorted({n for n, _ in noise.gates}):
        chosen = [(qubits, s) for (n, qubits), s in noise.gates.items() if n == name]
        arrays[f"{name}.qubits"] = np.array([q for q, _ in chosen], dtype=np.int64)
        arrays[f"{name}.superoperators"] = np.stack([s for _, s in chosen])
    arrays["sha256"] = _sum(arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(file, **arrays)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError:
        pass  # a cache that cannot be written costs seconds, nothing else


def _read(path: Path, num_qubits: int) -> DeviceNoise | None:
    """None where there is no sound file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        if not np.array_equal(arrays.pop("sha256"), _sum(arrays)):
            return None
        gates = {}
        for key in arrays:
            name, _, kind = key.rpartition(".")
            if kind != "superoperators":
                continue
            qubits, maps = arrays[f"{name}.qubits"], arrays[key]
            if maps.ndim != 3 or maps.shape != (len(qubits), 4 ** qubits.shape[1], 4 ** qubits.shape[1]):
                return None
            gates.update({(name, tuple(int(q) for q in on)): m for on, m in zip(qubits, maps, strict=True)})
        readout = arrays["readout"]
        if readout.shape != (num_qubits, 2, 2) or not all(np.isfinite(a).all() for a in arrays.values()):
            return None
        return DeviceNoise(gates, readout)
    except Exception:  # zip, zlib and npz raise of many kinds what damaged bytes make of them: it is built anew
        return None


def _sum(arrays: dict[str, Any]) -> NDArray[np.uint8]:
    """SHA-256 of names, shapes and content, ``(32,)``."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype} {array.shape} ".encode())
        found.update(array.tobytes())
    return np.frombuffer(found.digest(), dtype=np.uint8)

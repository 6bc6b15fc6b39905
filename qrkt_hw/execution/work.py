"""Work for a device: one PUB and the hash of its content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit


@dataclass(frozen=True, eq=False)
class Work:
    """One PUB.

    Attributes:
        circuit: ISA and measured, one classical register per copy: ``c0``, ``c1``, ...
        values: float64 ``(executions, circuit.num_parameters)``, in the order of ``circuit.parameters``.
        shots: of each row.
        tag: what it is for.
        device: where.
        options: what changes the result, such as twirling.
    """

    circuit: QuantumCircuit
    values: NDArray[np.float64]
    shots: int
    tag: str
    device: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """SHA-256 of the content: circuit by structure, parameters, shots, options and device."""
        digest = hashlib.sha256(json.dumps([self.shots, self.device, self.options], sort_keys=True).encode())
        order = {parameter: f"p{k}" for k, parameter in enumerate(self.circuit.parameters)}
        names = {parameter.name: place for parameter, place in order.items()}
        for instruction in self.circuit.data:
            where = [self.circuit.find_bit(b).index for b in (*instruction.qubits, *instruction.clbits)]
            angles = [_shown(p, names) for p in instruction.operation.params]
            digest.update(f"{instruction.operation.name}{where}{angles}".encode())
        digest.update(np.ascontiguousarray(self.values, dtype=np.float64).tobytes())
        return digest.hexdigest()

    @property
    def executions(self) -> int:
        """Rows times shots."""
        return len(self.values) * self.shots


def _shown(angle: Any, names: dict[str, str]) -> str:
    text = str(angle)
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, names[name])
    return text

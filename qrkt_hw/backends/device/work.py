"""Work for a device: one PUB and the hash of its content."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
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
        batch: what the copies compute; of the packer that made it.
    """

    circuit: QuantumCircuit
    values: NDArray[np.float64]
    shots: int
    tag: str
    device: str
    options: dict[str, Any] = field(default_factory=dict)
    batch: Any = field(default=None, repr=False)

    @cached_property  # asked for several times a round
    def key(self) -> str:
        """SHA-256 of the content: circuit by structure, parameters, shots, options and device."""
        digest = hashlib.sha256(json.dumps([self.shots, self.device, self.options], sort_keys=True).encode())
        digest.update(structure(self.circuit))
        digest.update(np.ascontiguousarray(self.values, dtype=np.float64).tobytes())
        return digest.hexdigest()

    @property
    def executions(self) -> int:
        """Rows times shots."""
        return len(self.values) * self.shots


def structure(circuit: QuantumCircuit) -> bytes:
    """SHA-256 of gates, wires and angles; parameters count by their order, not by their names."""
    kept = _known.get(id(circuit))
    if kept is not None and kept[0] is circuit and kept[1] == len(circuit.data):
        return kept[2]
    digest = hashlib.sha256()
    names = {parameter.name: f"p{k}" for k, parameter in enumerate(circuit.parameters)}
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(name) for name in longest_first)) if names else None
    for instruction in circuit.data:
        where = [circuit.find_bit(b).index for b in (*instruction.qubits, *instruction.clbits)]
        angles = [str(p) for p in instruction.operation.params]
        if pattern is not None:
            angles = [pattern.sub(lambda found: names[found.group()], angle) for angle in angles]
        digest.update(f"{instruction.operation.name}{where}{angles}".encode())
    if len(_known) > 200:
        _known.clear()
    _known[id(circuit)] = (circuit, len(circuit.data), digest.digest())
    return digest.digest()


_known: dict[int, tuple[QuantumCircuit, int, bytes]] = {}  # wide circuits are long and asked for every round

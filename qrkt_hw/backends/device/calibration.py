"""What a device's calibration says of a transpiled circuit: the chance that nothing fails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from qiskit.circuit import QuantumCircuit

WORST = 1 - 1e-9  # an error of 1 marks a broken gate; its logarithm must stay finite
IGNORED = ("barrier", "delay")


def failure(target: Any, name: str, qubits: Sequence[int]) -> float:
    """``-log(1 - error)`` of a gate or measurement on physical qubits; 0 where the calibration says nothing."""
    if name in IGNORED or name not in target.operation_names:
        return 0.0
    properties = target[name]
    entry = None if properties is None else properties.get(tuple(qubits))
    error = getattr(entry, "error", None)
    if error is None or math.isnan(error):
        return 0.0
    return -math.log1p(-min(max(error, 0.0), WORST))


def success(isa: QuantumCircuit, target: Any) -> float:
    """Estimated success probability: the product of ``1 - error`` over all gates and measurements of an ISA circuit."""
    total = 0.0
    for instruction in isa.data:
        total += failure(target, instruction.operation.name, [isa.find_bit(q).index for q in instruction.qubits])
    return math.exp(-total)


def cone_success(isa: QuantumCircuit, target: Any, outputs: Sequence[Sequence[int]]) -> list[float]:
    """The same for each output, over the gates that can reach the physical qubits it is read from.

    Args:
        isa: transpiled, measured or not.
        target: the device.
        outputs: for every observable the physical qubits on which it is measured.
    """
    steps = []
    for instruction in reversed(isa.data):
        qubits = [isa.find_bit(q).index for q in instruction.qubits]
        name = instruction.operation.name
        if name not in (*IGNORED, "measure"):
            steps.append((qubits, failure(target, name, qubits)))
    found = []
    for read in outputs:
        reached = set(read)
        total = sum(failure(target, "measure", [q]) for q in reached)
        for qubits, cost in steps:
            if not reached.isdisjoint(qubits):
                reached.update(qubits)
                total += cost
        found.append(math.exp(-total))
    return found

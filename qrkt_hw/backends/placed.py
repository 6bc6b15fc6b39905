"""A placed circuit with the noise of the qubits it lies on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import SuperOp

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.device.measurement import Basis
from qrkt_hw.backends.device.transpiling import PlacedCircuit
from qrkt_hw.backends.noise import DeviceNoise
from qrkt_hw.compiler import Fixed, lower
from qrkt_hw.simulator.noisy import Channel, NoisyCircuit, NoisyStep, fuse, transfer_matrix, unitary_transfer


@dataclass(frozen=True, eq=False)
class _Lowerable:
    """What :func:`lower` reads; a transpiler may drop parameters that no longer matter, which a template may not."""

    circuit: QuantumCircuit
    parameters: list[Any]
    num_qubits: int
    num_inputs: int
    num_weights: int


def noisy_circuit(
    template: CircuitTemplate, placed: PlacedCircuit, noise: DeviceNoise | None, effects: NDArray[np.float64]
) -> NoisyCircuit:
    """The placed circuit as rotations and channels; behind every gate its noise."""
    shape = (len(placed.physical), template.num_inputs, template.num_weights)
    program = lower(_Lowerable(placed.circuit, template.parameters, *shape))  # type: ignore[arg-type]
    by_instruction: dict[int, list[NoisyStep]] = {}
    for step in program.steps:
        lowered = Channel(unitary_transfer(step.matrix), step.qubits) if isinstance(step, Fixed) else step
        by_instruction.setdefault(step.instruction, []).append(lowered)
    steps: list[NoisyStep] = []
    for index, instruction in enumerate(placed.circuit.data):
        steps.extend(by_instruction.get(index, []))
        qubits = tuple(placed.circuit.find_bit(q).index for q in instruction.qubits)
        error = _error(instruction.operation.name, qubits, placed, noise)
        if error is not None:
            steps.append(Channel(transfer_matrix(error), qubits))
    return NoisyCircuit(tuple(fuse(steps)), len(placed.physical), effects)


def noisy_instructions(placed: PlacedCircuit, noise: DeviceNoise | None) -> QuantumCircuit:
    """The placed circuit with a superoperator instruction behind every noisy gate, as Aer's density matrix takes it."""
    circuit = placed.circuit.copy_empty_like()
    for instruction in placed.circuit.data:
        circuit.append(instruction)
        qubits = tuple(placed.circuit.find_bit(q).index for q in instruction.qubits)
        error = _error(instruction.operation.name, qubits, placed, noise)
        if error is not None:
            circuit.append(SuperOp(error).to_instruction(), qubits)
    return circuit


def _error(
    name: str, qubits: tuple[int, ...], placed: PlacedCircuit, noise: DeviceNoise | None
) -> NDArray[np.complex128] | None:
    if noise is None:
        return None
    return noise.gates.get((name, tuple(placed.physical[q] for q in qubits)))


def readout(placed: PlacedCircuit, noise: DeviceNoise | None) -> list[NDArray[np.float64]]:
    """Confusion ``[state, read]`` for every qubit of the template."""
    if noise is None:
        return [np.eye(2)] * len(placed.measured)
    return [noise.readout[placed.physical[q]] for q in placed.measured]


def observable_effects(
    basis: Basis, observables: int, placed: PlacedCircuit, noise: DeviceNoise | None
) -> NDArray[np.float64]:
    """``(4^n, observables)``: what measuring the basis reads, readout errors included, over Pauli strings."""
    confusion = readout(placed, noise)
    total = np.zeros((4 ** len(placed.physical), observables))
    for row, coefficient, mask in basis.terms:
        factors = {}
        for qubit, matrix in enumerate(confusion):
            if mask >> qubit & 1:
                read = matrix[:, 0] - matrix[:, 1]  # mean sign read in each state
                factors[placed.measured[qubit]] = ((read[0] + read[1]) / 2, (read[0] - read[1]) / 2)
        total[:, row] += coefficient * _diagonal(factors, len(placed.physical))
    return total


def outcome_effects(placed: PlacedCircuit, noise: DeviceNoise | None) -> NDArray[np.float64]:
    """``(4^n, 2^m)``: the chance of every outcome of the m qubits of the template, over Pauli strings."""
    confusion = readout(placed, noise)
    columns = []
    for outcome in range(2 ** len(confusion)):
        factors = {}
        for qubit, matrix in enumerate(confusion):
            read = matrix[:, outcome >> qubit & 1]
            factors[placed.measured[qubit]] = ((read[0] + read[1]) / 2, (read[0] - read[1]) / 2)
        columns.append(_diagonal(factors, len(placed.physical)))
    return np.stack(columns, axis=1)


def _diagonal(factors: dict[int, tuple[float, float]], qubits: int) -> NDArray[np.float64]:
    """The product of ``a I + b Z`` on the qubits named, the identity on others, as ``(4^qubits,)``."""
    vector = np.ones(1)
    for qubit in range(qubits):
        identity, z = factors.get(qubit, (1.0, 0.0))
        vector = np.kron(np.array([identity, 0.0, z, 0.0]), vector)
    return vector

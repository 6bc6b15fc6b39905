"""Random templates that cover Qiskit's standard gates, for tests that compare methods and backends."""

from __future__ import annotations

import math

import numpy as np
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.quantum_info import SparsePauliOp, Statevector

from qrkt_hw.circuits import CircuitTemplate
from qrkt_hw.compiler import lower
from qrkt_hw.compiler.litinski import Absorbed, Reading, rotations
from qrkt_hw.compiler.propagation import terms_of
from qrkt_hw.simulator.statevector import TorchStatevector

# measure and reset are not gates; delay does nothing to an ideal state
GATES = {
    name: gate
    for name, gate in get_standard_gate_name_mapping().items()
    if gate.num_qubits <= 3 and name not in ("measure", "reset", "delay")
}


def circuit_and_vectors() -> tuple[QuantumCircuit, ParameterVector, ParameterVector]:
    """Two qubits, two inputs and one weight."""
    x, w = ParameterVector("x", 2), ParameterVector("w", 1)
    circuit = QuantumCircuit(2)
    circuit.ry(x[0], 0)
    circuit.ry(x[1], 1)
    circuit.rx(w[0], 0)
    return circuit, x, w


def random_template(
    rng: np.random.Generator,
    num_qubits: int | None = None,
    gates: int | None = None,
    must: list[str] | None = None,
    num_inputs: int = 3,
    num_weights: int = 4,
) -> CircuitTemplate:
    """A template with shared parameters, linear expressions of several parameters, and sums of Pauli strings.

    Args:
        rng: numpy generator.
        num_qubits: 1 to 8; random by default.
        gates: how many; random by default.
        must: gate names that occur for sure.
    """
    must = must or []
    least = max([1, *(GATES[name].num_qubits for name in must)])
    n = num_qubits or int(rng.integers(least, 9))
    fitting = [name for name, gate in GATES.items() if gate.num_qubits <= n]
    chosen = [*must, *rng.choice(fitting, size=gates or int(rng.integers(4, 14)))]
    rng.shuffle(chosen)
    inputs, weights = ParameterVector("in", num_inputs), ParameterVector("w", num_weights)
    every = [*inputs, *weights]
    circuit = QuantumCircuit(n)
    for name in chosen:
        place(circuit, str(name), rng, every)
    for parameter in every:  # each occurs at least once
        if parameter not in circuit.parameters:
            circuit.ry(float(rng.uniform(-2, 2)) * parameter, int(rng.integers(n)))
    observables = tuple(random_observable(rng, n) for _ in range(int(rng.integers(1, 4))))
    return CircuitTemplate("random", circuit, inputs, weights, observables)


def place(circuit: QuantumCircuit, name: str, rng: np.random.Generator, parameters: list) -> None:
    """Append the gate on random qubits, its parameters random linear expressions."""
    gate = GATES[name].copy()
    qubits = [int(q) for q in rng.choice(circuit.num_qubits, size=gate.num_qubits, replace=False)]
    gate = gate.to_mutable() if hasattr(gate, "to_mutable") else gate
    if gate.params:
        gate.params = [expression(rng, parameters) for _ in gate.params]
    circuit.append(gate, qubits)


def expression(rng: np.random.Generator, parameters: list):
    """A number, a parameter, or a linear expression of one to three parameters."""
    kind = rng.integers(6)
    if kind == 0:
        return float(rng.uniform(-3, 3))
    if kind == 1:
        return parameters[rng.integers(len(parameters))]
    terms = rng.choice(len(parameters), size=int(rng.integers(1, 4)), replace=False)
    total = float(rng.uniform(-1, 1))
    for k in terms:
        total = total + float(rng.uniform(-2, 2)) * parameters[k]
    return total


def random_observable(rng: np.random.Generator, num_qubits: int) -> SparsePauliOp:
    """A real sum of one to three Pauli strings, Y included."""
    count = int(rng.integers(1, 4))
    labels = ["".join(rng.choice(list("IXYZ"), size=num_qubits)) for _ in range(count)]
    return SparsePauliOp(labels, rng.uniform(-1, 1, size=count))


def reference_values(template: CircuitTemplate, values: np.ndarray) -> np.ndarray:
    """``(observables,)`` by Qiskit's Statevector for one set of parameter values."""
    state = Statevector(template.circuit.assign_parameters(dict(zip(template.parameters, values, strict=True))))
    return np.array([state.expectation_value(o).real for o in template.observables])


def gate_by_gate(template: CircuitTemplate):
    """The template's values in double precision, one gate after another: what every method is compared with.

    Takes inputs ``(..., groups, inputs)`` and weights ``(groups, weights)``; differentiable.
    """
    circuit = Absorbed(
        rotations(lower(template)),
        tuple(Reading(m, c, x, z) for m, o in enumerate(template.observables) for (x, z), c in terms_of(o)),
    )
    sizes = (template.num_inputs, template.num_weights, template.num_outputs)
    made = TorchStatevector(circuit, template.num_qubits, sizes, torch.complex128)

    def values(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        flat = inputs.reshape(math.prod(inputs.shape[:-2]), *inputs.shape[-2:]).double()
        return made.reference(flat, weights.double()).reshape(*inputs.shape[:-1], template.num_outputs)

    return values

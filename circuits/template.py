"""The one object every room speaks about: a parameterised circuit with its roles named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from qiskit.circuit import Parameter, ParameterVector, QuantumCircuit
from qiskit.quantum_info import Pauli, SparsePauliOp


def z_observables(num_qubits: int) -> tuple[SparsePauliOp, ...]:
    """``<Z_j>`` for every qubit j, in order of j."""
    return tuple(SparsePauliOp.from_sparse_list([("Z", [j], 1.0)], num_qubits=num_qubits) for j in range(num_qubits))


@dataclass(frozen=True, eq=False)
class CircuitTemplate:
    """A circuit to be evaluated for many inputs and trained over its weights.

    Attributes:
        name: name under which it is registered.
        circuit: parameterised, without measurements; it starts in ``|0...0>``.
        inputs: parameters that take features, in feature order.
        weights: trainable parameters, in the order of the layer's ``.weight``.
        observables: what is measured; one real value each. Hermitian sums of Pauli strings.
        topology: which pairs of qubits its two-qubit gates join: ``chain``, ``ring``, ``all``, ``none``.
        reference: where the circuit comes from.

    Raises:
        ValueError: a parameter of the circuit is neither input nor weight (or the reverse), an observable has another
            number of qubits or a complex coefficient, or the circuit measures, resets or branches.
    """

    name: str
    circuit: QuantumCircuit
    inputs: ParameterVector | tuple[Parameter, ...]
    weights: ParameterVector | tuple[Parameter, ...]
    observables: tuple[SparsePauliOp, ...] = field(default=())
    topology: str = "unknown"
    reference: str = ""

    def __post_init__(self) -> None:
        found = self.observables or z_observables(self.circuit.num_qubits)
        object.__setattr__(self, "observables", tuple(_as_operator(o) for o in found))
        known = [*self.inputs, *self.weights]
        if len(set(known)) != len(known):
            raise ValueError(f"template {self.name!r}: a parameter is named twice among inputs and weights")
        if set(known) != set(self.circuit.parameters):
            odd = sorted(p.name for p in set(known) ^ set(self.circuit.parameters))
            raise ValueError(f"template {self.name!r}: parameters {odd} are not both in the circuit and declared")
        for operator in self.observables:
            if operator.num_qubits != self.circuit.num_qubits:
                raise ValueError(
                    f"template {self.name!r}: observable on {operator.num_qubits} qubits, "
                    f"circuit on {self.circuit.num_qubits}"
                )
            if abs(operator.coeffs.imag).max() > 0:
                raise ValueError(f"template {self.name!r}: an observable has a complex coefficient")
        for instruction in self.circuit.data:
            if instruction.clbits or instruction.operation.name == "reset":
                raise ValueError(f"template {self.name!r}: {instruction.operation.name} is not allowed in a template")

    def __deepcopy__(self, memo: dict) -> CircuitTemplate:
        return self  # never changed, and the key of everything that is compiled from it

    @property
    def num_qubits(self) -> int:
        return self.circuit.num_qubits

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_weights(self) -> int:
        return len(self.weights)

    @property
    def num_outputs(self) -> int:
        return len(self.observables)

    @property
    def parameters(self) -> list[Parameter]:
        """Inputs, then weights: the order of the last axis of parameter values everywhere."""
        return [*self.inputs, *self.weights]


def _as_operator(observable: SparsePauliOp | Pauli | str) -> SparsePauliOp:
    return observable if isinstance(observable, SparsePauliOp) else SparsePauliOp(observable)


def angle_encoding(num_qubits: int, axis: str = "y", name: str = "x") -> tuple[QuantumCircuit, ParameterVector]:
    """A circuit with one rotation about ``axis`` by feature j on every qubit j, and the vector of its features."""
    inputs = ParameterVector(name, num_qubits)
    circuit = QuantumCircuit(num_qubits)
    rotate = getattr(circuit, f"r{axis}")
    for qubit, feature in enumerate(inputs):
        rotate(feature, qubit)
    return circuit, inputs


def ring(num_qubits: int) -> Iterable[tuple[int, int]]:
    """Neighbours on a ring; one pair only for two qubits, none for one."""
    if num_qubits == 2:
        return [(0, 1)]
    return [(j, (j + 1) % num_qubits) for j in range(num_qubits)] if num_qubits > 2 else []

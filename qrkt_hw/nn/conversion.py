"""Anybody's circuits as templates: a Qiskit circuit with roles, an ``EstimatorQNN``, a ``SamplerQNN``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit.circuit import Measure, Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp
from qiskit_machine_learning import QiskitMachineLearningError
from qiskit_machine_learning.neural_networks import EstimatorQNN, NeuralNetwork, SamplerQNN

from qrkt_hw.ansatz import CircuitTemplate, by_name, read_circuit, unary_angles, z_observables
from qrkt_hw.errors import UserError

if TYPE_CHECKING:
    from qrkt_hw.nn.quantum import TemplateNetwork

LARGEST_OUTCOMES = 20  # qubits whose outcomes are all given to ``interpret``
LARGEST_TABLE = 2**24  # outputs x outcomes
LARGEST_STRINGS = 4096  # Pauli strings that outputs may be sums of
IDLE = ("barrier", "delay")


class InputError(QiskitMachineLearningError, ValueError):
    """What a layer cannot take, of the kinds that torch users and users of TorchConnector expect."""

    def __str__(self) -> str:  # without the quotes that Qiskit adds
        return str(self.message)


@dataclass(frozen=True, eq=False)
class Linear:
    """Outputs as a linear function of a template's observables: ``matrix @ values + offset``."""

    matrix: NDArray[np.float64]  # (outputs, observables)
    offset: NDArray[np.float64]
    shape: tuple[int, ...]  # of the outputs of one sample


def template_of(
    circuit: Any, inputs: Any = (), weights: Any = (), observables: Any = None, name: str = "circuit"
) -> CircuitTemplate:
    """A circuit as a template; measurements at its end are dropped, as observables say what is measured.

    Of a transpiled circuit only the qubits that are used are kept, and observables are on the device's qubits.

    Args:
        circuit: with parameters, or a file of OpenQASM 3 or QPY.
        inputs: parameters that take features: a ``ParameterVector``, parameters, or names of either.
        weights: those that are trained.
        observables: ``SparsePauliOp``, ``Pauli`` or string, or several; default: Z on every qubit.

    Raises:
        UserError: no circuit, a parameter that is neither input nor weight or not there, observables of another size,
            measurements before the end, or what no template takes.
    """
    if isinstance(circuit, (str, Path)):
        name, circuit = Path(circuit).stem, read_circuit(Path(circuit))
    if not isinstance(circuit, QuantumCircuit):
        raise UserError(f"circuit is a {type(circuit).__name__}, not a QuantumCircuit")
    if not circuit.num_qubits:
        raise UserError("circuit has no qubits")
    roles = [_chosen(circuit, role, given) for role, given in (("inputs", inputs), ("weights", weights))]
    both = [p.name for p in roles[0] if p in set(roles[1])]
    if both:
        raise UserError(f"parameter {both[0]!r} is among inputs and weights; it can be one of them")
    rest = [p.name for p in circuit.parameters if p not in {*roles[0], *roles[1]}]
    if rest:
        shown = ", ".join(rest[:4]) + (", ..." if len(rest) > 4 else "")
        raise UserError(f"parameters {shown} of the circuit are neither inputs nor weights; name them, or bind them")
    plain, _ = unmeasured(circuit)
    layout = circuit.layout
    if observables is None:
        virtual = circuit.num_qubits if layout is None else len(layout.final_index_layout(filter_ancillas=True))
        observables = z_observables(virtual)
        if layout is not None:
            observables = tuple(o.apply_layout(layout) for o in observables)
    if isinstance(observables, Mapping):
        raise UserError("observables is a mapping; make a SparsePauliOp of each sum of Pauli strings")
    several = isinstance(observables, Iterable) and not isinstance(observables, (str, SparsePauliOp))
    found = tuple(observables) if several and not hasattr(observables, "num_qubits") else (observables,)
    if not found:
        raise UserError("observables is empty; leave it out for Z on every qubit")
    try:
        if layout is not None:
            plain, found = _used(plain, found)
        return CircuitTemplate(name, plain, roles[0], roles[1], found)
    except (TypeError, ValueError) as error:
        raise UserError(str(error).replace(f"template {name!r}: ", f"{name}: ", 1)) from error


def _chosen(circuit: QuantumCircuit, role: str, given: Any) -> tuple[Parameter, ...]:
    found: list[Parameter] = []
    alone = isinstance(given, (str, Parameter)) or not isinstance(given, Iterable)
    for one in (given,) if alone else tuple(given):
        if isinstance(one, str):
            named = by_name(circuit, one)
            if not named:
                there = ", ".join(p.name for p in circuit.parameters) or "none"
                raise UserError(f"{role}: the circuit has no parameter {one!r}; there are {there}")
            found += named
        elif isinstance(one, Parameter):
            if one not in circuit.parameters:
                same = any(p.name == one.name for p in circuit.parameters)
                why = "another parameter of the same name" if same else "no such parameter"
                raise UserError(f"{role}: {one.name!r} is not in the circuit, which has {why}")
            found.append(one)
        else:
            kind = type(one).__name__
            raise UserError(f"{role} must be a ParameterVector, parameters, or names of them, not {kind}")
    twice = [p.name for k, p in enumerate(found) if p in found[:k]]
    if twice:
        raise UserError(f"{role}: parameter {twice[0]!r} is named twice")
    return tuple(found)


def unmeasured(circuit: QuantumCircuit) -> tuple[QuantumCircuit, dict[int, int]]:
    """The circuit without the measurements at its end, and the qubit that each classical bit is read from.

    Raises UserError: a qubit is used after its measurement, or a classical bit is written twice.
    """
    plain = circuit.copy_empty_like()
    read: dict[int, int] = {}
    for one in circuit.data:
        qubits = [circuit.find_bit(q).index for q in one.qubits]
        if isinstance(one.operation, Measure):
            bit = circuit.find_bit(one.clbits[0]).index
            if bit in read or qubits[0] in read.values():
                raise UserError("the circuit measures a qubit, or into a classical bit, twice; measure at the end only")
            read[bit] = qubits[0]
            continue
        if one.name not in IDLE:
            after = [q for q in qubits if q in read.values()]
            if after:
                raise UserError(f"the circuit uses qubit {after[0]} after its measurement; measure at the end only")
        plain.append(one)
    return plain, read


def _used(circuit: QuantumCircuit, observables: Sequence[Any]) -> tuple[QuantumCircuit, tuple[SparsePauliOp, ...]]:
    """Circuit and observables on the qubits that either uses."""
    operators = [SparsePauliOp(o) for o in observables]
    for operator in operators:
        if operator.num_qubits != circuit.num_qubits:
            raise ValueError(f"observable on {operator.num_qubits} qubits, circuit on {circuit.num_qubits}")
    kept = {circuit.find_bit(q).index for one in circuit.data if one.name not in IDLE for q in one.qubits}
    kept |= {q for operator in operators for _, qubits, _ in operator.to_sparse_list() for q in qubits}
    place = {q: k for k, q in enumerate(sorted(kept) or [0])}
    small = QuantumCircuit(len(place), global_phase=circuit.global_phase)
    for one in circuit.data:
        if one.name not in IDLE:
            small.append(one.operation, [place[circuit.find_bit(q).index] for q in one.qubits])
    moved = [[(word, [place[q] for q in qubits], c) for word, qubits, c in o.to_sparse_list()] for o in operators]
    return small, tuple(SparsePauliOp.from_sparse_list(terms, num_qubits=len(place)) for terms in moved)


def of_qnn(qnn: Any) -> tuple[CircuitTemplate, Linear | None]:
    """Template and outputs of an ``EstimatorQNN`` or a ``SamplerQNN``.

    Raises:
        UserError: another network, a sparse one, one with methods of its own, or one that cannot be exact.
    """
    if not isinstance(qnn, (EstimatorQNN, SamplerQNN)):
        raise UserError(f"qnn is a {type(qnn).__name__}; it must be an EstimatorQNN or a SamplerQNN")
    stock = EstimatorQNN if isinstance(qnn, EstimatorQNN) else SamplerQNN
    own = [key for key, value in vars(stock).items() if callable(value) and key != "__init__"]
    own += [key for key, value in vars(NeuralNetwork).items() if callable(value) and key != "__init__"]
    changed = next((key for key in own if getattr(type(qnn), key) is not getattr(stock, key)), None)
    if changed is not None:
        what = f"{type(qnn).__name__} computes otherwise than {stock.__name__} ({changed} is its own)"
        raise UserError(f"qnn: {what}, so its values cannot be kept; take TorchConnector")
    if qnn.sparse:
        raise UserError("qnn is sparse, and a QuantumLayer gives dense tensors; make the SamplerQNN with sparse=False")
    circuit, inputs, weights = qnn.circuit, qnn.input_params or (), qnn.weight_params or ()
    if isinstance(qnn, EstimatorQNN):
        return template_of(circuit, inputs, weights, tuple(qnn.observables), "EstimatorQNN"), None
    _, read = unmeasured(circuit)
    layout, virtual = circuit.layout, qnn.num_virtual_qubits
    bits = dict(enumerate(range(circuit.num_qubits)))
    if layout is not None:
        final = list(layout.final_index_layout(filter_ancillas=True))
        if circuit.num_clbits:
            raise UserError("qnn: its transpiled circuit measures by itself; give SamplerQNN one without measurements")
        bits = dict(enumerate(final))
    elif circuit.num_clbits:
        if len(read) < circuit.num_clbits:  # samplers differ in whether such bits count
            raise UserError("qnn: not all classical bits of its circuit are measured; leave those out that are not")
        bits = {bit: read[bit] for bit in sorted(read)}
    linear, strings = _outputs(qnn, bits, virtual)
    observables = [SparsePauliOp.from_sparse_list([("Z" * len(q), q, 1.0)], circuit.num_qubits) for q in strings]
    return template_of(circuit, inputs, weights, observables, "SamplerQNN"), linear


def _outputs(qnn: SamplerQNN, bits: dict[int, int], virtual: int) -> tuple[Linear, list[list[int]]]:
    """How outputs follow from expectation values of Z strings, and the qubits of each string.

    The chance of an outcome k is ``2^-n sum_s (-1)^|k & s| <Z_s>``, and an output is a sum of chances.
    """
    shape = tuple(qnn.output_shape)
    size, outputs = len(bits), int(np.prod(shape))
    if size > LARGEST_OUTCOMES or outputs * 2**size > LARGEST_TABLE:
        what = f"{outputs} outputs of 2^{size} outcomes are too many for exact values"
        raise UserError(f"qnn: {what}; give SamplerQNN an interpret with few outputs, or measure fewer qubits")
    places, table = np.arange(outputs).reshape(shape), np.zeros((outputs, 2**size))
    written = list(bits)
    for outcome in range(2**size):
        key = sum((outcome >> k & 1) << bit for k, bit in enumerate(written))
        if key >= 2**virtual:  # SamplerQNN leaves those out
            continue
        try:
            index = qnn.interpret(key)
            index = tuple(int(i) for i in index) if isinstance(index, Iterable) else int(index)
            table[np.atleast_1d(places[index]).ravel(), outcome] += 1
        except Exception as error:  # interpret is the user's
            raise UserError(
                f"qnn: interpret({key}) is no place in an output of shape {shape}: {type(error).__name__}: {error}"
            ) from error
    for k in range(size):  # the fast Walsh-Hadamard transform
        pairs = table.reshape(outputs, -1, 2, 2**k)
        table = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2).reshape(outputs, -1)
    table /= 2**size
    found = [int(s) for s in np.flatnonzero(table.any(axis=0)) if s] or [1]
    if len(found) > LARGEST_STRINGS:
        what = f"its outputs are sums of {len(found)} Pauli strings, more than {LARGEST_STRINGS}"
        raise UserError(f"qnn: {what}; give SamplerQNN an interpret with simpler outputs, or measure fewer qubits")
    strings = [[bits[written[k]] for k in range(size) if s >> k & 1] for s in found]
    return Linear(table[:, found], table[:, 0], shape), strings


def initial(template: CircuitTemplate, name: str | None, groups: int) -> NDArray[np.float64] | None:
    """The angles that an ansatz has under this name, or its first ones, for each group; None where they are drawn.

    Raises:
        UserError: the ansatz has none of this name.
    """
    own = template.initial
    name = next(iter(own), "uniform") if name is None else name
    if name == "uniform":
        return None
    if name not in own:
        known = ", ".join([*own, "uniform"])
        raise UserError(f"initial_weights: {template.name!r} has no {name!r} to begin with, but {known}")
    return np.tile(own[name], groups)


def bound(template: CircuitTemplate, weights: torch.Tensor, inputs: Any = None) -> QuantumCircuit:
    """The circuit with these weights and, where they are given, inputs."""
    values = dict(zip(template.weights, weights.detach().double().cpu().tolist(), strict=True))
    if inputs is not None:
        given = torch.as_tensor(inputs).detach().double().cpu().reshape(-1).tolist()
        if len(given) != template.num_features:
            raise ValueError(f"inputs must be {template.num_features} numbers, not {len(given)}")
        if template.encoding != "angle":
            given = unary_angles(template.encoding, np.array(given)).tolist()
        values |= dict(zip(template.inputs, given, strict=True))
    return template.circuit.assign_parameters(values)


def specs(network: TemplateNetwork) -> dict[str, Any]:
    """Sizes of a network and of its circuit, and what runs where."""
    template, backend = network.template, network.backend
    circuit = template.circuit
    return {
        "ansatz": template.name, "qubits": template.num_qubits, "groups": network.groups,
        "weights": network.num_weights, "inputs_per_circuit": template.num_features,
        "weights_per_circuit": template.num_weights,
        "observables": [[(word, float(c.real)) for word, c in o.to_list()] for o in template.observables],
        "gates": sum(one.name != "barrier" for one in circuit.data), "two_qubit_gates": circuit.num_nonlocal_gates(),
        "depth": circuit.depth(), "angles_are_linear": network.trivial,
        "backend": backend.name, "kind": backend.kind, "shots": backend.shots, "gradient": backend.gradient,
        "circuits_per_sample": network.groups * backend.circuits_for(network.evaluated),
    }  # fmt: skip

"""Anybody's circuits as templates that are packed; those that cannot be packed stay whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import ControlFlowOp, Parameter, ParameterExpression, QuantumCircuit
from qiskit.circuit.library import Barrier, get_standard_gate_name_mapping
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler.passes import HighLevelSynthesis

from qrkt_hw.ansatz import CircuitTemplate, standard_name
from qrkt_hw.backends.device.packing import Packer
from qrkt_hw.backends.device.pubs import PackedCircuit, structure
from qrkt_hw.backends.device.transpile import SEED, duration, qubits_of

Term = tuple[tuple[str, int], ...]  # letters of a Pauli string and their qubits, ascending; empty for the identity


@dataclass(frozen=True, eq=False)
class Prepared:
    """A user's circuit on one device."""

    key: bytes  # of its content: equal circuits have equal keys
    circuit: QuantumCircuit  # as the user gave it
    pinned: bool  # it is transpiled for the device already and stays where it is
    # gates alone, on all qubits, its angles new parameters; None where the circuit measures, resets or branches on its
    # way, waits, or keeps variables: it is run as it is
    body: QuantumCircuit | None = None
    angles: tuple[ParameterExpression, ...] = ()  # what the parameters of the body stand for
    reads: dict[int, int] = field(default_factory=dict)  # by classical bit the qubit that is measured into it

    def values(self, given: NDArray[np.float64]) -> NDArray[np.float64]:
        """``(rows, angles)`` for parameter values in the order of the circuit's parameters."""
        places = {parameter: k for k, parameter in enumerate(self.circuit.parameters)}
        found = np.zeros((len(given), len(self.angles)))
        for column, angle in enumerate(self.angles):
            own = list(angle.parameters)
            if isinstance(angle, Parameter):
                found[:, column] = given[:, places[angle]]
            else:
                rows = given[:, [places[p] for p in own]]
                found[:, column] = [float(angle.bind(dict(zip(own, row, strict=True)))) for row in rows.tolist()]
        return found

    def template(self, terms: Sequence[Term] = ()) -> tuple[CircuitTemplate, list[int]]:
        """What is packed to read the terms, or without any the classical bits; and the circuit's qubit behind each."""
        assert self.body is not None
        held = {q for i in self.body.data if i.operation.name != "barrier" for q in qubits_of(self.body, i)}
        asked = {q for term in terms for _, q in term} or set(self.reads.values())
        qubits = sorted(held | asked)
        place = {q: k for k, q in enumerate(qubits)}
        circuit = QuantumCircuit(len(qubits))
        for instruction in self.body.data:
            on, gate = [place[q] for q in qubits_of(self.body, instruction) if q in place], instruction.operation
            circuit.append(Barrier(len(on)) if gate.name == "barrier" else gate, on)
        parameters = sorted(circuit.parameters, key=lambda p: p.name)
        operators = [operator(term, place) for term in terms]
        return CircuitTemplate("of a PUB", circuit, tuple(parameters), (), tuple(operators)), qubits


def operator(term: Term, place: dict[int, int]) -> SparsePauliOp:
    return SparsePauliOp.from_sparse_list(
        [("".join(letter for letter, _ in term), [place[q] for _, q in term], 1.0)], num_qubits=len(place)
    )


@lru_cache(maxsize=1)
def _unrolled() -> Any:
    return HighLevelSynthesis(basis_gates=[*get_standard_gate_name_mapping(), "unitary", "barrier", "store"])


def prepare(circuit: QuantumCircuit, packer: Packer) -> Prepared:
    """A circuit on the packer's device. Raises ValueError: too many qubits, or a layout of another device."""
    target, device = packer.target, packer.device
    if circuit.num_qubits > target.num_qubits:
        width = f"has {circuit.num_qubits} qubits and {device} {target.num_qubits}"
        raise ValueError(f"the circuit {width}; take a smaller circuit or a larger device")
    pinned = circuit.layout is not None
    if pinned:
        _check_place(circuit, target, device)
    registers = [(register.name, [circuit.find_bit(bit).index for bit in register]) for register in circuit.cregs]
    head = repr((circuit.num_qubits, circuit.num_parameters, registers, pinned)).encode()
    key = head + structure(circuit)
    whole = Prepared(key, circuit, pinned)
    if circuit.num_vars or any(_by_itself(i.operation) for i in circuit.data):
        return whole
    flat = circuit if pinned else _unrolled()(circuit)
    body, reads = QuantumCircuit(circuit.num_qubits), {}
    angles: dict[ParameterExpression, Parameter] = {}
    ended: set[int] = set()  # measured qubits
    begun: set[int] = set()  # qubits with gates
    for instruction in flat.data:
        gate, qubits = instruction.operation, qubits_of(flat, instruction)
        if gate.name == "barrier":
            body.barrier(qubits)
            continue
        if ended.intersection(qubits) or (gate.name == "reset" and begun.intersection(qubits)) or _by_itself(gate):
            return whole
        if gate.name == "measure":
            reads[flat.find_bit(instruction.clbits[0]).index] = qubits[0]
            ended.update(qubits)
            continue
        if gate.name == "reset":
            continue
        begun.update(qubits)
        free = [p for p in gate.params if isinstance(p, ParameterExpression) and p.parameters]
        if free and not standard_name(gate):
            return whole
        if free:
            new = [angles.setdefault(p, Parameter(f"v{len(angles):06d}")) if p in free else p for p in gate.params]
            gate = gate.copy()
            gate.params = new
        body.append(gate, qubits)
    return Prepared(key, circuit, pinned, body, tuple(angles), reads)


def _by_itself(gate: Any) -> bool:
    """Whether an instruction keeps its circuit from being packed."""
    return isinstance(gate, ControlFlowOp) or gate.name in ("delay", "store")


def _check_place(circuit: QuantumCircuit, target: Any, device: str) -> None:
    for instruction in circuit.data:
        name, qubits = instruction.operation.name, qubits_of(circuit, instruction)
        if name in ("barrier", "delay", "store") or isinstance(instruction.operation, ControlFlowOp):
            continue
        if not target.instruction_supported(name, qubits):
            what = f"the circuit is transpiled for another device: {device} has no {name} on qubits {qubits}"
            raise ValueError(f"{what}; give the circuit as written, or transpile it for {device}")


def whole_circuit(prepared: Prepared, packer: Packer, letters: dict[int, str] | None = None) -> PackedCircuit:
    """A circuit that is not packed in the device's gates; with ``letters`` its qubits are measured in that basis."""
    from qiskit.circuit import ClassicalRegister
    from qiskit.transpiler.preset_passmanagers import generate_preset_pass_manager

    circuit, target = prepared.circuit, packer.target
    if letters is not None:
        circuit = circuit.copy()
        register = ClassicalRegister(len(letters), PAULIS)
        circuit.add_register(register)
        for bit, (qubit, letter) in enumerate(letters.items()):
            if letter == "Y":
                circuit.sdg(qubit)
            if letter in "XY":
                circuit.h(qubit)
            circuit.measure(qubit, register[bit])
    if not prepared.pinned or letters is not None:
        how: Any = {"initial_layout": range(circuit.num_qubits), "optimization_level": 0} if prepared.pinned else {}
        device = {"target": target} if packer.runs_on is None else {"backend": packer.runs_on}
        how = {"optimization_level": packer.level, "seed_transpiler": SEED, **device, **how}
        circuit = generate_preset_pass_manager(**how).run(circuit)
    return PackedCircuit(circuit, duration(circuit, packer.target, packer.runs_on is None))


PAULIS = "qrkt_pauli"  # the register of a circuit that measures on its way and then a basis

"""PUBs of packed circuits: which replicas run side by side, their content hash, and what goes as one job."""

import hashlib
import json
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import AnnotatedOperation, ControlFlowOp, QuantumCircuit
from qiskit.circuit.library import get_standard_gate_name_mapping

from qrkt_hw.backends.budget import JOB_SECONDS, LARGEST_JOB, larger
from qrkt_hw.backends.device.layout import at_most_one, solved
from qrkt_hw.backends.device.transpile import PlacedCircuit, folded

Key = TypeVar("Key", bound=Hashable)
TRIES = 24  # numbers of executions tried for an allocation of all circuit groups together


@dataclass(frozen=True)
class Allocation:  # replicas that run side by side
    executions: int  # how often the chip runs, shots aside
    # ``(circuit group, place in that group's list of replicas)``, in the order of their registers
    replicas: tuple[tuple[Hashable, int], ...]


def allocate(
    counts: Mapping[Key, int], replicas: Mapping[Key, Sequence[tuple[int, ...]]], near: NDArray[np.bool_] | None = None
) -> list[Allocation]:
    """As few executions as the replicas allow: one allocation a group, or, where that saves executions, one for all.

    ``counts`` has for each circuit group how many parameter sets it is run for, ``replicas`` the qubits of its disjoint
    replicas, best first; ``near`` ``(qubits, qubits)`` says which qubits may not be used by two replicas at once, the
    diagonal included (None: only the same).
    """
    groups = [group for group, count in counts.items() if count]
    apart = []
    for group in groups:
        executions = -(-counts[group] // len(replicas[group]))
        apart.append(Allocation(executions, tuple((group, k) for k in range(-(-counts[group] // executions)))))
    total = sum(one.executions for one in apart)
    if len(groups) < 2 or total < 2:
        return apart
    least = -(-sum(counts[g] * 1000 // len(replicas[g]) for g in groups) // 1000)
    low = max(least, *(one.executions for one in apart))
    for executions in list(range(low, total))[:TRIES]:
        found = _together({group: -(-counts[group] // executions) for group in groups}, replicas, near)
        if found is not None:
            return [Allocation(executions, tuple(found))]
    return apart


def _together(
    wanted: Mapping[Key, int], replicas: Mapping[Key, Sequence[tuple[int, ...]]], near: NDArray[np.bool_] | None
) -> list[tuple[Hashable, int]] | None:
    """So many replicas of each group, none in another's way, better ones first; None where they do not fit."""
    listed = [(group, place) for group in wanted for place in range(len(replicas[group]))]
    if near is None:
        near = np.eye(1 + max(q for group in wanted for physical in replicas[group] for q in physical), dtype=bool)
    held = np.zeros((len(listed), len(near)), dtype=bool)
    for row, (group, place) in enumerate(listed):
        held[row, list(replicas[group][place])] = True
    from scipy.optimize import LinearConstraint  # only now: it takes a while to import

    groups = np.array([[of == group for of, _ in listed] for group in wanted], dtype=float)
    exactly = LinearConstraint(groups, *[np.array(list(wanted.values()), dtype=float)] * 2)
    costs = np.array([1.0 + 0.01 * place for _, place in listed])
    chosen = solved(costs, [at_most_one(held, near), exactly], node_limit=200)
    return None if chosen is None else [listed[row] for row in chosen]


@dataclass(eq=False)
class CircuitGroup:
    """A circuit in one measurement basis, and its replicas on the chip."""

    key: str  # a hash of the circuit as written and the basis
    placed: PlacedCircuit  # on the qubits the transpiler chose
    replicas: tuple[Any, ...]  # disjoint, best first, each ``(qubits of the device, ESP)``
    template: Any = None  # those that were asked for first; None where the group is read from a kept plan
    basis: Any = None
    _folded: dict[int, QuantumCircuit] = field(default_factory=dict)

    def circuit(self, fold: int) -> QuantumCircuit:
        """The placed circuit with every two-qubit gate run ``fold`` times; made once for each, as ``placed`` stays."""
        if fold not in self._folded:
            self._folded[fold] = folded(self.placed.circuit, fold)
        return self._folded[fold]

    def columns(self) -> list[int]:
        """For every parameter of the placed circuit its place among the template's."""
        places = {parameter.name: k for k, parameter in enumerate(self.template.parameters)}
        return [places[parameter.name] for parameter in self.placed.circuit.parameters]


@dataclass(frozen=True, eq=False)
class Slot:  # a replica within a packed circuit
    group: CircuitGroup  # what runs there
    physical: tuple[int, ...]  # the device's qubits behind the circuit's
    read: tuple[int, ...]  # the device's qubits that are measured, in the order of the template's
    samples: NDArray[np.intp]  # ``(executions,)``: which parameter set of the group runs there; -1 where the slot idles


@dataclass(frozen=True, eq=False)
class PackedCircuit:
    """An ISA circuit, measured, with one classical register for each slot (``c0``, ``c1``, ...), and its seconds."""

    circuit: QuantumCircuit
    duration: float

    @cached_property  # packed circuits are long and asked for in every circuit batch
    def structure(self) -> bytes:
        return structure(self.circuit)


@dataclass(frozen=True)
class Variant:
    """One of the versions of a circuit that mitigation runs; a value is the weighted sum over all of them."""

    weight: float = 1.0
    flip: int = 0  # number of the pattern of X gates in front of the measurements; 0 for none
    fold: int = 1  # how often every two-qubit gate is run, an odd number


PLAIN = Variant()


@dataclass(frozen=True, eq=False)
class Packed:
    """Executions of one packed circuit, without its parameters: what a plan counts."""

    packed: PackedCircuit  # the circuit
    slots: tuple[Slot, ...]  # what runs where
    rows: int  # executions of the chip, shots aside
    shots: int  # of each
    tag: str  # what it is for
    # the state in which a calibration of readout prepares all qubits; None for a circuit of the model
    calibration: int | None = None
    variant: Variant = PLAIN
    total_shots: int = 0  # of each circuit of the model, all variants together

    @property
    def circuit(self) -> QuantumCircuit:
        return self.packed.circuit

    @property
    def executions(self) -> int:
        return self.rows * self.shots

    def seconds(self, rep_delay: float) -> float:
        """QPU seconds by the long form, no overhead of a job: (delay + duration of the packed circuit) x executions."""
        return (rep_delay + self.packed.duration) * self.executions

    @cached_property
    def row_bytes(self) -> float:  # base64 of its parameters, roughly
        return 8 * self.circuit.num_parameters * 4 / 3

    @cached_property
    def circuit_bytes(self) -> float:  # roughly
        return 120.0 * len(self.circuit.data)

    def part(self, start: int, stop: int) -> Self:
        return self if stop - start == self.rows else replace(self, rows=stop - start)


@dataclass(frozen=True, eq=False)
class PUB(Packed):
    """A packed circuit with its parameters, as a primitive takes it; without slots, one with its own registers."""

    # float64 ``(rows, circuit.num_parameters)``, in the order of ``circuit.parameters``
    values: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    device: str = ""  # where
    options: dict[str, Any] = field(default_factory=dict)  # what changes the result, such as twirling

    @cached_property  # asked for several times a circuit batch
    def key(self) -> str:
        """SHA-256 of the content: circuit by structure, parameters, shots, options and device."""
        digest = hashlib.sha256(json.dumps([self.shots, self.device, self.options], sort_keys=True).encode())
        digest.update(self.packed.structure)
        digest.update(np.ascontiguousarray(self.values, dtype=np.float64).tobytes())
        return digest.hexdigest()

    def part(self, start: int, stop: int) -> Self:
        part = super().part(start, stop)
        if part is self:
            return self
        # equal rows at another place are to be executed, where the PUB says at which place of its program it is
        options = {**self.options, "start": start} if "position" in self.options else self.options
        return replace(part, values=self.values[start:stop], options=options)

    def parameters(self, place: int) -> NDArray[np.float64]:
        """Parameter sets ``(busy rows, parameters of the template)`` of a slot; 0 for those the transpiler dropped."""
        slot, start = self.slots[place], sum(s.group.placed.circuit.num_parameters for s in self.slots[:place])
        own = self.values[slot.samples >= 0, start : start + slot.group.placed.circuit.num_parameters]
        found = np.zeros((len(own), len(slot.group.template.parameters)))
        found[:, slot.group.columns()] = own
        return found


def structure(circuit: QuantumCircuit, names: Mapping[str, str] | None = None) -> bytes:
    """SHA-256 of gates, wires and angles: parameters count by their order, an own gate by what it does.

    ``names`` has the place of each parameter where the circuit defines a gate of another. Journals and plans keep what
    is made of it: a circuit of standard gates must have the same digest for ever.
    """
    digest = hashlib.sha256()
    if names is None:
        names = {parameter.name: f"p{k}" for k, parameter in enumerate(circuit.parameters)}
    places = dict(names)
    longest_first = sorted(places, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # which fits nothing
    for instruction in circuit.data:
        where = [circuit.find_bit(b).index for b in (*instruction.qubits, *instruction.clbits)]
        gate = instruction.operation
        while isinstance(gate, AnnotatedOperation):
            digest.update(repr(gate.modifiers).encode())
            gate = gate.base_op
        blocks = [p for p in gate.params if isinstance(p, QuantumCircuit)]  # of a gate that branches or loops
        plain = [p for p in gate.params if not isinstance(p, QuantumCircuit)]
        angles = [pattern.sub(lambda found: places[found.group()], str(p)) for p in plain]
        digest.update(f"{gate.name}{where}{angles}".encode())
        if isinstance(gate, ControlFlowOp):
            labels = [labels for labels, _ in gate.cases_specifier()] if hasattr(gate, "cases_specifier") else []
            digest.update(repr([getattr(gate, "condition", None), getattr(gate, "target", None), labels]).encode())
            for block in blocks:
                digest.update(structure(block, places))
            continue
        if gate.base_class is not _standard().get(gate.name):
            for matrix in (p for p in gate.params if isinstance(p, np.ndarray)):  # which is printed with few digits
                digest.update(matrix.tobytes())
            if gate.definition is not None:
                digest.update(structure(gate.definition, places))
    return digest.digest()


@lru_cache(maxsize=1)
def _standard() -> dict[str, type]:
    return {name: gate.base_class for name, gate in get_standard_gate_name_mapping().items()}


AnyPUB = TypeVar("AnyPUB", bound=Packed)


@dataclass(frozen=True)
class JobLimits:
    """What one job of the service may hold: executions, bytes of input (of 50 MB), QPU seconds (of 3 hours)."""

    executions: int = LARGEST_JOB
    size: int = 45_000_000
    seconds: float = 0.9 * 3 * 3600  # an estimate may be short


def busy(pubs: Sequence[Packed], rep_delay: float) -> float:
    """QPU seconds of PUBs in one job, without its overhead: the larger of IBM's two formulas."""
    return larger(sum(pub.executions for pub in pubs), sum(pub.seconds(rep_delay) for pub in pubs))


def filled(pubs: Sequence[Packed], limits: JobLimits, rep_delay: float) -> float:
    """Share of what one job may hold that PUBs take: of executions, bytes or seconds, the largest."""
    size = sum(pub.rows * pub.row_bytes + pub.circuit_bytes for pub in pubs)
    seconds, executions = busy(pubs, rep_delay), sum(pub.executions for pub in pubs)
    return max(executions / limits.executions, size / limits.size, seconds / limits.seconds)


def fits(pubs: Sequence[Packed], limits: JobLimits, rep_delay: float) -> bool:
    """Whether they go as one job, in which all shots are equal."""
    return filled(pubs, limits, rep_delay) <= 1 and len({pub.shots for pub in pubs}) == 1


def parts(pub: AnyPUB, limits: JobLimits, rep_delay: float) -> list[AnyPUB]:
    """A PUB in portions of its rows that each fit a job; one portion where there are no rows."""
    most = [limits.executions / pub.shots]
    if pub.row_bytes:
        most.append((limits.size - pub.circuit_bytes) / pub.row_bytes)
    if pub.rows:
        most.append(limits.seconds / (busy([pub], rep_delay) / pub.rows))
    step = max(1, math.floor(min(most)))
    return [pub.part(start, min(pub.rows, start + step)) for start in range(0, max(1, pub.rows), step)]


def together(pubs: Sequence[AnyPUB], limits: JobLimits, rep_delay: float) -> list[list[AnyPUB]]:
    """Which PUBs go as one job: those of equal shots, in order, as many as fit."""
    groups: list[list[AnyPUB]] = []
    for pub in pubs:
        fitting = next((group for group in groups if fits([*group, pub], limits, rep_delay)), None)
        groups.append([pub]) if fitting is None else fitting.append(pub)
    return groups


def jobs_of(pubs: Sequence[Packed], rep_delay: float, limits: JobLimits) -> list[float]:
    """QPU seconds of each job that PUBs take."""
    cut = [part for pub in pubs for part in parts(pub, limits, rep_delay)]
    jobs = together(cut, limits, rep_delay)
    return [JOB_SECONDS + busy(job, rep_delay) for job in jobs]

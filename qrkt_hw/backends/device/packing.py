"""Many parameter sets on one chip: copies of a circuit side by side, as wide circuits, and values from their counts.

The calls of a round are pooled by circuit and measurement basis. Their parameter sets are dealt to the copies,
execution after execution; every copy of a wide circuit has parameters and a classical register of its own. The plan,
which is where every circuit lies, is made once and can be kept as bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from qiskit import qpy
from qiskit.circuit import ClassicalRegister, Parameter, ParameterVector, QuantumCircuit

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.device.cache import digest, remember, versions
from qrkt_hw.backends.device.measurement import Basis, bases
from qrkt_hw.backends.device.mitigation import SHOTS, Readout
from qrkt_hw.backends.device.placement import QUALITY, Chip, Copy, directed, place_copies
from qrkt_hw.backends.device.sharing import Share, share
from qrkt_hw.backends.device.splitting import JobLimits, Load, jobs_of
from qrkt_hw.backends.device.transpiling import PlacedCircuit, cut, transpiled
from qrkt_hw.backends.device.work import Work, structure
from qrkt_hw.errors import UserError

SEALED = b"qrkt-hw plan 2 "  # in front of a plan and its SHA-256; plans without are of versions before
LARGEST_TABLE = 12  # qubits up to which outcomes are kept as a table of all
Outcomes = NDArray[np.float64] | list[dict[int, int]]  # (rows, 2^qubits) relative frequencies, or counts for each row


class Asked(Protocol):
    """What is packed: a call of a backend."""

    @property
    def template(self) -> CircuitTemplate: ...
    @property
    def values(self) -> NDArray[np.float64]: ...
    @property
    def tag(self) -> str: ...
    @property
    def samples(self) -> int: ...


@dataclass(eq=False)
class Kind:
    """A circuit in one measurement basis, and its copies on the chip.

    Attributes:
        key: a hash of the circuit as written and the basis.
        placed: on the qubits the transpiler chose.
        copies: disjoint, best first; those that are packed.
    """

    key: str
    placed: PlacedCircuit
    copies: tuple[Copy, ...]

    def columns(self, template: CircuitTemplate) -> list[int]:
        """For every parameter of the placed circuit its place among the template's."""
        places = {parameter.name: k for k, parameter in enumerate(template.parameters)}
        return [places[parameter.name] for parameter in self.placed.circuit.parameters]


@dataclass(frozen=True, eq=False)
class Piece:
    """A copy within a wide circuit.

    Attributes:
        kind: the key of its circuit.
        physical: the device's qubits behind the circuit's.
        read: the device's qubits that are measured, in the order of the template's.
        samples: ``(executions,)``: which pooled parameter set runs there; -1 where the copy idles.
    """

    kind: str
    physical: tuple[int, ...]
    read: tuple[int, ...]
    samples: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Batch:
    """Executions of one wide circuit; for ``calibration`` of the state that all qubits are prepared in."""

    pieces: tuple[Piece, ...]
    executions: int
    tag: str
    calibration: int | None = None


class Packer:
    """Plans and packs circuits for a device.

    Args:
        target: of the device.
        device: its name.
        level: optimisation level of the transpiler.
        shots: of each circuit.
        pack: run copies side by side; otherwise one circuit at a time, where the transpiler puts it.
        guard, quality: see :func:`qrkt_hw.backends.device.placement.place_copies`.
        options: what changes the result; becomes part of every work.
        mitigation: correct readout by mthree.
    """

    def __init__(
        self,
        target: Any,
        *,
        device: str,
        level: int,
        shots: int,
        pack: bool = True,
        guard: int = 0,
        quality: float = QUALITY,
        options: dict[str, Any] | None = None,
        mitigation: bool = False,
    ) -> None:
        self.target, self.device, self.level, self.shots = target, device, level, shots
        self.packs, self.guard, self.quality = pack, guard, quality
        self.options = dict(options or {})
        self.readout = Readout(target.num_qubits) if mitigation else None
        self._kinds: dict[str, Kind] = {}
        self._keys: dict[tuple[CircuitTemplate, Basis], str] = {}
        self._shares: dict[tuple[tuple[str, int], ...], list[Share]] = {}
        self._circuits: dict[tuple[Any, ...], QuantumCircuit] = {}
        self._durations: dict[int, float] = {}
        self.unmitigated: list[NDArray[np.float64]] | None = None  # values of the last round as they were read

    # the plan ------------------------------------------------------------------------------------------------------
    def kind(self, template: CircuitTemplate, basis: Basis) -> Kind:
        """Where a template lies when measured in a basis; planned once.

        Raises:
            UserError: the template has more qubits than the device, or a kept plan does not fit it.
        """
        if (template, basis) not in self._keys:
            written = structure(basis.rotated(template.circuit)).hex()
            names = [p.name for p in template.parameters]
            self._keys[(template, basis)] = digest(written, names, self.level)
        key = self._keys[(template, basis)]
        if key not in self._kinds:
            isa = transpiled(template, basis, self.target, self.level, device=self.device)
            self._kinds[key] = Kind(key, cut(isa), tuple(self.copies(isa)))
        kind = self._kinds[key]
        known = {p.name for p in template.parameters}
        if (
            len(kind.placed.measured) != template.num_qubits
            or not {p.name for p in kind.placed.circuit.parameters} <= known
        ):
            raise UserError(
                f"the plan that was kept does not fit ansatz {template.name!r}; --resume --replan makes a new one"
            )
        return kind

    def copies(self, isa: QuantumCircuit) -> list[Copy]:
        """The copies of an ISA circuit that are packed, best first; its own place where nothing better is found."""
        own = Copy(cut(isa).physical, 0.0)
        if not self.packs:
            return [own]

        def compute() -> dict[str, Any]:
            found = place_copies(isa, self.target, quality=self.quality, guard=self.guard)
            return {"copies": [[list(copy.physical), copy.success] for copy in found]}

        if self.device.startswith("fake_"):  # a live device is calibrated anew every day
            key = digest(self.device, structure(isa).hex(), self.quality, self.guard, versions())
            kept = remember("copies", key, compute)
        else:
            kept = compute()
        return [Copy(tuple(physical), success) for physical, success in kept["copies"]] or [own]

    def plan(self, templates: Sequence[CircuitTemplate]) -> None:
        """Pin the layouts of templates."""
        for template in templates:
            for basis in bases(template):
                self.kind(template, basis)

    def to_bytes(self) -> bytes:
        """The plan: layouts as JSON, circuits as QPY."""
        kinds = list(self._kinds.values())
        head = [
            {"key": k.key, "physical": k.placed.physical, "measured": k.placed.measured,
             "copies": [[c.physical, c.success] for c in k.copies]} for k in kinds
        ]  # fmt: skip
        text = json.dumps(head).encode()
        file = io.BytesIO()
        file.write(struct.pack("<Q", len(text)) + text)
        if kinds:
            qpy.dump([k.placed.circuit for k in kinds], file)
        plan = file.getvalue()
        return SEALED + hashlib.sha256(plan).digest() + plan

    def from_bytes(self, data: bytes) -> Packer:
        """This packer, with the plan that :meth:`to_bytes` gave.

        Raises:
            ValueError: the plan is damaged, or is not one for this device.
        """
        if data.startswith(SEALED):
            seal, data = data[len(SEALED) : len(SEALED) + 32], data[len(SEALED) + 32 :]
            if hashlib.sha256(data).digest() != seal:
                raise ValueError("its checksum differs")
        try:
            size = struct.unpack("<Q", data[:8])[0]
            head = json.loads(data[8 : 8 + size])
            circuits = qpy.load(io.BytesIO(data[8 + size :])) if head else []
            kinds = [self._read(one, circuit) for one, circuit in zip(head, circuits, strict=True)]
        except Exception as error:  # JSON, QPY and the device raise of many kinds what damaged bytes make of them
            raise ValueError(f"it cannot be read: {type(error).__name__}") from error
        self._kinds = {kind.key: kind for kind in kinds}
        return self

    def _read(self, one: dict[str, Any], circuit: QuantumCircuit) -> Kind:
        """A circuit of a plan with its places, each of which must be one on this device."""
        placed = PlacedCircuit(circuit, tuple(one["physical"]), tuple(one["measured"]))
        copies = tuple(Copy(tuple(physical), float(success)) for physical, success in one["copies"])
        width, chip = circuit.num_qubits, range(self.target.num_qubits)
        if not copies or circuit.num_clbits or not _distinct(placed.measured, range(width)):
            raise ValueError("what is measured")
        for physical in (placed.physical, *(copy.physical for copy in copies)):
            if len(physical) != width or not _distinct(physical, chip):
                raise ValueError("where it lies")
            for instruction in circuit.data:
                name = instruction.operation.name
                if name not in self.target.operation_names:
                    raise ValueError(f"a gate {name}")
                directed(self.target, name, tuple(physical[circuit.find_bit(q).index] for q in instruction.qubits))
        return Kind(str(one["key"]), placed, copies)

    def planner(self, shots: int | None = None, pack: bool | None = None) -> Packer:
        """A packer of the same plan that has learnt nothing of readout: packing there leaves this one as it is.

        Args:
            shots: others than this one's.
            pack: other than this one; then the plan is its own too.
        """
        other = Packer(
            self.target, device=self.device, level=self.level, shots=self.shots if shots is None else shots,
            pack=self.packs if pack is None else pack, guard=self.guard, quality=self.quality, options=self.options,
            mitigation=self.readout is not None,
        )  # fmt: skip
        if other.packs != self.packs:
            return other
        other._kinds, other._keys, other._shares = self._kinds, self._keys, self._shares
        other._circuits, other._durations = self._circuits, self._durations
        return other

    def seconds(self, batch: Batch, rep_delay: float) -> float:
        """QPU seconds of a batch, without its job's overhead: (delay + duration of the wide circuit) x executions."""
        circuit = self._wide(batch)
        if id(circuit) not in self._durations:
            self._durations[id(circuit)] = float(circuit.estimate_duration(self.target))
        return (rep_delay + self._durations[id(circuit)]) * batch.executions * self.shots_of(batch)

    def jobs(self, batches: Sequence[Batch], rep_delay: float, limits: JobLimits) -> list[float]:
        """QPU seconds of every job that the batches of a round take."""
        loads = [
            Load(
                batch.executions, self.shots_of(batch), self._wide(batch).num_parameters, len(self._wide(batch).data),
                self.seconds(batch, rep_delay) / max(1, batch.executions),
            )
            for batch in batches
        ]  # fmt: skip
        return jobs_of(loads, limits)

    # packing -------------------------------------------------------------------------------------------------------
    def shares(self, counts: dict[str, int]) -> list[Share]:
        """Which copies run for so many parameter sets of each kind, by its key."""
        key = tuple(counts.items())
        if key not in self._shares:
            near = Chip.of(self.target).distances <= self.guard if self.guard else None
            copies = {kind: [copy.physical for copy in self._kinds[kind].copies] for kind in counts}
            self._shares[key] = share(counts, copies, near)
        return self._shares[key]

    def pooled(self, calls: Sequence[Asked]) -> dict[str, list[tuple[int, Basis, int]]]:
        """For each kind the calls that need it: ``(call, basis, first of its parameter sets in the pool)``."""
        found: dict[str, list[tuple[int, Basis, int]]] = {}
        filled: dict[str, int] = {}
        for place, call in enumerate(calls):
            for basis in bases(call.template) if call.samples else ():
                key = self.kind(call.template, basis).key
                found.setdefault(key, []).append((place, basis, filled.get(key, 0)))
                filled[key] = filled.get(key, 0) + call.samples
        return found

    def batches(self, calls: Sequence[Asked]) -> list[Batch]:
        """What a round takes, calibrations of registers that are not yet calibrated first."""
        pool = self.pooled(calls)
        counts = {key: sum(calls[place].samples for place, _, _ in parts) for key, parts in pool.items()}
        tags = {key: [calls[place].tag for place, _, _ in parts] for key, parts in pool.items()}
        found: list[Batch] = []
        calibrated: set[int] = set()
        for one in self.shares(counts):
            pieces, beside = [], {key: sum(kind == key for kind, _ in one.copies) for key in counts}
            turn = dict.fromkeys(counts, 0)
            for key, place in one.copies:
                kind = self._kinds[str(key)]
                physical = kind.copies[place].physical
                samples = np.arange(one.executions) * beside[kind.key] + turn[kind.key]
                turn[kind.key] += 1
                samples = np.where(samples < counts[kind.key], samples, -1)
                pieces.append(Piece(kind.key, physical, kind.placed.moved(physical).read(), samples))
            used = {q for piece in pieces for q in piece.read}
            if self.readout is not None and not (self.readout.knows(sorted(used)) or used <= calibrated):
                calibrated |= used
                found += [Batch(tuple(pieces), 1, f"calibration of readout, all {state}", state) for state in (0, 1)]
            named = dict.fromkeys(t for key in turn if turn[key] for t in tags[key] if t)
            found.append(Batch(tuple(pieces), one.executions, ", ".join(named)))
        return found

    def pack(self, calls: Sequence[Asked]) -> list[Work]:
        """The works of a round; the same calls give the same works."""
        pool = self.pooled(calls)
        sets = self.parameter_sets(calls, pool)
        return [self._work(batch, calls, pool, sets) for batch in self.batches(calls)]

    def shots_of(self, batch: Batch) -> int:
        """Shots of each execution."""
        return self.shots if batch.calibration is None else SHOTS

    @staticmethod
    def parameter_sets(
        calls: Sequence[Asked], pool: dict[str, list[tuple[int, Basis, int]]]
    ) -> dict[str, NDArray[np.float64]]:
        """``(pooled sets, parameters of the template)`` of every kind."""
        return {
            kind: np.concatenate(
                [np.asarray(calls[p].values, dtype=np.float64).reshape(calls[p].samples, -1) for p, _, _ in parts]
            )
            for kind, parts in pool.items()
        }

    def _work(
        self,
        batch: Batch,
        calls: Sequence[Asked],
        pool: dict[str, list[tuple[int, Basis, int]]],
        sets: dict[str, NDArray[np.float64]],
    ) -> Work:
        circuit = self._wide(batch)
        values = np.zeros((batch.executions, circuit.num_parameters))
        if batch.calibration is None and any(self._kinds[p.kind].placed.circuit.num_parameters for p in batch.pieces):
            columns = []
            for piece in batch.pieces:
                template = calls[pool[piece.kind][0][0]].template
                rows = sets[piece.kind][np.maximum(piece.samples, 0)]  # an idle copy repeats the first set
                columns.append(rows[:, self._kinds[piece.kind].columns(template)])
            values = np.concatenate(columns, axis=1)
        return Work(circuit, values, self.shots_of(batch), batch.tag, self.device, self.options, batch)

    def _wide(self, batch: Batch) -> QuantumCircuit:
        key = (batch.calibration, *((piece.kind, piece.physical) for piece in batch.pieces))
        if key in self._circuits:
            return self._circuits[key]
        circuit = QuantumCircuit(self.target.num_qubits)
        angles = [self._kinds[piece.kind].placed.circuit.num_parameters for piece in batch.pieces]
        vector = ParameterVector("p", sum(angles) if batch.calibration is None else 0)
        if not len(vector) and "rz" in self.target.operation_names:
            # IBM's client runs a circuit without parameters once, whatever the number of rows: an angle, always 0, on
            # a qubit in its ground state keeps the rows
            circuit.rz(Parameter("none"), batch.pieces[0].read[0])
        start = 0
        for place, piece in enumerate(batch.pieces):
            register = ClassicalRegister(len(piece.read), f"c{place}")
            circuit.add_register(register)
            if batch.calibration is None:
                own = self._kinds[piece.kind].placed.circuit
                names = dict(zip(own.parameters, list(vector)[start : start + own.num_parameters], strict=True))
                start += own.num_parameters
                for instruction in own.assign_parameters(names).data if names else own.data:
                    qubits = tuple(piece.physical[own.find_bit(q).index] for q in instruction.qubits)
                    qubits = directed(self.target, instruction.operation.name, qubits)
                    circuit.append(instruction.operation, qubits)
            elif batch.calibration:
                for qubit in piece.read:
                    self._flip(circuit, qubit)
            circuit.measure(list(piece.read), register)
        self._circuits[key] = circuit
        return circuit

    def _flip(self, circuit: QuantumCircuit, qubit: int) -> None:
        if "x" in self.target.operation_names:
            circuit.x(qubit)
        else:
            circuit.sx(qubit)
            circuit.sx(qubit)

    # values --------------------------------------------------------------------------------------------------------
    def values(
        self, calls: Sequence[Asked], works: Sequence[Work], outcomes: Sequence[dict[str, Any]]
    ) -> list[NDArray[np.float64]]:
        """Expectation values ``(..., observables)`` of every call.

        Args:
            calls: that were packed.
            works: what :meth:`pack` made of them.
            outcomes: for each work its registers: name to ``BitArray`` of shape ``(executions,)``.
        """
        found = [
            [outcomes_of(registers[f"c{place}"]) for place in range(len(work.batch.pieces))]
            for work, registers in zip(works, outcomes, strict=True)
        ]
        return self.combined(calls, [work.batch for work in works], found)

    def combined(
        self, calls: Sequence[Asked], batches: Sequence[Batch], outcomes: Sequence[Sequence[Outcomes]]
    ) -> list[NDArray[np.float64]]:
        """The same from the outcomes of every piece of every batch."""
        for batch, found in zip(batches, outcomes, strict=True):
            if batch.calibration is not None:
                assert self.readout is not None
                for piece, outcome in zip(batch.pieces, found, strict=True):
                    self.readout.learn(batch.calibration, piece.read, _ones(outcome, len(piece.read)))
        self.unmitigated = None if self.readout is None else self._collected(calls, batches, outcomes, raw=True)
        return self._collected(calls, batches, outcomes, raw=self.readout is None)

    def _collected(
        self,
        calls: Sequence[Asked],
        batches: Sequence[Batch],
        outcomes: Sequence[Sequence[Outcomes]],
        *,
        raw: bool,
    ) -> list[NDArray[np.float64]]:
        pool = self.pooled(calls)
        total = [np.zeros((call.samples, call.template.num_outputs)) for call in calls]
        for batch, found in zip(batches, outcomes, strict=True):
            for piece, outcome in zip(batch.pieces, found, strict=True):
                for place, basis, start in pool[piece.kind] if batch.calibration is None else ():
                    call = calls[place]
                    rows = np.flatnonzero((piece.samples >= start) & (piece.samples < start + call.samples))
                    if len(rows):
                        part = outcome[rows] if isinstance(outcome, np.ndarray) else [outcome[k] for k in rows]
                        found_there = self._expectations(part, basis, call, piece.read, raw)
                        total[place][piece.samples[rows] - start] += found_there
        return [
            values.reshape(*call.values.shape[:-1], call.template.num_outputs)
            for call, values in zip(calls, total, strict=True)
        ]

    def _expectations(
        self, outcome: Outcomes, basis: Basis, call: Asked, read: Sequence[int], raw: bool
    ) -> NDArray[np.float64]:
        outputs = call.template.num_outputs
        if raw and isinstance(outcome, np.ndarray):
            return outcome @ basis.signs(outputs).T
        counts = outcome if isinstance(outcome, list) else [_counts(row, self.shots) for row in outcome]
        weighted: Sequence[dict[int, Any]] = counts
        if not raw and self.readout is not None:
            weighted = self.readout.corrected(counts, read)
        values = np.zeros((len(weighted), outputs))
        for row, one in enumerate(weighted):
            every = sum(one.values())
            for output, coefficient, mask in basis.terms:
                signed = sum(-p if (state & mask).bit_count() & 1 else p for state, p in one.items())
                values[row, output] += coefficient * signed / every
        return values


def _distinct(places: Sequence[int], within: range) -> bool:
    """Different integers of a range."""
    return len(set(places)) == len(places) and all(type(place) is int and place in within for place in places)


def outcomes_of(bits: Any) -> Outcomes:
    """A ``BitArray`` of shape ``(executions,)`` as a table or, for many qubits, as counts."""
    read = bits.to_bool_array(order="little")
    if read.shape[-1] <= LARGEST_TABLE:
        size = 2 ** read.shape[-1]
        numbers = read.astype(np.int64) @ (1 << np.arange(read.shape[-1]))
        return np.stack([np.bincount(row, minlength=size) for row in numbers]) / read.shape[-2]
    found = []
    for row in np.packbits(read, axis=-1, bitorder="little"):
        states, times = np.unique(row, axis=0, return_counts=True)
        found.append({int.from_bytes(s.tobytes(), "little"): int(t) for s, t in zip(states, times, strict=True)})
    return found


def _counts(frequencies: NDArray[np.float64], shots: int) -> dict[int, int]:
    return {int(k): round(float(frequencies[k]) * shots) for k in np.flatnonzero(frequencies)}


def _ones(outcome: Outcomes, width: int) -> list[float]:
    """How often each bit was read as 1, in the one execution of a calibration."""
    row = outcome[0]
    if isinstance(row, dict):
        every = sum(row.values())
        return [sum(n for state, n in row.items() if state >> bit & 1) / every for bit in range(width)]
    states = np.arange(len(row))
    return [float(row[(states >> bit & 1) == 1].sum()) for bit in range(width)]

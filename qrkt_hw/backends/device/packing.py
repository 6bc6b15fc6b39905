"""The way of every circuit to a device that samples: replicas side by side in packed circuits, values from counts.

The calls of a circuit batch are pooled by circuit group, which is a circuit in one measurement basis. Their parameter
sets are dealt to the replicas, execution after execution; every slot of a packed circuit has parameters and a classical
register of its own. The plan, which is where every circuit lies, is made once and can be kept as bytes.
"""

import copy
import hashlib
import io
import json
import struct
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from qiskit import qpy
from qiskit.circuit import ClassicalRegister, Parameter, ParameterVector, QuantumCircuit
from qiskit.primitives import BitArray

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.base import Backend, Call
from qrkt_hw.backends.budget import DEFAULT_DELAY, Budget
from qrkt_hw.backends.device.cache import digest, remember, versions
from qrkt_hw.backends.device.layout import MIN_FIDELITY, Chip, Replica, directed, place_replicas
from qrkt_hw.backends.device.measurement import (
    CALIBRATION_SHOTS,
    Basis,
    Counts,
    Floats,
    Readout,
    bases,
    counts_of,
    expectations,
    flip_codes,
    flipped,
    ones,
    shots_of,
    unflipped,
    weight_bases,
)
from qrkt_hw.backends.device.pubs import (
    PLAIN,
    PUB,
    CircuitGroup,
    JobLimits,
    Packed,
    PackedCircuit,
    Slot,
    Variant,
    allocate,
    jobs_of,
    structure,
)
from qrkt_hw.backends.device.transpile import (
    PlacedCircuit,
    calibration_date,
    cut,
    duration,
    foldable,
    qubits_of,
    transpiled,
)
from qrkt_hw.backends.entries import SERVICE_KEYS, Mitigation
from qrkt_hw.errors import UserError

SEALED = b"qrkt-hw plan 2 "  # in front of a plan and its SHA-256; plans without are of versions before
Counted = Sequence[Sequence[Counts | BitArray]]  # by PUB and classical register: that of a slot, or a circuit's own
FOLDS = {1: 1.5, 3: -0.5}  # noise factors of the extrapolation to zero noise by a line, with the weight of each
# by circuit group and shots: call, basis, the call's first parameter set there
Pool = dict[tuple[str, int], list[tuple[int, Basis, int]]]


class Packer:
    """Plans and packs circuits for a device, and makes values of what was counted."""

    def __init__(
        self,
        target: Any,  # of the device
        *,
        device: str,  # its name
        level: int,  # of optimisation by the transpiler
        shots: int,  # of each circuit
        pack: bool = True,  # run replicas side by side; else one circuit at a time, where the transpiler puts it
        spacing: int = 0,  # see :func:`qrkt_hw.backends.device.layout.place_replicas`
        min_fidelity: float = MIN_FIDELITY,
        options: dict[str, Any] | None = None,  # what changes the result; becomes part of every PUB
        mitigation: Mitigation = "none",
        runs_on: Any = None,  # the BackendV2 itself where circuits go to its ``run``
    ) -> None:
        self.target, self.device, self.level, self.shots = target, device, level, shots
        self.packs, self.spacing, self.min_fidelity = pack, spacing, min_fidelity
        self.options, self.runs_on = dict(options or {}), runs_on
        self.mitigate(mitigation)
        self.groups: dict[str, CircuitGroup] = {}
        # templates in gates of the device that stay where they are, and the device's qubit behind each of theirs
        self.pinned: dict[CircuitTemplate, tuple[int, ...]] = {}
        self._keys: dict[tuple[CircuitTemplate, Basis], str] = {}
        self._allocations: dict[tuple[tuple[str, int], ...], list[Any]] = {}
        self._circuits: dict[tuple[Any, ...], PackedCircuit] = {}
        self.unmitigated: list[NDArray[np.float64]] | None = None  # values of the last circuit batch as they were read

    def mitigate(self, how: Mitigation) -> None:
        """Mitigate errors by ``how`` from now on; calibrations of readout are forgotten."""
        self.mitigation, known = how, how in ("mthree", "trex")
        self.readout = Readout(self.target.num_qubits, twirled=how == "trex") if known else None

    def bases(self, template: CircuitTemplate) -> tuple[Basis, ...]:
        """How a template is measured: in the fewest bases, or by outcomes whose Hamming weight is known."""
        known = weight_bases(template) if self.mitigation == "postselection" else ()
        return known or bases(template)

    def group(self, template: CircuitTemplate, basis: Basis) -> CircuitGroup:
        """Where a template lies in a basis; planned once. Raises UserError: no room, or a kept plan is unfit."""
        names = [p.name for p in template.parameters]
        if (template, basis) not in self._keys:
            circuit = basis.rotated(template.circuit)
            # gates alone do not say how many qubits are idle
            idle = template.num_qubits > len({q for i in circuit.data for q in i.qubits})
            width = [template.num_qubits] if idle else []
            width += self.pinned.get(template, ())
            self._keys[template, basis] = digest(structure(circuit).hex(), names, self.level, *width)
        key = self._keys[template, basis]
        if key not in self.groups:
            where, runs_on = self.pinned.get(template), self.runs_on
            isa = transpiled(template, basis, self.target, self.level, device=self.device, backend=runs_on, where=where)
            replicas = self.replicas(isa) if where is None else [Replica(cut(isa).physical, 0.0)]
            self.groups[key] = CircuitGroup(key, cut(isa), tuple(replicas))
        group = self.groups[key]
        if group.template is None:
            present = {p.name for p in group.placed.circuit.parameters}
            if len(group.placed.measured) != template.num_qubits or not present <= set(names):
                unfit = f"the plan that was kept does not fit ansatz {template.name!r}"
                raise UserError(f"{unfit}; --resume --replan makes a new one")
            group.placed = group.placed.of(template)
            group.template, group.basis = template, basis
        return group

    def replicas(self, isa: QuantumCircuit) -> list[Replica]:
        """The replicas of an ISA circuit that are packed, best first; its own place where nothing better is found."""
        own = Replica(cut(isa).physical, 0.0)
        if not self.packs:
            return [own]

        def compute() -> dict[str, Any]:
            found = place_replicas(isa, self.target, min_fidelity=self.min_fidelity, spacing=self.spacing)
            return {"copies": [[list(one.physical), one.success] for one in found]}

        if self.device.startswith("fake_"):  # a live device is calibrated anew every day
            key = digest(self.device, structure(isa).hex(), self.min_fidelity, self.spacing, versions())
            kept = remember("copies", key, compute)
        else:
            kept = compute()
        return [Replica(tuple(physical), success) for physical, success in kept["copies"]] or [own]

    def plan(self, templates: Sequence[CircuitTemplate]) -> None:
        for template in templates:
            for basis in self.bases(template):
                self.group(template, basis)

    def to_bytes(self) -> bytes:
        """The plan: layouts as JSON, circuits as QPY."""
        groups = list(self.groups.values())
        head = [
            {"key": g.key, "physical": g.placed.physical, "measured": g.placed.measured,
             "copies": [[r.physical, r.success] for r in g.replicas]} for g in groups
        ]  # fmt: skip
        text = json.dumps(head).encode()
        file = io.BytesIO()
        if groups:
            qpy.dump([g.placed.circuit for g in groups], file)
        plan = struct.pack("<Q", len(text)) + text + file.getvalue()
        return SEALED + hashlib.sha256(plan).digest() + plan

    def from_bytes(self, data: bytes) -> Self:
        """This packer with the plan of :meth:`to_bytes`. Raises ValueError: it is damaged, or another device's."""
        if data.startswith(SEALED):
            seal, data = data[len(SEALED) : len(SEALED) + 32], data[len(SEALED) + 32 :]
            if hashlib.sha256(data).digest() != seal:
                raise ValueError("its checksum differs")
        try:
            size = struct.unpack("<Q", data[:8])[0]
            head = json.loads(data[8 : 8 + size])
            circuits = qpy.load(io.BytesIO(data[8 + size :])) if head else []
            groups = [self._read(one, circuit) for one, circuit in zip(head, circuits, strict=True)]
        except Exception as error:  # JSON, QPY and the device raise of many kinds what damaged bytes make of them
            raise ValueError(f"it cannot be read: {type(error).__name__}") from error
        self.groups = {group.key: group for group in groups}
        return self

    def _read(self, one: dict[str, Any], circuit: QuantumCircuit) -> CircuitGroup:
        placed = PlacedCircuit(circuit, tuple(one["physical"]), tuple(one["measured"]))
        replicas = tuple(Replica(tuple(physical), float(success)) for physical, success in one["copies"])
        width, chip = circuit.num_qubits, range(self.target.num_qubits)
        if not replicas or circuit.num_clbits or not _distinct(placed.measured, range(width)):
            raise ValueError("what is measured")
        for physical in (placed.physical, *(replica.physical for replica in replicas)):
            if len(physical) != width or not _distinct(physical, chip):
                raise ValueError("where it lies")
            for instruction in circuit.data:
                name = instruction.operation.name
                if name not in self.target.operation_names:
                    raise ValueError(f"a gate {name}")
                directed(self.target, name, tuple(physical[q] for q in qubits_of(circuit, instruction)))
        return CircuitGroup(str(one["key"]), placed, replicas)

    def planner(self, shots: int | None = None, pack: bool | None = None) -> Self:
        """A packer of the same plan that has learnt nothing of readout: what it learns leaves this one as it is.

        ``shots`` and ``pack`` may differ from this one's; where ``pack`` does, the plan is its own too.
        """
        other = copy.copy(self)
        other.shots = self.shots if shots is None else shots
        other.mitigate(self.mitigation)
        if pack is not None and pack != self.packs:
            other.packs, other.groups, other._allocations, other._circuits = pack, {}, {}, {}
        return other

    def _pooled(self, calls: Sequence[Call]) -> Pool:
        found: Pool = {}
        filled: dict[tuple[str, int], int] = {}
        for place, call in enumerate(calls):
            for basis in self.bases(call.template) if call.samples else ():
                key = self.group(call.template, basis).key, call.shots or self.shots
                found.setdefault(key, []).append((place, basis, filled.get(key, 0)))
                filled[key] = filled.get(key, 0) + call.samples
        return found

    def allocate(self, calls: Sequence[Call]) -> list[Packed]:
        """What a circuit batch takes, calibrations of registers that are not yet calibrated first."""
        pool = self._pooled(calls)
        calibrated: set[int] = set()
        found: list[Packed] = []
        for shots in dict.fromkeys(shots for _, shots in pool):
            own = {key: parts for (key, of_these), parts in pool.items() if of_these == shots}
            found += self._allocate(calls, own, shots, calibrated)
        return found

    def _allocate(
        self, calls: Sequence[Call], pool: dict[str, list[tuple[int, Basis, int]]], shots: int, calibrated: set[int]
    ) -> list[Packed]:
        counts = {key: sum(calls[place].samples for place, _, _ in parts) for key, parts in pool.items()}
        asked = tuple(counts.items())
        if asked not in self._allocations:
            near = Chip(self.target).distances <= self.spacing if self.spacing else None
            replicas = {key: [one.physical for one in self.groups[key].replicas] for key in counts}
            self._allocations[asked] = allocate(counts, replicas, near)
        found: list[Packed] = []
        for one in self._allocations[asked]:
            slots = []
            beside = {key: sum(group == key for group, _ in one.replicas) for key in counts}
            dealt = dict.fromkeys(counts, 0)
            for group_key, place in one.replicas:
                group = self.groups[str(group_key)]
                physical = group.replicas[place].physical
                samples = np.arange(one.executions) * beside[group.key] + dealt[group.key]
                samples = np.where(samples < counts[group.key], samples, -1)
                dealt[group.key] += 1
                slots.append(Slot(group, physical, tuple(physical[q] for q in group.placed.measured), samples))
            used = {q for slot in slots for q in slot.read}
            if self.readout is not None and not (used <= self.readout.known or used <= calibrated):
                calibrated |= used
                found += [
                    Packed(self._packed(slots, state), tuple(slots), 1, CALIBRATION_SHOTS,
                           f"calibration of readout, all {state}", state) for state in (0, 1)
                ]  # fmt: skip
            tags = dict.fromkeys(calls[p].tag for key in dealt if dealt[key] for p, _, _ in pool[key] if calls[p].tag)
            for variant, each in self._variants(slots, shots):
                circuit = self._packed(slots, variant=variant)
                more: Any = {"tag": ", ".join(tags), "variant": variant, "total_shots": shots}
                found.append(Packed(circuit, tuple(slots), one.executions, each, **more))
        return found

    def _variants(self, slots: Sequence[Slot], shots: int) -> list[tuple[Variant, int]]:
        """The variants of a packed circuit, and the shots of each. Raises UserError: the mitigation does not fit it."""
        if self.mitigation == "trex":
            bits = max(code.bit_length() for slot in slots for code in flip_codes(slot.group.basis))
            if 2**bits > shots:
                what = f"trex flips qubits in {2**bits} patterns, which takes at least as many shots, not {shots}"
                raise UserError(f"--mitigation: {what}")
            return [(Variant(0.5**bits, flip), -(-shots // 2**bits)) for flip in range(2**bits)]
        if self.mitigation == "zne" and any([foldable(slot.group.placed.circuit, self.device) for slot in slots]):
            return [(Variant(weight, fold=fold), shots) for fold, weight in FOLDS.items()]
        return [(PLAIN, shots)]

    def pack(self, calls: Sequence[Call]) -> list[PUB]:
        """The PUBs of a circuit batch; the same calls give the same PUBs."""
        flat = [np.asarray(call.values, dtype=np.float64).reshape(call.samples, -1) for call in calls]
        sets = {key: np.concatenate([flat[p] for p, _, _ in parts]) for key, parts in self._pooled(calls).items()}
        found = []
        for one in self.allocate(calls):
            values = np.zeros((one.rows, one.circuit.num_parameters))
            if one.calibration is None and any(slot.group.placed.circuit.num_parameters for slot in one.slots):
                # an idle slot repeats the first set
                own = [(sets[slot.group.key, one.total_shots], slot) for slot in one.slots]
                columns = [rows[np.maximum(slot.samples, 0)][:, slot.group.columns()] for rows, slot in own]
                values = np.concatenate(columns, axis=1)
            more: Any = {"values": values, "device": self.device, "options": self.options}
            more |= {"variant": one.variant, "total_shots": one.total_shots}
            found.append(PUB(one.packed, one.slots, one.rows, one.shots, one.tag, one.calibration, **more))
        return found

    def _packed(self, slots: Sequence[Slot], calibration: int | None = None, variant: Variant = PLAIN) -> PackedCircuit:
        """The circuit of these slots; made once."""
        key = (calibration, variant, *((slot.group.key, slot.physical) for slot in slots))
        if key in self._circuits:
            return self._circuits[key]
        circuit = QuantumCircuit(self.target.num_qubits)
        angles = sum(slot.group.placed.circuit.num_parameters for slot in slots)
        vector = list(ParameterVector("p", angles if calibration is None else 0))
        if not vector and self.runs_on is None and "rz" in self.target.operation_names:
            # IBM's client runs a circuit without parameters once, whatever the number of rows: an angle, always 0, on
            # a qubit in its ground state keeps the rows
            circuit.rz(Parameter("none"), slots[0].read[0])
        for place, slot in enumerate(slots):
            register = ClassicalRegister(len(slot.read), f"c{place}")
            circuit.add_register(register)
            if calibration is None:
                own = slot.group.circuit(variant.fold)
                names = dict(zip(own.parameters, vector, strict=False))
                vector = vector[len(names) :]
                for instruction in own.assign_parameters(names).data if names else own.data:
                    qubits = tuple(slot.physical[q] for q in qubits_of(own, instruction))
                    name = instruction.operation.name
                    circuit.append(instruction.operation, directed(self.target, name, qubits))
            flips = flipped(slot.group.basis, variant.flip) if calibration is None else [calibration] * len(slot.read)
            for qubit, flip in zip(slot.read, flips, strict=True):
                if flip:
                    for gate in ("x",) if "x" in self.target.operation_names else ("sx", "sx"):
                        getattr(circuit, gate)(qubit)
            circuit.measure(list(slot.read), register)
        self._circuits[key] = PackedCircuit(circuit, duration(circuit, self.target, self.runs_on is None))
        return self._circuits[key]

    def decode(self, calls: Sequence[Call], pubs: Sequence[Packed], counts: Counted) -> list[Floats]:
        """Expectation values ``(..., observables)`` of every call, by what each slot of each of its PUBs counted."""
        self._learn(pubs, counts)
        self.unmitigated = None if self.readout is None else self._values(calls, pubs, counts, None)
        return self._values(calls, pubs, counts, self.readout)

    def bits(
        self, calls: Sequence[Call], pubs: Sequence[Packed], counts: Counted, seed: int
    ) -> list[NDArray[np.bool_]]:
        """The shots of every call, ``(samples, shots, qubits)``, of circuits that are measured in one basis.

        Where what was counted does not say their order, they are in a random one. Corrected counts are shots of the
        nearest probability distribution.
        """
        self._learn(pubs, counts)
        pool, rng = self._pooled(calls), np.random.default_rng(seed)
        shapes = [(call.samples, call.shots or self.shots, call.template.num_qubits) for call in calls]
        shots = [np.zeros(shape, dtype=bool) for shape in shapes]
        for pub, found in zip(pubs, counts, strict=True):
            for slot, outcome in zip(pub.slots, found, strict=True):
                if pub.calibration is None:
                    read = shots_of(outcome, pub.shots, slot.read, self.readout, rng)
                    for place, _, start in pool[slot.group.key, pub.total_shots]:
                        rows = np.flatnonzero((slot.samples >= start) & (slot.samples < start + calls[place].samples))
                        shots[place][slot.samples[rows] - start] = read[rows]
        return shots

    def expect(self, pubs: Sequence[Packed]) -> None:
        """Take the registers for calibrated that these PUBs calibrate."""
        for pub in pubs:
            if pub.calibration is not None and self.readout is not None:
                for slot in pub.slots:
                    self.readout.learn(pub.calibration, slot.read, [float(pub.calibration)] * len(slot.read))

    def _learn(self, pubs: Sequence[Packed], counts: Counted) -> None:
        for pub, found in zip(pubs, counts, strict=True):
            if pub.calibration is not None:
                assert self.readout is not None
                for slot, outcome in zip(pub.slots, found, strict=True):
                    self.readout.learn(pub.calibration, slot.read, ones(counts_of(outcome)[0], len(slot.read)))

    def _values(self, calls: Sequence[Call], pubs: Sequence[Packed], counts: Counted, readout: Any) -> list[Floats]:
        pool = self._pooled(calls)
        total = [np.zeros((call.samples, call.template.num_outputs)) for call in calls]
        for pub, found in zip(pubs, counts, strict=True):
            for slot, outcome in zip(pub.slots, found, strict=True):
                if pub.calibration is not None:
                    continue
                outcome = unflipped(counts_of(outcome), flipped(slot.group.basis, pub.variant.flip))
                for place, basis, start in pool[slot.group.key, pub.total_shots]:
                    call = calls[place]
                    rows = np.flatnonzero((slot.samples >= start) & (slot.samples < start + call.samples))
                    if len(rows):
                        part = outcome[rows] if isinstance(outcome, np.ndarray) else [outcome[k] for k in rows]
                        outputs = call.template.num_outputs
                        values = expectations(part, basis, outputs, pub.shots, slot.read, readout)
                        total[place][slot.samples[rows] - start] += pub.variant.weight * values
        return [v.reshape(*call.values.shape[:-1], v.shape[-1]) for call, v in zip(calls, total, strict=True)]


class DeviceBackend(Backend):
    """A backend that transpiles, packs, samples and bills; a provider writes :meth:`submit` alone."""

    device: Any  # Qiskit's backend: target, calibration, repetition delay
    packer: Packer  # plans and packs circuits for it
    _budget: Budget | None = None
    job_limits = JobLimits()  # what one job may hold
    estimated: float = 0.0  # QPU seconds that everything submitted is estimated to take
    options: dict[str, Any] = {}  # what the service does to circuits
    corrected: Mitigation | None = None  # in place of what the entry says

    def correct(self, how: Mitigation) -> None:
        """Mitigate errors by ``how`` in place of what the entry says."""
        self.corrected = how
        self.packer.mitigate(how)

    def mitigate(self, how: str) -> None:
        """Mitigate errors by one method alone, of Mitigation or SERVICE_KEYS. Raises UserError: the device has none."""
        if how in SERVICE_KEYS and how not in self.options:
            raise UserError(f"backend {self.name!r} has no option for it")
        self.options = {key: key == how if key in SERVICE_KEYS else value for key, value in self.options.items()}
        own: Any = "none" if how in SERVICE_KEYS else how
        self.correct(own)
        self.packer.options = {**self.options, "mitigated": how}  # each method has results of its own

    @property
    def num_qubits(self) -> int:
        return int(self.device.target.num_qubits)

    @property
    def default_rep_delay(self) -> float:
        """Seconds between two executions."""
        return float(getattr(self.device, "default_rep_delay", None) or DEFAULT_DELAY)

    def calibrated(self) -> str | None:
        return calibration_date(self.device)

    def circuits_for(self, template: CircuitTemplate) -> int:
        return len(self.packer.bases(template))

    def pack(self, calls: Sequence[Call]) -> list[PUB]:
        """PUBs of packed circuits. Raises UserError: a circuit is too large for the device."""
        for call in calls:
            if call.template.num_qubits > self.num_qubits:
                way = f"ansatz {call.template.name!r} takes {call.template.num_qubits}"
                raise UserError(f"--backend: {self.device.name} has {self.num_qubits} qubits; {way}")
        return self.packer.pack(calls)

    @contextmanager
    def open(self, journal: Any = None, budget: Any = None, progress: Any = None) -> Iterator[Backend]:
        before, self._budget = self._budget, Budget.of(self, budget)
        try:
            with super().open(journal, budget, progress) as held:
                yield held
        finally:
            self._budget = before

    @abstractmethod
    def submit(self, pubs: Sequence[PUB]) -> Counted:
        """What is counted in every slot of every PUB, or in every register of a circuit that is not packed."""

    def one_by_one(self, pubs: Sequence[PUB], count: Callable[[PUB], Sequence[Counts | BitArray]]) -> Counted:
        """What ``count`` gives for each PUB. Raises UserError: the budget does not admit what a device would bill."""
        seconds = sum(jobs_of(pubs, self.default_rep_delay, self.job_limits))
        if self._budget is not None:
            self._budget.admit(seconds)
            self._budget.charge(seconds)
        self.estimated += seconds
        found = []
        for number, pub in enumerate(pubs):
            if number:
                self._tell(f"packed circuit {number + 1} of {len(pubs)} on {self.name}")
            found.append(count(pub))
        return found

    def execute(self, calls: Sequence[Call], whole: Sequence[PUB] = ()) -> tuple[list[PUB], Counted]:
        """The PUBs of calls, those of ``whole`` circuits behind them, and what was counted, all submitted together."""
        started = time.perf_counter()
        pubs = [*self.pack(calls), *whole]
        executions, circuits = self.counters.executions, sum(pub.rows for pub in whole)
        circuits += sum(call.samples * self.circuits_for(call.template) for call in calls)
        self.begin_batch(circuits, [call.tag for call in calls] + [pub.tag for pub in whole])
        self.counters.executions = executions + sum(pub.executions for pub in pubs)  # of the chip
        counts = self.submit(pubs) if pubs else []
        self.counters.seconds += time.perf_counter() - started
        return pubs, counts

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        """See :meth:`Backend.run`. Raises UserError: a circuit is too large for the device, or what submit meets."""
        asked = [call for call in calls if call.samples]
        found = iter(self.packer.decode(asked, *self.execute(asked)))
        shapes = [(*call.values.shape[:-1], call.template.num_outputs) for call in calls]
        return [next(found) if call.samples else np.zeros(shape) for call, shape in zip(calls, shapes, strict=True)]


def _distinct(places: Sequence[int], within: range) -> bool:
    return len(set(places)) == len(places) and all(type(place) is int and place in within for place in places)

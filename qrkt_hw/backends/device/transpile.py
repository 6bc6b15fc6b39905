"""Templates in a device's gates: measured, on the qubits the transpiler chooses, and rated by the calibration."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

from qiskit.circuit import ClassicalRegister, ControlFlowOp, Delay, QuantumCircuit, pauli_twirl_2q_gates
from qiskit.exceptions import QiskitError

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.device.measurement import Basis
from qrkt_hw.errors import MissingPackage, UserError, extras, unknown

SEED = 7  # of the transpiler: the same template lands on the same qubits every time
WORST = 1 - 1e-9  # an error of 1 marks a broken gate; its logarithm must stay finite
IGNORED = ("barrier", "delay")


@lru_cache(maxsize=1)
def _provider() -> Any:
    with extras():
        from qiskit_ibm_runtime.fake_provider import FakeProviderForBackendV2

    return FakeProviderForBackendV2()


@lru_cache(maxsize=1)
def fake_names() -> tuple[str, ...]:
    with warnings.catch_warnings(action="ignore"):
        return tuple(sorted(backend.name for backend in _provider().backends()))


def no_fake(name: str) -> str:
    """That there is no fake backend of that name, and which may be meant."""
    return unknown("fake backend", name, fake_names(), see="qrkt-hw backends list --json")


@lru_cache(maxsize=16)
def fake_device(name: str) -> Any:
    """The fake backend of that name, a Qiskit BackendV2; nothing is downloaded. Raises UserError: there is none."""
    try:
        with warnings.catch_warnings(action="ignore"):  # some warn of themselves when any is looked up
            return _provider().backend(name)
    except MissingPackage:
        raise
    except Exception as error:
        raise UserError(no_fake(name)) from error


def calibration_date(device: Any) -> str | None:
    """When the device was calibrated, ISO 8601; None where it does not say."""
    properties = device.properties() if callable(getattr(device, "properties", None)) else None
    date = getattr(properties, "last_update_date", None)
    return None if date is None else date.isoformat()


@dataclass(frozen=True, eq=False)
class PlacedCircuit:
    """An ISA circuit on its active qubits only, without its measurements."""

    circuit: QuantumCircuit  # on ``len(physical)`` qubits, in the device's gates
    physical: tuple[int, ...]  # the device's qubit behind each, ascending
    measured: tuple[int, ...]  # for every qubit of the template the qubit of ``circuit`` that carries it at the end

    def moved(self, physical: tuple[int, ...]) -> Self:
        return replace(self, physical=physical)

    def of(self, template: CircuitTemplate) -> Self:
        """The same in the parameters of an equal template, which were made anew under the same names."""
        own = {p.name: p for p in template.parameters}
        foreign = {p: own[p.name] for p in self.circuit.parameters if p != own[p.name]}
        return replace(self, circuit=self.circuit.assign_parameters(foreign)) if foreign else self


def transpiled(
    template: CircuitTemplate,
    basis: Basis,
    target: Any,
    level: int,
    *,
    device: str = "the device",
    seed: int = SEED,
    backend: Any = None,
    where: Sequence[int] | None = None,
) -> QuantumCircuit:
    """The ISA circuit of a template that measures all qubits in a basis; ``backend`` may bring stages of its own.

    A template in the device's gates already stays on the qubits ``where`` of the device, as it is.

    Raises UserError: the device is too small.
    """
    from qiskit.transpiler.preset_passmanagers import generate_preset_pass_manager

    if template.num_qubits > target.num_qubits:
        raise UserError(f"a circuit of {template.num_qubits} qubits does not fit {device} ({target.num_qubits} qubits)")
    circuit = basis.rotated(template.circuit)
    register = ClassicalRegister(template.num_qubits, "c0")
    circuit.add_register(register)
    circuit.barrier()  # as Qiskit's own measure_all does: what stands before a measurement is left alone
    circuit.measure(range(template.num_qubits), register)
    how: dict[str, Any] = {"target": target} if backend is None else {"backend": backend}
    how |= {"optimization_level": level} if where is None else {"optimization_level": 0, "initial_layout": list(where)}
    return generate_preset_pass_manager(seed_transpiler=seed, **how).run(circuit)


def qubits_of(circuit: QuantumCircuit, instruction: Any) -> tuple[int, ...]:
    return tuple(circuit.find_bit(q).index for q in instruction.qubits)


def read_from(isa: QuantumCircuit) -> list[int]:
    """The physical qubit behind each classical bit."""
    measures = [i for i in isa.data if i.operation.name == "measure"]
    found = {isa.find_bit(i.clbits[0]).index: qubits_of(isa, i)[0] for i in measures}
    return [found[bit] for bit in sorted(found)]


def active_qubits(isa: QuantumCircuit) -> tuple[int, ...]:
    """Physical qubits that a transpiled circuit acts on or measures, ascending."""
    return tuple(sorted({q for i in isa.data if i.operation.name not in IGNORED for q in qubits_of(isa, i)}))


def couplings(isa: QuantumCircuit) -> list[tuple[int, int]]:
    """Pairs of physical qubits joined by two-qubit gates, each once, ascending."""
    gates = [i for i in isa.data if len(i.qubits) == 2 and i.operation.name not in IGNORED]
    return sorted({(min(pair), max(pair)) for pair in (qubits_of(isa, i) for i in gates)})


def cut(isa: QuantumCircuit) -> PlacedCircuit:
    read = read_from(isa)
    active = active_qubits(isa)
    place = {q: k for k, q in enumerate(active)}
    small = QuantumCircuit(len(active))
    for instruction in isa.data:
        if instruction.operation.name not in (*IGNORED, "measure"):
            small.append(instruction.operation, [place[q] for q in qubits_of(isa, instruction)])
    return PlacedCircuit(small, active, tuple(place[q] for q in read))


FOLDABLE = ("cx", "cz", "ecr")  # each its own inverse


def foldable(circuit: QuantumCircuit, device: str) -> bool:
    """Whether there are two-qubit gates whose noise can be made stronger. Raises UserError: not in all of them."""
    found = {i.operation.name for i in circuit.data if len(i.qubits) == 2}
    if odd := found - set(FOLDABLE):
        what = f"zne repeats {', '.join(FOLDABLE)}, and circuits on {device} use {', '.join(sorted(odd))}"
        raise UserError(f"--mitigation: {what}; take another mitigation")
    return bool(found)


def folded(circuit: QuantumCircuit, times: int) -> QuantumCircuit:
    """The circuit with every two-qubit gate run an odd number of times, as IBM's GateFoldingPass folds them."""
    if times == 1:
        return circuit
    found = circuit.copy_empty_like()
    for instruction in circuit.data:
        for _ in range(times if instruction.operation.name in FOLDABLE else 1):
            found.append(instruction)
    return found


def with_idle(placed: PlacedCircuit, target: Any, decouple: bool) -> PlacedCircuit:
    """The circuit with a delay, in seconds, wherever a qubit waits; or, decoupled, with two X gates within it."""
    from qiskit.circuit.library import XGate
    from qiskit.transpiler import PassManager
    from qiskit.transpiler.passes import ALAPScheduleAnalysis, PadDelay, PadDynamicalDecoupling

    wide = QuantumCircuit(target.num_qubits)
    wide.compose(placed.circuit, placed.physical, inplace=True)
    echo = [PadDynamicalDecoupling(dd_sequence=[XGate(), XGate()], target=target)] if decouple else []
    padded = PassManager([ALAPScheduleAnalysis(target=target), *(echo or [PadDelay(target=target)])]).run(wide)
    place = {qubit: k for k, qubit in enumerate(placed.physical)}
    found = placed.circuit.copy_empty_like()
    for instruction in padded.data:
        qubits = qubits_of(padded, instruction)
        if all(qubit in place for qubit in qubits):
            gate = instruction.operation
            if gate.name == "delay":
                gate = Delay(gate.duration * (target.dt if gate.unit == "dt" else 1), "s")
            found.append(gate, [place[qubit] for qubit in qubits])
    return replace(placed, circuit=found)


def twirled(placed: PlacedCircuit, target: Any, times: int) -> list[PlacedCircuit]:
    """``times`` equivalent circuits with random Pauli gates around their two-qubit gates."""
    found = pauli_twirl_2q_gates(placed.circuit, seed=SEED, num_twirls=times, target=target)
    return [replace(placed, circuit=circuit) for circuit in found]


def duration(circuit: QuantumCircuit, target: Any, strict: bool = True) -> float:
    """Seconds on the chip; where a circuit branches, those of all its instructions one after the other.

    Those of a target that says nothing of durations are 0, or unless ``strict`` an error.
    """
    if any(isinstance(i.operation, ControlFlowOp) for i in circuit.data) or circuit.num_vars:
        return in_a_row(circuit, target)
    try:
        return float(circuit.estimate_duration(target))
    except QiskitError:
        if strict:
            raise
        return 0.0


def in_a_row(circuit: QuantumCircuit, target: Any, wires: Sequence[int] | None = None) -> float:
    """Seconds of all instructions of an ISA circuit one after the other, of branches the longest, of loops all passes.

    ``wires`` has the device's qubit behind each of the circuit's.
    """
    total = 0.0
    for instruction in circuit.data:
        gate, qubits = instruction.operation, qubits_of(circuit, instruction)
        qubits = qubits if wires is None else tuple(wires[q] for q in qubits)
        if isinstance(gate, ControlFlowOp):
            passes = len(gate.params[0]) if gate.name == "for_loop" else 1
            total += passes * max((in_a_row(block, target, qubits) for block in gate.blocks), default=0.0)
        elif gate.name in target.operation_names:
            total += getattr((target[gate.name] or {}).get(qubits), "duration", None) or 0.0
    return total


def failure(target: Any, name: str, qubits: Sequence[int]) -> float:
    """``-log(1 - error)`` of a gate or measurement on physical qubits; 0 where the calibration says nothing."""
    if name in IGNORED or name not in target.operation_names:
        return 0.0
    error = getattr((target[name] or {}).get(tuple(qubits)), "error", None)
    return 0.0 if error is None or math.isnan(error) else -math.log1p(-min(max(error, 0.0), WORST))


def success(isa: QuantumCircuit, target: Any) -> float:
    """Estimated success probability (ESP): the product of ``1 - error`` over all gates and measurements."""
    return math.exp(-sum(failure(target, i.operation.name, qubits_of(isa, i)) for i in isa.data))


def cone_success(
    isa: QuantumCircuit, target: Any, outputs: Sequence[Sequence[int]], wires: Sequence[int] | None = None
) -> list[float]:
    """The ESP of each output, over the gates in the light cone of the qubits of ``isa`` it is read from.

    ``wires`` has the device's qubit behind each of the circuit's.
    """
    wires = range(isa.num_qubits) if wires is None else wires
    gates = [i for i in reversed(isa.data) if i.operation.name not in (*IGNORED, "measure")]
    steps = []
    for instruction in gates:
        on, name = qubits_of(isa, instruction), instruction.operation.name
        there = [wires[q] for q in on]
        # a symmetric gate may be listed in the other direction
        steps.append((on, failure(target, name, there) or failure(target, name, there[::-1])))
    found = []
    for read in outputs:
        reached = set(read)
        total = sum(failure(target, "measure", [wires[q]]) for q in reached)
        for qubits, cost in steps:
            if not reached.isdisjoint(qubits):
                reached.update(qubits)
                total += cost
        found.append(math.exp(-total))
    return found

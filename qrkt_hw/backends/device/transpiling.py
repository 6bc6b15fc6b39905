"""Templates in a device's gates: measured, on the qubits the transpiler chooses, cut down to those it uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qiskit.circuit import ClassicalRegister, QuantumCircuit

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.device.calibration import IGNORED
from qrkt_hw.backends.device.measurement import Basis
from qrkt_hw.errors import UserError

SEED = 7  # of the transpiler: the same template lands on the same qubits every time


@dataclass(frozen=True, eq=False)
class PlacedCircuit:
    """An ISA circuit on its active qubits only, without its measurements.

    Attributes:
        circuit: on ``len(physical)`` qubits, in the device's gates.
        physical: the device's qubit behind each, ascending.
        measured: for every qubit of the template the qubit of ``circuit`` that carries it at the end.
    """

    circuit: QuantumCircuit
    physical: tuple[int, ...]
    measured: tuple[int, ...]

    def moved(self, physical: tuple[int, ...]) -> PlacedCircuit:
        """The same circuit on other qubits."""
        return PlacedCircuit(self.circuit, physical, self.measured)

    def read(self) -> tuple[int, ...]:
        """The device's qubit on which each qubit of the template is measured."""
        return tuple(self.physical[q] for q in self.measured)


def transpiled(
    template: CircuitTemplate, basis: Basis, target: Any, level: int, *, device: str = "the device", seed: int = SEED
) -> QuantumCircuit:
    """The ISA circuit of a template that measures every qubit in a basis, by Qiskit's preset pass manager.

    Raises:
        UserError: the template has more qubits than the device.
    """
    from qiskit.transpiler.preset_passmanagers import generate_preset_pass_manager

    if template.num_qubits > target.num_qubits:
        raise UserError(f"a circuit of {template.num_qubits} qubits does not fit {device} ({target.num_qubits} qubits)")
    circuit = basis.rotated(template.circuit)
    register = ClassicalRegister(template.num_qubits, "c0")
    circuit.add_register(register)
    circuit.barrier()  # as Qiskit's own measure_all does: what stands before a measurement is left alone
    circuit.measure(range(template.num_qubits), register)
    return generate_preset_pass_manager(optimization_level=level, target=target, seed_transpiler=seed).run(circuit)


def read_from(isa: QuantumCircuit) -> list[int]:
    """The physical qubit behind each classical bit."""
    found = {
        isa.find_bit(i.clbits[0]).index: isa.find_bit(i.qubits[0]).index
        for i in isa.data
        if i.operation.name == "measure"
    }
    return [found[bit] for bit in sorted(found)]


def cut(isa: QuantumCircuit) -> PlacedCircuit:
    """A measured ISA circuit on its active qubits."""
    read = read_from(isa)
    kept = [i for i in isa.data if i.operation.name not in (*IGNORED, "measure")]
    active = sorted({isa.find_bit(q).index for i in kept for q in i.qubits} | set(read))
    place = {q: k for k, q in enumerate(active)}
    small = QuantumCircuit(len(active))
    for instruction in kept:
        small.append(instruction.operation, [place[isa.find_bit(q).index] for q in instruction.qubits])
    return PlacedCircuit(small, tuple(active), tuple(place[q] for q in read))

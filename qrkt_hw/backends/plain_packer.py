"""Circuits laid on a device one by one: a work per call and measurement basis."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit import qpy
from qiskit.circuit import ClassicalRegister, QuantumCircuit

from qrkt_hw.backends.base import Call
from qrkt_hw.backends.measurement import Basis, bases
from qrkt_hw.circuits.template import CircuitTemplate
from qrkt_hw.execution.work import Work

SEED = 7  # of the transpiler


class PlainPacker:
    """One copy of each circuit on the chip.

    Args:
        target: of the device.
        device: its name.
        level: of the transpiler.
        shots: per circuit.
        options: what changes the result.
    """

    def __init__(
        self, target: Any, *, device: str, level: int, shots: int, options: dict[str, Any] | None = None, **_: Any
    ) -> None:
        self.target, self.device, self.level, self.shots = target, device, level, shots
        self.options = options or {}
        self._plan: dict[str, QuantumCircuit] = {}

    def pack(self, calls: Sequence[Call]) -> list[Work]:
        """Works in the order of calls and bases."""
        works = []
        for call in calls:
            columns = {p.name: k for k, p in enumerate(call.template.parameters)}
            rows = np.asarray(call.values, dtype=np.float64).reshape(call.samples, -1)
            for basis in bases(call.template):
                circuit = self._circuit(call.template, basis)
                order = [columns[p.name] for p in circuit.parameters]
                works.append(Work(circuit, rows[:, order], self.shots, call.tag, self.device, self.options))
        return works

    def values(
        self, calls: Sequence[Call], works: Sequence[Work], outcomes: Sequence[dict[str, Any]]
    ) -> list[NDArray[np.float64]]:
        """Expectation values ``(..., observables)`` of every call."""
        remaining, found = iter(outcomes), []
        for call in calls:
            total = np.zeros((call.samples, call.template.num_outputs))
            for basis in bases(call.template):
                bits = next(remaining)["c0"].to_bool_array(order="little")
                outcome = bits.astype(np.int64) @ (1 << np.arange(bits.shape[-1]))
                total += basis.signs(call.template.num_outputs)[:, outcome].mean(-1).T
            found.append(total.reshape(*call.values.shape[:-1], -1))
        return found

    def _circuit(self, template: CircuitTemplate, basis: Basis) -> QuantumCircuit:
        from qiskit.transpiler.preset_passmanagers import generate_preset_pass_manager

        key = json.dumps([template.name, template.num_qubits, len(template.circuit.data), "".join(basis.letters)])
        if key not in self._plan:
            circuit = basis.rotated(template.circuit)
            register = ClassicalRegister(template.num_qubits, "c0")
            circuit.add_register(register)
            circuit.measure(range(template.num_qubits), register)
            manager = generate_preset_pass_manager(self.level, target=self.target, seed_transpiler=SEED)
            self._plan[key] = manager.run(circuit)
        return self._plan[key]

    def to_bytes(self) -> bytes:
        """Names and circuits, as JSON and QPY."""
        file = io.BytesIO()
        names = json.dumps(list(self._plan)).encode()
        file.write(struct.pack("<Q", len(names)) + names)
        if self._plan:
            qpy.dump(list(self._plan.values()), file)
        return file.getvalue()

    def from_bytes(self, data: bytes) -> PlainPacker:
        """This packer, with the plan that :meth:`to_bytes` gave."""
        size = struct.unpack("<Q", data[:8])[0]
        names = json.loads(data[8 : 8 + size])
        self._plan = dict(zip(names, qpy.load(io.BytesIO(data[8 + size :])), strict=True)) if names else {}
        return self

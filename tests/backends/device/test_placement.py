"""Copies of a circuit on a chip."""

import math

import pytest
from qiskit.transpiler.preset_passmanagers import generate_preset_pass_manager

from qrkt_hw.backends.device.layout import active_qubits, place_replicas
from qrkt_hw.backends.device.transpile import fake_device
from qrkt_hw.circuits import build


@pytest.mark.parametrize(
    ("device", "qubits", "least"),
    [("fake_torino", 6, 17), ("fake_marrakesh", 6, 20), ("fake_miami", 6, 20), ("fake_miami", 12, 6)],
)
def test_copies_are_disjoint_run_as_they_are_and_are_ranked(device, qubits, least):
    target = fake_device(device).target
    circuit = build("brickwork", qubits, 1).circuit.copy()
    circuit.measure_all()
    isa = generate_preset_pass_manager(optimization_level=3, target=target, seed_transpiler=1).run(circuit)
    copies = place_replicas(isa, target, min_fidelity=0)
    assert len(copies) >= least
    used = [q for copy in copies for q in copy.physical]
    assert len(used) == len(set(used))
    assert [c.success for c in copies] == sorted((c.success for c in copies), reverse=True)
    for copy in copies:
        moved = dict(zip(active_qubits(isa), copy.physical, strict=True))
        success = 1.0
        for instruction in isa.data:
            name = instruction.operation.name
            if name == "barrier":
                continue
            qubits = tuple(moved[isa.find_bit(q).index] for q in instruction.qubits)
            known = target[name]
            qubits = qubits if qubits in known else qubits[::-1]
            assert qubits in known
            success *= 1 - (known[qubits].error or 0.0)
        assert copy.success == pytest.approx(success, rel=1e-6, abs=1e-7)
        assert not math.isnan(copy.success)

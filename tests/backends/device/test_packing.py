"""Packed circuits, taken apart, are the circuits that were asked for."""

import numpy as np
import pytest
from qiskit.circuit import AnnotatedOperation, Gate, InverseModifier, Parameter, ParameterVector, QuantumCircuit
from qiskit.circuit.library import CXGate, PauliEvolutionGate, RXGate
from qiskit.quantum_info import SparsePauliOp

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends import Call, resolve
from qrkt_hw.backends.device.packing import Packer
from qrkt_hw.backends.device.pubs import structure
from qrkt_hw.backends.device.transpile import fake_device
from qrkt_hw.circuits import build
from tests.packed import component_values, pauli_template


def packer(device="fake_torino", **keys):
    return Packer(fake_device(device).target, device=device, level=1, shots=256, **keys)


def call(template, samples, rng, tag=""):
    return Call(template, rng.uniform(-3, 3, (samples, template.num_inputs + template.num_weights)), tag)


@pytest.mark.parametrize("name", ["qrkt", "brickwork"])
def test_packed_equals_unpacked_without_noise(name):
    rng = np.random.default_rng(1)
    calls = [call(build(name, 4, 1), 37, rng), call(build(name, 3, 1), 11, rng), call(build(name, 4, 1), 1, rng)]
    for pack in (True, False):
        found = component_values(packer(pack=pack), calls)
        for one, values in zip(calls, found, strict=True):
            np.testing.assert_allclose(values, resolve("exact").run([one])[0], atol=1e-9)


def test_observables_in_several_bases_come_together():
    template = pauli_template()
    calls = [call(template, 9, np.random.default_rng(2))]
    found = component_values(packer(), calls)
    np.testing.assert_allclose(found[0], resolve("exact").run(calls)[0], atol=1e-9)


def test_the_same_calls_give_the_same_works_also_from_a_kept_plan():
    calls = [
        call(build("brickwork", 4, 1), 60, np.random.default_rng(3)),
        call(build("qrkt", 3, 1), 7, np.random.default_rng(4)),
    ]
    first = packer()
    works = first.pack(calls)
    again = packer().from_bytes(first.to_bytes()).pack(calls)
    assert [w.key for w in works] == [w.key for w in again] == [w.key for w in first.pack(calls)]
    other = [Call(calls[0].template, calls[0].values + 1e-9), calls[1]]
    assert [w.key for w in packer().pack(other)] != [w.key for w in works]


def test_calls_of_a_round_share_the_chip_where_that_saves_executions():
    rng = np.random.default_rng(5)
    calls = [call(build("brickwork", 4, 1), 5, rng, "a"), call(build("brickwork", 3, 1), 5, rng, "b")]
    works = packer().pack(calls)
    assert len(works) == 1 and works[0].executions == 256 and works[0].tag == "a, b"
    qubits = [q for piece in works[0].slots for q in piece.physical]
    assert len(qubits) == len(set(qubits)) and len(works[0].slots) == 10


def test_wide_circuits_are_in_the_gates_of_the_device():
    from qiskit_ibm_runtime.utils import validate_isa_circuits

    for device in ("fake_torino", "fake_sherbrooke"):
        one = packer(device)
        works = one.pack([call(build("ry_rz_ring", 5, 1), 20, np.random.default_rng(6))])
        validate_isa_circuits([work.circuit for work in works], fake_device(device).target)


def test_a_fake_backend_counts_packed_executions_and_no_pack_every_circuit():
    one = [call(build("brickwork", 4, 1), 34, np.random.default_rng(7))]
    counted = {}
    for pack in (True, False):
        backend = resolve("fake_torino", shots=100, device={"pack": pack}, seed=1)
        backend.run(one)
        counted[pack] = backend.counters.executions
        assert backend.counters.circuits == 34
    assert counted[False] == 3400 and counted[True] <= 300


def test_a_packed_sample_is_a_draw_from_its_own_qubits():
    template = build("brickwork", 3, 1)
    point = np.random.default_rng(8).uniform(-3, 3, template.num_inputs + template.num_weights)
    backend = resolve("fake_torino", shots=20_000, seed=3)
    copies = len(backend.packer.group(template, *_basis(template)).replicas)
    values = backend.run([Call(template, np.tile(point, (copies * 3, 1)))])[0].reshape(3, copies, -1)
    spread = values.std(0).mean()
    assert spread < 3 / np.sqrt(20_000)  # repeated on one copy: shot noise only
    assert values.mean(0).std(0).max() > 3 * spread  # copies differ by more than that


def test_mitigation_takes_readout_away():
    template = CircuitTemplate("idle", _idle(), (), (), (SparsePauliOp("ZII"), SparsePauliOp("IIZ")))
    calls = [Call(template, np.zeros((30, 0)))]
    errors = {}
    for how in ("none", "mthree"):
        backend = resolve("fake_torino", shots=8192, device={"mitigation": how}, seed=4)
        errors[how] = np.abs(backend.run(calls)[0] - 1).mean()
    assert errors["mthree"] < errors["none"] / 3


def _idle():
    from qiskit.circuit import QuantumCircuit

    circuit = QuantumCircuit(3)
    circuit.x(0)
    circuit.x(0)
    return circuit


def _basis(template):
    from qrkt_hw.backends.device.measurement import bases

    return bases(template)


def _with_block(angle: float) -> CircuitTemplate:
    x, circuit, inner = ParameterVector("x", 2), QuantumCircuit(2), QuantumCircuit(1, name="block")
    inner.rx(angle, 0)
    circuit.ry(x[0], 0)
    circuit.append(inner.to_gate(), [0])
    circuit.cx(0, 1)
    circuit.ry(x[1], 1)
    return CircuitTemplate("mine", circuit, x, ())


@pytest.mark.parametrize("other", [0.1, 2.0])
def test_templates_built_twice_share_a_group_and_others_of_the_same_names_do_not(other):
    """Gates that only share a name must not share values; equal templates with parameters of their own may."""
    calls = [Call(_with_block(angle), np.array([[0.3, 0.2]])) for angle in (0.1, other)]
    sampled, exact = resolve("fake_manila", shots=20_000).run(calls), resolve("exact").run(calls)
    assert np.abs(np.array(sampled) - np.array(exact)).max() < 0.12
    for method in ("auto", "density_matrix"):
        backend = resolve("fake_manila")
        backend.wanted = method
        one, two = backend.run(calls)
        assert np.abs(np.array([one, two]) - np.array(exact)).max() < 0.12
        assert (other == 0.1) == (np.abs(one - two).max() < 1e-9)
    groups = resolve("fake_manila", shots=100).packer
    groups.plan([call.template for call in calls])
    assert len(groups.groups) == (1 if other == 0.1 else 2)


class _Own(Gate):
    """A gate of two angles that turns by one of them."""

    def __init__(self, name: str, angles: list, place: int, turn: str = "rx") -> None:
        super().__init__(name, 1, angles)
        self.place, self.turn = place, turn

    def _define(self) -> None:
        self.definition = QuantumCircuit(1)
        getattr(self.definition, self.turn)(self.params[self.place], 0)


def _alone(gate) -> bytes:
    circuit = QuantumCircuit(2)
    circuit.append(gate, range(gate.num_qubits))
    return structure(circuit)


def test_gates_that_do_other_things_have_other_digests():
    a, b = Parameter("a"), Parameter("b")
    words = [PauliEvolutionGate(SparsePauliOp([word], [factor]), a) for word in ("XX", "XY") for factor in (0.5, 0.6)]
    gates = [
        RXGate(a), _Own("rx", [a], 0, "ry"), AnnotatedOperation(RXGate(a), InverseModifier()),
        _Own("own", [a, b], 0), _Own("own", [a, b], 1), CXGate(), CXGate(ctrl_state=0), *words,
    ]  # fmt: skip
    assert len({_alone(gate) for gate in gates}) == len(gates)
    assert _alone(RXGate(a, label="mine")) == _alone(RXGate(b))


def test_digests_of_standard_gates_are_those_that_journals_and_plans_keep():
    a, circuit = Parameter("a"), QuantumCircuit(2, 1)
    circuit.rz(0.5 * a, 0)
    circuit.cz(0, 1)
    circuit.measure(1, 0)
    assert structure(circuit).hex() == "1c388c3f7ac916ee2bcb3cd89bdc52af95f6ba31294808e53d3a72e2d4a0ef25"


def test_templates_of_the_same_gates_and_more_idle_qubits_are_apart():
    calls = []
    for qubits in (3, 2):
        x, circuit = ParameterVector("x", 1), QuantumCircuit(qubits)
        circuit.ry(x[0], 0)
        circuit.cx(0, 1)
        calls.append(Call(CircuitTemplate("mine", circuit, x, ()), np.array([[0.3]])))
    sampled, exact = resolve("fake_manila", shots=20_000).run(calls), resolve("exact").run(calls)
    for one, other in zip(sampled, exact, strict=True):
        assert np.abs(one - other).max() < 0.12

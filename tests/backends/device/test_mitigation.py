"""Mitigation: right against known errors, nothing without them, refused where nothing can be corrected."""

import numpy as np
import pytest
from qiskit import transpile
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import Operator, SparsePauliOp, Statevector

from qrkt_hw import circuits
from qrkt_hw.ansatz import by_angles
from qrkt_hw.backends import Call, resolve
from qrkt_hw.backends.device.measurement import (
    Readout,
    bases,
    confuse,
    expectations,
    flip_codes,
    flipped,
    unflipped,
    weight_bases,
)
from qrkt_hw.backends.device.packing import Packer
from qrkt_hw.backends.device.transpile import fake_device, folded
from qrkt_hw.backends.fake import FakeBackend
from qrkt_hw.errors import UserError
from qrkt_hw.primitives import PackedSampler
from tests.packed import component_values, pauli_template

ERRORS = [(0.02, 0.10), (0.05, 0.01), (0.08, 0.15)]  # of each qubit: state 0 read as 1, state 1 read as 0
MATRICES = [np.array([[1 - a, a], [b, 1 - b]]) for a, b in ERRORS]
METHODS = ["none", "mthree", "trex", "postselection", "zne"]


def draw(template, samples, seed=1):
    rng = np.random.default_rng(seed)
    return Call(template, rng.uniform(-3, 3, (samples, template.num_inputs + template.num_weights)))


def learnt(twirled):
    readout = Readout(3, twirled)
    for state in (0, 1):
        readout.learn(state, range(3), [a if state == 0 else 1 - b for a, b in ERRORS])
    return readout


def read(chances, basis, twirled):
    """Values of exact outcome chances after the known errors, corrected."""
    readout = learnt(twirled)
    patterns = range(2 ** max(code.bit_length() for code in flip_codes(basis))) if twirled else [0]
    total = 0
    for pattern in patterns:
        flips = flipped(basis, pattern)
        outcome = unflipped(confuse(unflipped(chances, flips), MATRICES), flips)
        total = total + expectations(outcome, basis, 3, 10**7, range(3), readout) / len(patterns)
    return total


@pytest.mark.parametrize("twirled", [False, True])
def test_readout_errors_that_are_known_are_taken_away(twirled):
    template = pauli_template()  # terms of one, two and three letters
    call = draw(template, 5)
    total = 0
    for basis in bases(template):
        bound = [basis.rotated(template.circuit).assign_parameters(dict(zip(template.parameters, row, strict=True)))
                 for row in call.values]  # fmt: skip
        chances = np.stack([Statevector(one).probabilities() for one in bound])
        total = total + read(chances, basis, twirled)
    np.testing.assert_allclose(total, resolve("exact").run([call])[0], atol=1e-9 if twirled else 1e-5)


@pytest.mark.parametrize("twirled", [False, True])
def test_few_shots_give_values_without_bias(twirled):
    """Quasi-probabilities are no probabilities, and single values may lie beyond 1; their mean is right."""
    template = circuits.build("brickwork", 3, 1)
    (basis,) = bases(template)
    rng, shots = np.random.default_rng(4), 16
    chances = np.zeros((4000, 8))
    chances[:, 5] = 1  # the exact values are -1, 1, -1
    readout, values = learnt(twirled), np.zeros((len(chances), 3))
    for pattern in (0, 1) if twirled else (0,):
        flips = flipped(basis, pattern)
        outcome = rng.multinomial(shots, confuse(unflipped(chances, flips), MATRICES)) / shots
        found = expectations(unflipped(outcome, flips), basis, 3, shots, range(3), readout)
        values += found / (2 if twirled else 1)
    error = values.std(0) / np.sqrt(len(values))
    assert (np.abs(values.mean(0) - [-1, 1, -1]) < 5 * error).all() and np.abs(values).max() > 1


@pytest.mark.parametrize("twirled", [False, True])
def test_a_qubit_that_is_read_alike_in_both_states_is_refused(twirled):
    readout = Readout(1, twirled)
    readout.learn(0, [0], [0.48])
    readout.learn(1, [0], [0.52])
    (basis,) = bases(circuits.build("brickwork", 1, 1))
    with pytest.raises(UserError, match="qubit 0 is read as 1 in 48% of the shots in state 0"):
        expectations(np.array([[0.5, 0.5]]), basis, 1, 100, [0], readout)


def test_patterns_flip_the_qubits_of_a_term_in_every_combination():
    for template in (pauli_template(), circuits.build("orthogonal_brick", 4, 2), circuits.build("brickwork", 4, 1)):
        for basis in bases(template):
            patterns = 2 ** max(code.bit_length() for code in flip_codes(basis))
            flips = np.array([flipped(basis, pattern) for pattern in range(patterns)])
            for _, _, mask in basis.terms:
                own = flips[:, [q for q in range(template.num_qubits) if mask >> q & 1]]
                found, counts = np.unique(own, axis=0, return_counts=True)
                assert len(found) == 2 ** own.shape[1] and len(set(counts)) == 1
    assert max(flip_codes(bases(circuits.build("brickwork", 4, 1))[0])) == 1  # two patterns for single qubits


@pytest.mark.parametrize("how", METHODS)
def test_without_noise_every_mitigation_gives_the_exact_values(how):
    templates = [circuits.build("orthogonal_brick", 3, 2), circuits.build("brickwork", 3, 1), pauli_template()]
    calls = [draw(by_angles(template), 7) for template in templates]
    packer = Packer(fake_device("fake_torino").target, device="fake_torino", level=1, shots=10**7, mitigation=how)
    for call, values in zip(calls, component_values(packer, calls), strict=True):
        np.testing.assert_allclose(values, resolve("exact").run([call])[0], atol=1e-5 if how == "mthree" else 1e-9)


def test_post_selection_reads_signs_by_one_circuit_a_feature():
    template = by_angles(circuits.build("orthogonal_brick", 3, 2))
    found = weight_bases(template)
    assert [basis.mixed for basis in found] == [(0, 1), (0, 2), (0, 3)] and {basis.weight for basis in found} == {1}
    assert not weight_bases(circuits.build("brickwork", 3, 1))  # changes the weight
    backends = {
        how: resolve("fake_manila", shots=4096, seed=1, device={"mitigation": how}) for how in ("none", "postselection")
    }
    call = draw(template, 20)
    exact = resolve("exact").run([call])[0]
    errors = {how: np.sqrt(np.mean((one.run([call])[0] - exact) ** 2)) for how, one in backends.items()}
    assert backends["postselection"].counters.circuits == 3 * backends["none"].counters.circuits
    assert errors["postselection"] < 0.7 * errors["none"]


def test_mitigated_values_on_a_noisy_device_are_nearer():
    circuit = QuantumCircuit(2)
    circuit.x(0)
    circuit.x(0)
    template = circuits.CircuitTemplate("idle", circuit, (), (), (SparsePauliOp("IZ"), SparsePauliOp("ZZ")))
    call = Call(template, np.zeros((60, 0)))
    errors = {}
    for how in ("none", "mthree", "trex"):
        backend = resolve("fake_torino", shots=8192, device={"mitigation": how}, seed=4)
        errors[how] = np.abs(backend.run([call])[0] - 1).mean()
    assert errors["trex"] < errors["none"] / 3 and errors["mthree"] < errors["none"] / 3


def test_folding_extrapolates_to_less_noise():
    template = circuits.build("brickwork", 3, 3)
    call = draw(template, 10)
    exact = resolve("exact").run([call])[0]
    bias = {}
    for how in ("none", "zne"):
        backend = FakeBackend("fake_manila", "fake_manila", shots=200_000, seed=2, misread=False, mitigation=how)
        bias[how] = np.sqrt(np.mean((backend.run([call])[0] - exact) ** 2))
    assert bias["zne"] < bias["none"] / 2


def test_folding_is_that_of_the_client():
    gate_folding = pytest.importorskip("qiskit_mitigation.zne")
    from qiskit.transpiler import PassManager

    circuit = transpile(circuits.build("brickwork", 3, 1).circuit, basis_gates=["cz", "rz", "sx", "x"])
    ours, theirs = folded(circuit, 3), PassManager([gate_folding.GateFoldingPass(3)]).run(circuit)
    assert ours.count_ops() == theirs.count_ops() and ours.count_ops()["cz"] == 3 * circuit.count_ops()["cz"]
    angles = np.random.default_rng(5).uniform(-3, 3, circuit.num_parameters)
    assert Operator(ours.assign_parameters(angles)).equiv(Operator(circuit.assign_parameters(angles)))


def test_what_cannot_be_mitigated_is_refused():
    call = draw(pauli_template(), 3)
    with pytest.raises(UserError, match="trex flips qubits in 8 patterns, which takes at least as many shots, not 4"):
        resolve("fake_torino", shots=4, device={"mitigation": "trex"}).run([call])
    basis = weight_bases(by_angles(circuits.build("orthogonal_brick", 2, 1)))[0]
    with pytest.raises(UserError, match="drops every shot of 1 of 2 circuits"):
        expectations(np.eye(8)[[1, 3]], basis, 2, 100)


def test_a_sampler_refuses_what_corrects_values_alone():
    circuit = QuantumCircuit(1)
    circuit.measure_all()
    with pytest.raises(UserError, match="trex corrects expectation values, and a sampler returns shots"):
        PackedSampler("fake_manila", mitigation="trex").run([circuit])


def test_calibrations_and_variants_are_planned_as_they_run():
    template = circuits.build("brickwork", 3, 1)
    call = draw(template, 11)
    for how in METHODS:
        backend = resolve("fake_lagos", shots=101, device={"mitigation": how}, seed=1)
        planned = sum(one.executions for one in backend.packer.planner().allocate([call]))
        backend.run([call])
        assert backend.counters.executions == planned, how

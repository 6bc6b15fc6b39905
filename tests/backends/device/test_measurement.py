"""Bases, outcome tables and readout errors."""

import numpy as np
import pytest
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qrkt_hw import circuits
from qrkt_hw.backends import Call, resolve
from qrkt_hw.backends.device.measurement import bases, confuse
from qrkt_hw.circuits import CircuitTemplate


def test_z_observables_take_one_basis():
    assert len(bases(circuits.build("qrkt", 5, 1))) == 1


def test_commuting_terms_share_a_basis():
    parameter = Parameter("a")
    circuit = QuantumCircuit(2)
    circuit.ry(parameter, 0)
    circuit.cx(0, 1)
    observables = (SparsePauliOp(["XX", "IX", "II"], [1.0, 0.5, 2.0]), SparsePauliOp("YY"), SparsePauliOp("ZZ"))
    template = CircuitTemplate("mixed", circuit, (parameter,), (), observables)
    assert len(bases(template)) == 3
    call = Call(template, np.linspace(-3, 3, 7)[:, None])
    exact = resolve("exact").run([call])[0]
    backend = resolve("aer_cpu")
    np.testing.assert_allclose(backend.run([call])[0], exact, atol=1e-12)
    assert backend.counters.circuits == 21
    sampled = resolve("aer_cpu", shots=200_000, seed=3).run([call])[0]
    np.testing.assert_allclose(sampled, exact, atol=6 * 1.5 / np.sqrt(200_000))


def test_readout_errors_act_on_their_own_qubit():
    table = np.array([[0.1, 0.2, 0.3, 0.4]])
    flip, keep = np.array([[0.0, 1.0], [1.0, 0.0]]), np.eye(2)
    np.testing.assert_allclose(confuse(table, [flip, keep]), [[0.2, 0.1, 0.4, 0.3]])
    np.testing.assert_allclose(confuse(table, [keep, flip]), [[0.3, 0.4, 0.1, 0.2]])


@pytest.mark.parametrize("name", ["aer_cpu", "fake_lima"])
def test_the_same_seed_gives_the_same_samples_and_rounds_differ(name):
    template = circuits.build("brickwork", 2, 1)
    call = Call(template, np.ones((3, len(template.parameters))))
    one, two = (resolve(name, shots=64, seed=5) for _ in range(2))
    first = one.run([call])[0]
    np.testing.assert_array_equal(first, two.run([call])[0])
    assert not np.array_equal(first, one.run([call])[0])


def test_wide_circuits_are_evaluated_and_sampled_by_aer():
    template = circuits.build("brickwork", 13, 1)
    rng = np.random.default_rng(0)
    call = Call(template, rng.normal(size=(2, len(template.parameters))))
    exact = resolve("exact").run([call])[0]
    np.testing.assert_allclose(resolve("aer_cpu").run([call])[0], exact, atol=1e-9)
    sampled = resolve("aer_cpu", shots=4096, seed=1).run([call])[0]
    np.testing.assert_allclose(sampled, exact, atol=6 / np.sqrt(4096))


def test_nothing_to_evaluate():
    template = circuits.build("brickwork", 2, 1)
    for name in ("exact", "aer_cpu", "fake_lima"):
        assert resolve(name).run([Call(template, np.zeros((0, 3, len(template.parameters))))])[0].shape == (0, 3, 2)

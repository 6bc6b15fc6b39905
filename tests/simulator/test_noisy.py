"""The superoperator method against Aer's density matrix, and its derivatives."""

import warnings

import numpy as np
import pytest
import torch
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel
from qiskit_aer.noise.device import basic_device_gate_errors, basic_device_readout_errors

from qrkt_hw import circuits
from qrkt_hw.backends import Call
from qrkt_hw.backends.device.measurement import bases, confuse
from qrkt_hw.backends.device.transpile import fake_device
from qrkt_hw.backends.fake import FakeBackend
from qrkt_hw.compiler import derive
from qrkt_hw.simulator import noisy
from qrkt_hw.simulator.noisy import LARGEST
from tests.random_templates import random_template

_errors: dict = {}


def device_errors(name):
    if name not in _errors:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target = fake_device(name).target
            _errors[name] = (basic_device_gate_errors(target=target), basic_device_readout_errors(target=target))
    return _errors[name]


def reference(backend, template, values):
    """Aer's own noise model and density matrix, readout errors from its own list; nothing of our noise code."""
    gates, readouts = device_errors(backend.device.name)
    total = np.zeros((len(values), template.num_outputs))
    for basis in bases(template):
        placed = backend.placed(template, basis)
        small = {physical: k for k, physical in enumerate(placed.physical)}
        model = NoiseModel()
        for name, qubits, error in gates:
            if name not in ("reset", "measure", "delay") and set(qubits) <= set(small):
                model.add_quantum_error(error, [name], [small[q] for q in qubits], warnings=False)
        model.add_basis_gates(sorted({i.operation.name for i in placed.circuit.data}))
        circuit = placed.circuit.copy()
        circuit.save_density_matrix(list(placed.measured))
        simulator = AerSimulator(method="density_matrix", noise_model=model, fusion_enable=False)
        binds = [circuit.assign_parameters({p: v for p, v in zip(template.parameters, row, strict=True)
                                            if p in circuit.parameters}) for row in values]  # fmt: skip
        states = [np.asarray(r.data.density_matrix) for r in simulator.run(binds).result().results]
        table = np.array([np.real(np.diag(s)) for s in states])
        confusion = {qubits[0]: error.probabilities for qubits, error in readouts}
        table = confuse(table, [confusion[placed.physical[q]] for q in placed.measured])
        total += table @ basis.signs(template.num_outputs).T
    return total


@pytest.mark.acceptance
@pytest.mark.parametrize("device", ["fake_torino", pytest.param("fake_miami", marks=pytest.mark.slow)])
@pytest.mark.parametrize("ansatz", circuits.names())
def test_equals_aers_density_matrix_for_every_template(ansatz, device):
    backend = FakeBackend(device, device, method="superoperator")
    for qubits, layers in [(1, 1), (2, 2), (3, 1), (4, 2)]:
        if qubits == 1 and (ansatz.startswith("orthogonal") or ansatz == "compound"):
            continue  # they need two features
        template = derive(circuits.build(ansatz, qubits, layers)).template
        values = np.random.default_rng(qubits).normal(size=(2, len(template.parameters)))
        found = backend.run([Call(template, values)])[0]
        np.testing.assert_allclose(found, reference(backend, template, values), atol=1e-8)
        ideal = FakeBackend(device, device, noise="none").run([Call(template, values)])[0]
        assert np.abs(found - ideal).max() > 1e-4  # there is noise to speak of


@pytest.mark.acceptance
@pytest.mark.slow
@pytest.mark.parametrize("ansatz", circuits.names())
def test_equals_aers_density_matrix_up_to_six_qubits(ansatz):
    backend = FakeBackend("fake_torino", "fake_torino")
    for qubits in (5, 6):
        template = derive(circuits.build(ansatz, qubits, 2)).template
        if len(backend.placed(template, bases(template)[0]).physical) > LARGEST:
            continue
        values = np.random.default_rng(qubits).normal(size=(2, len(template.parameters)))
        found = backend.run([Call(template, values)])[0]
        np.testing.assert_allclose(found, reference(backend, template, values), atol=1e-8)


@pytest.mark.parametrize("seed", range(12))
def test_random_templates_with_any_gate_and_observable(seed):
    template = random_template(np.random.default_rng(seed), num_qubits=1 + seed % 4)
    values = np.random.default_rng(seed).normal(size=(2, len(template.parameters)))
    backend = FakeBackend("fake_torino", "fake_torino")
    found = backend.run([Call(template, values)])[0]
    np.testing.assert_allclose(found, reference(backend, template, values), atol=1e-8)


def test_outcome_chances_give_the_same_values_as_observables():
    template = circuits.build("qrkt", 4, 2)
    call = Call(template, np.random.default_rng(1).normal(size=(3, 2, len(template.parameters))))
    backend = FakeBackend("fake_torino", "fake_torino", shots=10, pack=False)
    (pub,) = backend.packer.pack([call])
    chances = backend._chances(pub, 0)
    np.testing.assert_allclose(chances.sum(1), 1, atol=1e-12)
    assert chances.min() > -1e-12
    exact = FakeBackend("fake_torino", "fake_torino").run([call])[0].reshape(6, 4)
    np.testing.assert_allclose(chances @ bases(template)[0].signs(4).T, exact, atol=1e-12)


@pytest.mark.parametrize("ansatz", ["ry_rz_ring", "reuploading"])
def test_gradient_through_the_noise_is_the_derivative(ansatz):
    function = FakeBackend("fake_torino", "fake_torino").simulator(circuits.build(ansatz, 3, 2), torch.complex128)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.randn(
        2, function.template.num_weights, dtype=torch.float64, generator=generator, requires_grad=True
    )
    assert torch.autograd.gradcheck(function, (inputs, weights), eps=1e-6, atol=1e-7)


def test_chunks_do_not_change_values(monkeypatch):
    function = FakeBackend("fake_torino", "fake_torino").simulator(circuits.build("ry_rz_ring", 3, 1), torch.complex128)
    inputs, weights = torch.randn(9, 2, 3, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    with torch.no_grad():
        whole = function(inputs, weights)
        monkeypatch.setattr(noisy, "CHUNK", 1)
        torch.testing.assert_close(function(inputs, weights), whole)

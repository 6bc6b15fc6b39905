"""Ten networks of qiskit-machine-learning's tutorials, a vendor's backend, noise of one's own, primitives, files."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from qiskit import qasm3
from qiskit.circuit import Measure, Parameter, ParameterVector, QuantumCircuit
from qiskit.circuit.library import CXGate, UGate
from qiskit.primitives import StatevectorEstimator, StatevectorSampler
from qiskit.providers import BackendV2, JobV1, Options
from qiskit.quantum_info import Statevector
from qiskit.result import Counts
from qiskit.transpiler import Target
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, depolarizing_error

from qrkt_hw import QuantumLayer
from qrkt_hw.errors import UserError
from tests.command_line import qrkt, refused, trained

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from from_qnn import compare, networks

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize("name", networks())
def test_a_layer_of_a_network_is_torch_connector_and_faster(name):
    stock, ours, worst = compare(networks()[name], batch=1 if "8 qubits" in name else 3, repeat=3)
    assert worst < 1e-4
    assert ours < stock


class Vendor(BackendV2):
    """A device that a vendor could offer: four qubits in a ring, its own gates, and no result but counts."""

    def __init__(self):
        super().__init__(name="vendor")
        self.ran = 0
        self._target = Target(num_qubits=4)
        self._target.add_instruction(UGate(*map(Parameter, "abc")), {(q,): None for q in range(4)})
        self._target.add_instruction(CXGate(), {(q, (q + 1) % 4): None for q in range(4)})
        self._target.add_instruction(Measure(), {(q,): None for q in range(4)})

    @property
    def target(self):
        return self._target

    @property
    def max_circuits(self):
        return 5

    @classmethod
    def _default_options(cls):
        return Options(shots=2000)

    def run(self, run_input, shots=None, **options):
        assert len(run_input) <= self.max_circuits
        self.ran += len(run_input)
        return Job(self, "1", counts=[self._counts(circuit, shots) for circuit in run_input])

    def _counts(self, circuit, shots):
        state = Statevector(circuit.remove_final_measurements(inplace=False))
        state.seed(self.ran)
        qubits = {circuit.find_bit(i.clbits[0]).index: circuit.find_bit(i.qubits[0]).index
                  for i in circuit.data if i.name == "measure"}  # fmt: skip
        return state.sample_counts(shots, [qubits[bit] for bit in sorted(qubits)])


class Job(JobV1):
    def submit(self): ...

    def status(self): ...

    def result(self):
        return self

    def get_counts(self, k):
        return Counts(self.metadata["counts"][k])


def close(backend, atol):
    """A layer there against the exact one: values, and gradients by inputs and weights."""
    exact, layer = QuantumLayer(4, qubits=2), QuantumLayer(4, qubits=2, backend=backend)
    layer.load_state_dict(exact.state_dict())
    x = torch.linspace(-1, 1, 8).reshape(2, 4).requires_grad_()
    for one, other in zip(*([y, *torch.autograd.grad(y.sum(), (x, m.weight))] for m in (layer, exact) for y in [m(x)])):  # noqa: B905
        torch.testing.assert_close(one, other, atol=atol, rtol=0)


def test_a_backend_of_a_vendor_serves_and_is_packed():
    vendor = Vendor()
    close(vendor, atol=0.25)
    layer = QuantumLayer(4, qubits=2, backend=vendor)
    before = vendor.ran
    layer(torch.zeros(3, 4))
    assert vendor.ran - before == 3  # six circuits of two qubits, two of them side by side


def test_aer_with_noise_of_ones_own_serves():
    noise = NoiseModel(basis_gates=["rz", "sx", "x", "cx"])
    noise.add_all_qubit_quantum_error(depolarizing_error(0.3, 2), ["cx"])
    noisy, silent = (AerSimulator(noise_model=n, seed_simulator=1, shots=20_000) for n in (noise, None))
    close(silent, atol=0.1)
    circuit, x = QuantumCircuit(2), ParameterVector("x", 1)
    circuit.ry(x[0], 0)
    circuit.cx(0, 1)
    layer = QuantumLayer.from_circuit(circuit, inputs=x, observables="ZZ", backend=noisy)
    np.testing.assert_allclose(layer(torch.zeros(1, 1)).detach(), [[0.7]], atol=0.03)


@pytest.mark.parametrize(("make", "atol"), [(StatevectorEstimator, 1e-5), (lambda: StatevectorSampler(seed=1), 0.3)])
def test_a_primitive_serves(make, atol):
    close(make(), atol)


def test_wrong_use_is_one_sentence():
    circuit, x = QuantumCircuit(2), ParameterVector("x", 2)
    circuit.ry(x[0], 0)
    circuit.ry(x[1], 1)
    vendor = Vendor()
    vendor._target = None
    for make, says in (
        (lambda: QuantumLayer(2, backend=object()), "backend is object; it must be a name in backends.yaml"),
        (lambda: QuantumLayer(2, backend=vendor), "'vendor' has no target"),
        (
            lambda: QuantumLayer.from_circuit(circuit, inputs=x, observables="ZZZ"),
            "observable on 3 qubits, circuit on 2",
        ),
        (lambda: QuantumLayer.from_circuit(circuit, inputs=x[:1]), "parameters x[1] of the circuit are neither"),
        (lambda: QuantumLayer.from_qnn(circuit), "it must be an EstimatorQNN or a SamplerQNN"),
    ):
        with pytest.raises(UserError) as found:
            make()
        assert says in str(found.value) and "\n" not in str(found.value)


def test_a_circuit_file_is_an_ansatz_of_the_command_line(tmp_path):
    circuit, x, theta = QuantumCircuit(4), ParameterVector("x", 4), ParameterVector("theta", 4)
    for k in range(4):
        circuit.ry(x[k], k)
        circuit.rx(theta[k], k)
        circuit.cx(k, (k + 1) % 4)
    file = tmp_path / "mine.qasm"
    file.write_text(qasm3.dumps(circuit))
    shown = qrkt("circuits", "show", file, cwd=tmp_path)
    assert "mine: 4 qubits, 4 inputs, 4 weights" in shown.stdout
    small = ("--dataset", "digits", "--hidden", 4, "--heads", 1, "--qubits", 4, "--epochs", 1, "--limit", 32)
    run = trained(tmp_path, *small, "--ansatz", "mine.qasm")
    file.unlink()  # the run has its own
    assert qrkt("infer", run, "--limit", 4, cwd=tmp_path).returncode == 0
    refused(qrkt("circuits", "show", "mine.qasm", cwd=tmp_path), "no file 'mine.qasm'")

"""Objects of Qiskit as backends: a BackendV2 of one's own, Aer with noise, primitives, and what is refused."""

import numpy as np
import pytest
import torch
from qiskit.circuit import Measure, Parameter, ParameterVector, QuantumCircuit
from qiskit.circuit.library import CZGate, RZGate, SXGate, XGate
from qiskit.primitives import BackendEstimatorV2, BackendSamplerV2, StatevectorEstimator, StatevectorSampler
from qiskit.providers import BackendV2, Options
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import InstructionProperties, Target
from qiskit_aer import AerSimulator
from qiskit_aer import primitives as aer
from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error
from qiskit_machine_learning.primitives import QMLSampler

from qrkt_hw import QuantumLayer, backends
from qrkt_hw.backends.objects import QiskitBackend, _by_register
from qrkt_hw.circuits import CircuitTemplate, build
from qrkt_hw.errors import UserError
from tests.random_templates import random_template, reference_values


class Line(BackendV2):
    """A device of a vendor: qubits on a line, circuits sampled by a simulator of its own."""

    def __init__(self, qubits=7, max_circuits=None, spaces=True, target=True):
        super().__init__(name="line")
        self._most, self.runs, self.spaces, self.result = max_circuits, [], spaces, None
        self._target = Target(num_qubits=qubits) if target else None
        if target:
            each = {(q,): InstructionProperties(error=1e-3 * (q + 1)) for q in range(qubits)}
            for gate in (SXGate(), XGate(), RZGate(Parameter("angle")), Measure()):
                self._target.add_instruction(gate, each)
            self._target.add_instruction(
                CZGate(), {(q, q + 1): InstructionProperties(error=1e-2) for q in range(qubits - 1)}
            )

    target = property(lambda self: self._target)
    max_circuits = property(lambda self: self._most)

    @classmethod
    def _default_options(cls):
        return Options(shots=4000)

    def run(self, run_input, shots=1, memory=False, **options):
        self.runs.append(list(run_input))
        job = AerSimulator(seed_simulator=len(self.runs)).run(run_input, shots=shots, memory=memory)
        if not self.spaces:
            for one in (result := job.result()).results:
                one.header["creg_sizes"] = [["c", sum(size for _, size in one.header["creg_sizes"])]]
            job.result = lambda: result
        return job


def values_of(backend, template, samples=12, seed=0):
    values = np.random.default_rng(seed).uniform(-3, 3, (samples, len(template.parameters)))
    wanted = np.array([reference_values(template, row) for row in values])
    return backend.run([backends.Call(template, values)])[0], wanted


@pytest.mark.parametrize("spaces", [True, False])
def test_a_backend_of_ones_own_is_packed_and_gives_the_values(spaces):
    device = Line(max_circuits=3, spaces=spaces)
    backend = backends.of(device)
    template = build("qrkt", 2, 1)
    found, wanted = values_of(backend, template)
    np.testing.assert_allclose(found, wanted, atol=0.08)
    assert backend.shots == 4000 and backend.gradient == "parameter_shift"
    circuits = [one for run in device.runs for one in run]
    assert max(len(one.cregs) for one in circuits) >= 3 and len(circuits) <= 4  # three replicas on seven qubits
    assert all(len(run) <= 3 for run in device.runs) and not any(one.parameters for one in circuits)
    assert backend.counters.executions == 4000 * len(circuits)


def test_several_bases_idle_qubits_and_random_circuits_on_a_backend_of_ones_own():
    backend, rng = backends.of(Line(5), shots=20_000, gradient="spsa"), np.random.default_rng(3)
    for _ in range(4):
        found, wanted = values_of(backend, random_template(rng, num_qubits=3, gates=6), samples=4)
        np.testing.assert_allclose(found, wanted, atol=0.1)
    fixed = QuantumCircuit(3)
    fixed.x(1)
    found, _ = values_of(backend, CircuitTemplate("fixed", fixed, (), ()), samples=2)
    np.testing.assert_array_equal(found, [[1, -1, 1]] * 2)
    assert backend.gradient == "spsa"


def test_one_object_is_one_backend_and_options_make_another():
    device = Line()
    assert backends.of(device) is backends.of(device)
    one, two = QuantumLayer(2, backend=device), QuantumLayer(2, backend=device)
    assert one.backend is two.backend is backends.of(device)
    assert backends.of(device, shots=7) is not backends.of(device) and backends.of(device, shots=7).shots == 7
    assert not backends.of(device, pack=False).packer.packs
    with backends.open(device) as held:
        assert held is backends.of(device)


def test_aer_with_noise_of_ones_own_serves_and_is_not_packed():
    noise = NoiseModel(basis_gates=["rz", "sx", "x", "cx"])
    noise.add_all_qubit_quantum_error(depolarizing_error(0.08, 2), ["cx"])
    noise.add_readout_error(ReadoutError([[0.9, 0.1], [0.2, 0.8]]), [0])
    backend = backends.of(AerSimulator(noise_model=noise, seed_simulator=5), shots=20_000)
    circuit = QuantumCircuit(2)
    x = ParameterVector("x", 1)
    circuit.rx(x[0], 0)
    circuit.cx(0, 1)
    template = CircuitTemplate("two", circuit, x, ())
    found = backend.run([backends.Call(template, np.array([[0.0], [np.pi]]))])[0]
    # depolarizing scales Z by 1 - p; the readout of qubit 0 takes z to 0.7 z + 0.1
    np.testing.assert_allclose(found, [[0.7 * 0.92 + 0.1, 0.92], [-0.7 * 0.92 + 0.1, -0.92]], atol=0.02)
    assert isinstance(backend, QiskitBackend) and not backend.packer.packs


@pytest.mark.parametrize(
    "make", [lambda: GenericBackendV2(5, seed=1, noise_info=False), lambda: AerSimulator(seed_simulator=1)]
)
def test_other_simulators_serve(make):
    found, wanted = values_of(backends.of(make(), shots=8000), build("brickwork", 3, 1))
    np.testing.assert_allclose(found, wanted, atol=0.07)


def test_a_fake_backend_of_the_runtime_is_the_one_of_its_name_and_a_changed_one_is_not():
    from qiskit_ibm_runtime.fake_provider import FakeManilaV2

    template, named = build("qrkt", 3, 1), backends.get("fake_manila")
    given = backends.of(FakeManilaV2())
    assert type(given) is type(named) and given.differentiable and given.shots is None
    np.testing.assert_allclose(values_of(given, template)[0], values_of(named, template)[0], atol=1e-12)
    changed = FakeManilaV2()
    changed.target.update_instruction_properties("x", (0,), InstructionProperties(error=0.5))
    assert isinstance(other := backends.of(changed), QiskitBackend) and not other.packer.packs


def test_a_backend_is_of_the_object_given_and_not_of_one_that_is_gone():
    from qiskit_ibm_runtime.fake_provider import FakeLimaV2, FakeManilaV2

    held = [backends.of((FakeManilaV2, FakeLimaV2)[k % 2]()) for k in range(20)]  # which may lie at the same address
    assert [one.name for one in held] == ["fake_manila", "fake_lima"] * 10


def primitives():
    simulator = AerSimulator(seed_simulator=3)
    line = Line(5)
    return {
        "statevector estimator": (StatevectorEstimator(), 1e-9),
        "sampler of Aer itself": (aer.SamplerV2(default_shots=8000, seed=1), 0.08),
        "estimator of Aer itself": (aer.EstimatorV2(), 1e-6),
        "statevector sampler": (StatevectorSampler(default_shots=8000, seed=1), 0.08),
        "exact sampler": (QMLSampler(), 1e-9),
        "sampler of Aer": (BackendSamplerV2(backend=simulator, options={"default_shots": 8000}), 0.08),
        "estimator of Aer": (BackendEstimatorV2(backend=simulator, options={"default_precision": 0.01}), 0.08),
        "sampler of a line": (BackendSamplerV2(backend=line, options={"default_shots": 8000}), 0.08),
        "estimator of a line": (BackendEstimatorV2(backend=line, options={"default_precision": 0.01}), 0.08),
    }


@pytest.mark.parametrize("name", primitives())
def test_primitives_give_values_of_several_templates_in_one_job(name):
    primitive, atol = primitives()[name]
    jobs, run = [], primitive.run
    primitive.run = lambda pubs, **options: jobs.append(len(list(pubs))) or run(pubs, **options)
    backend, rng = backends.of(primitive), np.random.default_rng(5)
    templates = [random_template(rng, num_qubits=2, gates=5), build("qrkt", 3, 1)]
    calls = [backends.Call(t, rng.uniform(-3, 3, (2, 3, len(t.parameters)))) for t in (*templates, templates[0])]
    calls.append(backends.Call(templates[0], np.zeros((0, len(templates[0].parameters)))))
    found = backend.run(calls)
    for call, values in zip(calls[:3], found, strict=False):
        flat = call.values.reshape(call.samples, -1)
        wanted = np.array([reference_values(call.template, row) for row in flat]).reshape(values.shape)
        np.testing.assert_allclose(values, wanted, atol=3 * atol)
    assert found[3].shape == (0, templates[0].num_outputs) and len(jobs) == 1 and backend.counters.rounds == 1
    assert backend.counters.circuits == sum(c.samples * backend.circuits_for(c.template) for c in calls)
    assert backends.of(primitive) is backend


@pytest.mark.parametrize("make", [StatevectorEstimator, QMLSampler])
def test_a_layer_trains_on_a_primitive(make):
    exact, layer = QuantumLayer(4, qubits=2), QuantumLayer(4, qubits=2, backend=make())
    layer.load_state_dict(exact.state_dict())
    x = torch.rand(3, 4, requires_grad=True)
    found, wanted = ([y, *torch.autograd.grad(y.square().sum(), (x, m.weight))] for m in (layer, exact) for y in [m(x)])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_constant_observables():
    circuit, x = QuantumCircuit(2), ParameterVector("x", 1)
    circuit.ry(x[0], 0)
    template = CircuitTemplate("c", circuit, x, (), (SparsePauliOp("II", 0.5), SparsePauliOp("ZI", 0), "ZZ"))
    for thing in (
        StatevectorEstimator(),
        BackendEstimatorV2(backend=AerSimulator()),
        StatevectorSampler(),
        Line(),
    ):
        found = backends.of(thing).run([backends.Call(template, np.array([[0.0], [np.pi]]))])[0]
        np.testing.assert_allclose(found, [[0.5, 0, 1], [0.5, 0, -1]], atol=1e-9)


def test_rows_of_a_circuit_without_parameters():
    circuit = QuantumCircuit(2)
    circuit.x(0)
    circuit.h(1)
    template = CircuitTemplate("fixed", circuit, (), (), ("IZ", "XI"))
    things = {name: thing for name, (thing, _) in primitives().items()}
    things |= {"Aer's sampler": aer.SamplerV2(), "Aer's estimator": aer.EstimatorV2(), "device": Line()}
    for thing in things.values():
        found = backends.of(thing).run([backends.Call(template, np.zeros((3, 0)))])[0]
        np.testing.assert_allclose(found, [[-1, 1]] * 3, atol=1e-9)


def test_ibm_devices_are_named():
    from qiskit_ibm_runtime import IBMBackend

    device = IBMBackend.__new__(IBMBackend)
    device.name = "ibm_fez"
    with pytest.raises(UserError, match="give its name, backend='ibm_fez'"):
        backends.of(device)


def test_counts_by_register():
    rows = [{"01 1": 3, "11 0": 1}, {"100": 5}, {"0x7": 2}]
    first, second = _by_register(rows, [1, 2])
    np.testing.assert_allclose(first, [[0.25, 0.75], [1, 0], [0, 1]])
    np.testing.assert_allclose(second, [[0, 0.75, 0, 0.25], [0, 0, 1, 0], [0, 0, 0, 1]])
    (wide,) = _by_register([{"1" * 14: 2}], [14])
    assert wide == [{2**14 - 1: 2}]
    with pytest.raises(UserError, match="no outcome of 3 bits"):
        _by_register([{"0": 1}], [1, 2])


class Failing(Line):
    def run(self, run_input, **options):
        raise ConnectionError("no route to the device")


def without(gate):
    device, target = Line(5), Target(num_qubits=5)
    for name in set(device.target.operation_names) - {gate}:
        target.add_instruction(device.target.operation_from_name(name), dict(device.target[name]))
    device._target = target
    return device


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: 3, "backend is int; it must be a name in backends.yaml, a Backend, or one of"),
        (lambda: None, "backend is NoneType; it must be"),
        (lambda: AerSimulator, "a class (AerSimulator); make an object of it"),
        (lambda: StatevectorEstimator, "a class (StatevectorEstimator)"),
        (lambda: Line(target=False), "'line' has no target, so no circuit can be transpiled to it"),
        (lambda: without("measure"), "'line' has no measure in its target"),
        (lambda: without("cz"), "'line': a circuit cannot be transpiled to its target"),
        (lambda: Line(2), "has 2 qubits; ansatz 'qrkt' takes 3"),
        (lambda: Failing(), "'line' failed: ConnectionError: no route to the device"),
        (lambda: BackendSamplerV2(backend=Line(2)), "line has 2 qubits; ansatz 'qrkt' takes 3"),
    ],
)
def test_what_cannot_serve_is_refused_in_a_sentence(make, says):
    with pytest.raises(UserError) as found:
        QuantumLayer(3, backend=make())(torch.zeros(1, 3))
    assert says in str(found.value) and "\n" not in str(found.value)


def test_options_that_do_not_fit_are_refused():
    for thing, options, says in (
        (StatevectorEstimator(), {"shots": 5}, "takes a precision"),
        (StatevectorSampler(), {"pack": True}, "pack goes with a BackendV2"),
        (AerSimulator(), {"pack": True}, "has no couplings"),
        (AerSimulator(), {"shots": 0}, "shots is 0; it must be a positive whole number"),
        (AerSimulator(), {"gradient": "none"}, "gradient is 'none'; it must be one of adjoint, parameter_shift, spsa"),
        (AerSimulator(), {"optimization_level": 4}, "optimization_level is 4"),
        (backends.get("exact"), {"shots": 5}, "go with an object of Qiskit"),
        ("exact", {}, "'exact' is a name"),
    ):
        with pytest.raises(UserError, match=says):
            backends.of(thing, **options)

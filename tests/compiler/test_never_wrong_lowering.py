"""What is lowered is what Qiskit computes and what every backend runs; anything else is refused in a sentence."""

import json

import numpy as np
import pytest
from qiskit.circuit import AnnotatedOperation, ControlModifier, Gate, Parameter, ParameterVector, QuantumCircuit
from qiskit.circuit.library import (
    CUGate,
    DiagonalGate,
    LinearFunction,
    PauliEvolutionGate,
    PermutationGate,
    QFTGate,
    RVGate,
    RXGate,
    RZGate,
    StatePreparation,
    UnitaryGate,
    ZZFeatureMap,
    real_amplitudes,
    zz_feature_map,
)
from qiskit.quantum_info import Pauli, SparsePauliOp, random_clifford, random_unitary
from qiskit.synthesis import QDrift, SuzukiTrotter

from qrkt_hw import backends
from qrkt_hw.backends import Call
from qrkt_hw.circuits import CircuitTemplate, build
from qrkt_hw.compiler import derive, lower, split
from qrkt_hw.compiler import program as lowering
from qrkt_hw.errors import UserError
from qrkt_hw.nn.quantum import TemplateNetwork
from qrkt_hw.simulator import analysis
from qrkt_hw.simulator.analysis import cones, gradients
from qrkt_hw.simulator.tables import derived_jacobian
from tests.command_line import qrkt, refused
from tests.random_templates import reference_values

W, X, Y = Parameter("w"), Parameter("x"), Parameter("y")
HAMILTONIAN = SparsePauliOp(["XX", "ZI", "IZ"], [1.0, 1.0, 0.7])


def values_on(backend, template, values):
    (found,) = backends.get(backend).run([Call(template, np.array([values]))])
    return found[0]


def one_gate(gate, qubits=2):
    circuit = QuantumCircuit(qubits)
    circuit.h(range(qubits))
    circuit.append(gate, range(gate.num_qubits))
    return circuit


# gates that have another name, another matrix or another form than they seem


@pytest.mark.parametrize("name", ["id", "rx", "ryy", "h", "barrier"])
def test_a_gate_that_borrows_a_name_is_itself_on_every_backend(name):
    wide = name == "ryy"
    inner = QuantumCircuit(2 if wide else 1, name=name)
    inner.x(0)
    inner.rz(W, 0)
    if wide:
        inner.rxx(W, 0, 1)
    outer = QuantumCircuit(inner.num_qubits, name="outer")
    outer.append(inner.to_gate(), range(inner.num_qubits))
    for gate in (inner.to_gate(), outer.to_gate()):
        circuit = QuantumCircuit(2)
        circuit.ry(0.4, 0)
        circuit.append(gate, range(gate.num_qubits))
        circuit.h(0)
        template = CircuitTemplate("t", circuit, (), [W], ("IZ", "XX"))
        wanted = reference_values(template, [0.7])
        for backend in ("exact", "aer_cpu"):
            np.testing.assert_allclose(values_on(backend, template, [0.7]), wanted, atol=1e-9, err_msg=backend)


def test_a_standard_gate_renamed_is_what_it_is():
    gate = RXGate(W).to_mutable()
    gate.name = "rz"
    template = CircuitTemplate("t", one_gate(gate, 1), (), [W], ("X", "Y", "Z"))
    circuit = QuantumCircuit(1)
    circuit.h(0)
    circuit.rx(W, 0)
    wanted = reference_values(CircuitTemplate("t", circuit, (), [W], ("X", "Y", "Z")), [0.7])
    for backend in ("exact", "aer_cpu"):
        np.testing.assert_allclose(values_on(backend, template, [0.7]), wanted, atol=1e-12)
    assert len(split(template).rules) == 1


@pytest.mark.parametrize("synthesis", [None, SuzukiTrotter(order=2, reps=2)])
def test_time_evolution_is_one_circuit_everywhere_number_or_weight(synthesis):
    number = one_gate(PauliEvolutionGate(HAMILTONIAN, time=1.0, synthesis=synthesis))
    nested = QuantumCircuit(2)
    nested.append(PauliEvolutionGate(HAMILTONIAN, time=1.0, synthesis=synthesis), [0, 1])
    weight = one_gate(PauliEvolutionGate(HAMILTONIAN, time=W, synthesis=synthesis))
    found = []
    for circuit, parameters, values in ((number, (), []), (one_gate(nested.to_gate()), (), []), (weight, (W,), [1.0])):
        template = CircuitTemplate("t", circuit, (), parameters, ("IZ", "ZI", "XY"))
        found += [values_on(backend, template, values) for backend in ("exact", "aer_cpu")]
    np.testing.assert_allclose(found, np.broadcast_to(found[-1], (6, 3)), atol=1e-9)


def test_a_user_gate_is_its_definition_not_its_matrix():
    class Loud(Gate):
        def __init__(self):
            super().__init__("loud", 1, [])

        def _define(self):
            self.definition = QuantumCircuit(1)
            self.definition.rz(0.3, 0)

        def __array__(self, dtype=None, copy=None):
            return np.asarray(RZGate(0.9).to_matrix(), dtype=dtype)

    template = CircuitTemplate("t", one_gate(Loud(), 1), (), (), ("Y",))
    np.testing.assert_allclose(values_on("exact", template, []), values_on("aer_cpu", template, []), atol=1e-9)


def test_a_random_product_formula_is_refused():
    gate = PauliEvolutionGate(HAMILTONIAN, time=1.0, synthesis=QDrift(reps=3))
    with pytest.raises(ValueError, match="random product formula"):
        lower(CircuitTemplate("t", one_gate(gate), (), ()))


LIBRARY = {
    "clifford": random_clifford(2, seed=1),
    "linear function": LinearFunction([[1, 1], [0, 1]]),
    "permutation": PermutationGate([1, 0]),
    "qft": QFTGate(2),
    "diagonal": DiagonalGate([1, 1j, -1, 1]),
    "unitary": UnitaryGate(random_unitary(4, seed=2)),
    "state preparation": StatePreparation([0.6, 0, 0, 0.8]),
    "annotated": AnnotatedOperation(RXGate(0.3), ControlModifier(1)),
    "controlled evolution": PauliEvolutionGate(Pauli("X"), W).control(1),
    "several evolutions": PauliEvolutionGate([Pauli("XX"), Pauli("ZI")], W),
    "open control": RXGate(W).control(1, ctrl_state=0),
    "cu": CUGate(W, 0.1, 0.2, 0.3),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_gates_of_qiskits_library_are_one_circuit_on_exact_and_aer(name):
    circuit = one_gate(LIBRARY[name])
    circuit.ry(W, 1)
    template = CircuitTemplate("t", circuit, (), [W], ("XY", "ZI", "IX"))
    np.testing.assert_allclose(values_on("exact", template, [0.7]), values_on("aer_cpu", template, [0.7]), atol=1e-9)


# the self-check


def test_a_wrong_angle_is_refused(monkeypatch):
    circuit = QuantumCircuit(1)
    circuit.rx(2 * X + W, 0)
    template = CircuitTemplate("t", circuit, [X], [W])
    assert lower(template).steps[0].angle.terms == ((0, 2.0), (1, 1.0))
    real = lowering._at  # as if Qiskit simplified the expression when it is bound at the origin
    monkeypatch.setattr(lowering, "_at", lambda v, point, gate: real(v, point, gate) + (not any(point.values())))
    with pytest.raises(ValueError, match="not linear"):
        lower.__wrapped__(template)


def test_a_standard_gate_that_means_something_else_is_refused(monkeypatch):
    template = CircuitTemplate("t", one_gate(RXGate(W), 1), (), [W])
    monkeypatch.setitem(lowering._SINGLE, "rx", "Y")
    lowering._check_table.cache_clear()
    with pytest.raises(ValueError, match="'rx'"):
        lower.__wrapped__(template)
    lowering._check_table.cache_clear()


def test_a_gate_whose_definition_does_not_follow_its_parameters_is_refused():
    inner = QuantumCircuit(1, name="stale")
    inner.rx(W, 0)
    gate = inner.to_gate()

    class Stale(Gate):
        def __init__(self, angle):
            super().__init__("stale", 1, [angle])

        @property
        def definition(self):
            circuit = QuantumCircuit(1)
            circuit.rx(self.params[0] if isinstance(self.params[0], Parameter) else 0.1, 0)
            return circuit

        @definition.setter
        def definition(self, circuit):
            pass

    assert lower(CircuitTemplate("t", one_gate(gate, 1), (), [W])).rotations
    with pytest.raises(ValueError, match="'stale' with parameters is another gate"):
        lower(CircuitTemplate("t", one_gate(Stale(W), 1), (), [W]))


# one sentence where something cannot be


def recursive():
    class Endless(Gate):
        def __init__(self):
            super().__init__("endless", 1, [])

        def _define(self):
            self.definition = QuantumCircuit(1)
            self.definition.append(Endless(), [0])

    return one_gate(Endless(), 1), ()


def looped():
    circuit = QuantumCircuit(1)
    with circuit.for_loop(range(2)) as k:
        circuit.rx(k * W, 0)
    return circuit, (W,)


def prepared():
    circuit = QuantumCircuit(1)
    circuit.initialize([1, 0], 0)
    return circuit, ()


BAD_CIRCUITS = {
    "rv": lambda: (one_gate(RVGate(W, 0.1, 0.2), 1), (W,)),
    "annotated": lambda: (one_gate(AnnotatedOperation(RXGate(W), ControlModifier(1))), (W,)),
    "annotated evolution": lambda: (
        one_gate(AnnotatedOperation(PauliEvolutionGate(Pauli("X"), 1.0), ControlModifier(1))),
        (),
    ),
    "complex": lambda: (one_gate(RXGate(W + 1j), 1), (W,)),
    "imaginary": lambda: (one_gate(RXGate(1j * W), 1), (W,)),
    "not finite": lambda: (one_gate(RXGate(float("nan")), 1), ()),
    "not unitary": lambda: (one_gate(UnitaryGate([[1, 1], [0, 1]], check_input=False), 1), ()),
    "no value": lambda: (one_gate(RXGate((-1 - W * W).log()), 1), (W,)),
    "recursive": recursive,
    "for_loop": looped,
    "initialize": prepared,
}


@pytest.mark.parametrize("name", BAD_CIRCUITS)
def test_a_circuit_that_cannot_be_is_refused_in_a_sentence(name):
    circuit, weights = BAD_CIRCUITS[name]()
    with pytest.raises((UserError, ValueError)) as refused:
        TemplateNetwork(CircuitTemplate("t", circuit, (), weights), backends.get("exact"))
    assert type(refused.value) in (UserError, ValueError) and "\n" not in str(refused.value)


def plain(**changed):
    circuit = QuantumCircuit(1)
    circuit.rx(W, 0)
    return {"name": "t", "circuit": circuit, "inputs": (), "weights": (W,), **changed}


@pytest.mark.parametrize(
    ("changed", "kind", "says"),
    [
        ({"circuit": QuantumCircuit(0), "weights": ()}, ValueError, "no qubits"),
        ({"circuit": "h 0"}, TypeError, "not a QuantumCircuit"),
        ({"weights": W}, TypeError, "weights"),
        ({"weights": ["w"]}, TypeError, "weights"),
        ({"inputs": 3}, TypeError, "inputs"),
        ({"observables": (SparsePauliOp("Z", [np.nan]),)}, ValueError, "not finite"),
        ({"observables": (SparsePauliOp("Z", [np.inf]),)}, ValueError, "not finite"),
        ({"observables": (SparsePauliOp("Z", [1j]),)}, ValueError, "Hermitian"),
        ({"observables": Pauli("iZ")}, ValueError, "Hermitian"),
        ({"observables": (SparsePauliOp("Z", np.array([Parameter("c")], dtype=object)),)}, ValueError, "no number"),
        ({"observables": ("Q",)}, ValueError, "no Pauli string"),
        ({"observables": ("ZZ",)}, ValueError, "2 qubits"),
        ({"observables": (3,)}, TypeError, "observable"),
        ({"observables": 3}, TypeError, "observables"),
    ],
)
def test_a_wrong_template_is_refused(changed, kind, says):
    with pytest.raises(kind, match=says):
        CircuitTemplate(**plain(**changed))


def test_one_sum_of_pauli_strings_is_one_output():
    for alone in (SparsePauliOp(["Z", "X"], [0.5, 2.0]), Pauli("-Z"), "Z"):
        template = CircuitTemplate(**plain(observables=alone))
        assert template.num_outputs == 1
    assert CircuitTemplate(**plain(observables=Pauli("-Z"))).observables[0].coeffs[0] == -1


def test_a_template_keeps_the_circuit_it_was_given():
    circuit = QuantumCircuit(1)
    circuit.rx(W, 0)
    template = CircuitTemplate("t", circuit, (), [W])
    circuit.x(0)
    assert len(template.circuit.data) == 1


# angles that are no linear functions


def random_expression(rng, parameters, depth=3):
    if depth == 0 or rng.random() < 0.2:
        return parameters[rng.integers(len(parameters))]
    one, two = (random_expression(rng, parameters, depth - 1) for _ in range(2))
    kind = rng.integers(14)
    number = float(rng.uniform(0.5, 2))
    if kind < 8:
        return (one + two, one - two, one * two, one / (3 + two * two), one * number, number - one, one**2, one**3)[
            kind
        ]
    return (one.sin(), one.cos(), one.arctan(), (one * 0.3).exp(), (one * one + number).log(), one.abs())[kind - 8]


def test_derived_inputs_are_qiskits_numbers_and_their_gradients_finite_differences():
    rng = np.random.default_rng(3)
    x, w = ParameterVector("x", 2), ParameterVector("w", 2)
    for _ in range(60):
        circuit = QuantumCircuit(2)
        circuit.ry(random_expression(rng, list(x)), 0)
        circuit.cp(random_expression(rng, [*x, *w]), 0, 1)
        circuit.u(0.3, random_expression(rng, list(w)), x[0] - 2 * w[1], 1)
        for p in (*x, *w):
            circuit.rx(p, 0)
        template = CircuitTemplate("t", circuit, x, w, ("XY", "ZI"))
        derived = derive(template)
        point = rng.uniform(-1, 1, 4)
        np.testing.assert_allclose(
            reference_values(derived.template, derived.values(point)), reference_values(template, point), atol=1e-9
        )
        step = 1e-6 * np.eye(4)
        numeric = (derived.values(point + step) - derived.values(point - step)) / 2e-6
        gradients = derived_jacobian(derived, point)
        np.testing.assert_allclose(gradients, numeric.T, atol=1e-5 * (1 + np.abs(gradients).max()))
        assert derive(derived.template).trivial


@pytest.mark.parametrize("feature_map", [zz_feature_map, ZZFeatureMap])
def test_the_zz_feature_map_has_one_derived_input_for_each_pair(feature_map):
    encoding, ansatz = feature_map(3, reps=2), real_amplitudes(3, reps=1)
    template = CircuitTemplate("zz", encoding.compose(ansatz), tuple(encoding.parameters), tuple(ansatz.parameters))
    derived = derive(template)
    assert derived.template.source is template and derived.template.num_inputs == 3 + 3
    assert derived.template.num_weights == template.num_weights == 6
    for cone in cones(template):  # in the author's inputs, not in derived ones
        assert cone.exact and cone.inputs == (0, 1, 2)
    found = gradients(template, samples=2)
    assert found.shape == (2, 3, 6) and np.abs(found).max() > 1e-3


def test_cancelling_expressions_do_not_count_as_dependence():
    circuit = QuantumCircuit(1)
    circuit.rx(X * Y, 0)
    circuit.rx(-1 * (X * Y) + W, 0)
    (cone,) = cones(CircuitTemplate("t", circuit, (X, Y), (W,)))
    assert cone.exact and cone.inputs == () and cone.weights == (0,)


def test_deep_and_wide_circuits_are_bounded_quickly(monkeypatch):
    monkeypatch.setattr(analysis, "LARGEST_WORK", 1e7)
    found = cones(build("brickwork", 20, 24))
    assert len(found) == 20 and not any(cone.exact for cone in found)
    assert all(cone.inputs == tuple(range(20)) for cone in found)


USER_FILE = """
from qiskit.circuit import Parameter, ParameterVector, QuantumCircuit
from qiskit.circuit.library import RVGate, real_amplitudes, zz_feature_map
from qrkt_hw.circuits import CircuitTemplate

def zz(qubits, layers):
    encoding, ansatz = zz_feature_map(qubits, reps=layers), real_amplitudes(qubits, reps=layers)
    return CircuitTemplate("zz", encoding.compose(ansatz), tuple(encoding.parameters), tuple(ansatz.parameters))

def bad(qubits, layers):
    w = Parameter("w")
    circuit = QuantumCircuit(qubits)
    circuit.append(RVGate(w, 0.1, 0.2), [0])
    return CircuitTemplate("bad", circuit, (), (w,))

def logarithm(qubits, layers):
    x = Parameter("x")
    circuit = QuantumCircuit(1)
    circuit.rx((x - 3).log(), 0)
    return CircuitTemplate("log", circuit, (x,), ())
"""


@pytest.fixture
def user_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(USER_FILE)
    return file


def test_resources_and_analyze_take_derived_inputs(user_file):
    at = user_file.parent
    found = qrkt("resources", "--ansatz", f"{user_file}:zz", "--qubits", 3, "--format", "json", cwd=at)
    report = json.loads(found.stdout)
    circuit = report["logical"]["circuits"][0]
    assert (circuit["inputs"], circuit["weights"], circuit["gates"]["p"]) == (3, 6, 6)
    assert report["verdicts"][0]["sentence"] == "every output depends on all 3 inputs"
    size = ("--qubits", 7, "--pairs", 20, "--samples", 4)
    found = qrkt("circuits", "analyze", f"{user_file}:zz", *size, "--json", cwd=at)
    assert json.loads(found.stdout)["rows"][0]["inputs_seen"] == [7] * 7


@pytest.mark.parametrize(
    "words",
    [
        ("resources", "--ansatz", "mine.py:bad"),
        ("circuits", "analyze", "mine.py:bad"),
        ("circuits", "analyze", "mine.py:logarithm", "--pairs", 20, "--samples", 4),
        ("resources", "--ansatz", "qrkt", "--qubits", 40, "--layers", 5),
    ],
)
def test_a_circuit_that_cannot_be_analyzed_is_refused_in_a_sentence(user_file, words, monkeypatch):
    monkeypatch.setattr("qrkt_hw.resources.subject.LARGEST_WORK", 1e4)
    refused(qrkt(*words, cwd=user_file.parent))

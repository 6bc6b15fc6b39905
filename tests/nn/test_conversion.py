"""Layers of anybody's circuits and networks: roles, observables, outputs, transpiled circuits, and what is refused."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from qiskit import qasm3, qpy, transpile
from qiskit.circuit import ClassicalRegister, Parameter, ParameterVector, QuantumCircuit, QuantumRegister
from qiskit.circuit.library import real_amplitudes, zz_feature_map
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit_machine_learning.connectors import TorchConnector
from qiskit_machine_learning.neural_networks import EstimatorQNN, SamplerQNN

from qrkt_hw import QuantumLayer
from qrkt_hw.ansatz import base_and_index, by_name, read_template
from qrkt_hw.errors import UserError
from tests.random_templates import random_template, reference_values

X, W = ParameterVector("x", 2), ParameterVector("w", 2)


def circuit():
    made = QuantumCircuit(2)
    made.ry(X[0] * W[0], 0)
    made.rx(X[1] ** 2 + W[1], 1)
    made.cx(0, 1)
    return made


def maps(qubits=2, reps=1):
    encoding, ansatz = zz_feature_map(qubits), real_amplitudes(qubits, reps=reps)
    made = encoding.compose(ansatz)
    return {"circuit": made, "input_params": list(encoding.parameters), "weight_params": list(ansatz.parameters)}


def test_random_circuits_have_qiskits_values_and_gradients():
    rng = np.random.default_rng(2)
    for _ in range(6):
        made = random_template(rng, num_qubits=3)
        layer = QuantumLayer.from_circuit(
            made.circuit, inputs=made.inputs, weights=list(made.weights), observables=made.observables,
            features=2 * made.num_inputs, dtype=torch.complex128,
        )  # fmt: skip
        x = torch.rand(2, 2, made.num_inputs, dtype=torch.float64)
        sets = layer.weight.detach().reshape(2, -1)
        wanted = [[reference_values(made, [*row[g], *sets[g]]) for g in range(2)] for row in x]
        np.testing.assert_allclose(layer(x.flatten(1)).detach(), np.reshape(wanted, (2, -1)), atol=1e-9)
        assert torch.autograd.gradcheck(
            lambda a, _, layer=layer: layer(a), (x.flatten(1).requires_grad_(), layer.weight)
        )


def test_angles_of_any_form_are_differentiated_exactly():
    layer = QuantumLayer.from_circuit(circuit(), inputs=X, weights=W, observables=["ZI", "XX"], dtype=torch.complex128)
    x = torch.tensor([[0.3, 0.8]], dtype=torch.float64, requires_grad=True)
    state = Statevector(circuit().assign_parameters({**dict(zip(X, x[0].tolist(), strict=True)),
                                                     **dict(zip(W, layer.weight.tolist(), strict=True))}))  # fmt: skip
    wanted = [state.expectation_value(SparsePauliOp(o)).real for o in ("ZI", "XX")]
    np.testing.assert_allclose(layer(x)[0].detach(), wanted, atol=1e-12)
    assert torch.autograd.gradcheck(lambda a, _: layer(a), (x, layer.weight))
    assert not layer.specs()["angles_are_linear"]


def test_roles_by_vector_by_parameter_and_by_name():
    one = QuantumLayer.from_circuit(circuit(), inputs=X, weights=W)
    for inputs, weights in ((list(X), list(W)), ("x", "w"), (["x[0]", "x[1]"], ("w",)), (list(X), "w")):
        other = QuantumLayer.from_circuit(circuit(), inputs=inputs, weights=weights, initial_weights=one.weight)
        x = torch.rand(3, 2)
        torch.testing.assert_close(other(x), one(x))
    assert one.outputs == 2 and one.template.observables[0] == SparsePauliOp("IZ")
    alone = QuantumCircuit(1)
    alone.ry(theta := Parameter("theta"), 0)
    layer = QuantumLayer.from_circuit(alone, weights=theta, initial_weights=[np.pi / 3])
    torch.testing.assert_close(layer(), torch.tensor([0.5]))
    torch.testing.assert_close(layer(torch.zeros(4, 0)), torch.full((4, 1), 0.5))


def test_measurements_at_the_end_are_dropped_and_others_refused():
    measured = circuit()
    measured.measure_all()
    one, other = (
        QuantumLayer.from_circuit(c, inputs=X, weights=W, initial_weights=[0.1, 0.2]) for c in (measured, circuit())
    )
    torch.testing.assert_close(one(torch.ones(2)), other(torch.ones(2)))
    measured.x(0)
    with pytest.raises(UserError, match="uses qubit 0 after its measurement"):
        QuantumLayer.from_circuit(measured, inputs=X, weights=W)


def test_a_transpiled_circuit_keeps_the_qubits_it_uses():
    isa = transpile(circuit(), GenericBackendV2(7, seed=1, noise_info=False), initial_layout=[5, 3], seed_transpiler=1)
    one = QuantumLayer.from_circuit(circuit(), inputs=X, weights=W, initial_weights=[0.4, 0.5])
    other = QuantumLayer.from_circuit(isa, inputs=X, weights=W, initial_weights=[0.4, 0.5])
    observable = SparsePauliOp("XZ").apply_layout(isa.layout)
    third = QuantumLayer.from_circuit(isa, inputs=X, weights=W, observables=observable, initial_weights=[0.4, 0.5])
    assert other.template.num_qubits <= 3
    x = torch.rand(4, 2)
    torch.testing.assert_close(other(x), one(x), atol=1e-5, rtol=1e-5)
    wanted = QuantumLayer.from_circuit(circuit(), inputs=X, weights=W, observables="XZ", initial_weights=[0.4, 0.5])
    torch.testing.assert_close(third(x), wanted(x), atol=1e-5, rtol=1e-5)


def same(qnn, batch=3, stock_gradients=True):
    """Values and gradients of layer and network; where SamplerQNN's own gradient fails, finite differences instead."""
    layer = QuantumLayer.from_qnn(qnn, dtype=torch.complex128)
    x, w = np.random.default_rng(0).uniform(-1, 1, (batch, qnn.num_inputs)), layer.weight.detach().numpy()
    given = torch.tensor(x, requires_grad=True)
    np.testing.assert_allclose(layer(given).detach(), qnn.forward(x, w), atol=1e-9)
    if not stock_gradients:
        assert torch.autograd.gradcheck(lambda a, _: layer(a), (given, layer.weight))
        return
    by_input, by_weight = qnn.backward(x, w)
    cotangent = torch.rand(batch, *qnn.output_shape, dtype=torch.float64)
    found = torch.autograd.grad(layer(given), (given, layer.weight), cotangent)
    np.testing.assert_allclose(
        found[0], np.einsum("bo,boi->bi", cotangent.flatten(1), by_input.reshape(batch, -1, x.shape[1])), atol=1e-9
    )
    np.testing.assert_allclose(
        found[1], np.einsum("bo,bow->w", cotangent.flatten(1), by_weight.reshape(batch, -1, len(w))), atol=1e-9
    )
    network = layer.neural_network
    np.testing.assert_allclose(network.forward(x, w), qnn.forward(x, w), atol=1e-9)
    for one, other in zip(network.backward(x, w), (by_input, by_weight), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
    assert network.output_shape == tuple(qnn.output_shape)


def test_weights_of_torch_connector_load_and_copies_agree():
    qnn = SamplerQNN(**maps(), input_gradients=True)
    stock, layer = TorchConnector(qnn), QuantumLayer.from_qnn(qnn)
    model = torch.nn.Sequential(layer)
    model.load_state_dict(torch.nn.Sequential(stock).state_dict())
    x = torch.rand(2, 2)
    for one in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(one(x), stock(x), atol=1e-5, rtol=1e-5)
    assert list(layer.state_dict()) == ["weight"]


@pytest.mark.parametrize("backend", ["fake_manila", "aer_cpu"])
def test_chances_on_other_backends(backend):
    layer = QuantumLayer.from_qnn(SamplerQNN(**maps(), input_gradients=True), backend=backend)
    values = layer(torch.rand(3, 2))
    torch.testing.assert_close(values.sum(1), torch.ones(3))
    assert (values > -1e-6).all()
    (gradient,) = torch.autograd.grad(values.sum(), layer.weight)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("interpret", "shape"),
    [
        (None, None),
        (lambda k: k.bit_count() % 2, 2),
        (lambda k: k % 3, 5),  # outputs that are never reached are 0
        (lambda k: (k % 2, k // 2), (2, 3)),
        (lambda k: -1, 2),
        (lambda k: 0, 1),
    ],
)
def test_outputs_of_a_sampler_network(interpret, shape):
    same(SamplerQNN(**maps(), interpret=interpret, output_shape=shape, input_gradients=True))


def measured(*registers, pairs):
    made = maps()
    read = QuantumCircuit(QuantumRegister(2, "q"), *registers)
    read.compose(made["circuit"], inplace=True)
    for qubit, bit in pairs:
        read.measure(qubit, bit)
    return {**made, "circuit": read, "input_gradients": True}


def test_sampler_networks_that_measure_into_their_own_registers():
    one, two = ClassicalRegister(1, "one"), ClassicalRegister(2, "two")
    for options in (
        measured(one, pairs=[(1, 0)]),
        measured(two, pairs=[(0, 1), (1, 0)]),
        measured(one, ClassicalRegister(1, "other"), pairs=[(0, 1), (1, 0)]),
    ):
        same(SamplerQNN(**options, interpret=lambda k: k, output_shape=4), batch=1, stock_gradients=False)
    # of several samples SamplerQNN averages such registers; each sample has its own values here
    qnn = SamplerQNN(**measured(two, pairs=[(0, 1), (1, 0)]))
    x, layer = np.array([[0.1, 0.2], [0.9, -0.5]]), QuantumLayer.from_qnn(qnn)
    wanted = [qnn.forward(row, layer.weight.detach().numpy())[0] for row in x]
    np.testing.assert_allclose(layer(torch.tensor(x)).detach(), wanted, atol=1e-6)


def test_estimator_networks_and_those_on_a_device():
    same(
        EstimatorQNN(
            **maps(), observables=[SparsePauliOp(["XY", "ZI"], [0.5, -2]), SparsePauliOp("YY")], input_gradients=True
        )
    )
    device = GenericBackendV2(4, seed=3, noise_info=False)
    made = maps()
    isa = {**made, "circuit": transpile(made["circuit"], device, initial_layout=[3, 1], seed_transpiler=2)}
    observable = SparsePauliOp("ZX").apply_layout(isa["circuit"].layout)
    same(EstimatorQNN(**isa, observables=observable, input_gradients=True), batch=1)
    same(SamplerQNN(**isa, input_gradients=True), batch=1, stock_gradients=False)


class Own(EstimatorQNN):
    def _forward_postprocess(self, num_samples, result):
        return -super()._forward_postprocess(num_samples, result)


def refused_qnns():
    return [
        (lambda: 5, "qnn is a int; it must be an EstimatorQNN or a SamplerQNN"),
        (lambda: Own(**maps()), "Own computes otherwise than EstimatorQNN (_forward_postprocess is its own)"),
        (lambda: SamplerQNN(**maps(), interpret=lambda k: 7, output_shape=2), "interpret(0) is no place in an output"),
        (
            lambda: SamplerQNN(**measured(ClassicalRegister(2, "two"), pairs=[(0, 1)])),
            "not all classical bits of its circuit are measured",
        ),
        (lambda: SamplerQNN(**maps(13)), "outputs of 2^13 outcomes are too many"),
    ]


@pytest.mark.parametrize(("make", "says"), refused_qnns())
def test_networks_that_cannot_be_kept_are_refused(make, says):
    with pytest.raises(UserError) as found:
        QuantumLayer.from_qnn(make())
    assert says in str(found.value) and "\n" not in str(found.value)


def test_a_sparse_network_is_refused():
    qnn = SamplerQNN(**maps())
    qnn._sparse = True  # without the optional package `sparse` the constructor refuses it
    with pytest.raises(UserError, match="sparse, and a QuantumLayer gives dense tensors"):
        QuantumLayer.from_qnn(qnn)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"inputs": X}, "parameters w[0], w[1] of the circuit are neither inputs nor weights"),
        ({"inputs": X, "weights": [*W, X[0]]}, "'x[0]' is among inputs and weights"),
        ({"inputs": [X[0], X[0]], "weights": W}, "'x[0]' is named twice"),
        ({"inputs": "y", "weights": W}, "no parameter 'y'; there are w[0], w[1], x[0], x[1]"),
        ({"inputs": [*X, Parameter("z")], "weights": W}, "'z' is not in the circuit, which has no such parameter"),
        ({"inputs": ParameterVector("x", 2), "weights": W}, "which has another parameter of the same name"),
        ({"inputs": 3, "weights": W}, "inputs must be a ParameterVector, parameters, or names of them, not int"),
        ({"inputs": X, "weights": W, "observables": "ZZZ"}, "observable on 3 qubits, circuit on 2"),
        ({"inputs": X, "weights": W, "observables": []}, "observables is empty"),
        ({"inputs": X, "weights": W, "observables": SparsePauliOp("ZZ", 1j)}, "it is not Hermitian"),
        ({"inputs": X, "weights": W, "observables": {"ZZ": 2.0}}, "observables is a mapping"),
        ({"inputs": X, "weights": W, "backend": "nowhere"}, "backend: no backend 'nowhere'"),
        ({"inputs": X, "weights": W, "features": 3}, "qubits: 3 features cannot be split into groups of 2"),
    ],
)
def test_wrong_roles_and_observables_are_one_sentence(options, says):
    with pytest.raises(UserError) as found:
        QuantumLayer.from_circuit(circuit(), **options)
    assert says in str(found.value) and "\n" not in str(found.value)


def test_what_is_no_circuit_or_no_ansatz_is_refused():
    for make, says in (
        (lambda: QuantumLayer.from_circuit(QuantumCircuit()), "circuit has no qubits"),
        (lambda: QuantumLayer(2, ansatz=circuit()), "goes to QuantumLayer.from_circuit"),
        (lambda: QuantumLayer(4, qubits=0), "at least 1 qubit"),
        (lambda: QuantumLayer(5, qubits=2), "^qubits: 5 features"),
    ):
        with pytest.raises(UserError, match=says):
            make()


def test_what_cannot_be_differentiated_is_refused_at_construction():
    made, x = QuantumCircuit(1), Parameter("x")
    made.ry(x, 0)
    made.reset(0)
    with pytest.raises(UserError, match="reset is not allowed"):
        QuantumLayer.from_circuit(made, inputs=x)
    with pytest.raises(UserError, match="circuit is a int, not a QuantumCircuit"):
        QuantumLayer.from_circuit(3)


def test_files_of_qasm_and_qpy_are_layers_and_ansatze(tmp_path):
    made = QuantumCircuit(3)
    x, theta = ParameterVector("x", 3), ParameterVector("theta", 12)
    for k in range(3):
        made.ry(x[k], k)
    for k, weight in enumerate(theta):
        made.rx(weight, k % 3)
        made.cx(k % 3, (k + 1) % 3)
    (tmp_path / "a.qasm").write_text(qasm3.dumps(made))
    with (tmp_path / "a.qpy").open("wb") as file:
        qpy.dump(made, file)
    weights = np.random.default_rng(0).uniform(-1, 1, 12)
    wanted = QuantumLayer.from_circuit(made, inputs=x, weights=theta, initial_weights=weights)
    given = torch.rand(2, 3)
    for name in ("a.qasm", "a.qpy"):
        path = tmp_path / name
        for layer in (
            QuantumLayer.from_circuit(path, inputs="x", weights="theta", initial_weights=weights),
            QuantumLayer(3, ansatz=str(path), initial_weights=weights),
        ):
            torch.testing.assert_close(layer(given), wanted(given), atol=1e-6, rtol=1e-6)
    assert [p.name for p in read_template(tmp_path / "a.qasm").weights] == [f"_theta_{k}_" for k in range(12)]
    with pytest.raises(UserError, match="holds one circuit of 3 qubits, not of 2 qubits and 1 layers"):
        QuantumLayer(4, ansatz=str(tmp_path / "a.qpy"), qubits=2)


def test_names_in_files():
    assert base_and_index("x[11]") == base_and_index("_x_11_") == ("x", 11)
    assert base_and_index("theta_3") == ("theta", 3) and base_and_index("a") == ("a", -1)
    made = QuantumCircuit(1)
    for k in (10, 2, 1):
        made.ry(Parameter(f"x_{k}"), 0)
    assert [p.name for p in by_name(made, "x")] == ["x_1", "x_2", "x_10"]


def test_files_that_are_wrong_are_refused(tmp_path):
    fixed, two = QuantumCircuit(1), io.BytesIO()
    qpy.dump([fixed, fixed], two)
    files = {
        "no.qasm": (None, "no file"),
        "a.txt": (b"", "is no circuit file; there are .qasm, .qasm3, .qpy"),
        "b.qasm": (b"hello", "cannot be read as OpenQASM 3"),
        "c.qpy": (b"QISKIT", "cannot be read as QPY"),
        "d.qpy": (two.getvalue(), "holds 2 circuits, not one"),
        "e.qasm": (qasm3.dumps(fixed).encode(), "no parameter is called x, in, input"),
    }
    for name, (data, says) in files.items():
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(UserError) as found:
            read_template(path)
        assert says in str(found.value) and "\n" not in str(found.value)


def test_circuit_draw_and_specs():
    torch.manual_seed(0)
    layer = QuantumLayer(6, qubits=3, layers=2, dtype=torch.complex128)
    x = torch.rand(6, dtype=torch.float64)
    values = []
    for group in range(2):
        bound = layer.circuit(group, x[3 * group : 3 * group + 3])
        assert not bound.parameters and list(layer.circuit(group).parameters) == list(layer.template.inputs)
        values += [Statevector(bound).expectation_value(o).real for o in layer.template.observables]
    np.testing.assert_allclose(values, layer(x).detach(), atol=1e-12)
    with pytest.raises(UserError, match="group is 2; the layer has 2"):
        layer.circuit(2)
    with pytest.raises(ValueError, match="inputs must be 3 numbers, not 2"):
        layer.circuit(0, [1, 2])
    assert "x[0]" in str(layer.draw("text"))
    specs = layer.specs()
    assert specs["qubits"] == 3 and specs["groups"] == 2 and specs["outputs"] == 6 and specs["circuits_per_sample"] == 2
    assert specs["weights"] == len(layer.weight) and specs["backend"] == "exact" and specs["depth"] > 0

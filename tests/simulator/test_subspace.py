"""The subspace method against Qiskit's statevector and against the statevector method, on circuits of any weight."""

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.circuit.library import RZZGate, XXPlusYYGate, iSwapGate
from qiskit.quantum_info import SparsePauliOp, Statevector, random_pauli_list
from torch.autograd import gradcheck, gradgradcheck

from qrkt_hw import circuits
from qrkt_hw.ansatz import CircuitTemplate, by_angles, orthogonal, rbs, unary_angles, unary_encoding
from qrkt_hw.compiler import lower
from qrkt_hw.compiler.subspace import subspace
from qrkt_hw.errors import UserError
from qrkt_hw.simulator import native, simulator
from qrkt_hw.simulator.subspace import affine_map, linear_map

LAYOUTS = ("orthogonal_brick", "orthogonal_butterfly", "orthogonal_pyramid")


def weight_preserving(seed):
    """A random circuit of gates that keep the Hamming weight, some of whose angles are shared or shifted."""
    rng = np.random.default_rng(seed)
    qubits, weight = int(rng.integers(2, 6)), int(rng.integers(0, 4))
    weight = min(weight, qubits)
    circuit, x, w = QuantumCircuit(qubits), ParameterVector("x", 2), ParameterVector("w", 4)
    for q in rng.choice(qubits, weight, replace=False):
        circuit.x(int(q))
    used = [*x, *w]
    for _ in range(12):
        angle = used[rng.integers(6)] * float(rng.choice([1, 0.5, -2])) + float(rng.choice([0, 0.3]))
        a, b = map(int, rng.choice(qubits, 2, replace=False))
        kind = int(rng.integers(9))
        if kind < 3:
            beta = [-np.pi / 2, 0.7, used[rng.integers(6)] * 1.0][kind]
            circuit.append(XXPlusYYGate(angle, beta), [a, b])
        elif kind == 3:
            circuit.rz(angle, a)
        elif kind == 4:
            circuit.append(RZZGate(angle), [a, b])
        elif kind == 5:
            circuit.cp(angle, a, b)
        elif kind == 6:
            circuit.append([iSwapGate(), QuantumCircuit(2).to_gate()][0], [a, b])
        elif kind == 7:
            circuit.swap(a, b)
            circuit.crz(angle, b, a)
        else:
            circuit.t(a)
            circuit.p(angle, b)
    for p in used:  # each is there
        circuit.rz(p, 0)
    observables = [
        SparsePauliOp(random_pauli_list(qubits, 3, seed=seed + k, phase=False), rng.normal(size=3)) for k in (0, 1)
    ]
    observables.append(SparsePauliOp.from_sparse_list([("XX", [0, 1], 1.0), ("YY", [0, 1], 0.5)], qubits))
    return CircuitTemplate("random", circuit, x, w, tuple(observables))


@pytest.mark.parametrize("first", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(40, 200, 40))])
def test_any_circuit_that_keeps_the_weight_has_the_values_of_the_statevector(first):
    for seed in range(first, first + 40):
        template = weight_preserving(seed)
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(2, 1, 2, dtype=torch.float64, generator=rng).requires_grad_()
        w = torch.randn(1, 4, dtype=torch.float64, generator=rng).requires_grad_()
        values = [simulator(template, torch.complex128, method)(x, w) for method in ("subspace", "adjoint")]
        bound = dict(zip(template.parameters, [*x[0, 0].tolist(), *w[0].tolist()], strict=True))
        state = Statevector(template.circuit.assign_parameters(bound))
        wanted = [state.expectation_value(o).real for o in template.observables]
        assert np.allclose(values[0][0, 0].tolist(), wanted, atol=1e-10), seed
        assert torch.allclose(*values, atol=1e-10)
        once = [torch.autograd.grad((v**2).sum(), (x, w), create_graph=True) for v in values]
        totals = [sum((g**3).sum() for g in found) for found in once]
        twice = [torch.autograd.grad(t, (x, w)) if t.requires_grad else (0 * x, 0 * w) for t in totals]  # or constant
        for mine, theirs in zip((*once[0], *twice[0]), (*once[1], *twice[1]), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-9), seed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_orthogonal_layouts_have_the_values_of_qiskit(layout):
    for n in range(2, 11):
        template = circuits.build(layout, n, 2)
        rng = np.random.default_rng(n)
        theta, x = rng.uniform(-np.pi, np.pi, template.num_weights), rng.normal(size=(4, n))
        x[1, n // 2 :], x[2], x[3] = 0, np.eye(n)[0], -np.eye(n)[-1]  # a tail of zeros, one-hot, and a sign
        found = simulator(template, torch.complex128)(torch.tensor(x)[:, None], torch.tensor(theta)[None])[:, 0].numpy()
        for row, values in zip(x, found, strict=True):
            bound = dict(zip(template.parameters, [*unary_angles(template.encoding, row), *theta], strict=True))
            state = Statevector(template.circuit.assign_parameters(bound))
            wanted = np.linalg.norm(row) * np.array([state.expectation_value(o).real for o in template.observables])
            assert np.abs(values - wanted).max() < 1e-9
        matrix = linear_map(template, torch.tensor(theta)[None])[0]
        assert torch.allclose(matrix @ matrix.T, torch.eye(n, dtype=torch.float64))


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_those_of_finite_differences_also_at_zero(layout, native, monkeypatch):
    template = circuits.build(layout, 5, 1)
    evaluate = simulator(template, torch.complex128)
    if not native:
        monkeypatch.setattr(evaluate._evaluate.evaluate, "kernel", None)
    torch.manual_seed(3)
    x = torch.randn(3, 2, 5, dtype=torch.float64)
    x[1], x[2] = 0, torch.eye(5, dtype=torch.float64)[:2]
    w = torch.randn(2, template.num_weights, dtype=torch.float64).requires_grad_()
    assert gradcheck(evaluate, (x.requires_grad_(), w)) and gradgradcheck(evaluate, (x, w))
    (at_zero,) = torch.autograd.grad(evaluate(torch.zeros_like(x), w)[0].sum(), w)
    assert not at_zero.any()
    jacobian = torch.autograd.functional.jacobian(lambda v: evaluate(v, w)[1, 0], x)[:, 1, 0]
    assert torch.allclose(jacobian, linear_map(template, w.detach())[0])


def test_a_pyramid_holds_every_rotation():
    template = circuits.build("orthogonal_pyramid", 5, 1)
    w = torch.randn(1, template.num_weights, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(lambda v: linear_map(template, v)[0], w)[..., 0, :].reshape(25, -1)
    assert torch.linalg.matrix_rank(matrix) == 10 == template.num_weights


def test_complex_circuits_behind_a_unary_encoding():
    """Rotations about Z and fixed gates: outputs are the real part of a unitary times the features."""
    circuit, phi = unary_encoding(4)
    w = ParameterVector("w", 5)
    rbs(circuit, w[0] * 2 + 0.1, 1, 2)
    circuit.rz(w[1], 2)
    circuit.rz(w[1], 0)
    circuit.append(XXPlusYYGate(w[2], 0.3), [3, 4])
    circuit.iswap(2, 3)
    circuit.append(XXPlusYYGate(w[3], w[4]), [1, 3])
    read = [SparsePauliOp.from_sparse_list([("XX", [0, j], 1.0), ("YX", [0, 4], 0.3)], 5) for j in (1, 2, 4)]
    template = CircuitTemplate("complex", circuit, phi, w, tuple(read), encoding="unary")
    x, theta = torch.randn(3, 1, 4, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    values = simulator(template, torch.complex128)(x, theta)
    angles = torch.tensor(unary_angles("unary", x.numpy()))
    wanted = simulator(by_angles(template), torch.complex128, "adjoint")(angles, theta) * x.norm(dim=-1, keepdim=True)
    assert torch.allclose(values, wanted)
    assert gradcheck(simulator(template, torch.complex128), (x.requires_grad_(), theta.requires_grad_()))


def test_what_is_no_unary_encoding_is_refused():
    circuit, phi = unary_encoding(3)
    w = ParameterVector("w", 1)
    rbs(circuit, w[0], 0, 1)  # moves the reference
    read = (SparsePauliOp("IIXX"),)
    refused = {
        "outputs are not linear": CircuitTemplate("r", circuit, phi, w, read, encoding="unary"),
        "read it with X or Y": orthogonal("r", 3, [[(0, 1)]], topology="", reference=""),
        "does not begin with": CircuitTemplate("r", circuit, phi, w, read, encoding="unary_tree"),
        "needs gates that keep the Hamming weight": None,
    }
    own = refused["read it with X or Y"]
    refused["read it with X or Y"] = CircuitTemplate("r", own.circuit, own.inputs, own.weights, encoding="unary")
    other = own.circuit.copy()
    other.h(1)
    refused["needs gates that keep the Hamming weight"] = CircuitTemplate(
        "r", other, own.inputs, own.weights, own.observables, encoding="unary"
    )
    for message, template in refused.items():
        with pytest.raises((ValueError, UserError), match=message):
            simulator(template)
    with pytest.raises(ValueError, match="encoding is 'amplitude'; there are angle, unary"):
        CircuitTemplate("r", own.circuit, own.inputs, own.weights, encoding="amplitude")
    with pytest.raises(UserError, match="at least 2 features, not 1"):
        circuits.build("orthogonal_brick", 1, 1)
    for method in ("adjoint", "pauli"):
        with pytest.raises(UserError, match="cannot evaluate"):
            simulator(own, method=method)


def test_other_circuits_have_no_subspace_and_many_qubits_have_one():
    assert subspace(circuits.build("qrkt", 3, 1)) is None
    circuit, x = QuantumCircuit(40), ParameterVector("x", 39)
    circuit.x([0, 1])
    for j, angle in enumerate(x):
        rbs(circuit, angle, j, j + 1)
    template = CircuitTemplate("wide", circuit, x, (), (SparsePauliOp.from_sparse_list([("Z", [39], 1.0)], 40),))
    found = simulator(template)
    assert found.method == "subspace" and subspace(template).size == 780
    assert found(torch.randn(2, 1, 39), torch.zeros(1, 0)).abs().max() <= 1 + 1e-5


def test_a_givens_rotation_lowers_to_two_rotations():
    circuit, x = QuantumCircuit(2), ParameterVector("x", 1)
    rbs(circuit, x[0], 0, 1)
    program = lower(CircuitTemplate("one", circuit, x, ()))
    assert sorted(r.pauli for r in program.rotations) == ["XY", "YX"]


@pytest.mark.parametrize(("weight", "method"), [(2, "subspace"), (4, "adjoint"), (6, "adjoint")])
def test_few_excitations_are_simulated_in_their_subspace_and_many_as_a_statevector(weight, method):
    """On 14 qubits: as measured, 0.05 and 0.27 s at weight 2, 0.55 and 0.24 s at weight 4 (batch of 256)."""
    circuit, w = QuantumCircuit(14), ParameterVector("w", 52)
    circuit.x(range(0, 2 * weight, 2))
    angles = iter(w)
    for j in [*range(0, 13, 2), *range(1, 13, 2)] * 2:
        rbs(circuit, next(angles), j, j + 1)
        circuit.rzz(next(angles), j, j + 1)
    assert simulator(CircuitTemplate("chain", circuit, (), w)).method == method


@pytest.mark.parametrize("features", [5, 8])
def test_weights_that_are_no_numbers_leave_the_gradients_of_other_groups_alone(features):
    template = circuits.build("orthogonal_butterfly", features)
    torch.manual_seed(0)
    weights = torch.randn(3, template.num_weights, dtype=torch.float64)
    cotangent = torch.randn(3, features, features, dtype=torch.float64)

    def gradient(values):
        values = values.clone().requires_grad_()
        (linear_map(template, values) * cotangent).sum().backward()
        return values.grad

    broken = weights.clone()
    broken[1, 0] = torch.nan
    torch.testing.assert_close(gradient(broken)[[0, 2]], gradient(weights)[[0, 2]], rtol=0, atol=0)


@pytest.mark.parametrize(("features", "angles"), [(21, 12), (21, 60), (40, 150)])
def test_rotations_of_any_pairs_are_the_same_by_kernel_and_by_torch(features, angles, monkeypatch):
    """Of matrices some of whose rows are nearly empty, in more than one vector of columns."""
    rng = np.random.default_rng(angles)
    pairs = [tuple(map(int, rng.choice(features, 2, replace=False))) for _ in range(angles)]
    template = orthogonal("random", features, [pairs], topology="any", reference="")
    torch.manual_seed(0)
    weights = torch.randn(2, angles, dtype=torch.float64).requires_grad_()
    cotangent = torch.randn(2, features, features, dtype=torch.float64)
    found = linear_map(template, weights)
    (gradient,) = torch.autograd.grad(found, weights, cotangent)
    monkeypatch.setattr(native, "serves", lambda *_: False)
    expected = linear_map(template, weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, weights, cotangent)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("parts", [1, 2])
def test_affine_maps_have_the_same_values_and_gradients_by_kernel_and_by_torch(parts, monkeypatch):
    template = circuits.build("orthogonal_butterfly", 6, 1)
    torch.manual_seed(1)
    shapes = (3, parts * 6), (2 * parts, template.num_weights), (2 * parts * 6,), (2 * parts * 6,)
    given = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    cotangent = torch.randn(3, 2 * parts * 6, dtype=torch.float64)

    def evaluated(*values):
        return affine_map(template, *values)

    def values_and_gradients(dtype):
        arguments = [v.detach().to(dtype).requires_grad_() for v in given]
        values = evaluated(*arguments)
        return values, *torch.autograd.grad(values, arguments, cotangent.to(dtype))

    assert gradcheck(evaluated, given) and gradgradcheck(evaluated, given)
    double, single = values_and_gradients(torch.float64), values_and_gradients(torch.float32)
    monkeypatch.setattr(native, "serves", lambda *_: False)
    for found, rounded, expected in zip(double, single, values_and_gradients(torch.float64), strict=True):
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(rounded.double(), expected, rtol=0, atol=1e-5)

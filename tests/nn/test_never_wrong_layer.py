"""A quantum layer as a torch module: one parameter is the truth; what does not fit is refused before native code."""

import copy
import math
import pickle

import pytest
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap
from torch.nn.utils import parametrizations, parametrize, prune

from qrkt_hw import QuantumLayer, backends, circuits
from qrkt_hw.circuits import CircuitTemplate
from qrkt_hw.errors import UserError
from qrkt_hw.simulator import Simulator

X = torch.linspace(-2, 2, 40).reshape(5, 8)
KINDS = [("qrkt", "pauli"), ("ry_rz_ring", "adjoint"), ("brickwork", "pauli"), ("brickwork", "adjoint")]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
KEPT = KINDS[:2]  # propagation and adjoint


def layer(ansatz="qrkt", method="auto", **options):
    torch.manual_seed(0)
    return QuantumLayer(8, ansatz=ansatz, qubits=4, layers=2, method=method, **options)


def with_angles(made, angles):
    made = copy.deepcopy(made)
    made.load_state_dict({"weight": angles})
    return made


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


# name -> (layer, new angles) -> a function that evaluates the layer with those angles
def loaded(made, angles):
    assert made.load_state_dict({"weight": angles.clone()}, assign=True).missing_keys == []
    return made


def called(made, angles):
    return lambda x: functional_call(made, {"weight": angles}, (x,))


def assigned(made, angles):
    made.weight = nn.Parameter(angles.clone())
    return made


def emptied(made, angles):
    made = made.to("meta").to_empty(device="cpu")
    made.load_state_dict({"weight": angles})
    return made


def born_empty(made, angles):
    with torch.device("meta"):
        made = QuantumLayer(8, ansatz=made.template, method=made.requested_method)
    assert made.weight.is_meta
    made.load_state_dict({"weight": angles.clone()}, assign=True)
    return made


def sharded(made, angles):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    made = made.to("meta")
    set_model_state_dict(made.to_empty(device="cpu"), {"weight": angles}, options=StateDictOptions(strict=True))
    return made


def halved(made, angles):
    parametrize.register_parametrization(with_two := assigned(made, 2 * angles), "weight", Halved())
    return with_two


def pruned(made, angles):
    mask = torch.ones_like(angles)
    prune.custom_from_mask(assigned(made, angles), "weight", mask)
    return made


def normed(made, angles):
    return parametrizations.weight_norm(assigned(made, angles))


def pickled(made, angles):
    return pickle.loads(pickle.dumps(assigned(made, angles)))


WAYS = [loaded, called, assigned, emptied, born_empty, sharded, halved, pruned, normed, pickled]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_replaced_weights_are_the_ones_that_compute(way, kind):
    made = layer(*kind)
    angles = torch.randn_like(made.weight)
    expected = with_angles(made, angles)(X)
    assert (made(X) - expected).abs().max() > 0.01
    torch.testing.assert_close(way(made, angles)(X), expected, atol=1e-6, rtol=0)


def test_gradients_reach_what_replaced_the_weights():
    made = layer()
    prune.l1_unstructured(made, "weight", 0.5)
    made(X).sum().backward()
    kept = made.weight_mask.bool()
    assert (made.weight_orig.grad[~kept] == 0).all() and made.weight_orig.grad[kept].abs().max() > 0


def test_checkpoints_and_optimizers_see_one_parameter():
    made = layer()
    assert list(made.state_dict()) == ["weight"] and [n for n, _ in made.named_parameters()] == ["weight"]
    assert made.weight is made._parameters["weight"]


@pytest.mark.parametrize("length", [0, 1, 15, 17, 1000])
def test_initial_weights_of_another_length_are_refused(length):
    with pytest.raises(ValueError, match="initial_weights must be 16 angles"):
        layer(initial_weights=torch.zeros(length))


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("shape", [(0,), (1,), (15,), (1000,), (2, 8), ()])
def test_weights_of_another_shape_are_refused_before_any_kernel(kind, shape):
    made = layer(*kind)
    made.weight.data = torch.zeros(shape)
    with pytest.raises(ValueError, match="weight must be"):
        made(X)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        X.numpy(),
        X.to(torch.complex64),
        X.to_sparse(),
        X[:, :7],
        torch.tensor(1.0),
        torch.zeros(0),
        torch.nested.nested_tensor([X, X]),
    ],
    ids=["none", "numpy", "complex", "sparse", "narrow", "scalar", "empty", "nested"],
)
def test_what_is_no_input_is_refused(wrong):
    with pytest.raises(ValueError, match="input must be"):
        layer()(wrong)


@pytest.mark.parametrize("method", ["pauli", "adjoint"])
def test_shapes_are_checked_before_the_kernels(method):
    template = circuits.build("qrkt", 4, 1)
    simulate = Simulator(template, torch.complex64, method)
    for x, w in [((5, 2, 4), (2, 7)), ((5, 2, 3), (2, 4)), ((5, 2, 4), (3, 4)), ((5, 0, 4), (2, 4)), ((4,), (1, 4))]:
        with pytest.raises(ValueError):
            simulate(torch.zeros(x), torch.zeros(w))
    with pytest.raises(ValueError, match="real"):
        simulate(torch.zeros(5, 2, 4), torch.zeros(2, 4, dtype=torch.complex64))
    with pytest.raises(ValueError, match="meta"):
        simulate(torch.zeros(5, 2, 4), torch.zeros(2, 4, device="meta"))


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize(
    "of_input", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]
)
@pytest.mark.parametrize("of_weight", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_follow_input_and_weight(kind, of_input, of_weight):
    made = layer(*kind).to(of_weight)
    x = X.to(of_input)
    found = made(x)
    assert found.dtype == torch.promote_types(of_input, of_weight)
    exact = copy.deepcopy(made).double()(x.double())
    bound = 8 * torch.finfo(found.dtype).eps if found.dtype.itemsize < 8 else 1e-12
    assert (found.double() - exact).abs().max() < max(bound, 1e-12)
    assert found.requires_grad and made.weight.dtype == of_weight


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_fabric_precisions(precision):
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    expected = layer()(X)
    module = fabric.setup_module(layer())
    found = module(X)  # Fabric gives back the default type, whatever the module computed in
    inside = module.module(X.to(module.module.weight.dtype)).dtype
    assert inside == {"64-true": torch.float64, "bf16-true": torch.bfloat16, "bf16-mixed": torch.float32}[precision]
    assert (found - expected).abs().max() < (1e-6 if precision == "64-true" else 0.05)


def test_autocast_leaves_the_circuits_alone():
    for kind in KINDS:
        made = layer(*kind)
        expected = made(X)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(made(X), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_negative_views_are_read_as_they_read(kind):
    made = layer(*kind)
    x = torch.complex(X, X.flip(0)).conj().imag
    assert x.is_neg()
    torch.testing.assert_close(made(x), made(x.clone()))
    values = made(X)
    cotangent = torch.complex(values, values).detach().conj().imag
    (found,) = torch.autograd.grad(values, made.weight, cotangent, retain_graph=True)
    (expected,) = torch.autograd.grad(values, made.weight, cotangent.clone())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KEPT, ids="-".join)
def test_torch_func(kind):
    made = layer(*kind).double()
    x, w = X.double(), made.weight.detach()

    def values(angles, features):
        return functional_call(made, {"weight": angles}, (features,))

    by_row = torch.stack([torch.autograd.functional.jacobian(lambda a, r=row: values(a, r), w) for row in x])
    close = {"atol": 1e-10, "rtol": 0}
    torch.testing.assert_close(jacrev(values)(w, x), by_row, **close)
    torch.testing.assert_close(jacfwd(values)(w, x), by_row, **close)
    torch.testing.assert_close(vmap(made)(x), made(x), **close)
    pair = torch.stack([w, -w])
    torch.testing.assert_close(vmap(values, (0, None))(pair, x)[1], values(-w, x), **close)
    per_sample = vmap(grad(lambda a, r: values(a, r).sum()), (None, 0))(w, x)
    torch.testing.assert_close(per_sample, by_row.sum(1), **close)
    twice = torch.autograd.functional.hessian(lambda a: values(a, x).sum(), w)
    torch.testing.assert_close(hessian(lambda a: values(a, x).sum())(w), twice, **close)
    at_once = torch.autograd.functional.jacobian(lambda a: values(a, x), w, vectorize=True)
    torch.testing.assert_close(at_once, by_row, **close)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_whoever_uses_a_template_first_leaves_ordinary_constants(kind):
    """A first use under inference mode, vmap, fake tensors or on the meta device must not spoil later ones."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    ansatz, method = kind
    for how in ("inference", "vmap", "fake", "meta"):
        circuits.build.cache_clear()
        template = circuits.build(ansatz, 4, 1)
        if how == "inference":
            with torch.inference_mode():
                QuantumLayer(4, ansatz=template, method=method)(X[:, :4])
        elif how == "vmap":
            vmap(QuantumLayer(4, ansatz=template, method=method))(X[:, :4])
        elif how == "fake":
            with FakeTensorMode(), pytest.raises(Exception, match="Fake"):  # torch's own refusal, not a crash
                QuantumLayer(4, ansatz=template, method=method)(torch.randn(5, 4))
        else:
            with torch.device("meta"):
                QuantumLayer(4, ansatz=template, method=method)
        made = QuantumLayer(4, ansatz=template, method=method, initial_weights=torch.zeros(template.num_weights))
        x = X[:, :4].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(made(x).sum(), x, create_graph=True)
        gradient.square().sum().backward()
        circuits.build.cache_clear()
        fresh = QuantumLayer(4, ansatz=circuits.build(ansatz, 4, 1), method=method, initial_weights=made.weight)
        torch.testing.assert_close(made(x), fresh(x))


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_what_records_operations_records_the_right_ones(kind):
    from torch.fx.experimental.proxy_tensor import make_fx

    made = layer(*kind)
    recorded = make_fx(lambda x: made(x))(X)
    torch.testing.assert_close(recorded(X + 1), made(X + 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["pauli", "adjoint"])
def test_second_derivatives_of_a_circuit_that_depends_on_no_parameter(method):
    """The observable is read on a qubit that no parameter reaches."""
    x, w = ParameterVector("x", 1), ParameterVector("w", 1)
    circuit = QuantumCircuit(2)
    circuit.ry(x[0], 0)
    circuit.rz(w[0], 0)
    circuit.h(1)
    template = CircuitTemplate("constant", circuit, x, w, ("XI",))
    made = QuantumLayer(1, ansatz=template, method=method)
    y = torch.randn(3, 1, requires_grad=True)
    gradients = torch.autograd.grad(made(y).sum(), (y, made.weight), create_graph=True, allow_unused=True)
    assert all(gradient is None or gradient.abs().max() < 1e-6 for gradient in gradients)
    assert math.isclose(made(y).mean().item(), 1, abs_tol=1e-6)


def test_a_dtype_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"complex64 or torch\.complex128"):
        layer(dtype=torch.float32)


@pytest.mark.parametrize("kind", KEPT, ids="-".join)
def test_a_traced_layer_computes_and_counts_in_whole_numbers(kind):
    made = layer(*kind)
    with torch.no_grad():
        traced = torch.jit.trace(made, X)
        torch.testing.assert_close(traced(X + 1), made(X + 1), atol=1e-6, rtol=0)
    assert type(made.backend.counters.circuits) is int


@pytest.mark.parametrize("kind", KEPT, ids="-".join)
def test_a_compiled_layer_computes_the_same(kind):
    made = nn.Sequential(nn.Linear(8, 8), layer(*kind))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(made, backend="eager")(X), made(X))


@pytest.mark.parametrize("way", ["layer", "network", "gradient"])
def test_a_backend_given_after_a_forward_is_the_one_that_computes(way):
    made, other = layer(), backends.registry.resolve("exact", gradient="parameter_shift")
    values = made(X)
    if way == "layer":
        made.backend = other
    elif way == "network":
        made.neural_network.backend = other
    else:
        made.backend = other
        made(X)
        other.gradient = "adjoint"
    torch.testing.assert_close(made(X), values)
    assert other.counters.rounds == 1 and (made.expectation(made.dtype) is None) == (way != "gradient")


@pytest.mark.parametrize("kind", KEPT, ids="-".join)
def test_forward_mode_derivatives(kind):
    made = layer(*kind).double()
    x = X.double()
    found = torch.autograd.functional.jacobian(made, x, vectorize=True, strategy="forward-mode")
    torch.testing.assert_close(found, torch.autograd.functional.jacobian(made, x), atol=1e-10, rtol=0)


def test_copies_of_a_parametrized_layer_that_was_used():
    made = parametrizations.weight_norm(layer())
    expected = made(X)
    torch.testing.assert_close(copy.deepcopy(made)(X), expected)


def test_what_no_method_evaluates_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="28 qubits"):
        QuantumLayer(30, ansatz="ry_rz_ring", layers=3)


def test_backends_that_are_asked_in_numbers_refuse_what_they_cannot():
    made = QuantumLayer(2, ansatz="qrkt", backend=backends.registry.resolve("aer_cpu", shots=16))
    empty = torch.zeros(0, 2, requires_grad=True)
    made(empty).sum().backward()
    assert empty.grad.shape == (0, 2) and (made.weight.grad == 0).all()
    with pytest.raises(RuntimeError, match="aer_cpu"):
        vmap(made)(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="finite"):
        made(torch.full((3, 2), torch.nan))


@pytest.mark.parametrize("kind", KEPT, ids="-".join)
def test_what_hooks_give_back_for_saved_tensors_is_checked(kind):
    made = layer(*kind)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.half() if t.is_floating_point() else t, lambda t: t):
        values = made(X)
    with pytest.raises(ValueError, match="float16"):
        values.sum().backward()
    with torch.autograd.graph.save_on_cpu():
        values = made(X)
    values.sum().backward()
    expected = torch.autograd.grad(made(X).sum(), made.weight)[0]
    torch.testing.assert_close(made.weight.grad, expected)

"""Projections, attention and feed-forward."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from qrkt_hw import QuantumLayer
from qrkt_hw.circuits import CircuitTemplate
from qrkt_hw.errors import UserError
from qrkt_hw.nn.attention import Attention, project_together
from qrkt_hw.nn.blocks import FeedForward
from qrkt_hw.nn.embeddings import ImageTokens, PatchEmbedding, sincos_positions
from qrkt_hw.nn.quantum import QuantumProjection
from qrkt_hw.simulator.subspace import affine_map
from tests.random_templates import circuit_and_vectors


def quantum(features):
    return QuantumProjection(QuantumLayer(features, qubits=2), input_scale=True, scale=True, bias=True)


def test_a_projection_is_scale_times_circuit_plus_bias():
    module = quantum(4)
    with torch.no_grad():
        for parameter in (module.input_scale, module.scale, module.bias):
            parameter.uniform_(0.5, 2)
    x = torch.randn(3, 4)
    torch.testing.assert_close(module(x), module.scale * module.layer(module.input_scale * x) + module.bias)
    assert all(p.ndim == 1 for p in module.parameters())


@pytest.mark.parametrize("outer, inner", [(torch.float32, torch.float32), (torch.float64, torch.float64),
                                          (torch.float64, torch.float32), (torch.bfloat16, torch.float32)])  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"qubits": 3}, {"ansatz": "brickwork"}])
def test_a_projection_equals_its_parts_whether_or_not_its_circuits_are_a_matrix(options, outer, inner):
    dtype = torch.complex128 if inner is torch.float64 else torch.complex64
    layer = QuantumLayer(6, **{"ansatz": "orthogonal_brick", "layers": 3, **options}, dtype=dtype)
    module = QuantumProjection(layer, input_scale=True, scale=0.7, bias=True)
    module.bias.data.uniform_()
    x = torch.randn(5, 2, 6, dtype=outer, requires_grad=True)
    assert (module.affine(x) is not None) == ("ansatz" not in options and outer is torch.float32)  # as the weights are
    parameters, weights = [x, *module.parameters()], torch.randn(5, 2, 6)
    precision = {"rtol": 0.05, "atol": 0.05} if outer is torch.bfloat16 else {}

    def of(function):
        (penalty,) = torch.autograd.grad((found := function(x)).tanh().sum(), x, create_graph=True)
        return [found, *torch.autograd.grad((found * weights).sum() + penalty.square().sum(), parameters)]

    apart = of(lambda x: module.after(module.layer(module.before(x))))
    for found, expected in zip(of(module), apart, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, **precision)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(x.float()), module.after(module.layer(module.before(x.float()))))


def test_a_projection_on_a_device_is_no_matrix_and_input_of_another_size_is_refused():
    module = QuantumProjection(QuantumLayer(4, ansatz="orthogonal_brick", method="subspace"))
    with pytest.raises(ValueError, match=r"input must be \(\.\.\., 4\), not \(2, 3\)"):
        module(torch.randn(2, 3))
    exact = module(x := torch.randn(2, 4))
    module.layer.backend = "aer_cpu"
    assert module.affine(x) is None
    torch.testing.assert_close(module(x), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"qubits": 3}])
def test_a_changed_projection_is_computed_by_its_parts(options):
    class Zero(QuantumLayer):
        def forward(self, input_data=None):
            return 0 * super().forward(input_data)

    class Double(nn.Module):
        def forward(self, scale):
            return scale.double()

    def made():
        layer = QuantumLayer(6, ansatz="orthogonal_brick", **options)
        return QuantumProjection(layer, scale=0.5, bias=True)

    x, unchanged = torch.randn(5, 6), made()
    assert unchanged.affine(x) is not None
    zero, linear, scalar, rows, double = (made() for _ in range(5))
    zero.layer = Zero(6, ansatz="orthogonal_brick", **options)
    linear.layer = nn.Linear(6, 6)
    scalar.scale = nn.Parameter(torch.tensor(0.3))
    rows.scale = nn.Parameter(torch.rand(5, 6))
    nn.utils.parametrize.register_parametrization(double, "scale", Double(), unsafe=True)
    for module in (zero, linear, scalar, rows, double):
        torch.testing.assert_close(module(x), module.after(module.layer(module.before(x))))
    seen = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, given, out: seen.append(module))
    unchanged(x)
    hook.remove()
    assert seen == [unchanged.layer, unchanged]


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"bias": True, "scale": 0.5}, {"input_scale": True}])
def test_matrices_of_one_input_are_projected_by_one_product(options, monkeypatch):
    whole = QuantumLayer(6, ansatz="orthogonal_brick", layers=3).template
    half = QuantumLayer(6, ansatz="orthogonal_brick", qubits=3).template
    modules = [QuantumProjection(QuantumLayer(6, ansatz=one), **options) for one in [whole] * 3 + [half] * 3]
    modules.insert(3, nn.Linear(6, 6))
    x = torch.randn(2, 5, 6, requires_grad=True)
    inputs, weights = [x] * 7, torch.randn(7, 2, 5, 6)
    parameters = [x, *(p for module in modules for p in module.parameters())]

    def of(project):
        values = torch.stack(project())
        (penalty,) = torch.autograd.grad(values.tanh().sum(), x, create_graph=True)
        return [values, *torch.autograd.grad((values * weights).sum() + penalty.square().sum(), parameters)]

    products = []
    monkeypatch.setattr("qrkt_hw.nn.attention.affine_map", lambda *given: products.append(1) or affine_map(*given))
    together = of(lambda: project_together(list(zip(modules, inputs, strict=True))))
    assert len(products) == (0 if "input_scale" in options else 2)
    for found, expected in zip(together, of(lambda: [module(x) for module in modules]), strict=True):
        torch.testing.assert_close(found, expected)
    hook = modules[1].register_forward_hook(lambda module, given, out: 2 * out)  # seen only where it is called alone
    changed = project_together(list(zip(modules, inputs, strict=True)))
    hook.remove()
    torch.testing.assert_close(changed[1], 2 * together[0][1])
    torch.testing.assert_close(changed[0], together[0][0])


def test_projected_together_equals_projected_alone():
    modules = [quantum(4), nn.Linear(4, 4), quantum(4), nn.Identity()]
    inputs = [torch.randn(2, 5, 4) for _ in modules]
    for module, x, found in zip(
        modules, inputs, project_together(list(zip(modules, inputs, strict=True))), strict=True
    ):
        torch.testing.assert_close(found, module(x))


def test_outputs_must_match_features():
    circuit, x, w = circuit_and_vectors()
    with pytest.raises(UserError, match="as many observables"):
        QuantumProjection(QuantumLayer(4, CircuitTemplate("mine", circuit, x, w, ("ZZ",))))


def test_attention_equals_torchs_multi_head_attention():
    torch.manual_seed(0)
    ours = Attention(hidden=8, heads=2, projection=lambda n: nn.Linear(n, n)).eval()
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([m.weight for m in (ours.query, ours.key, ours.value)]))
        theirs.in_proj_bias.copy_(torch.cat([m.bias for m in (ours.query, ours.key, ours.value)]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        theirs.out_proj.bias.copy_(ours.output.bias)
    y = torch.randn(3, 5, 8)
    torch.testing.assert_close(ours(y), theirs(y, y, y, need_weights=False)[0])


def test_attention_does_not_care_for_the_order_of_tokens():
    torch.manual_seed(0)
    attention = Attention(hidden=4, heads=2, projection=quantum).eval()
    y = torch.randn(2, 6, 4)
    order = torch.randperm(6)
    torch.testing.assert_close(attention(y)[:, order], attention(y[:, order]), atol=1e-5, rtol=1e-5)


def test_feed_forward_without_a_projection_is_the_classical_mlp():
    torch.manual_seed(0)
    mlp = FeedForward(hidden=4, size=6, projection=None)
    y = torch.randn(2, 3, 4)
    torch.testing.assert_close(mlp(y), mlp.leave(nn.functional.gelu(mlp.enter(y))))


def test_a_patch_becomes_the_token_at_its_place():
    embedding = PatchEmbedding(channels=1, hidden=5, patch=2)
    images = torch.randn(3, 1, 6, 6)
    tokens = embedding(images)
    assert tokens.shape == (3, 9, 5)
    torch.testing.assert_close(tokens[:, 5], embedding(images[:, :, 2:4, 4:6])[:, 0])


@pytest.mark.parametrize("hidden", [1, 3, 4, 6, 8, 16])
def test_sincos_positions_tell_places_apart(hidden):
    table = sincos_positions(3, 4, hidden)
    assert table.shape == (12, hidden) and table.abs().max() <= 1
    if hidden >= 4:
        assert len({tuple(row.tolist()) for row in table}) == 12


def test_scales_inside_the_call_equal_scales_around_it():
    torch.manual_seed(0)
    modules = [
        QuantumProjection(QuantumLayer(8, qubits=4, dtype=torch.complex128), input_scale=i, scale=True, bias=b).double()
        for i, b in ((True, False), (False, True), (True, True))
    ]
    for module in modules:
        for parameter in module.parameters():
            parameter.data = torch.randn_like(parameter)
    x = torch.randn(3, 2, 8, dtype=torch.float64, requires_grad=True)
    parameters = [p for module in modules for p in module.parameters()]
    for inputs in ([x, x, x], [x, x.clone(), x.clone()]):
        wanted = [module.after(module.layer(module.before(x))) for module in modules]
        found = project_together(list(zip(modules, inputs, strict=True)))
        loss, theirs = (sum((k + 1) * v.square().sum() for k, v in enumerate(vs)) for vs in (found, wanted))
        for a, b in zip(
            torch.autograd.grad(loss, [x, *parameters]),
            torch.autograd.grad(theirs, [x, *parameters], retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
        (gradient,) = torch.autograd.grad(
            sum(v.sum() for v in project_together([(m, x) for m in modules])), x, create_graph=True
        )
        again = torch.autograd.grad(gradient.square().sum(), parameters, allow_unused=True, materialize_grads=True)
        (gradient,) = torch.autograd.grad(sum(v.sum() for v in wanted), x, create_graph=True)
        expected = torch.autograd.grad(gradient.square().sum(), parameters, allow_unused=True, materialize_grads=True)
        for a, b in zip(again, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_axial_positions_add_a_row_and_a_column():
    tokens = ImageTokens(image_size=6, channels=1, patch=2, hidden=4, positions="axial", class_token=True).eval()
    images = torch.randn(2, 1, 6, 6)
    rows, columns = tokens.axes
    assert sum(p.numel() for p in tokens.axes) == (3 + 3) * 4
    found = tokens(images)[:, 1:] - tokens.embedding(images)
    for token in range(9):
        wanted = rows[0, token // 3, 0] + columns[0, 0, token % 3]
        torch.testing.assert_close(found[:, token], wanted.expand(2, -1))


def test_hooks_on_a_layer_count_wherever_its_circuits_run():
    """Pruning makes its weight anew in a hook, and an ablation replaces the values in one."""
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    for backend in ("exact", "aer_cpu"):
        made = [QuantumProjection(QuantumLayer(4, qubits=2, backend=backend)) for _ in range(3)]
        wanted = [module(x).detach() for module in made]
        prune.custom_from_mask(made[0].layer, "weight", torch.ones(4))
        with torch.no_grad():
            made[0].layer.weight_orig.zero_()
        made[1].layer.register_forward_hook(lambda module, given, values: values + 1)
        seen = []
        made[2].register_full_backward_hook(lambda *given, seen=seen: seen.append(given))
        found = project_together([(module, x) for module in made])
        found[2].sum().backward()
        assert len(seen) == 1
        zero = QuantumLayer(4, qubits=2, initial_weights=torch.zeros(4))(x)
        torch.testing.assert_close(found, [zero, wanted[1] + 1, wanted[2]], atol=1e-5, rtol=0)


def test_the_scale_starts_where_it_is_told():
    layer = QuantumLayer(4, qubits=2)
    assert torch.equal(QuantumProjection(layer, scale=0.5).scale, torch.full((4,), 0.5))
    assert (
        torch.equal(QuantumProjection(layer).scale, torch.ones(4))
        and QuantumProjection(layer, scale=False).scale is None
    )


@pytest.mark.parametrize("ansatz", ["orthogonal_brick", "brickwork"])
@pytest.mark.parametrize("scaled", [True, False])
def test_an_input_of_another_width_is_refused(ansatz, scaled):
    """A width of 1, which broadcasting would take, and what is no tensor."""
    projection = QuantumProjection(QuantumLayer(4, ansatz), input_scale=scaled, bias=True)
    for wrong in (torch.rand(3, 1), torch.rand(3, 5), torch.tensor(1.0), [1.0] * 4, torch.rand(3, 4).numpy()):
        with pytest.raises(ValueError, match="input must be"):
            projection(wrong)
    assert projection(torch.rand(3, 4)).shape == (3, 4)

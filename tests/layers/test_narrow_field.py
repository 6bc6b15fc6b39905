"""The compiled parts of a field equal torch's operations, and so do their derivatives."""

import pytest
import torch
from torch import nn

from qrkt_hw.nn import narrow_field
from qrkt_hw.nn.attention import Attention
from qrkt_hw.nn.blocks import TransformerField
from qrkt_hw.nn.feedforward import FeedForward
from qrkt_hw.simulator import native

pytestmark = pytest.mark.skipif(native.library() is None, reason="the compiled routines were not built")


def parts(width, size, dtype):
    norms = [nn.LayerNorm(width, dtype=dtype) for _ in range(2)]
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return *norms, nn.Linear(width, size, dtype=dtype), nn.Linear(size, width, dtype=dtype)


def close(found, wanted, dtype):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5) if dtype == torch.float32 else (
        torch.testing.assert_close(found, wanted)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 16), (65, 5)])
@pytest.mark.parametrize("two_norms", [False, True])
def test_entering_equals_layer_norm_and_dense_map(dtype, shape, two_norms):
    torch.manual_seed(0)
    norm, other, dense, _ = parts(6, 3, dtype)
    y = torch.randn(*shape, 12, dtype=dtype)[..., :6].requires_grad_()  # read by strides
    other = other if two_norms else None
    found = narrow_field.enter(y, norm, other, dense)
    z = norm(y)
    wanted = (z, dense(z if other is None else other(y)))
    parameters = [y, *norm.parameters(), *([] if other is None else other.parameters()), *dense.parameters()]
    cotangents = [torch.randn_like(t) for t in wanted]
    slopes = [torch.autograd.grad(r, parameters, cotangents) for r in (found, wanted)]
    for a, b in zip((*found, *slopes[0]), (*wanted, *slopes[1]), strict=True):
        close(a, b, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 16), (65, 5)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_leaving_equals_gelu_dense_map_and_sum_under_the_same_dropout(dtype, shape, dropout):
    torch.manual_seed(0)
    *_, dense = parts(6, 3, dtype)
    joined = torch.randn(*shape, 9, dtype=dtype)
    hidden, attended = (t.requires_grad_() for t in joined.split([3, 6], dim=-1))
    kept = []
    if dropout:
        torch.manual_seed(4)
        for t, seed in zip((hidden, attended), torch.randint(2**62, (2,)).tolist(), strict=True):
            where = narrow_field._Keep(*[0] * 6, shape[0] * shape[1], 1, 1, t.shape[-1], 0)
            kept.append(narrow_field.Dropout(seed, dropout).kept(where, t).view(t.shape))
            assert set(kept[-1].unique().tolist()) <= {0.0, kept[-1].max().item()}
    torch.manual_seed(4)
    found = narrow_field.leave(hidden, attended, dense, dropout, training=True)
    wanted = narrow_field.plain_leave(hidden, attended, dense.weight, dense.bias, *kept)
    parameters = [hidden, attended, *dense.parameters()]
    cotangent = torch.randn_like(wanted)
    slopes = [torch.autograd.grad(r, parameters, cotangent) for r in (found, wanted)]
    for a, b in zip((found, *slopes[0]), (wanted, *slopes[1]), strict=True):
        close(a, b, dtype)
    still = narrow_field.leave(hidden, attended, dense, dropout, training=False)
    close(still, narrow_field.plain_leave(hidden, attended, dense.weight, dense.bias), dtype)


def test_first_and_second_derivatives():
    torch.manual_seed(0)
    norm, other, dense, back = parts(4, 3, torch.float64)
    y = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def whole(y, *_):
        torch.manual_seed(5)
        z, hidden = narrow_field.enter(y, norm, other, dense)
        return narrow_field.leave(hidden, z, back, 0.3, training=True)

    inputs = (y, *(p for m in (norm, other, dense, back) for p in m.parameters()))
    assert torch.autograd.gradcheck(whole, inputs)
    assert torch.autograd.gradgradcheck(whole, inputs)


def field(width=8, dropout=0.0):
    return TransformerField(
        nn.LayerNorm(width),
        Attention(hidden=width, heads=2, projection=lambda n: nn.Linear(n, n), dropout=dropout),
        FeedForward(hidden=width, size=5, projection=lambda n: nn.Linear(n, n), dropout=dropout),
        dropout,
    )


def test_a_field_is_the_same_with_and_without_the_compiled_parts(monkeypatch):
    torch.manual_seed(0)
    model = field()
    y = torch.randn(5, 9, 8, requires_grad=True)
    found = model(y)
    slopes = torch.autograd.grad(found.square().sum(), (y, *model.parameters()))
    with monkeypatch.context() as patch:
        patch.setattr(narrow_field, "serves", lambda *_: False)
        wanted = model(y)
    close(found, wanted, torch.float32)
    for a, b in zip(slopes, torch.autograd.grad(wanted.square().sum(), (y, *model.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_dropout_keeps_the_mean_of_a_field_and_is_drawn_from_torchs_generator():
    torch.manual_seed(0)
    model, y = field(dropout=0.2), torch.randn(64, 9, 8)
    model.attention.dropout = 0.0
    hidden = torch.randn(64, 9, 5)
    attended = torch.randn(64, 9, 8)
    leave = model.feed_forward.leave
    torch.manual_seed(1)
    first = narrow_field.leave(hidden, attended, leave, 0.2, training=True)
    torch.manual_seed(1)
    assert torch.equal(first, narrow_field.leave(hidden, attended, leave, 0.2, training=True))
    assert not torch.equal(first, narrow_field.leave(hidden, attended, leave, 0.2, training=True))
    assert (first == 0).double().mean().item() == pytest.approx(0.2, abs=0.02)
    assert not torch.equal(model(y), model(y))
    assert torch.equal(model.eval()(y), model(y))

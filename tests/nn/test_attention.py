"""Attention is torch's, under every transformation of torch; what does not fit is refused."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from qrkt_hw.nn.attention import attend


def example(dtype=torch.float64, tokens=5, others=7):
    torch.manual_seed(0)
    query = torch.randn(3, tokens, 12, dtype=dtype).requires_grad_()
    key, value = torch.randn(3, others, 24, dtype=dtype).requires_grad_().split(12, -1)  # read by strides
    mask = torch.rand(3, others) < 0.7
    mask[:, -1] = True
    return (query, key, value), mask


def closed_form(q, k, v, heads, mask=None):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("others", [1, 7, 300])
def test_equals_its_closed_form_and_so_do_its_gradients(dtype, masked, others):
    given, mask = example(dtype, others=others)
    seen = mask if masked else None
    found, wanted = attend(*given, 4, 0.0, seen), closed_form(*given, 4, seen)
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    assert (found - wanted).abs().max() < bound
    cotangent = torch.randn_like(wanted)
    for a, b in zip(
        torch.autograd.grad(found, given, cotangent), torch.autograd.grad(wanted, given, cotangent), strict=True
    ):
        assert (a - b).abs().max() < 10 * bound


@pytest.mark.parametrize("size", [1, 3, 8, 11])
@pytest.mark.parametrize("batch", [1, 7, 33])
def test_any_width_of_head_and_any_batch(size, batch):
    torch.manual_seed(size)
    q, k, v = (torch.randn(batch, t, 2 * size, dtype=torch.float64) for t in (3, 9, 9))
    torch.testing.assert_close(attend(q, k, v, 2, 0.0, None), closed_form(q, k, v, 2))


def test_where_nothing_is_read_the_result_is_zero():
    given, mask = example()
    mask[2] = False
    assert attend(*given, 4, 0.0, mask)[2].abs().max() == 0


def test_dropout_zeroes_weights_keeps_the_mean_and_follows_torchs_generator():
    (q, k, v), _ = example()
    ones = torch.ones_like(v)
    values = torch.stack([attend(q, k, ones, 4, 0.4, None) for _ in range(400)])
    assert abs(values.mean().item() - 1) < 0.02 and values.std() > 0.1  # kept weights are scaled up
    torch.manual_seed(1)
    first = attend(q, k, v, 4, 0.4, None)
    torch.manual_seed(1)
    assert torch.equal(first, attend(q, k, v, 4, 0.4, None))
    out = attend(q, k, v, 4, 1.0, None)
    assert out.abs().max() == 0
    out.sum().backward()


@pytest.mark.parametrize("tokens", [2, 40])
def test_second_derivatives_with_a_mask_and_with_one_tensor_as_key_and_value(tokens):
    given, mask = example(tokens=2, others=3)
    assert torch.autograd.gradgradcheck(lambda q, k, v: attend(q, k, v, 4, 0.0, mask), given)
    memory = torch.randn(1, tokens, 2, dtype=torch.float64, requires_grad=True)
    with_graph = torch.autograd.grad(attend(memory, memory, memory, 2, 0.0, None).sum(), memory, create_graph=True)
    without = torch.autograd.grad(attend(memory, memory, memory, 2, 0.0, None).sum(), memory)
    torch.testing.assert_close(with_graph[0], without[0])
    assert with_graph[0].requires_grad
    if tokens == 2:
        assert torch.autograd.gradgradcheck(lambda m: attend(m, m, m, 2, 0.0, None), (memory,))


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v: attend(q, k[:2], v[:2], 4, 0.0, None),
        lambda q, k, v: attend(q, k, v[:2], 4, 0.0, None),
        lambda q, k, v: attend(q, k, v[:, :6], 4, 0.0, None),
        lambda q, k, v: attend(q, k[..., :8], v[..., :8], 4, 0.0, None),
        lambda q, k, v: attend(q, k, v.double(), 4, 0.0, None),
        lambda q, k, v: attend(q, k, v, 5, 0.0, None),
        lambda q, k, v: attend(q, k, v, 4, -0.1, None),
        lambda q, k, v: attend(q, k, v, 4, 1.5, None),
        lambda q, k, v: attend(q, k, v, 0, 0.0, None),
        lambda q, k, v: attend(q, k[:1], v[:1], 4, 0.0, None),
        lambda q, k, v: attend(q, k[0], v[0], 4, 0.0, None),
        lambda q, k, v: attend(q[0, 0], k[0, 0], v[0, 0], 4, 0.0, None),
        lambda q, k, v: attend(q[0], k[0, 0], v[0, 0], 4, 0.0, None),
        lambda q, k, v: attend(q, k, v, 4, 0.0, k[..., 0]),
        lambda q, k, v: attend(q, k, v, 4, 0.0, torch.ones(k.shape[:2], dtype=torch.long)),
        lambda q, k, v: attend(q, k, v, 4, 0.0, torch.ones(3, 6, dtype=torch.bool)),
        lambda q, k, v: attend(q, k, v, 4, 0.0, torch.ones(3, 1, dtype=torch.bool)),
        lambda q, k, v: attend(q, k, v, 4, 0.0, torch.ones(3, 5, k.shape[1], dtype=torch.bool)),
    ],
)
@pytest.mark.parametrize("others", [7, 1000])
def test_what_does_not_fit_is_refused(change, others):
    with pytest.raises((ValueError, RuntimeError)):
        change(torch.randn(3, 5, 12), torch.randn(3, others, 12), torch.randn(3, others, 12))


@pytest.mark.parametrize("others", [7, 1000])
def test_tokens_of_one_sample_need_no_batch(others):
    (q, k, v), mask = example(others=others)
    torch.testing.assert_close(attend(q[0], k[0], v[0], 4, 0.0, mask[0]), attend(q, k, v, 4, 0.0, mask)[0])


def test_hooks_on_saved_tensors_may_change_strides_and_alignment():
    """Offloading and checkpointing give tensors back in another layout than they took them."""

    def elsewhere(t):
        room = torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape)
        return room.copy_(t.detach())

    given, _ = example()
    wanted = torch.autograd.grad(attend(*given, 4, 0.0, None).square().sum(), given)
    with torch.autograd.graph.saved_tensors_hooks(elsewhere, lambda t: t):
        value = attend(*given, 4, 0.0, None)
    torch.testing.assert_close(torch.autograd.grad(value.square().sum(), given), wanted)


def test_negated_views_are_read_negated():
    given, _ = example()
    negated = [torch._neg_view(t.detach().contiguous()) for t in given]
    assert negated[0].is_neg()
    torch.testing.assert_close(attend(*negated, 4, 0.0, None), attend(*(t.clone() for t in negated), 4, 0.0, None))


@pytest.mark.parametrize("batch, length, others", [(0, 3, 3), (2, 0, 3), (2, 0, 0)])
def test_empty_tensors(batch, length, others):
    q, k, v = (torch.randn(batch, n, 12, requires_grad=True) for n in (length, others, others))
    out = attend(q, k, v, 4, 0.0, None)
    assert out.shape == q.shape
    out.sum().backward()


def test_torch_func_and_batched_gradients():
    given, _ = example()

    def function(*tensors):
        return attend(*tensors, 4, 0.0, None)

    value = function(*given)
    batched = torch.func.vmap(lambda *row: function(*(t[None] for t in row))[0])
    torch.testing.assert_close(batched(*(t.detach() for t in given)), value)
    cotangents = torch.randn(3, *value.shape, dtype=value.dtype)
    together = torch.autograd.grad(value, given, cotangents, retain_graph=True, is_grads_batched=True)
    for place, cotangent in enumerate(cotangents):
        alone = torch.autograd.grad(value, given, cotangent, retain_graph=True)
        torch.testing.assert_close([t[place] for t in together], list(alone))
    _, back = torch.func.vjp(function, *(t.detach() for t in given))
    torch.testing.assert_close(list(back(cotangents[0])), [t[0] for t in together])


RECORDED = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from qrkt_hw.nn.attention import attend

def whole(q):
    return attend(q, q, q, 4, 0.0, None)

q = torch.randn(3, 5, 12)
with torch.no_grad():
    torch.testing.assert_close(make_fx(whole)(torch.randn(3, 5, 12))(q), whole(q), rtol=1e-4, atol=1e-5)
with FakeTensorMode(allow_non_fake_inputs=True):
    assert whole(torch.empty(3, 5, 12)).shape == whole(q).shape == q.shape
print("right")
"""


def test_recorders_and_fake_tensors_see_torchs_operations():
    done = subprocess.run([sys.executable, "-c", RECORDED], capture_output=True, text=True, timeout=240)
    assert done.stdout == "right\n", done.stderr


def test_attention_is_traced_and_differentiated_forwards():
    def itself(x):
        return attend(x, x, x, 2, 0.0, None)

    x, other = torch.randn(5, 4, 8, dtype=torch.float64), torch.randn(5, 4, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(itself, x)(other), itself(other))
    found = torch.autograd.functional.jacobian(itself, x[:1], vectorize=True, strategy="forward-mode")
    torch.testing.assert_close(found, torch.autograd.functional.jacobian(itself, x[:1]))


def test_equals_torchs_fused_attention_in_training_mode_without_dropout():
    given, mask = example()
    heads = [t.unflatten(-1, (4, 3)).transpose(1, 2) for t in given]
    wanted = F.scaled_dot_product_attention(*heads, attn_mask=mask[:, None, None, :]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attend(*given, 4, 0.0, mask), wanted)

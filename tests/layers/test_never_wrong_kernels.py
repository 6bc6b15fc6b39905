"""The native kernels of attention and of the field read only what fits; all else is refused or left to torch."""

import subprocess
import sys

import pytest
import torch

from qrkt_hw.nn import few_tokens
from qrkt_hw.simulator import native

needs_library = pytest.mark.skipif(native.library() is None, reason="the native kernels were not built")


def attention(q, k, v, dropout=0.0, mask=None, heads=4):
    return few_tokens.attention(q, k, v, heads, dropout, mask)


def tokens(*shape, dtype=torch.float32):
    """Read by strides: as one of three parts of a wider tensor."""
    return torch.randn(*shape[:-1], 3 * shape[-1], dtype=dtype).split(shape[-1], -1)[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v: attention(q[0], k[0], v[0]),
        lambda q, k, v: attention(q, k[:2], v[:2]),
        lambda q, k, v: attention(q, k, v[:2]),
        lambda q, k, v: attention(q, k, v[:, :6]),
        lambda q, k, v: attention(q, k[..., :8], v[..., :8]),
        lambda q, k, v: attention(q, k, v[..., :8]),
        lambda q, k, v: attention(q, k, v, heads=5),
        lambda q, k, v: attention(q, k, v, heads=0),
        lambda q, k, v: attention(q, k, v, dropout=-0.1),
        lambda q, k, v: attention(q, k, v, dropout=1.5),
        lambda q, k, v: attention(q, k, v, mask=torch.ones(3, 6, dtype=torch.bool)),
        lambda q, k, v: attention(q, k, v, mask=torch.ones(1, 7, dtype=torch.bool)),
        lambda q, k, v: attention(q, k, v, mask=torch.ones(3, 7)),
        lambda q, k, v: attention(q, k, v, mask=torch.ones(3, 7, dtype=torch.int64)),
    ],
)
def test_attention_refuses_what_does_not_fit(change):
    with pytest.raises(ValueError, match=r"must|does not"):
        change(torch.randn(3, 5, 12), torch.randn(3, 7, 12), torch.randn(3, 7, 12))


def paths(dtype=torch.float32):
    """Functions through the kernel, with what they are differentiated by."""
    torch.manual_seed(0)
    return [(attention, tuple(tokens(3, n, 12, dtype=dtype).requires_grad_() for n in (5, 7, 7)))]


@needs_library
def test_hooks_on_saved_tensors_may_change_strides_and_alignment():
    """Offloading and checkpointing give tensors back in another layout than they took them."""

    def elsewhere(t):
        room = torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape)  # off the 64 bytes by one number
        return room.copy_(t.detach())

    for function, inputs in paths():
        wanted = torch.autograd.grad(function(*inputs).square().sum(), inputs)
        with torch.autograd.graph.saved_tensors_hooks(elsewhere, lambda t: t):
            value = function(*inputs)
        for ours, theirs in zip(torch.autograd.grad(value.square().sum(), inputs), wanted, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_negated_views_are_read_negated():
    for function, inputs in paths():
        negated = [torch._neg_view(t.detach().contiguous()) for t in inputs]
        assert negated[0].is_neg()
        torch.testing.assert_close(function(*negated), function(*(t.clone() for t in negated)))
        value = function(*inputs)
        cotangent = torch._neg_view(torch.randn_like(value))
        ours = torch.autograd.grad(value, inputs, cotangent, retain_graph=True)
        wanted = torch.autograd.grad(value, inputs, cotangent.clone())
        torch.testing.assert_close(ours, wanted)


def test_other_precisions_of_one_tensor_are_refused():
    with pytest.raises(RuntimeError, match=r"dtype|Double|type"):
        attention(torch.randn(3, 5, 12), torch.randn(3, 7, 12), torch.randn(3, 7, 12).double())


@pytest.mark.parametrize("batch, length, others", [(0, 3, 3), (2, 0, 3), (2, 0, 0)])
def test_empty_tensors(batch, length, others):
    q, k, v = (torch.randn(batch, n, 12, requires_grad=True) for n in (length, others, others))
    out = attention(q, k, v)
    assert out.shape == q.shape
    out.sum().backward()


def test_torch_func_and_batched_gradients():
    for function, inputs in paths(torch.float64):
        value = function(*inputs)
        batched = torch.func.vmap(lambda *given, f=function: f(*(t[None] for t in given))[0])
        torch.testing.assert_close(batched(*(t.detach() for t in inputs)), value)
        cotangents = torch.randn(3, *value.shape, dtype=value.dtype)
        together = torch.autograd.grad(value, inputs, cotangents, retain_graph=True, is_grads_batched=True)
        for place, cotangent in enumerate(cotangents):
            alone = torch.autograd.grad(value, inputs, cotangent, retain_graph=True)
            torch.testing.assert_close([t[place] for t in together], list(alone))
        _, back = torch.func.vjp(function, *(t.detach() for t in inputs))
        torch.testing.assert_close(list(back(cotangents[0])), [t[0] for t in together])


RECORDED = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from qrkt_hw.nn import few_tokens

def whole(q):
    return few_tokens.attention(q, q, q, 4, 0.0)

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
    from qrkt_hw.nn.attention import attend

    def itself(x):
        return attend(x, x, x, 2, 0.0, None)

    x, other = torch.randn(5, 4, 8, dtype=torch.float64), torch.randn(5, 4, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(itself, x)(other), itself(other))
    found = torch.autograd.functional.jacobian(itself, x[:1], vectorize=True, strategy="forward-mode")
    torch.testing.assert_close(found, torch.autograd.functional.jacobian(itself, x[:1]))


def test_saved_tensors_of_other_shapes_are_refused():
    from qrkt_hw.nn.attention import attend

    x = torch.randn(5, 4, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.flatten()[:1], lambda t: t):
        value = attend(x, x, x, 2, 0.0, None).sum()
    with pytest.raises(ValueError, match="shapes"):
        value.backward()

"""Attention over few tokens equals torch's, and so do its derivatives."""

import ctypes

import pytest
import torch
import torch.nn.functional as F

from qrkt_hw.nn import few_tokens
from qrkt_hw.simulator import native

pytestmark = pytest.mark.skipif(native.library() is None, reason="the compiled routines were not built")


def example(dtype, tokens=5, others=7):
    packed = torch.randn(3, others, 24, dtype=dtype)
    key, value = packed.split([12, 12], dim=-1)  # read by strides
    query = torch.randn(3, tokens, 12, dtype=dtype)
    mask = torch.rand(3, others) < 0.7
    mask[0] = True
    mask[1, 1] = True
    return [t.clone().requires_grad_() if t is query else t.requires_grad_() for t in (query, key, value)], mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_torchs_attention(dtype, masked):
    torch.manual_seed(0)
    (q, k, v), mask = example(dtype)
    mask[2] = True
    heads = [t.unflatten(-1, (4, 3)).transpose(1, 2) for t in (q, k, v)]
    seen = mask[:, None, None, :] if masked else None
    wanted = F.scaled_dot_product_attention(*heads, attn_mask=seen).transpose(1, 2).flatten(2)
    found = few_tokens.attention(q, k, v, 4, 0.0, mask if masked else None)
    cotangent = torch.randn_like(wanted)
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    assert (found - wanted).abs().max() < bound
    for a, b in zip(
        torch.autograd.grad(found, (q, k, v), cotangent), torch.autograd.grad(wanted, (q, k, v), cotangent), strict=True
    ):
        assert (a - b).abs().max() < 10 * bound


def test_dropout_zeroes_weights_and_keeps_the_mean():
    torch.manual_seed(0)
    (q, k, v), _ = example(torch.float64)
    ones = torch.ones_like(v)
    values = torch.stack([few_tokens.attention(q, k, ones, 4, 0.4) for _ in range(400)])
    assert abs(values.mean().item() - 1) < 0.02  # kept weights are scaled up
    assert values.std() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropout_keeps_what_its_seed_says_and_draws_like_independent_coins(dtype):
    torch.manual_seed(0)
    (q, k, v), _ = example(dtype)
    torch.manual_seed(1)
    seed = int(torch.randint(2**62, ()).item())
    where = (ctypes.c_int64 * 11)(*[0] * 6, 3, 4, 5, 7, 3)
    kept = few_tokens.Dropout(seed, 0.4).kept(where, q)
    assert set(kept.unique().tolist()) <= {0.0, kept.max().item()} and kept.max() == pytest.approx(1 / 0.6)
    torch.manual_seed(1)
    found = few_tokens.attention(q, k, v, 4, 0.4)
    torch.testing.assert_close(found, few_tokens.plain_attention(q, k, v, 4, kept, None))
    where = (ctypes.c_int64 * 11)(*[0] * 6, 64, 2, 40, 40, 3)
    coins = torch.stack([few_tokens.Dropout(seed + i, 0.3).kept(where, q).flatten() for i in range(4)]) > 0
    standard = (coins.double() - 0.7) / 0.21**0.5
    count = coins.shape[1]
    assert (standard.mean(1) * count**0.5).abs().max() < 4.5
    for lag in (1, 2, 7, 40, 1600, 3200):  # neighbours in a row, rows, heads, samples
        correlation = (standard[:, lag:] * standard[:, :-lag]).mean(1) * (count - lag) ** 0.5
        assert correlation.abs().max() < 4.5
    assert (standard @ standard.T / count**0.5).fill_diagonal_(0).abs().max() < 4.5  # of seeds side by side


@pytest.mark.parametrize("dropout", [0.999999999, 1.0])
def test_a_dropout_that_leaves_nothing_leaves_nothing(dropout):
    (q, k, v), _ = example(torch.float64)
    out = few_tokens.attention(q, k, v, 4, dropout)
    assert out.abs().max() == 0
    out.sum().backward()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 8, 11])
@pytest.mark.parametrize("batch", [1, 7, 8, 16, 33])
def test_any_width_of_head_and_any_batch(size, batch):
    torch.manual_seed(size)
    q, k, v = (torch.randn(batch, t, 2 * size, dtype=torch.float64, requires_grad=True) for t in (3, 9, 9))
    found = few_tokens.attention(q, k, v, 2, 0.0)
    wanted = few_tokens.plain_attention(q, k, v, 2, None, None)
    torch.testing.assert_close(found, wanted)
    cotangent = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, (q, k, v), cotangent), torch.autograd.grad(wanted, (q, k, v), cotangent), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_first_and_second_derivatives_with_mask_and_dropout():
    torch.manual_seed(0)
    (q, k, v), mask = example(torch.float64, tokens=2, others=3)
    mask[2] = False  # nothing to read

    def attend(q, k, v):
        torch.manual_seed(5)
        return few_tokens.attention(q, k, v, 4, 0.3, mask)

    assert attend(q, k, v)[2].abs().max() == 0
    assert torch.autograd.gradcheck(attend, (q, k, v))
    assert torch.autograd.gradgradcheck(attend, (q, k, v))


def test_second_derivatives_where_key_and_value_are_one_tensor():
    torch.manual_seed(0)
    tokens = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda y, m: few_tokens.attention(y, m, m, 2, 0.0), (tokens, memory))
    assert torch.autograd.gradgradcheck(lambda m: few_tokens.attention(m, m, m, 2, 0.0), (memory,))
    with_graph = torch.autograd.grad(
        few_tokens.attention(memory, memory, memory, 2, 0.0).sum(), memory, create_graph=True
    )
    without = torch.autograd.grad(few_tokens.attention(memory, memory, memory, 2, 0.0).sum(), memory)
    torch.testing.assert_close(with_graph[0], without[0])

"""Attention over few tokens equals torch's, and so do its derivatives."""

import pytest
import torch
import torch.nn.functional as F

from qrkt_hw.layers import few_tokens
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
    torch.manual_seed(1)
    kept = torch.empty(3, 4, 5, 7, dtype=torch.float64).bernoulli_(0.6)
    torch.manual_seed(1)
    torch.testing.assert_close(
        few_tokens.attention(q, k, v, 4, 0.4), few_tokens.plain_attention(q, k, v, 4, kept, 1 / 0.6, None)
    )


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

"""Attention over few tokens in one compiled call; torch's own costs a dozen of kernels each way."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from qrkt_hw.simulator import native

LARGEST = 4096  # query tokens times key tokens up to which the compiled loops win

_Where = ctypes.c_int64 * 11


def serves(query: Tensor, key: Tensor) -> bool:
    """Whether the compiled routine takes these tensors ``(batch, tokens, hidden)`` and is the faster one."""
    return (
        query.shape[1] * key.shape[1] <= LARGEST
        and query.dtype in (torch.float32, torch.float64)
        and key.dtype == query.dtype
        and native.serves(query, key)
    )


def attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, dropout: float, mask: Tensor | None = None
) -> Tensor:
    """``softmax(q k / sqrt(d)) v`` in each head, ``(batch, tokens, hidden)``; dropout on the softmax.

    Args:
        query: ``(batch, tokens, hidden)``.
        key, value: ``(batch, others, hidden)``.
        heads: the hidden axis holds them one after another.
        dropout: its probability.
        mask: ``(batch, others)``, True where a token is read. Where nothing is read the result is 0.
    """
    kept = None
    if dropout > 0:
        kept = query.new_empty(query.shape[0], heads, query.shape[1], key.shape[1]).bernoulli_(1 - dropout)
    return _Attention.apply(query, key, value, heads, kept, 1 / (1 - dropout) if dropout < 1 else 0.0, mask)


class _Attention(torch.autograd.Function):
    """One node of the graph; differentiated again it goes through plain operations."""

    @staticmethod
    def forward(ctx: Any, query, key, value, heads: int, kept, scale: float, mask) -> Tensor:  # type: ignore[override]
        query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
        batch, tokens, hidden = query.shape
        others = key.shape[1]
        strides = [s for t in (query, key, value) for s in t.stride()[:2]]
        where = _Where(*strides, batch, heads, tokens, others, hidden // heads)
        weights = query.new_empty(batch, heads, tokens, others)
        out = query.new_empty(batch, tokens, hidden)
        seen = None if mask is None else mask.contiguous()
        native.function("attention_forward", query.dtype)(
            where, query.data_ptr(), key.data_ptr(), value.data_ptr(), native.address(seen), native.address(kept),
            scale, weights.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, weights, kept, mask)
        ctx.where, ctx.heads, ctx.scale = where, heads, scale
        return out

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # type: ignore[override]
        query, key, value, weights, kept, mask = ctx.saved_tensors
        if torch.is_grad_enabled():
            result = plain_attention(query, key, value, ctx.heads, kept, ctx.scale, mask)
            wanted = [t for t, need in zip((query, key, value), ctx.needs_input_grad, strict=False) if need]
            found = iter(torch.autograd.grad(result, wanted, cotangent, create_graph=True))
            return *(next(found) if need else None for need in ctx.needs_input_grad[:3]), None, None, None, None
        cotangent = cotangent.contiguous()
        slopes = [torch.zeros(t.shape, dtype=t.dtype) for t in (query, key, value)]
        native.function("attention_backward", query.dtype)(
            ctx.where, query.data_ptr(), key.data_ptr(), value.data_ptr(), native.address(kept), ctx.scale,
            weights.data_ptr(), cotangent.data_ptr(), *(t.data_ptr() for t in slopes),
        )  # fmt: skip
        return *slopes, None, None, None, None


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, kept: Tensor | None, scale: float, mask: Tensor | None
) -> Tensor:
    """The same in torch's operations; ``kept`` holds the dropout's zeros and ones."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    weights = scores.softmax(-1)
    if mask is not None:
        weights = torch.where(mask.any(-1)[:, None, None, None], weights, 0.0)
    if kept is not None:
        weights = weights * kept * scale
    return (weights @ v).transpose(1, 2).flatten(-2)

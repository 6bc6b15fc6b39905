"""Attention over few tokens in narrow heads in one compiled call; torch's own costs a dozen of kernels each way."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from qrkt_hw.simulator import native

# query tokens times key tokens up to which the compiled loops were the faster ones, for heads up to 8 wide and wider
LARGEST, LARGEST_WIDE = 400 * 400, 1024
NARROW = 8

_Where = ctypes.c_int64 * 11


def serves(query: Tensor, key: Tensor, heads: int) -> bool:
    """Whether the compiled routine takes these tensors ``(batch, tokens, hidden)`` and is the faster one."""
    largest = LARGEST if query.shape[2] // heads <= NARROW else LARGEST_WIDE
    return (
        query.shape[1] * key.shape[1] <= largest
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
        dropout: its probability; what it leaves follows from a seed that torch's generator gives.
        mask: ``(batch, others)``, True where a token is read. Where nothing is read the result is 0.
    """
    if dropout >= 1:
        return torch.zeros_like(query) * value.sum()  # nothing is kept, yet the graph goes on
    seed = int(torch.randint(2**62, ()).item()) if dropout > 0 else 0
    return _Attention.apply(query, key, value, heads, Dropout(seed, dropout), mask)


class Dropout:
    """Which weights are kept: a function of their positions and a seed."""

    def __init__(self, seed: int, probability: float) -> None:
        # 24 bits; a probability that rounds to "keep nothing" would read as "no dropout"
        threshold = max(1, round((1 - probability) * 2**24)) if probability > 0 else 0
        self.arguments = (seed, threshold, 1 / (1 - probability))

    def kept(self, where: ctypes.Array, like: Tensor) -> Tensor | None:
        """The factors ``(batch, heads, tokens, others)``; None without dropout."""
        if not self.arguments[1]:
            return None
        factors = like.new_empty(*where[6:10])
        native.run("attention_keep", like.dtype, where, *self.arguments, factors.data_ptr())
        return factors


class _Attention(torch.autograd.Function):
    """One node of the graph; differentiated again it goes through plain operations."""

    @staticmethod
    def forward(ctx: Any, query, key, value, heads: int, dropout: Dropout, mask) -> Tensor:  # type: ignore[override]
        query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
        batch, tokens, hidden = query.shape
        strides = [s for t in (query, key, value) for s in t.stride()[:2]]
        where = _Where(*strides, batch, heads, tokens, key.shape[1], hidden // heads)
        columns = native.COLUMNS[query.dtype]
        stats = query.new_empty(-(-batch // columns), heads, tokens, 2, columns)
        out = query.new_empty(batch, tokens, hidden)
        seen = None if mask is None else mask.contiguous()
        native.run(
            "attention_forward", query.dtype, where, query.data_ptr(), key.data_ptr(), value.data_ptr(),
            native.address(seen), *dropout.arguments, stats.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, stats, seen)
        ctx.where, ctx.heads, ctx.dropout = where, heads, dropout
        return out

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # type: ignore[override]
        query, key, value, stats, seen = ctx.saved_tensors
        if torch.is_grad_enabled():
            kept = ctx.dropout.kept(ctx.where, query)
            # fresh views: key and value may be one tensor, or depend on each other, and those paths are not this node's
            q, k, v = (t.view_as(t) for t in (query, key, value))
            result = plain_attention(q, k, v, ctx.heads, kept, seen)
            wanted = [t for t, need in zip((q, k, v), ctx.needs_input_grad, strict=False) if need]
            found = iter(torch.autograd.grad(result, wanted, cotangent, create_graph=True))
            return *(next(found) if need else None for need in ctx.needs_input_grad[:3]), None, None, None
        cotangent = cotangent.contiguous()
        slopes = [torch.empty(t.shape, dtype=t.dtype) for t in (query, key, value)]
        native.run(
            "attention_backward", query.dtype, ctx.where, query.data_ptr(), key.data_ptr(), value.data_ptr(),
            native.address(seen), *ctx.dropout.arguments, stats.data_ptr(), cotangent.data_ptr(),
            *(t.data_ptr() for t in slopes),
        )  # fmt: skip
        return *slopes, None, None, None


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, kept: Tensor | None, mask: Tensor | None
) -> Tensor:
    """The same in torch's operations; ``kept`` holds the dropout's factors."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    weights = scores.softmax(-1)
    if mask is not None:
        weights = torch.where(mask.any(-1)[:, None, None, None], weights, 0.0)
    if kept is not None:
        weights = weights * kept
    return (weights @ v).transpose(1, 2).flatten(-2)

"""Attention over few tokens in narrow heads in one compiled call; torch's own costs a dozen of kernels each way."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qrkt_hw.simulator import native
from qrkt_hw.simulator.tables import vjp

# query tokens times key tokens up to which the compiled loops were the faster ones, for heads up to 8 wide and wider
LARGEST, LARGEST_WIDE = 400 * 400, 1024
NARROW = 8

_Where = ctypes.c_int64 * 11


def readable(*tensors: Tensor) -> bool:
    """Whether native code may read these tensors: those it serves, dense, of one precision, and no negated views."""
    dtype = tensors[0].dtype
    if dtype not in native.COLUMNS:
        return False
    for t in tensors:
        if t.dtype is not dtype or t.layout is not torch.strided or t.is_neg():
            return False
    return native.serves(*tensors)


def serves(query: Tensor, key: Tensor, heads: int) -> bool:
    """Whether the compiled routine takes these tensors ``(batch, tokens, hidden)`` and is the faster one."""
    if query.ndim != 3 or key.ndim != 3:
        return False
    hidden, tokens = query.shape[2], query.shape[1] * key.shape[1]
    return (
        0 < tokens <= (LARGEST if hidden // heads <= NARROW else LARGEST_WIDE)
        and query.is_cpu
        and query.dtype in native.COLUMNS
        and native.library() is not None
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

    Raises:
        ValueError: shapes, heads or a mask that do not fit each other, or a dropout outside 0 to 1.
    """
    _check(query, key, value, heads, dropout, mask)
    if dropout >= 1:
        return torch.zeros_like(query) * value.sum()  # nothing is kept, yet the graph goes on
    query, key, value = query.resolve_neg(), key.resolve_neg(), value.resolve_neg()
    seen = mask is None or native.serves(mask)
    if not (seen and readable(query, key, value) and query.numel() and key.numel()):
        ones = query.new_ones(len(query), heads, query.shape[1], key.shape[1]) if dropout > 0 else None
        return plain_attention(query, key, value, heads, None if ones is None else F.dropout(ones, dropout), mask)
    seed = int(torch.randint(2**62, ()).item()) if dropout > 0 else 0
    return _Attention.apply(query, key, value, heads, Dropout(seed, dropout), mask)


def _check(query: Tensor, key: Tensor, value: Tensor, heads: int, dropout: float, mask: Tensor | None) -> None:
    of_query, of_key = tuple(query.shape), tuple(key.shape)
    fits = len(of_query) == len(of_key) == 3 and of_query[0] == of_key[0] and of_query[2] == of_key[2]
    if not fits or tuple(value.shape) != of_key:
        raise ValueError(
            "query must be (batch, tokens, hidden), key and value (batch, others, hidden); found "
            f"{of_query}, {of_key} and {tuple(value.shape)}"
        )
    if heads < 1 or of_query[2] % heads:
        raise ValueError(f"heads must divide the hidden size {of_query[2]}; {heads} does not")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must lie between 0 and 1, not {dropout}")
    if mask is not None and (mask.dtype is not torch.bool or tuple(mask.shape) != of_key[:2]):
        raise ValueError(f"mask must be a bool tensor {of_key[:2]}, not {mask.dtype} {tuple(mask.shape)}")


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
        where = _where(query, key, value, heads)
        columns = native.COLUMNS[query.dtype]
        stats = query.new_empty(-(-len(query) // columns), heads, query.shape[1], 2, columns)
        out = query.new_empty(query.shape)
        seen = None if mask is None else mask.contiguous()
        native.run(
            "attention_forward", query.dtype, where, query.data_ptr(), key.data_ptr(), value.data_ptr(),
            native.address(seen), *dropout.arguments, stats.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        save(ctx, query, key, value, stats, seen)
        ctx.heads, ctx.dropout = heads, dropout
        return out

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # type: ignore[override]
        query, key, value, stats, seen = saved(ctx)
        if torch.is_grad_enabled() or not readable(cotangent, query, key, value, stats):
            kept = ctx.dropout.kept(_where(query, key, value, ctx.heads), query)

            def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return plain_attention(q, k, v, ctx.heads, kept, seen)

            return *vjp(plain, (query, key, value), ctx.needs_input_grad[:3], cotangent), None, None, None
        # hooks on saved tensors may give back others: of other strides, or not aligned
        query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
        stats, seen, cotangent = aligned(stats), None if seen is None else seen.contiguous(), in_memory(cotangent)
        slopes = [torch.empty(t.shape, dtype=t.dtype) for t in (query, key, value)]
        native.run(
            "attention_backward", query.dtype, _where(query, key, value, ctx.heads), query.data_ptr(), key.data_ptr(),
            value.data_ptr(), native.address(seen), *ctx.dropout.arguments, stats.data_ptr(), cotangent.data_ptr(),
            *(t.data_ptr() for t in slopes),
        )  # fmt: skip
        return *slopes, None, None, None


def _where(query: Tensor, key: Tensor, value: Tensor, heads: int) -> ctypes.Array:
    """How the routines find their way in ``(batch, tokens, hidden)``."""
    strides = [s for t in (query, key, value) for s in t.stride()[:2]]
    batch, tokens, hidden = query.shape
    return _Where(*strides, batch, heads, tokens, key.shape[1], hidden // heads)


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Save tensors for the backward pass of a node."""
    ctx.save_for_backward(*tensors)
    ctx.shapes = [None if t is None else t.shape for t in tensors]


def saved(ctx: Any) -> tuple[Any, ...]:
    """What :func:`save` kept.

    Raises:
        ValueError: hooks on saved tensors gave back other shapes, of which native code would read foreign memory.
    """
    found = ctx.saved_tensors
    if [None if t is None else t.shape for t in found] != ctx.shapes:
        raise ValueError("hooks on saved tensors gave back tensors of other shapes")
    return found


def in_memory(tensor: Tensor) -> Tensor:
    """The same numbers one after another, as they are in memory."""
    return tensor.resolve_neg().contiguous()


def aligned(rows: Tensor) -> Tensor:
    """The same numbers one after another, where the routines' vectors may read them."""
    rows = in_memory(rows)
    return rows if rows.data_ptr() % 64 == 0 else rows.clone()


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

"""The classical parts of a narrow Runge-Kutta field in two compiled calls; torch takes a dozen of kernels each way.

``enter`` is LayerNorm and the dense map into the MLP; ``leave`` is dropout, GELU, the dense map out of it, the sum with
the attention, and dropout. Derivatives of derivatives go through plain operations.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qrkt_hw.layers.few_tokens import Dropout
from qrkt_hw.simulator import native

LARGEST = 2048  # entries of a dense map up to which the compiled loops win over a library's product

_Where = ctypes.c_int64 * 5
_Keep = ctypes.c_int64 * 11


def serves(y: Tensor, dense: nn.Linear) -> bool:
    """Whether the compiled routines take tokens ``(..., width)`` and are the faster ones."""
    return dense.weight.numel() <= LARGEST and y.dtype in (torch.float32, torch.float64) and native.serves(y)


def enter(y: Tensor, norm: nn.LayerNorm, other: nn.LayerNorm | None, dense: nn.Linear) -> tuple[Tensor, Tensor]:
    """``norm(y)`` and ``dense(other(y))``, or ``dense(norm(y))`` where there is no other norm.

    Args:
        y: ``(..., width)``.
        norm, other: LayerNorms over the last axis, with gain and shift, of equal epsilon.
        dense: width to the MLP's size.

    Returns:
        ``(..., width)`` and ``(..., size)``.
    """
    gain, shift = (None, None) if other is None else (other.weight, other.bias)
    return _Enter.apply(y, norm.weight, norm.bias, gain, shift, dense.weight, dense.bias, norm.eps)


def leave(hidden: Tensor, attended: Tensor, dense: nn.Linear, dropout: float, training: bool) -> Tensor:
    """``dropout(attended + dense(gelu(dropout(hidden))))``.

    Args:
        hidden: ``(..., size)``.
        attended: ``(..., width)``.
        dense: size to width.
        dropout: its probability, below 1; what it leaves follows from seeds that torch's generator gives.
        training: without, nothing is dropped.
    """
    if not training:
        dropout = 0.0
    seeds = torch.randint(2**62, (2,)).tolist() if dropout > 0 else [0, 0]
    return _Leave.apply(hidden, attended, dense.weight, dense.bias, *(Dropout(seed, dropout) for seed in seeds))


def _rows(t: Tensor) -> tuple[Tensor, int]:
    """The tensor, and the stride between its tokens; a copy where there is no such stride."""
    if t.stride(-1) == 1 and all(t.stride(i) == t.stride(i + 1) * t.shape[i + 1] for i in range(t.ndim - 2)):
        return t, t.stride(-2)
    return t.contiguous(), t.shape[-1]


def _apart(tensors: Any) -> list[Tensor | None]:
    """The same tensors as nodes of their own: what is differentiated in them does not reach into earlier stages,
    whose tokens depend on the same weights."""
    return [None if t is None else t.view_as(t) for t in tensors]


def _again(ctx: Any, result: Tensor | tuple[Tensor, ...], tensors: Any, cotangents: Any) -> list[Tensor | None]:
    """Slopes that can be differentiated again, of a result made by plain operations."""
    needed = list(ctx.needs_input_grad[: len(tensors)])
    wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
    found = iter(torch.autograd.grad(result, wanted, cotangents, create_graph=True))
    return [next(found) if need else None for need in needed]


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, y, gain, shift, other_gain, other_shift, weight, bias, eps: float
    ) -> tuple[Tensor, Tensor]:
        y, stride = _rows(y)
        size, width = weight.shape
        where = _Where(y.numel() // width, width, size, stride, 0)
        columns = native.COLUMNS[y.dtype]
        stats = y.new_empty(-(-where[0] // columns), 2, columns)
        z, hidden = y.new_empty(y.shape), y.new_empty(*y.shape[:-1], size)
        native.run(
            "enter_forward", y.dtype, where, y.data_ptr(), gain.data_ptr(), shift.data_ptr(),
            native.address(other_gain), native.address(other_shift), weight.data_ptr(), bias.data_ptr(), eps,
            stats.data_ptr(), z.data_ptr(), hidden.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(y, gain, shift, other_gain, other_shift, weight, bias, stats)
        ctx.where, ctx.eps = where, eps
        return z, hidden

    @staticmethod
    def backward(ctx: Any, by_z: Tensor, by_hidden: Tensor) -> Any:  # type: ignore[override]
        *tensors, stats = ctx.saved_tensors
        y, gain, shift, other_gain, other_shift, weight, _ = tensors
        if torch.is_grad_enabled():
            apart: Any = _apart(tensors)
            return *_again(ctx, plain_enter(*apart, ctx.eps), apart, (by_z, by_hidden)), None  # type: ignore[call-arg]
        by_z, by_hidden = by_z.contiguous(), by_hidden.contiguous()
        parameters = [t for t in tensors[1:] if t is not None]
        by_y, slopes = torch.empty(y.shape, dtype=y.dtype), y.new_empty(sum(t.numel() for t in parameters))
        native.run(
            "enter_backward", y.dtype, ctx.where, y.data_ptr(), gain.data_ptr(), shift.data_ptr(),
            native.address(other_gain), native.address(other_shift), weight.data_ptr(), stats.data_ptr(),
            by_z.data_ptr(), by_hidden.data_ptr(), by_y.data_ptr(), slopes.data_ptr(),
        )  # fmt: skip
        parts = iter(slopes.split([t.numel() for t in parameters]))
        return by_y, *(None if t is None else next(parts).view(t.shape) for t in tensors[1:]), None


def plain_enter(
    y: Tensor,
    gain: Tensor,
    shift: Tensor,
    other_gain: Tensor | None,
    other_shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """:func:`enter` in torch's operations."""
    z = F.layer_norm(y, gain.shape, gain, shift, eps)
    other = z if other_gain is None else F.layer_norm(y, gain.shape, other_gain, other_shift, eps)
    return z, F.linear(other, weight, bias)


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden, attended, weight, bias, first: Dropout, second: Dropout
    ) -> Tensor:
        hidden, by_hidden = _rows(hidden)
        attended, by_attended = _rows(attended)
        width, size = weight.shape
        where = _Where(hidden.numel() // size, width, size, by_hidden, by_attended)
        out = attended.new_empty(attended.shape)
        native.run(
            "leave_forward", out.dtype, where, hidden.data_ptr(), attended.data_ptr(), weight.data_ptr(),
            bias.data_ptr(), first.arguments[0], *second.arguments, out.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(hidden, attended, weight, bias)
        ctx.where, ctx.dropouts = where, (first, second)
        return out

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # type: ignore[override]
        hidden, attended, weight, bias = tensors = ctx.saved_tensors
        first, second = ctx.dropouts
        if torch.is_grad_enabled():
            kept = [d.kept(_Keep(*[0] * 6, t.numel() // t.shape[-1], 1, 1, t.shape[-1], 0), t)
                    for d, t in ((first, hidden), (second, attended))]  # fmt: skip
            factors = [None if k is None else k.view(t.shape) for k, t in zip(kept, tensors[:2], strict=True)]
            apart: Any = _apart(tensors)
            return *_again(ctx, plain_leave(*apart, *factors), apart, (cotangent,)), None, None
        cotangent = cotangent.contiguous()
        by_hidden, by_attended = (torch.empty(t.shape, dtype=t.dtype) for t in (hidden, attended))
        slopes = hidden.new_empty(weight.numel() + bias.numel())
        native.run(
            "leave_backward", hidden.dtype, ctx.where, hidden.data_ptr(), weight.data_ptr(), first.arguments[0],
            *second.arguments, cotangent.data_ptr(), by_hidden.data_ptr(), by_attended.data_ptr(), slopes.data_ptr(),
        )  # fmt: skip
        by_weight, by_bias = slopes.split([weight.numel(), bias.numel()])
        return by_hidden, by_attended, by_weight.view(weight.shape), by_bias, None, None


def plain_leave(
    hidden: Tensor,
    attended: Tensor,
    weight: Tensor,
    bias: Tensor,
    first: Tensor | None = None,
    second: Tensor | None = None,
) -> Tensor:
    """:func:`leave` in torch's operations; ``first`` and ``second`` hold the dropouts' factors."""
    entered = hidden if first is None else hidden * first
    out = attended + F.linear(F.gelu(entered), weight, bias)
    return out if second is None else out * second

"""The classical parts of a narrow Runge-Kutta field in two compiled calls; torch takes a dozen of kernels each way.

``enter`` is LayerNorm and the dense map into the MLP; ``leave`` is dropout, GELU, the dense map out of it, the sum with
the attention, and dropout. Derivatives of derivatives go through plain operations.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qrkt_hw.nn.few_tokens import Dropout, aligned, in_memory, readable, save, saved
from qrkt_hw.simulator import native
from qrkt_hw.simulator.tables import vjp

LARGEST = 2048  # entries of a dense map up to which the compiled loops win over a library's product

_Where = ctypes.c_int64 * 5
_Keep = ctypes.c_int64 * 11


def serves(y: Tensor, dense: nn.Linear) -> bool:
    """Whether the compiled routines take tokens ``(..., width)`` and are the faster ones."""
    return dense.weight.numel() <= LARGEST and y.is_cpu and native.library() is not None


def enter(y: Tensor, norm: nn.LayerNorm, other: nn.LayerNorm | None, dense: nn.Linear) -> tuple[Tensor, Tensor]:
    """``norm(y)`` and ``dense(other(y))``, or ``dense(norm(y))`` where there is no other norm.

    Args:
        y: ``(..., width)``.
        norm, other: LayerNorms over the last axis.
        dense: width to the MLP's size.

    Returns:
        ``(..., width)`` and ``(..., size)``.

    Raises:
        ValueError: parameters that do not fit the tokens.
    """
    norms = [norm] if other is None else [norm, other]
    y = y.resolve_neg()
    found = _parameters([y], [*norms, dense])
    if found is None or any(len(n.normalized_shape) != 1 or n.eps != norm.eps for n in norms):
        z = norm(y)
        return z, dense(z if other is None else other(y))
    width = y.shape[-1]
    for gain, shift in zip(found[:-2:2], found[1:-2:2], strict=True):
        _fit(norm, (gain, shift), width)
    _fit(dense, found[-2:], len(found[-1]), width)
    gains = found[:-2] if other is not None else [*found[:2], None, None]
    return _Enter.apply(y, *gains, *found[-2:], norm.eps)


def leave(hidden: Tensor, attended: Tensor, dense: nn.Linear, dropout: float, training: bool) -> Tensor:
    """``dropout(attended + dense(gelu(dropout(hidden))))``.

    Args:
        hidden: ``(..., size)``.
        attended: ``(..., width)``.
        dense: size to width.
        dropout: its probability; what it leaves follows from seeds that torch's generator gives.
        training: without, nothing is dropped.

    Raises:
        ValueError: tokens or parameters that do not fit each other, or a dropout outside 0 to 1.
    """
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must lie between 0 and 1, not {dropout}")
    if hidden.shape[:-1] != attended.shape[:-1]:
        raise ValueError(
            "hidden (..., size) and attended (..., width) must hold the same tokens; found "
            f"{tuple(hidden.shape)} and {tuple(attended.shape)}"
        )
    if not training:
        dropout = 0.0
    hidden, attended = hidden.resolve_neg(), attended.resolve_neg()
    found = _parameters([hidden, attended], [dense])
    if found is None or dropout == 1:
        return F.dropout(attended + dense(F.gelu(F.dropout(hidden, dropout))), dropout)
    _fit(dense, found, attended.shape[-1], hidden.shape[-1])
    seeds = torch.randint(2**62, (2,)).tolist() if dropout > 0 else [0, 0]
    dropouts = (Dropout(seed, dropout) for seed in seeds)
    return _Leave.apply(hidden, attended, *found, *dropouts)


def _parameters(tokens: Sequence[Tensor], layers: Sequence[nn.Linear | nn.LayerNorm]) -> list[Tensor] | None:
    """Weight and bias of each layer, as they are in memory; None where native code cannot stand for the layers: for
    subclasses, parametrizations, hooks, an absent bias, or tensors that it cannot read."""
    found: list[Tensor | None] = []
    for layer in layers:
        hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
        if type(layer) not in (nn.Linear, nn.LayerNorm) or hooked:
            return None
        found += layer._parameters.values()
    parameters = [p for p in found if p is not None]
    if len(parameters) != 2 * len(layers) or not all(t.ndim and t.numel() for t in tokens):
        return None
    return [p.contiguous() for p in parameters] if readable(*tokens, *parameters) else None


def _fit(layer: nn.Module, parameters: Sequence[Tensor], *shape: int) -> None:
    weight, bias = parameters
    if weight.shape != shape or bias.shape != shape[:1]:
        raise ValueError(
            f"the {type(layer).__name__} must have weight {shape} and bias {shape[:1]} for these tokens; found "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )


def _rows(t: Tensor) -> tuple[Tensor, int]:
    """The tensor, and the stride between its tokens; a copy where there is no such stride."""
    if (
        t.ndim > 1
        and t.stride(-1) == 1
        and all(t.stride(i) == t.stride(i + 1) * t.shape[i + 1] for i in range(t.ndim - 2))
    ):
        return t, t.stride(-2)
    return t.contiguous(), t.shape[-1]


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
        save(ctx, y, gain, shift, other_gain, other_shift, weight, bias, stats)
        ctx.eps = eps
        return z, hidden

    @staticmethod
    def backward(ctx: Any, by_z: Tensor, by_hidden: Tensor) -> Any:  # type: ignore[override]
        *tensors, stats = saved(ctx)
        if torch.is_grad_enabled() or not readable(by_z, by_hidden, stats, *(t for t in tensors if t is not None)):
            plain: Any = plain_enter
            needs = ctx.needs_input_grad[: len(tensors)]
            return *vjp(lambda *t: plain(*t, ctx.eps), tensors, needs, by_z, by_hidden), None
        # hooks on saved tensors may give back others: of other strides, or not aligned
        y, stride = _rows(tensors[0].resolve_neg())
        own: Any = [None if t is None else in_memory(t) for t in tensors[1:]]
        gain, shift, other_gain, other_shift, weight, _ = own
        by_z, by_hidden, stats = in_memory(by_z), in_memory(by_hidden), aligned(stats)
        size, width = weight.shape
        where = _Where(y.numel() // width, width, size, stride, 0)
        parameters = [t for t in tensors[1:] if t is not None]
        by_y, slopes = torch.empty(y.shape, dtype=y.dtype), y.new_empty(sum(t.numel() for t in parameters))
        native.run(
            "enter_backward", y.dtype, where, y.data_ptr(), gain.data_ptr(), shift.data_ptr(),
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
        save(ctx, hidden, attended, weight, bias)
        ctx.dropouts = (first, second)
        return out

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:  # type: ignore[override]
        hidden, attended, weight, bias = tensors = saved(ctx)
        first, second = ctx.dropouts
        if torch.is_grad_enabled() or not readable(cotangent, *tensors):
            kept = [d.kept(_Keep(*[0] * 6, t.numel() // t.shape[-1], 1, 1, t.shape[-1], 0), t)
                    for d, t in ((first, hidden), (second, attended))]  # fmt: skip
            factors = [None if k is None else k.view(t.shape) for k, t in zip(kept, tensors[:2], strict=True)]
            needs = ctx.needs_input_grad[: len(tensors)]
            return *vjp(lambda *t: plain_leave(*t, *factors), tensors, needs, cotangent), None, None
        hidden, stride = _rows(hidden.resolve_neg())
        weight, cotangent = in_memory(weight), in_memory(cotangent)
        width, size = weight.shape
        where = _Where(hidden.numel() // size, width, size, stride, 0)
        by_hidden, by_attended = (torch.empty(t.shape, dtype=t.dtype) for t in (hidden, attended))
        slopes = hidden.new_empty(weight.numel() + bias.numel())
        native.run(
            "leave_backward", hidden.dtype, where, hidden.data_ptr(), weight.data_ptr(), first.arguments[0],
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

"""One forward pass computes what depends on the weights alone once, for all layers and Runge-Kutta stages together.

Within :func:`shared_weights` every quantum layer's coefficients are made on first use and used again by later calls.
They live as long as the pass, so gradients flow through them exactly once and no stale value survives an update.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qrkt_hw.simulator.tape import NO_SCALES, Scales

if TYPE_CHECKING:
    from qrkt_hw.nn.quantum import Around, QuantumLayer
    from qrkt_hw.simulator import Simulator


class Pass:
    """The coefficients of one forward pass.

    Args:
        layers: prepared together, per simulator, when the first of them is asked for.
    """

    def __init__(self, layers: Sequence[QuantumLayer]) -> None:
        self._layers = layers
        self._of_layer: dict[tuple[int, int], Tensor] = {}
        self._joined: dict[tuple[int, ...], Tensor] = {}
        self._scales: dict[tuple[int, ...], Scales] = {}

    def coefficients(self, simulate: Simulator, layers: Sequence[QuantumLayer]) -> Tensor:
        """Those of ``layers``, all evaluated by ``simulate``, one after another: ``(groups of all, positions)``."""
        key = (id(simulate), *(id(layer) for layer in layers))
        if key not in self._joined:
            parts = [self._one(simulate, layer) for layer in layers]
            self._joined[key] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self._joined[key]

    def scales(self, layers: Sequence[QuantumLayer], around: Sequence[Around]) -> Scales:
        """What stands around ``layers``, joined: see :func:`joined_scales`."""
        if not around:
            return NO_SCALES
        key = tuple(id(layer) for layer in layers)
        if key not in self._scales:
            self._scales[key] = joined_scales(layers, around)
        return self._scales[key]

    def _one(self, simulate: Simulator, layer: QuantumLayer) -> Tensor:
        key = (id(simulate), id(layer))
        if key not in self._of_layer:
            alike = [a for a in self._layers if a.evaluator(simulate.dtype) is simulate]
            together = alike if any(a is layer for a in alike) else [layer]
            made = simulate.prepare(torch.cat([a.angles() for a in together]))
            for a, part in zip(together, made.split([a.groups for a in together]), strict=True):
                self._of_layer[id(simulate), id(a)] = part
        return self._of_layer[key]


def joined_scales(layers: Sequence[QuantumLayer], around: Sequence[Around]) -> Scales:
    """Factors and offsets of all layers, one row per weight set; None where no layer has any."""
    joined = (
        _joined(layers, [a.input_scale for a in around], 1.0),
        _joined(layers, [a.scale for a in around], 1.0),
        _joined(layers, [a.bias for a in around], 0.0),
    )
    return NO_SCALES if all(t is None for t in joined) else Scales(*joined)


def _joined(layers: Sequence[QuantumLayer], parts: Sequence[Tensor | None], missing: float) -> Tensor | None:
    given = next((part for part in parts if part is not None), None)
    if given is None:
        return None
    rows = [
        (given.new_full((layer.features,), missing) if part is None else part).view(layer.groups, -1)
        for layer, part in zip(layers, parts, strict=True)
    ]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


_current: ContextVar[Pass | None] = ContextVar("quantum layers' forward pass", default=None)


def current() -> Pass | None:
    """The pass under way, if any."""
    return _current.get()


@contextmanager
def shared_weights(module: nn.Module) -> Iterator[None]:
    """A forward pass of ``module``; inside another one it does nothing. Weights must not change meanwhile."""
    if _current.get() is not None:
        yield
        return
    from qrkt_hw.nn.quantum import QuantumLayer

    token = _current.set(Pass([m for m in module.modules() if isinstance(m, QuantumLayer)]))
    try:
        yield
    finally:
        _current.reset(token)

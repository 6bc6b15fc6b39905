"""Projections: what stands where a transformer has a linear map. Attention and feed-forward take a factory for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qrkt_hw.errors import UserError
from qrkt_hw.nn.quantum import QuantumLayer, evaluate_together

# features -> module that maps (..., features) to (..., features)
ProjectionFactory = Callable[[int], nn.Module]


class QuantumProjection(nn.Module):
    """A quantum layer with at most a scale and a bias per feature: ``scale * circuit(input_scale * x) + bias``.

    Args:
        layer: the circuit; its outputs must equal its features.
        input_scale: learn a factor per feature in front of the circuit (starts at 1).
        scale: learn a factor per feature behind it (starts at 1).
        bias: learn an offset per feature behind it (starts at 0).
    """

    def __init__(
        self, layer: QuantumLayer, *, input_scale: bool = False, scale: bool = True, bias: bool = False
    ) -> None:
        super().__init__()
        size = layer.features
        if layer.outputs != size:
            raise UserError(
                f"--ansatz: {layer.template.name!r} gives {layer.template.num_outputs} values for "
                f"{layer.template.num_inputs} inputs; a projection needs as many observables as inputs"
            )
        self.layer = layer
        self.input_scale = nn.Parameter(torch.ones(size)) if input_scale else None
        self.scale = nn.Parameter(torch.ones(size)) if scale else None
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def before(self, x: Tensor) -> Tensor:
        return x if self.input_scale is None else x * self.input_scale

    def after(self, values: Tensor) -> Tensor:
        if self.scale is not None:
            values = values * self.scale
        return values if self.bias is None else values + self.bias

    def forward(self, x: Tensor) -> Tensor:
        """``(..., features)`` to ``(..., features)``."""
        return self.after(self.layer(self.before(x)))


def project_together(jobs: Sequence[tuple[nn.Module, Tensor]]) -> list[Tensor]:
    """Outputs of independent projections; circuits that run elsewhere go as one circuit batch."""
    results = {k: module(x) for k, (module, x) in enumerate(jobs) if not _is_remote(module)}
    remote = [k for k in range(len(jobs)) if k not in results]
    modules: list[Any] = [jobs[k][0] for k in remote]
    found = evaluate_together([(m.layer, m.before(jobs[k][1])) for m, k in zip(modules, remote, strict=True)])
    results |= {k: m.after(values) for k, m, values in zip(remote, modules, found, strict=True)}
    return [results[k] for k in range(len(jobs))]


def _is_remote(module: nn.Module) -> bool:
    return isinstance(module, QuantumProjection) and module.layer.evaluator() is None

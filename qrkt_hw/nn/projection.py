"""Projections: what stands where a transformer has a linear map. Attention and feed-forward take a factory for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from qrkt_hw.errors import UserError
from qrkt_hw.nn.quantum import QuantumLayer, evaluate_round

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
        return evaluate_round([(self.layer, x)], [self])[0]


def project_together(jobs: Sequence[tuple[nn.Module, Tensor]]) -> list[Tensor]:
    """Apply independent projections, all quantum ones in a single round.

    Returns:
        The outputs ``(..., features)`` in the order of ``jobs``.
    """
    quantum = [k for k, (module, _) in enumerate(jobs) if isinstance(module, QuantumProjection)]
    results: dict[int, Tensor] = {}
    round_: list[tuple[QuantumLayer, Tensor]] = []
    around: list[QuantumProjection] = []
    for k in quantum:
        module, x = jobs[k]
        assert isinstance(module, QuantumProjection)
        round_.append((module.layer, x))
        around.append(module)
    for k, values in zip(quantum, evaluate_round(round_, around), strict=True):
        results[k] = values
    return [results[k] if k in results else module(x) for k, (module, x) in enumerate(jobs)]

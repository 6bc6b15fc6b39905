"""Values of derived inputs and weights on tensors, and their derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qrkt_hw.compiler import Derived, evaluate


def derived_values(derived: Derived, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """What ``derived.template`` takes, from what ``derived.source`` takes; differentiable any number of times.

    Inputs are ``(..., groups, inputs)``, weights ``(groups, weights)``; the same
    tensors where the angles were linear as they were.
    """
    if derived.trivial:
        return inputs, weights
    features, angles = _floating(inputs), _floating(weights)
    kind = torch.promote_types(features.dtype, angles.dtype)
    columns = [*features.to(kind).unbind(-1), *angles.to(kind).unbind(-1)]
    return (
        _stack([evaluate(f, columns, torch) for f in derived.inputs], inputs.shape[:-1], columns),
        _stack([evaluate(f, columns, torch) for f in derived.weights], weights.shape[:-1], columns),
    )


def _floating(tensor: Tensor) -> Tensor:
    # half precision has three digits, which an angle that is a square or a product does not survive
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _stack(values: Sequence[Tensor | float], shape: torch.Size, columns: Sequence[Tensor]) -> Tensor:
    full = [torch.as_tensor(v, dtype=columns[0].dtype, device=columns[0].device).expand(shape) for v in values]
    return torch.stack(full, dim=-1) if full else columns[0].new_zeros((*shape, 0))


def derived_jacobian(derived: Derived, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    """``d(parameter of derived.template)/d(parameter of derived.source)``, ``(..., template's, source's)``."""
    size = parameters.shape[-1]
    if derived.trivial:
        return np.broadcast_to(np.eye(size), (*parameters.shape[:-1], size, size))
    columns = [c.requires_grad_() for c in torch.tensor(parameters, dtype=torch.float64).unbind(-1)]
    rows = []
    with torch.enable_grad():
        for formula in (*derived.inputs, *derived.weights):
            value = columns[0].detach() * 0 + evaluate(formula, columns, torch)
            found: Sequence[Tensor] = [torch.zeros_like(c) for c in columns]
            if value.requires_grad:  # or an expression in which all parameters cancel
                found = torch.autograd.grad(value.sum(), columns, allow_unused=True, materialize_grads=True)
            rows.append(torch.stack(list(found), dim=-1))
    return torch.stack(rows, dim=-2).numpy()

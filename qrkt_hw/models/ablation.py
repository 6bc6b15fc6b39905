"""What the circuits contribute: the same trained model with every circuit's output replaced."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qrkt_hw.errors import UserError
from qrkt_hw.nn.quantum import QuantumLayer

# values (..., outputs) and features (..., features) to replaced values (..., outputs)
Replacement = Callable[[Tensor, Tensor], Tensor]


def batch_mean(values: Tensor, features: Tensor) -> Tensor:
    """Every output is its mean over batch and tokens: nothing of the input passes the circuit."""
    return values.mean(dim=tuple(range(values.ndim - 1)), keepdim=True).expand_as(values)


def sine(values: Tensor, features: Tensor) -> Tensor:
    """The sine of the feature with the same place: an element-wise function without any circuit."""
    if features.shape != values.shape:
        raise UserError("--ablate: sine needs circuits with as many outputs as inputs")
    return torch.sin(features)


REPLACEMENTS: dict[str, Replacement] = {"batch-mean": batch_mean, "sine": sine}


@contextmanager
def ablated(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """Within the context every quantum layer of ``model`` gives the replaced output.

    Args:
        model: any model with quantum layers.
        name: a key of :data:`REPLACEMENTS`.

    Raises UserError: the model has no circuits.
    """
    layers = [m for m in model.modules() if isinstance(m, QuantumLayer)]
    if not layers:
        raise UserError("--ablate: this model has no circuits")
    replace = REPLACEMENTS[name]
    handles = [m.register_forward_hook(lambda _, given, values: replace(values, given[0])) for m in layers]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()

"""What a training took and how its gradients flow."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def peak_memory() -> float:
    """Most memory this process (and the accelerator, where one is used) ever held, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        held += torch.cuda.max_memory_allocated() / 2**20
    return held


def gradient_norms(blocks: Iterable[nn.Module]) -> Tensor:
    """Euclidean norm of the gradient of each block's parameters, ``(blocks,)``."""
    norms = []
    for block in blocks:
        gradients = [p.grad for p in block.parameters() if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(()))
    return torch.stack(norms).detach() if norms else torch.zeros(0)

"""What a training took and how its gradients flow."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qrkt_hw.backends import Backend
from qrkt_hw.runs.config import Config


class Clocked(Protocol):
    """A callback that measures the training: seconds by the clock and of the processor."""

    train_seconds: float
    cpu_seconds: float


def spent(clocked: Clocked, started: float) -> dict[str, float]:
    """For ``results.json``: peak memory in MiB, seconds of the training, and of what followed since ``started``."""
    return {
        "peak_memory_mb": round(peak_memory(), 1),
        "train_seconds": round(clocked.train_seconds, 3),
        "cpu_seconds": round(clocked.cpu_seconds, 3),
        "evaluation_seconds": round(time.perf_counter() - started, 3),
    }


def where(options: Config, backend: Backend) -> dict[str, Any]:
    """For ``results.json``: the seed, and the backend; with all that it counted where torch cannot see through it."""
    details = {**backend.about(), **({} if backend.differentiable else asdict(backend.counters))}
    return {"seed": options.training.seed, "backend": backend.name, "backend_details": details}


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

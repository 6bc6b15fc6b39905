"""Counting what a model asks of a backend, by letting it run once on one that only counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends import Backend, Call
from qrkt_hw.data.base import DataShape


@dataclass(frozen=True)
class Asked:
    """One call within a round.

    Attributes:
        tag: the layer.
        template: its circuit.
        groups: circuits the layer's features are split into.
        circuits: parameter sets evaluated.
    """

    tag: str
    template: CircuitTemplate
    groups: int
    circuits: int


class CountingBackend(Backend):
    """Answers every call with zeros and keeps what was asked, round by round."""

    def __init__(self) -> None:
        super().__init__("counting")
        self.rounds: list[list[Asked]] = []

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        asked = []
        for call in calls:
            groups = call.values.shape[-2] if call.values.ndim > 1 else 1
            asked.append(Asked(call.tag, call.template, groups, call.samples))
        self.rounds.append(asked)
        return [np.zeros((*call.values.shape[:-1], call.template.num_outputs)) for call in calls]


def example(shape: DataShape, kind: torch.dtype) -> Tensor:
    """One input of that shape: a black image, or the longest text."""
    if getattr(shape, "vocabulary", 0):
        return torch.ones(1, shape.length, dtype=torch.int64)  # type: ignore[attr-defined]
    return torch.zeros(1, shape.channels, shape.image_size, shape.image_size, dtype=kind)


def trace(model: nn.Module, backend: CountingBackend, shape: DataShape) -> list[list[Asked]]:
    """The rounds one image takes through a model that was built on ``backend``; of a GAN, the generator draws it."""
    training = model.training
    backend.rounds.clear()
    kind = next(model.parameters()).dtype
    with torch.no_grad():
        latent = getattr(model, "latent", None)
        model.eval()(example(shape, kind) if latent is None else torch.zeros(1, latent, dtype=kind))
    model.train(training)
    return list(backend.rounds)

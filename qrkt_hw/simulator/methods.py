"""The methods by name. A method is a class with ``name``, ``supports``, ``cost`` and ``__call__(inputs, weights)``.

``inputs`` is ``(batch, groups, inputs)``, ``weights`` ``(groups, weights)``, the result
``(batch, groups, observables)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

from qrkt_hw.compiler import Program
from qrkt_hw.simulator.adjoint import Adjoint
from qrkt_hw.simulator.fused import FusedUnitaries
from qrkt_hw.simulator.gatewise import Gatewise
from qrkt_hw.simulator.pulled import PulledBackObservables


class Method(Protocol):
    """How a program is evaluated."""

    name: ClassVar[str]

    def __init__(self, program: Program, observables: Sequence[SparsePauliOp], dtype: torch.dtype) -> None: ...

    @staticmethod
    def supports(program: Program, observables: Sequence[SparsePauliOp]) -> bool:
        """Whether the method can evaluate the program at all."""
        ...

    @staticmethod
    def cost(program: Program, observables: Sequence[SparsePauliOp]) -> float:
        """Estimated nanoseconds for a batch of 256 forward and backward; the cheapest method is taken."""
        ...

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor: ...


METHODS: dict[str, type[Method]] = {m.name: m for m in (Gatewise, FusedUnitaries, PulledBackObservables, Adjoint)}

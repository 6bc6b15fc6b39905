"""Exact, batched, differentiable evaluation of a template in torch."""

from qrkt_hw.simulator.core import (
    METHODS,
    REAL,
    REMOVED_METHODS,
    Simulator,
    apart,
    cheapest,
    compiling,
    full_precision,
    simulator,
)
from qrkt_hw.simulator.native import traced

__all__ = [
    "METHODS", "REAL", "REMOVED_METHODS", "Simulator", "apart", "cheapest", "compiling", "full_precision", "simulator",
    "traced",
]  # fmt: skip

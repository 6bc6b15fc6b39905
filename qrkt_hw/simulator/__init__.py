"""Exact, batched, differentiable evaluation of a template in torch."""

from qrkt_hw.simulator.core import REAL, Simulator, simulator
from qrkt_hw.simulator.methods import METHODS
from qrkt_hw.simulator.native import traced

__all__ = ["METHODS", "REAL", "Simulator", "simulator", "traced"]

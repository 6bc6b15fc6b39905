"""Exact, batched, differentiable evaluation of a template in torch."""

from qrkt_hw.simulator.core import Simulator, simulator
from qrkt_hw.simulator.methods import METHODS

__all__ = ["METHODS", "Simulator", "simulator"]

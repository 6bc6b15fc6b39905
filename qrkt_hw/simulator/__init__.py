"""Exact, batched, differentiable evaluation of a template in torch."""

from qrkt_hw.simulator.core import METHODS, REAL, REMOVED_METHODS, Simulator, cheapest, simulator

__all__ = ["METHODS", "REAL", "REMOVED_METHODS", "Simulator", "cheapest", "simulator"]

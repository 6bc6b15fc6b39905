"""Looking inside a template: lowering to Pauli rotations, light cones. Knows neither torch nor backends."""

from qrkt_hw.circuits.analysis.lowering import Fixed, Program, Rotation, lower

__all__ = ["Fixed", "Program", "Rotation", "lower"]

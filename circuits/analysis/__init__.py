"""Looking inside a template: lowering to Pauli rotations, light cones. Knows neither torch nor backends."""

from qrkt_hw.circuits.analysis.lowering import Fixed, Program, Rotation, lower
from qrkt_hw.circuits.analysis.shifts import Rule, Split, rule_for, split

__all__ = ["Fixed", "Program", "Rotation", "Rule", "Split", "lower", "rule_for", "split"]

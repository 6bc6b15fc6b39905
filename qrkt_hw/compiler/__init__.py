"""Looking inside a template: lowering, Pauli propagation, shift rules. Knows neither torch nor backends."""

from qrkt_hw.compiler.derived import Derived, derive, evaluate
from qrkt_hw.compiler.program import Affine, Fixed, Program, Rotation, Step, lower
from qrkt_hw.compiler.propagation import Expansion, expand
from qrkt_hw.compiler.shift_rules import Rule, Split, rule_for, split

__all__ = [
    "Affine", "Derived", "Expansion", "Fixed", "Program", "Rotation", "Rule", "Split", "Step", "derive", "evaluate",
    "expand", "lower", "rule_for", "split",
]  # fmt: skip

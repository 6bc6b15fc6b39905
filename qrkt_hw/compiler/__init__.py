"""Looking inside a template: lowering to Pauli rotations, light cones. Knows neither torch nor backends."""

from qrkt_hw.compiler.derived import Derived, derive, evaluate
from qrkt_hw.compiler.light_cones import Cone, causal_cone, cones
from qrkt_hw.compiler.program import Fixed, Program, Rotation, lower
from qrkt_hw.compiler.shift_rules import Rule, Split, rule_for, split

__all__ = [
    "Cone",
    "Derived",
    "Fixed",
    "Program",
    "Rotation",
    "Rule",
    "Split",
    "causal_cone",
    "cones",
    "derive",
    "evaluate",
    "lower",
    "rule_for",
    "split",
]

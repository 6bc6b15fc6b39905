"""Templates whose angles are no linear functions of their parameters, such as Qiskit's ``zz_feature_map``.

Each distinct expression becomes one parameter of its own, a derived input (or a derived weight where no input enters),
so that whatever evaluates, shifts or transpiles the circuit meets linear angles only. The values of the new parameters
are computed from the old ones by :func:`evaluate`, on arrays or tensors alike; derivatives follow by the chain rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Parameter, ParameterExpression

from qrkt_hw.ansatz import CircuitTemplate, by_angles, definition_of, remembered, standard_name
from qrkt_hw.compiler.program import ROTATIONS, NotLinear, affine, lower, lower_gate, where

# a number, the index of a parameter, or an operation and its operands
Formula = float | int | tuple[Any, ...]
# sympy's names and those that NumPy and torch share
_FUNCTIONS = {n: n.lower() for n in ("sin", "cos", "tan", "asin", "acos", "atan", "exp", "log", "Abs", "sign")}
# where points are drawn at which formulas are compared with Qiskit's binding: log(x) has no value below 0
RANGES = [(-np.pi, np.pi)] * 8 + [(0.05, 0.95)] * 4 + [(1.0, 4.0)] * 4
TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Derived:
    """A template rewritten to linear angles, and how its parameters follow from the original's.

    Attributes:
        source: the template as it was given.
        template: the same circuit with linear angles; ``source`` itself where they are linear already.
        inputs, weights: one formula for each of ``template``'s, in the parameters of ``source`` (inputs, then weights).
    """

    source: CircuitTemplate
    template: CircuitTemplate
    inputs: tuple[Formula, ...]
    weights: tuple[Formula, ...]

    def __deepcopy__(self, memo: dict) -> Derived:
        return self  # never changed

    @property
    def trivial(self) -> bool:
        return self.template is self.source

    def points(self, count: int, seed: int) -> NDArray[np.float64]:
        """Random parameters of ``source`` at which all of ``template``'s have values, ``(count, parameters)``."""
        rng, size = np.random.default_rng(seed), len(self.source.parameters)
        for low, high in RANGES:
            drawn = rng.uniform(low, high, (count, size))
            if np.isfinite(self.values(drawn)).all():
                return drawn
        raise ValueError(f"template {self.source.name!r}: no values were found at which all its angles have one")

    def values(self, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """Parameters of ``template`` ``(..., parameters)`` from ``source``'s; NaN or inf where they have none."""
        if self.trivial:
            return parameters
        columns = np.moveaxis(parameters, -1, 0)
        with np.errstate(all="ignore"):
            found = [np.asarray(evaluate(f, columns, np), dtype=float) for f in (*self.inputs, *self.weights)]
        return np.stack([np.broadcast_to(f, parameters.shape[:-1]) for f in found], axis=-1)


@remembered
def derive(template: CircuitTemplate) -> Derived:
    """The template with linear angles; of a unary encoding the one by its angles.

    Raises ValueError where it cannot be lowered for another reason, or an expression has no real value or holds what is
    none of ``+ - * / ** sin cos tan asin acos atan exp log abs sign conjugate``.
    """
    template = by_angles(template)
    count = template.num_inputs
    try:
        lower(template)
        own = tuple(range(len(template.parameters)))
        return Derived(template, template, own[:count], own[count:])
    except NotLinear:
        rewritten = _Rewriting(template)
    places = {parameter: k for k, parameter in enumerate(template.parameters)}
    kept = set(rewritten.circuit.parameters)
    inputs: dict[Parameter, Formula] = {p: places[p] for p in template.inputs if p in kept}
    weights: dict[Parameter, Formula] = {p: places[p] for p in template.weights if p in kept}
    for expression, (parameter, formula) in rewritten.found.items():
        features = any(places[p] < count for p in expression.parameters)
        (inputs if features else weights)[parameter] = formula
    linear = replace(
        template, circuit=rewritten.circuit, inputs=tuple(inputs), weights=tuple(weights), initial={}, source=template
    )
    lower(linear)
    return Derived(template, linear, tuple(inputs.values()), tuple(weights.values()))


class _Rewriting:
    """A template's circuit with a parameter of its own for every expression that is not linear."""

    def __init__(self, template: CircuitTemplate) -> None:
        self.index = {parameter: i for i, parameter in enumerate(template.parameters)}
        self.found: dict[ParameterExpression, tuple[Parameter, Formula]] = {}
        self.circuit = template.circuit.copy_empty_like()
        self.circuit.global_phase = 0  # no observable sees it
        for instruction in template.circuit.data:
            self._append(instruction.operation, [template.circuit.find_bit(q).index for q in instruction.qubits])

    def _append(self, gate: Any, qubits: list[int]) -> None:
        try:
            list(lower_gate(gate, tuple(qubits), self.index, 0))
            definition = None
        except NotLinear:
            definition = None if standard_name(gate) in ROTATIONS else definition_of(gate)
            if definition is None:
                gate = gate.to_mutable()
                gate.params = [self._linear(p, gate.name) for p in gate.params]
        if definition is None:
            self.circuit.append(gate, qubits)
            return
        for inner in definition.data:
            self._append(inner.operation, [qubits[definition.find_bit(q).index] for q in inner.qubits])

    def _linear(self, value: ParameterExpression | float, gate: str) -> ParameterExpression | float:
        try:
            affine(value, self.index, gate)
            return value
        except NotLinear:
            assert isinstance(value, ParameterExpression)
        if value not in self.found:
            formula = formula_of(value, self.index, gate)
            name = f"derived_{len(self.found):04d}"
            while name in {p.name for p in self.index}:
                name += "_"
            self.found[value] = (Parameter(name), formula)
        return self.found[value][0]


def formula_of(value: ParameterExpression, index: dict[Parameter, int], gate: str) -> Formula:
    """An expression as a formula, compared with Qiskit's own binding at random points."""
    import sympy  # not needed for other templates

    subject = where(gate, value)
    places = {parameter.name: index[parameter] for parameter in value.parameters}
    try:
        expression = sympy.sympify(value.sympify())
        real = {symbol: sympy.Symbol(symbol.name, real=True) for symbol in expression.free_symbols}
        formula = _walk(expression.xreplace(real), places)
    except Exception as error:
        raise ValueError(f"{subject} cannot be computed from the features: {error}") from error
    compared = 0
    rng = np.random.default_rng(7)
    for low, high in RANGES:
        point = rng.uniform(low, high, len(index))
        try:
            wanted = complex(value.bind({p: float(point[index[p]]) for p in value.parameters}).numeric())
        except (ZeroDivisionError, OverflowError, TypeError, RuntimeError, ValueError):
            continue
        if wanted.imag or not np.isfinite(wanted.real):
            continue
        with np.errstate(all="ignore"):
            found = float(evaluate(formula, point, np))
        if not abs(found - wanted.real) <= TOLERANCE * (1 + abs(wanted.real)):
            raise ValueError(f"{subject} is {wanted.real} by Qiskit and {found} here")
        compared += 1
    if not compared:
        raise ValueError(f"{subject} has no real value at any of the points tried")
    return formula


def _walk(node: Any, places: dict[str, int]) -> Formula:
    if node.is_Symbol:
        return places[node.name]
    if node.is_number:
        number = complex(node)
        if number.imag or not np.isfinite(number.real):
            raise ValueError(f"{node} is no finite real number")
        return number.real
    kind = type(node).__name__
    parts = tuple(_walk(part, places) for part in node.args)
    if kind in ("Add", "Mul"):
        return (kind.lower(), *parts)
    if kind == "Pow":
        return ("pow", *parts)
    if kind == "conjugate":
        return parts[0]  # all parameters are real
    if kind in _FUNCTIONS:
        return (_FUNCTIONS[kind], *parts)
    raise ValueError(f"{kind} is not known here")


def evaluate(formula: Formula, values: Any, xp: Any) -> Any:
    """The value of a formula at parameter values, arrays or tensors of shapes that broadcast; differentiable in torch.

    ``xp`` is the module of the arrays: ``numpy`` or ``torch``.
    """
    if isinstance(formula, int):
        return values[formula]
    if isinstance(formula, float):
        return formula
    kind, *operands = formula
    parts = [evaluate(part, values, xp) for part in operands]
    if kind == "add":
        return sum(parts[1:], start=parts[0])
    if kind == "mul":
        return math.prod(parts[1:], start=parts[0])
    if kind == "pow":
        base, exponent = parts
        if isinstance(exponent, float) and exponent == int(exponent):
            return xp.reciprocal(base) if exponent == -1 else base ** int(exponent)
        if isinstance(base, float):
            return xp.exp(exponent * float(np.log(base))) if base > 0 else xp.full_like(exponent, base) ** exponent
        return base**exponent
    return getattr(xp, kind)(parts[0])

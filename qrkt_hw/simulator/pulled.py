"""Observables pulled back to products of one-qubit values: a handful of kernels for any batch, at any width.

``<O_m> = sum_t C_mt(weights) prod_q b_tq(inputs, weights)``: the coefficients are computed once per weight set, the
one-qubit values and their products for each sample. No object grows with 2^n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

from qrkt_hw.compiler import Program
from qrkt_hw.compiler.propagation import PulledBack, pull_back
from qrkt_hw.simulator import native
from qrkt_hw.simulator.coefficients import Coefficients
from qrkt_hw.simulator.encoding import Encoding
from qrkt_hw.simulator.flat import Flat, Split
from qrkt_hw.simulator.gathered import Gathered
from qrkt_hw.simulator.tables import taking_turns, vjp
from qrkt_hw.simulator.tape import NO_SCALES, Scales, Tape, tape_cost

Kind = Literal["flat", "split", "gathered"]


class Plan(NamedTuple):
    """An expansion, who evaluates it, and what that costs."""

    expansion: PulledBack
    kind: Kind
    cost: float


_plans: WeakKeyDictionary[Program, tuple[Sequence[SparsePauliOp], Plan | None]] = WeakKeyDictionary()


def plans(program: Program, observables: Sequence[SparsePauliOp]) -> list[Plan]:
    """Every expansion with every evaluator that takes it."""
    found: list[Plan] = []
    for absorb in (True, False):
        e = pull_back(program, observables, absorb)
        if e is None:
            continue
        factors = sum(len(f) for *_, f in e.entries) + sum(len(w) for row in e.rows for _, w, _ in row)
        once = 1.5e5 + 25.0 * factors
        kinds: list[tuple[Kind, float]] = [
            ("flat", Flat.cost(e, len(observables))),
            ("split", Split.cost(e, len(observables))),
            ("gathered", Gathered.cost(e, len(observables))),
        ]
        fitting = [(kind, cost) for kind, cost in kinds if cost < float("inf")]
        if native.library() is not None and _of_inputs_alone(program, e):
            # compiled, all kinds cost the same; torch's cheapest serves derivatives of derivatives
            compiled = 3e4 + 2.0 * factors + tape_cost(e)
            found += [Plan(e, kind, compiled + 1e-6 * cost) for kind, cost in fitting]
        else:
            found += [Plan(e, kind, once + cost) for kind, cost in fitting]
    return found


def plan(program: Program, observables: Sequence[SparsePauliOp]) -> Plan | None:
    """The cheapest plan; None where there is none. Remembered per program."""
    held = _plans.get(program)
    if held is not None and held[0] is observables:
        return held[1]
    best = min(plans(program, observables), key=lambda p: p.cost, default=None)
    _plans[program] = (observables, best)
    return best


class PulledBackObservables:
    """Sums of products of one-qubit values; see the module."""

    name: ClassVar[str] = "pauli"

    def __init__(self, program: Program, observables: Sequence[SparsePauliOp], dtype: torch.dtype) -> None:
        found = plan(program, observables)
        if found is None:
            raise ValueError("the observables cannot be pulled back")
        e = found.expansion
        real = torch.zeros((), dtype=dtype).real.dtype
        data = sorted({f // 2 for row in e.rows for *_, monomial in row for f in monomial}, key=_first(e))
        place = {a: k for k, a in enumerate(data)}
        self.kind = found.kind
        self.encoding = Encoding([e.angles[a] for a in data], program, real)
        self.evaluator: Flat | Split | Gathered
        if found.kind == "gathered":
            self.evaluator = Gathered(e, len(observables), place, real)
        else:
            self.evaluator = (Flat if found.kind == "flat" else Split)(e, len(observables), place)
        self.tape: Tape | None = None
        if native.library() is not None and not self.encoding.uses_weights:
            positions = self.evaluator.positions
            angles = [e.angles[a] for a in data]
            self.tape = Tape(place, angles, self.evaluator.layout, positions, program.num_inputs, real)
        self.coefficients = Coefficients(self.evaluator.parts, self.evaluator.positions, e.angles, program, real)

    @staticmethod
    def supports(program: Program, observables: Sequence[SparsePauliOp]) -> bool:
        return plan(program, observables) is not None

    @staticmethod
    def cost(program: Program, observables: Sequence[SparsePauliOp]) -> float:
        found = plan(program, observables)
        return float("inf") if found is None else found.cost

    def prepare(self, weights: Tensor) -> Tensor:
        """``(groups, positions)``: what calls with the same weights share."""
        return self.coefficients(weights)

    def __call__(
        self,
        inputs: Tensor,
        weights: Tensor | None,
        prepared: Tensor | None = None,
        scales: Scales = NO_SCALES,
    ) -> Tensor:
        """Values ``(batch, groups, outputs)``; ``prepared`` saves what :meth:`prepare` would compute."""
        if prepared is None:
            assert weights is not None
            prepared = self.prepare(weights)
        if self.tape is not None and native.serves(inputs, prepared):
            if torch.is_grad_enabled():
                return _Taped.apply(inputs, prepared, *scales, self)
            return self.tape.forward(inputs, prepared, scales)
        if scales is not NO_SCALES:
            return scaled(lambda x: self(x, weights, prepared), inputs, scales, prepared.shape[0])
        inputs = taking_turns(inputs, prepared.shape[0])
        if native.traced(inputs, prepared):
            return self.forward(inputs, weights, prepared)
        differentiable = torch.is_grad_enabled() and (inputs.requires_grad or prepared.requires_grad)
        if not differentiable or self.encoding.uses_weights:
            return self.forward(inputs, weights, prepared)
        return _Values.apply(inputs, prepared, self)

    def forward(
        self, inputs: Tensor, weights: Tensor | None, shared: Tensor, kept: list[Tensor] | None = None
    ) -> Tensor:
        """``(batch, groups, outputs)``; ``kept`` collects the table and what the evaluator's ``pull`` needs."""
        table = self.encoding.forward(inputs, weights, kept)
        return self.evaluator.forward(table, shared, kept).permute(2, 0, 1)


class _Values(torch.autograd.Function):
    """One node of the graph; differentiated again it goes through the plain operations."""

    @staticmethod
    def forward(ctx, inputs: Tensor, shared: Tensor, method: PulledBackObservables) -> Tensor:
        kept: list[Tensor] = []
        result = method.forward(inputs, None, shared, kept)
        ctx.method = method
        ctx.save_for_backward(inputs, shared, *kept)
        return result

    @staticmethod
    def backward(ctx, cotangent: Tensor):  # type: ignore[override]
        inputs, shared, *kept = ctx.saved_tensors
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        if torch.is_grad_enabled() or native.traced(cotangent):
            return *vjp(lambda x, c: ctx.method.forward(x, None, c), (inputs, shared), needs, cotangent), None
        by_table, by_shared = ctx.method.evaluator.pull(
            cotangent.permute(1, 2, 0).contiguous(), kept[0], shared, kept[1:], needs
        )
        return (ctx.method.encoding.pull(by_table, kept[0]) if by_table is not None else None), by_shared, None


class _Taped(torch.autograd.Function):
    """The same by the compiled routines, which remember nothing."""

    @staticmethod
    def forward(ctx, inputs: Tensor, shared: Tensor, first, second, third, method: PulledBackObservables) -> Tensor:
        ctx.method = method
        ctx.save_for_backward(inputs, shared, first, second, third)
        assert method.tape is not None
        return method.tape.forward(inputs, shared, Scales(first, second, third))

    @staticmethod
    def backward(ctx, cotangent: Tensor):  # type: ignore[override]
        inputs, shared, *rest = ctx.saved_tensors
        scales, needs = Scales(*rest), ctx.needs_input_grad[:5]
        if not torch.is_grad_enabled() and native.serves(cotangent):
            return *ctx.method.tape.backward(inputs, shared, scales, cotangent, needs), None

        def plain(x: Tensor, c: Tensor, *factors: Tensor | None) -> Tensor:
            def values(y: Tensor) -> Tensor:
                return ctx.method.forward(taking_turns(y, c.shape[0]), None, c)

            return scaled(values, x, Scales(*factors), c.shape[0])

        return *vjp(plain, (inputs, shared, *rest), needs, cotangent), None


def scaled(function: Callable[[Tensor], Tensor], inputs: Tensor, scales: Scales, groups: int) -> Tensor:
    """``outputs * function(inputs * x) + offsets`` of the scales, x being ``(batch, input groups, inputs)``."""
    if scales.inputs is not None:
        inputs = taking_turns(inputs, groups) * scales.inputs
    values = function(inputs)
    if scales.outputs is not None:
        values = values * scales.outputs
    return values if scales.offsets is None else values + scales.offsets


def _of_inputs_alone(program: Program, e: PulledBack) -> bool:
    """Whether no angle of the one-qubit values mixes inputs with weights."""
    data = {f // 2 for row in e.rows for *_, monomial in row for f in monomial}
    return all(i < program.num_inputs for a in data for i, _ in e.angles[a].terms)


def _first(e: PulledBack):
    """Sorts angles by their first parameter, so that the usual encoding comes in the order of the inputs."""
    return lambda a: (e.angles[a].terms[0][0] if e.angles[a].terms else -1, a)

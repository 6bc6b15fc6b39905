"""The simulator: one function over tensors, several methods behind it."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.compiler import lower
from qrkt_hw.errors import UserError
from qrkt_hw.simulator import memory
from qrkt_hw.simulator.adjoint import Adjoint
from qrkt_hw.simulator.methods import METHODS
from qrkt_hw.simulator.pulled import PulledBackObservables
from qrkt_hw.simulator.tables import taking_turns
from qrkt_hw.simulator.tape import NO_SCALES, Scales

REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


class Simulator:
    """Expectation values of a template's observables, exact and differentiable to any order.

    Args:
        template: the circuit.
        dtype: ``torch.complex64`` or ``torch.complex128``.
        method: a key of :data:`METHODS`, or ``auto`` for the cheapest that fits the template.

    Raises:
        UserError: unknown method, one that cannot evaluate this template, or a template that cannot be lowered.
        ValueError: another dtype.
    """

    def __init__(self, template: CircuitTemplate, dtype: torch.dtype = torch.complex64, method: str = "auto") -> None:
        if dtype not in REAL:
            raise ValueError(f"dtype must be torch.complex64 or torch.complex128, not {dtype}")
        self.template = template
        self.num_inputs, self.num_weights = template.num_inputs, template.num_weights
        self.dtype = dtype
        self.real_dtype = REAL[dtype]
        try:
            program = lower(template)
        except ValueError as error:
            raise UserError(f"ansatz {template.name!r} cannot be simulated: {error}") from error
        if method == "auto":
            fitting = [m for m in METHODS.values() if m.supports(program, template.observables)]
            if not fitting:
                raise UserError(
                    f"ansatz {template.name!r} on {template.num_qubits} qubits has no exact method: statevectors go to "
                    "28 qubits, and its observables depend on too much for propagation; take fewer qubits or layers"
                )
            chosen = min(fitting, key=lambda m: m.cost(program, template.observables))
        elif method in METHODS:
            chosen = METHODS[method]
            if not chosen.supports(program, template.observables):
                raise UserError(f"simulation method {method!r} cannot evaluate ansatz {template.name!r}")
        else:
            raise UserError(f"no simulation method {method!r}; there are auto, {', '.join(METHODS)}")
        self.method = chosen.name
        memory.check_tables(chosen.name, template, self.real_dtype)
        self._evaluate = chosen(program, template.observables, dtype)

    def __deepcopy__(self, memo: dict) -> Simulator:
        return self  # never changed, and shared by all layers of its template

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Values ``(..., groups, observables)``, real.

        Args:
            inputs: ``(..., groups, inputs)``.
            weights: ``(groups, weights)``: one weight set per group; or a multiple of that, and the groups take turns,
                so that several layers read the same features.

        Under ``torch.func`` and in dispatch modes plain operations of torch do the same, more slowly.

        Raises:
            ValueError: shapes that do not fit the template or each other, complex numbers, or two devices.
        """
        self._check(inputs, weights)
        memory.check(self, inputs, weights)
        lead, groups = inputs.shape[:-2], weights.shape[0]
        flat = inputs.reshape(math.prod(lead), *inputs.shape[-2:]).to(self.real_dtype)
        if groups != inputs.shape[-2] and not isinstance(self._evaluate, (PulledBackObservables, Adjoint)):
            flat = taking_turns(flat, groups)
        with _full_precision(inputs):
            values = self._evaluate(flat, weights.to(self.real_dtype))
        return values.reshape(*lead, groups, len(self.template.observables))

    @cached_property
    def shares(self) -> bool:
        """Whether :meth:`prepare` holds all that the weights contribute."""
        return isinstance(self._evaluate, PulledBackObservables) and not self._evaluate.encoding.uses_weights

    def prepare(self, weights: Tensor) -> Tensor:
        """``(groups, ...)``: what every call with these weights ``(groups, weights)`` shares; see :attr:`shares`.

        Raises:
            TypeError: the method shares nothing.
        """
        if not isinstance(self._evaluate, PulledBackObservables):
            raise TypeError(f"simulation method {self.method!r} prepares nothing")
        if weights.ndim != 2 or weights.shape[1] != self.num_weights:
            raise ValueError(f"weights must be (groups, {self.num_weights}), not {tuple(weights.shape)}")
        with _full_precision(weights):
            return self._evaluate.prepare(weights.to(self.real_dtype))

    def with_prepared(self, inputs: Tensor, prepared: Tensor, scales: Scales = NO_SCALES) -> Tensor:
        """As a call, with what :meth:`prepare` made of the weights, and scales around the circuits."""
        assert isinstance(self._evaluate, PulledBackObservables)
        lead, groups = inputs.shape[:-2], inputs.shape[-2]
        _check_kind(inputs, prepared)
        if scales is not NO_SCALES:
            real = self.real_dtype
            scales = Scales(*(t if t is None or t.dtype == real else t.to(real) for t in scales))
        sets = prepared.shape[0]
        if inputs.shape[-1] != self.num_inputs or (sets % groups if groups else sets):
            raise ValueError(f"inputs {tuple(inputs.shape)} do not fit {sets} prepared weight sets")
        flat = inputs.reshape(math.prod(lead), groups, inputs.shape[-1]).to(self.real_dtype)
        with _full_precision(inputs):
            values = self._evaluate(flat, None, prepared, scales)
        return values.reshape(*lead, prepared.shape[0], len(self.template.observables))

    def _check(self, inputs: Tensor, weights: Tensor) -> None:
        if inputs.ndim < 2 or inputs.shape[-1] != self.num_inputs:
            raise ValueError(f"inputs must be (..., groups, {self.num_inputs}), not {tuple(inputs.shape)}")
        groups = inputs.shape[-2]
        fits = weights.ndim == 2 and weights.shape[1] == self.num_weights
        if not fits or (weights.shape[0] != groups and (not groups or weights.shape[0] % groups)):
            raise ValueError(f"weights must be ({groups}, {self.num_weights}), not {tuple(weights.shape)}")
        _check_kind(inputs, weights)


_AS_IT_IS: AbstractContextManager = nullcontext()


def _full_precision(tensor: Tensor) -> AbstractContextManager:
    """Autocast off: circuits are evaluated in the precision of the simulator, whatever surrounds them."""
    if not torch._C._is_any_autocast_enabled():
        return _AS_IT_IS
    return torch.autocast(tensor.device.type, enabled=False)


def _check_kind(inputs: Tensor, weights: Tensor) -> None:
    if inputs.is_complex() or weights.is_complex():
        raise ValueError(f"inputs and weights must be real, not {inputs.dtype} and {weights.dtype}")
    if not (inputs.is_cpu and weights.is_cpu) and inputs.device != weights.device:
        raise ValueError(f"inputs are on {inputs.device} and weights on {weights.device}; move one to the other")


@lru_cache(maxsize=256)
def simulator(template: CircuitTemplate, dtype: torch.dtype = torch.complex64, method: str = "auto") -> Simulator:
    """A :class:`Simulator`, made once for the same arguments."""
    return Simulator(template, dtype, method)

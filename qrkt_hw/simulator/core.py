"""The simulator: one function over tensors, three exact methods behind it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from qrkt_hw.ansatz import CircuitTemplate, remembered
from qrkt_hw.compiler import lower
from qrkt_hw.errors import UserError
from qrkt_hw.simulator import memory
from qrkt_hw.simulator.propagated import Propagated
from qrkt_hw.simulator.statevector import Statevector
from qrkt_hw.simulator.subspace import Subspace

Method = type[Propagated] | type[Statevector] | type[Subspace]
REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
METHODS: dict[str, Method] = {m.name: m for m in (Propagated, Statevector, Subspace)}
REMOVED_METHODS = ("gatewise", "fused")  # of earlier versions; they read as ``auto``


def cheapest(template: CircuitTemplate) -> Method | None:
    """The method that evaluates a template fastest; None where none can."""
    return min(_fitting(template), key=lambda m: m.cost(template), default=None)


def _fitting(template: CircuitTemplate) -> list[Method]:
    return [m for m in METHODS.values() if m.supports(template)]


class Simulator:
    """Expectation values of a template's observables, exact and differentiable to any order.

    ``method`` is ``pauli`` (Pauli propagation), ``adjoint`` (statevector), ``subspace`` (fixed Hamming weight), or
    ``auto`` for the fastest. Raises UserError for an unknown method, one that cannot evaluate this template, or a
    template that cannot be lowered.
    """

    def __init__(self, template: CircuitTemplate, dtype: torch.dtype = torch.complex64, method: str = "auto") -> None:
        if dtype not in REAL:
            raise ValueError(f"dtype must be torch.complex64 or torch.complex128, not {dtype}")
        self.template, self.dtype, self.real_dtype = template, dtype, REAL[dtype]
        try:
            lower(template)
        except ValueError as error:
            raise UserError(f"ansatz {template.name!r} cannot be simulated: {error}") from error
        if method in REMOVED_METHODS:
            warnings.warn(f"simulation method {method!r} no longer exists; method 'auto' is used", stacklevel=2)
            method = "auto"
        if method != "auto" and method not in METHODS:
            raise UserError(f"no simulation method {method!r}; there are auto, {', '.join(METHODS)}")
        chosen = cheapest(template) if method == "auto" else METHODS[method]
        if chosen is None:
            raise UserError(
                f"ansatz {template.name!r} on {template.num_qubits} qubits has no exact method: statevectors go to 28 "
                "qubits, and its observables depend on too much for propagation; take fewer qubits or layers"
            )
        if not chosen.supports(template):
            others = " or ".join(m.name for m in _fitting(template))
            way = f"take auto, or {others}" if others else "no method can"
            raise UserError(f"simulation method {method!r} cannot evaluate ansatz {template.name!r}; {way}")
        self.method = chosen.name
        self._needs = memory.Needs(template, chosen.name, self.real_dtype)
        self._evaluate = chosen(template, dtype)

    def __deepcopy__(self, memo: dict) -> Simulator:
        return self  # never changed, and shared by all layers of its template

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Values ``(..., groups, observables)``, real; inputs ``(..., groups, inputs)``, weights ``(groups, weights)``.

        Inputs of a unary encoding are features, ``(..., groups, features)``.
        Under ``torch.func`` and in dispatch modes plain operations of torch do the same, more slowly. Raises UserError
        where the call would take more memory than there is, ValueError for tensors that do not fit.
        """
        self._check(inputs, weights)
        # an exported program is one for every size of batch
        if not torch.compiler.is_exporting() and (inputs.numel() >= self._needs.unchecked or not inputs.numel()):
            self._needs.check(inputs, weights)
        batch = inputs.reshape(math.prod(inputs.shape[:-2]), *inputs.shape[-2:]).to(self.real_dtype)
        with full_precision(inputs):
            values = self._evaluate(batch, weights.to(self.real_dtype))
        return values.reshape(*inputs.shape[:-1], len(self.template.observables))

    def _check(self, inputs: Tensor, weights: Tensor) -> None:
        if inputs.ndim < 2 or inputs.shape[-1] != self.template.num_features:
            raise ValueError(f"inputs must be (..., groups, {self.template.num_features}), not {tuple(inputs.shape)}")
        shape = (inputs.shape[-2], self.template.num_weights)
        if weights.shape != shape:
            raise ValueError(f"weights must be {shape}, not {tuple(weights.shape)}")
        if inputs.is_complex() or weights.is_complex():
            raise ValueError(f"inputs and weights must be real, not {inputs.dtype} and {weights.dtype}")
        if not (inputs.is_cpu and weights.is_cpu) and inputs.device != weights.device:
            raise ValueError(f"inputs are on {inputs.device} and weights on {weights.device}; move one to the other")


_AS_IT_IS: AbstractContextManager = nullcontext()


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """Autocast off: circuits are evaluated in the precision of the simulator, whatever surrounds them."""
    if not torch._C._is_any_autocast_enabled() or tensor.is_meta:
        return _AS_IT_IS
    return torch.autocast(tensor.device.type, enabled=False)


def compiling() -> bool:
    """Whether ``torch.compile`` reads this code."""
    return torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, called between two graphs of ``torch.compile``: one graph break."""
    return torch.compiler.disable(function)(*arguments)


# as torch.compiler.disable marks a function; calling that here would load the compiler with every layer
vars(apart).update(
    _torchdynamo_disable=True,
    _torchdynamo_disable_msg="circuits run on native kernels or on a backend, as in eager mode",
)


@remembered
def _made(template: CircuitTemplate, dtype: torch.dtype, method: str) -> Simulator:
    return Simulator(template, dtype, method)


def simulator(template: CircuitTemplate, dtype: torch.dtype = torch.complex64, method: str = "auto") -> Simulator:
    """A :class:`Simulator`, made once for the same arguments."""
    return _made(template, dtype, method)

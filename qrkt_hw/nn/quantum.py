"""The quantum layer: a template behind TorchConnector, straight through the simulator where that is exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from qiskit_machine_learning.connectors import TorchConnector
from torch import Tensor, nn

from qrkt_hw import backends, circuits
from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends import Backend
from qrkt_hw.backends.base import TensorFunction
from qrkt_hw.errors import UserError
from qrkt_hw.nn.network import TemplateNetwork
from qrkt_hw.nn.remote import run_round
from qrkt_hw.simulator import simulator
from qrkt_hw.simulator.core import REAL


class _Weight:
    """Hides the connector's property ``weight``: that one cannot be set or deleted, as pruning and parametrizing do.

    No data descriptor: what torch sets on an instance comes first.
    """

    def __get__(self, instance: nn.Module | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        found = instance._parameters.get("weight")
        if found is None:
            raise AttributeError("weight")  # torch looks further: buffers, parametrizations
        return found


class QuantumLayer(TorchConnector):
    """Maps ``(..., features)`` to ``(..., groups * observables)`` by a circuit for each group of ``qubits`` features.

    The trainable angles are ``.weight``, shape ``(groups * weights_per_circuit,)``: group g owns the g-th slice, in the
    order of ``template.weights``. Registered templates measure Z on every qubit, so outputs match features.

    Args:
        features: size of the last axis; a multiple of ``qubits``.
        ansatz: name of a template, ``file.py:function``, or a template.
        qubits: qubits of each circuit; default: all features in one circuit.
        layers: repetitions of the ansatz.
        backend: name in ``backends.yaml`` or a Backend.
        dtype: ``torch.complex64`` starts with angles in float32, ``torch.complex128`` in float64.
        method: simulation method; ``auto`` picks the cheapest.
        initial_weights: angles; default uniform in [-pi, pi] from torch's generator.

    ``.weight`` is a parameter like any other: it may be replaced, parametrized, pruned, moved, or given by
    ``torch.func.functional_call``. The values follow torch's type promotion of input and angles; the circuits are
    evaluated in complex128 where either is float64, else in complex64.

    Raises:
        UserError: ``features`` is not a multiple of the circuit's inputs, or an unknown ansatz, backend or method.
        ValueError: another ``dtype``, or ``initial_weights`` of another length.
    """

    weight: Tensor = _Weight()  # type: ignore[assignment]

    def __init__(
        self,
        features: int,
        ansatz: str | CircuitTemplate = "qrkt",
        qubits: int | None = None,
        layers: int = 1,
        backend: str | Backend = "exact",
        dtype: torch.dtype = torch.complex64,
        method: str = "auto",
        initial_weights: np.ndarray | Tensor | None = None,
    ) -> None:
        if isinstance(ansatz, CircuitTemplate):
            template = ansatz
        else:
            template = circuits.build(ansatz, qubits or features, layers)
        if template.num_inputs == 0 or features < 1 or features % template.num_inputs:
            raise UserError(
                f"--qubits: {features} features cannot be split into groups of {template.num_inputs}; "
                "the number of features must be a positive multiple"
            )
        where = backends.get(backend) if isinstance(backend, str) else backend
        groups = features // template.num_inputs
        if dtype not in REAL:
            raise ValueError(f"dtype must be torch.complex64 or torch.complex128, not {dtype}")
        # past the connector's constructor: it registers its parameter twice, under a private name too
        nn.Module.__init__(self)
        self._network = TemplateNetwork(template, where, groups)
        self.features = features
        self.groups = groups
        self.template = template
        self.requested_method = method
        # for ablations (qrkt_hw.nn.ablation): what stands in for the circuit's values
        self.replacement: Callable[[Tensor, Tensor], Tensor] | None = None
        # evaluators on this backend, by whether they are of double precision
        self._found: dict[bool, tuple[Backend, TensorFunction | None]] = {}
        count = groups * template.num_weights
        if initial_weights is None:
            torch.rand(count)  # so that a seed gives the angles that it gave in earlier versions
            angles = torch.empty(count, dtype=REAL[dtype]).uniform_(-math.pi, math.pi)
        else:
            angles = torch.as_tensor(initial_weights, dtype=REAL[dtype]).detach().clone().reshape(-1)
            if len(angles) != count:
                raise ValueError(f"initial_weights must be {count} angles ({groups} circuits), not {len(angles)}")
        self.weight = nn.Parameter(angles)
        simulator(self._network.evaluated, dtype, method)  # an unknown method is refused here, not in the first forward

    @property
    def neural_network(self) -> TemplateNetwork:
        """The circuits on their backend, as Qiskit Machine Learning sees them."""
        return self._network

    network = neural_network

    @property
    def sparse(self) -> bool:
        return False

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which the circuits are evaluated for inputs of at most the angles' precision."""
        return torch.complex128 if self.weight.dtype == torch.float64 else torch.complex64

    @property
    def backend(self) -> Backend:
        return self.network.backend

    @backend.setter
    def backend(self, backend: str | Backend) -> None:
        self.network.backend = backends.get(backend) if isinstance(backend, str) else backend

    @property
    def simulator(self) -> TensorFunction:
        """What evaluates the circuits where the backend is differentiable; elsewhere the noiseless simulator."""
        found = self.evaluator()
        return found if found is not None else simulator(self.network.evaluated, self.dtype, self.requested_method)

    def evaluator(self, dtype: torch.dtype | None = None) -> TensorFunction | None:
        """What evaluates the circuits on tensors in this precision; None where the backend is not differentiable."""
        dtype, backend = dtype or self.dtype, self.backend
        double = dtype == torch.complex128
        found = self._found.get(double)
        if found is None or found[0] is not backend:
            differentiable = backend.differentiable
            made = backend.simulator(self._network.evaluated, dtype, self.requested_method) if differentiable else None
            found = self._found[double] = (backend, made)
        return found[1]

    def __getstate__(self) -> dict[str, Any]:
        # a copy or a pickle finds its evaluator anew: a compiled one holds addresses
        return {**self.__dict__, "_found": {}}

    @property
    def method(self) -> str:
        """The simulation method in use."""
        return self.simulator.method

    @property
    def outputs(self) -> int:
        """Size of the last axis of the result."""
        return self.network.outputs

    def forward(self, input_data: Tensor | None = None) -> Tensor:
        """``(..., features)`` to ``(..., groups * observables)``.

        Raises:
            ValueError: no input, or another number of features.
        """
        if not isinstance(input_data, Tensor):
            raise ValueError(f"input must be a tensor (..., {self.features}), not {type(input_data).__name__}")
        return evaluate_together([(self, input_data)])[0]

    def angles(self) -> Tensor:
        """The weights ``(groups, weights)``, as the simulator takes them.

        Raises:
            ValueError: ``.weight`` has been given another shape, or no floating-point numbers.
        """
        weight = self.weight
        count = self.groups * self.template.num_weights
        if weight.shape != (count,) or not weight.is_floating_point():
            raise ValueError(f"weight must be ({count},) floating-point, not {tuple(weight.shape)} {weight.dtype}")
        return weight.reshape(self.groups, self.template.num_weights)

    def grouped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs ``(..., groups, inputs)`` and weights ``(groups, weights)`` as the simulator takes them."""
        return self._network.derive(x.unflatten(-1, (self.groups, self.template.num_inputs)), self.angles())

    def checked(self, x: Tensor) -> Tensor:
        """The input, after its shape and kind were checked.

        Raises:
            ValueError: another number of features, complex numbers, or no dense tensor.
        """
        if x.layout != torch.strided or x.is_nested or x.is_quantized:
            raise ValueError(f"input must be a dense tensor (..., {self.features})")
        if x.ndim == 0 or x.shape[-1] != self.features:
            raise ValueError(f"input must be (..., {self.features}), not {tuple(x.shape)}")
        if x.is_complex():
            raise ValueError(f"input must be real, not {x.dtype}")
        return x

    def simulated(self, x: Tensor) -> Tensor | None:
        """The layer's values of ``x`` where torch differentiates the circuits; None where they run elsewhere."""
        double = torch.float64 in (self.checked(x).dtype, self.weight.dtype)
        function = self.evaluator(torch.complex128 if double else torch.complex64)
        return None if function is None else self.finish(function(*self.grouped(x)).flatten(-2), x)

    def finish(self, values: Tensor, x: Tensor) -> Tensor:
        """The circuits' values as the layer gives them: in the promoted type of input and angles."""
        values = values.to(torch.promote_types(x.dtype, self.weight.dtype))
        return values if self.replacement is None else self.replacement(values, x)

    def extra_repr(self) -> str:
        return (
            f"features={self.features}, ansatz={self.template.name!r}, qubits={self.template.num_qubits}, "
            f"groups={self.groups}, backend={self.backend.name!r}, method={self.method!r}"
        )


def evaluate_together(jobs: Sequence[tuple[QuantumLayer, Tensor]]) -> list[Tensor]:
    """Values of independent layers ``(..., groups * observables)``; circuits that run elsewhere go as one batch.

    Raises:
        ValueError: an input or a weight that does not fit its layer.
    """
    results = [layer.simulated(x) for layer, x in jobs]
    remote = [k for k, values in enumerate(results) if values is None]
    if remote:
        layers, inputs = zip(*(jobs[k] for k in remote), strict=True)
        derived = [layer.grouped(x) for layer, x in zip(layers, inputs, strict=True)]
        found = run_round(
            [layer.network for layer in layers], [x.flatten(-2) for x, _ in derived], [w.flatten() for _, w in derived]
        )
        for k, values in zip(remote, found, strict=True):
            results[k] = jobs[k][0].finish(values, jobs[k][1])
    return [values for values in results if values is not None]

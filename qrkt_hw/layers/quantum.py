"""The quantum layer: a template behind TorchConnector, straight through the simulator where that is exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from qiskit_machine_learning.connectors import TorchConnector
from torch import Tensor

from qrkt_hw import backends, circuits
from qrkt_hw.backends import Backend
from qrkt_hw.backends.base import TensorFunction
from qrkt_hw.circuits.template import CircuitTemplate
from qrkt_hw.errors import UserError
from qrkt_hw.layers import sharing
from qrkt_hw.layers.network import TemplateNetwork
from qrkt_hw.layers.rounds import run_round
from qrkt_hw.simulator import Simulator, native, simulator


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
        dtype: precision of the simulator, ``torch.complex64`` or ``torch.complex128``.
        method: simulation method; ``auto`` picks the cheapest.
        initial_weights: angles; default uniform in [-pi, pi] from torch's generator.

    Raises:
        UserError: ``features`` is not a multiple of the circuit's inputs, or an unknown ansatz, backend or method.
    """

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
        if template.num_inputs == 0 or features % template.num_inputs:
            raise UserError(
                f"--qubits: {features} features cannot be split into groups of {template.num_inputs}; "
                "the number of features must be a multiple"
            )
        where = backends.get(backend) if isinstance(backend, str) else backend
        groups = features // template.num_inputs
        super().__init__(TemplateNetwork(template, where, groups))
        # the connector registers its parameter under two names; one is enough for checkpoints and optimisers
        object.__setattr__(self, "_weights", self._parameters.pop("_weights"))
        real = torch.float64 if dtype == torch.complex128 else torch.float32
        if initial_weights is None:
            self.weight.data = torch.empty(self.weight.shape, dtype=real).uniform_(-math.pi, math.pi)
        else:
            self.weight.data = torch.as_tensor(initial_weights, dtype=real).detach().clone().reshape(-1)
        self.features = features
        # for ablations (qrkt_hw.layers.ablation): what stands in for the circuit's values
        self.replacement: Callable[[Tensor, Tensor], Tensor] | None = None
        self.groups = groups
        self._found: tuple[Backend, TensorFunction | None] | None = None  # the evaluator on this backend
        self.template = template
        self.dtype = dtype
        self.requested_method = method
        simulator(self.network.evaluated, dtype, method)  # an unknown method is refused here, not in the first forward

    @property
    def backend(self) -> Backend:
        return self.network.backend

    @backend.setter
    def backend(self, backend: str | Backend) -> None:
        self.network.backend = backends.get(backend) if isinstance(backend, str) else backend

    @property
    def network(self) -> TemplateNetwork:
        network = self.neural_network
        assert isinstance(network, TemplateNetwork)
        return network

    @property
    def simulator(self) -> TensorFunction:
        """What evaluates the circuits where the backend is differentiable; elsewhere the noiseless simulator."""
        found = self.evaluator()
        return found if found is not None else simulator(self.network.evaluated, self.dtype, self.requested_method)

    def evaluator(self) -> TensorFunction | None:
        """What evaluates the circuits on tensors; None where the backend is not differentiable."""
        backend = self.neural_network.backend
        if self._found is None or self._found[0] is not backend:
            differentiable = backend.differentiable
            made = (
                backend.simulator(self.network.evaluated, self.dtype, self.requested_method) if differentiable else None
            )
            self._found = (backend, made)
        return self._found[1]

    def __getstate__(self) -> dict[str, Any]:
        # a copy or a pickle finds its evaluator anew: a compiled one holds addresses
        return {**self.__dict__, "_found": None}

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
        if input_data is None or input_data.shape[-1] != self.features:
            found = None if input_data is None else tuple(input_data.shape)
            raise ValueError(f"input must be (..., {self.features}), not {found}")
        return evaluate_round([(self, input_data)])[0]

    def grouped(self, input_data: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs ``(..., groups, inputs)`` and weights ``(groups, weights)`` as the simulator takes them."""
        inputs = input_data.unflatten(-1, (self.groups, -1))
        return self.network.derive(inputs, self.weight.view(self.groups, self.template.num_weights))

    def extra_repr(self) -> str:
        return (
            f"features={self.features}, ansatz={self.template.name!r}, qubits={self.template.num_qubits}, "
            f"groups={self.groups}, backend={self.backend.name!r}, method={self.method!r}"
        )


class Around(Protocol):
    """What stands around a layer: factors on its features, factors and offsets on its values; each may be None."""

    @property
    def input_scale(self) -> Tensor | None: ...

    @property
    def scale(self) -> Tensor | None: ...

    @property
    def bias(self) -> Tensor | None: ...

    def before(self, x: Tensor) -> Tensor: ...

    def after(self, values: Tensor) -> Tensor: ...


def evaluate_round(jobs: Sequence[tuple[QuantumLayer, Tensor]], around: Sequence[Around] | None = None) -> list[Tensor]:
    """Evaluate independent layers as one round: one simulator call per template, or one ``Backend.run``.

    Args:
        jobs: pairs of layer and input ``(..., features)``.
        around: for each job its factors and offsets; they go into the same call where the simulator takes them.

    Returns:
        For each job its values ``(..., groups * observables)``, in the order given.
    """
    results: list[Tensor | None] = [None] * len(jobs)
    together: dict[Any, list[int]] = {}
    functions: list[TensorFunction | None] = []
    remote: list[int] = []
    for place, (layer, inputs) in enumerate(jobs):
        function = layer.evaluator()
        functions.append(function)
        if function is None:
            remote.append(place)
            continue
        # compiled calls are cheap, and layers that read the same tensor need no copy of it
        same = id(inputs) if native.serves(inputs) else inputs.shape[:-1]
        together.setdefault((id(function), same, inputs.device), []).append(place)
    if len(remote) < len(jobs):
        _count([jobs[p] for p in range(len(jobs)) if functions[p] is not None])
    if remote:
        layers = [jobs[p][0] for p in remote]
        entered = [around[p].before(jobs[p][1]) if around else jobs[p][1] for p in remote]
        derived = [layer.grouped(x) for layer, x in zip(layers, entered, strict=True)]
        found = run_round(
            [layer.network for layer in layers], [x.flatten(-2) for x, _ in derived], [w.flatten() for _, w in derived]
        )
        for place, values, inputs in zip(remote, found, entered, strict=True):
            results[place] = _leave(jobs[place][0], values, inputs, around[place] if around else None)
    for places in together.values():
        function = functions[places[0]]
        assert function is not None
        layers = [jobs[p][0] for p in places]
        own = [around[p] for p in places] if around else []
        if isinstance(function, Simulator) and function.shares and all(_plain(x) for x in layers):
            parts = _in_one_call(function, layers, [jobs[p][1] for p in places], own)
            for place, part in zip(places, parts, strict=True):
                results[place] = part
            continue
        entered = [around[p].before(jobs[p][1]) if around else jobs[p][1] for p in places]
        derived = [layer.grouped(x) for layer, x in zip(layers, entered, strict=True)]
        values = function(_join([x for x, _ in derived], -2), _join([w for _, w in derived], 0))
        for place, part, inputs in zip(places, _split(values, layers), entered, strict=True):
            results[place] = _leave(jobs[place][0], part, inputs, around[place] if around else None)
    return [values for values in results if values is not None]


def _plain(layer: QuantumLayer) -> bool:
    return layer.replacement is None and layer.network.derived.trivial and layer.template.num_weights > 0


def _in_one_call(
    simulate: Simulator, layers: Sequence[QuantumLayer], inputs: Sequence[Tensor], around: Sequence[Around]
) -> list[Tensor]:
    """Values of layers that one simulator evaluates, with what stands around them."""
    under_way = sharing.current()
    if all(x is inputs[0] for x in inputs):  # query, key and value of the same tokens
        inputs = inputs[:1]
    joined = _join([x.unflatten(-1, (layer.groups, -1)) for x, layer in zip(inputs, layers, strict=False)], -2)
    if under_way is not None:
        prepared, scales = under_way.coefficients(simulate, layers), under_way.scales(layers, around)
    else:
        prepared = simulate.prepare(_join([layer.weight.view(layer.groups, -1) for layer in layers], 0))
        scales = sharing.joined_scales(layers, around)
    return _split(simulate.with_prepared(joined, prepared, scales), layers)


def _split(values: Tensor, layers: Sequence[QuantumLayer]) -> list[Tensor]:
    """``(..., groups of all, observables)`` as ``(..., groups * observables)`` of each."""
    if len(layers) == 1:
        return [values.flatten(-2)]
    width = values.shape[-1]
    return list(values.flatten(-2).split([layer.groups * width for layer in layers], dim=-1))


def _leave(layer: QuantumLayer, values: Tensor, inputs: Tensor, around: Around | None) -> Tensor:
    values = values if layer.replacement is None else layer.replacement(values, inputs)
    return values if around is None else around.after(values)


def _join(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=dim)


def _count(jobs: list[tuple[QuantumLayer, Tensor]]) -> None:
    """Let each backend know of the round it would have been asked for; its simulator evaluates it."""
    by_backend: dict[Backend, tuple[int, list[str]]] = {}
    for layer, x in jobs:
        network = layer.network
        circuits, tags = by_backend.get(network.backend, (0, []))
        each = layer.groups * network.backend.circuits_for(network.evaluated)
        by_backend[network.backend] = circuits + x.numel() // x.shape[-1] * each, [*tags, network.tag]
    for backend, (circuits, tags) in by_backend.items():
        backend.begin_round(circuits, tags)

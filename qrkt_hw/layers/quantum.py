"""The quantum layer: a template behind TorchConnector, straight through the simulator where that is exact."""

from __future__ import annotations

import math
from collections.abc import Callable

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
from qrkt_hw.simulator import Simulator, simulator


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
        self.template = template
        self.dtype = dtype
        self.requested_method = method
        simulator(template, dtype, method)  # an unknown method is refused here, not in the first forward

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
        return found if found is not None else simulator(self.template, self.dtype, self.requested_method)

    def evaluator(self) -> TensorFunction | None:
        """What evaluates the circuits on tensors; None where the backend is not differentiable."""
        if not self.backend.differentiable:
            return None
        return self.backend.simulator(self.template, self.dtype, self.requested_method)

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
        return input_data.unflatten(-1, (self.groups, -1)), self.weight.view(self.groups, -1)

    def extra_repr(self) -> str:
        return (
            f"features={self.features}, ansatz={self.template.name!r}, qubits={self.template.num_qubits}, "
            f"groups={self.groups}, backend={self.backend.name!r}, method={self.method!r}"
        )


def evaluate_round(jobs: list[tuple[QuantumLayer, Tensor]]) -> list[Tensor]:
    """Evaluate independent layers as one round: one simulator call per template, or one ``Backend.run``.

    Args:
        jobs: pairs of layer and input ``(..., features)``.

    Returns:
        For each job its values ``(..., groups * observables)``, in the order given.
    """
    results: list[Tensor | None] = [None] * len(jobs)
    together: dict[tuple[TensorFunction, torch.Size, torch.device], list[int]] = {}
    remote: list[int] = []
    for place, (layer, inputs) in enumerate(jobs):
        function = layer.evaluator()
        if function is None:
            remote.append(place)
        else:
            together.setdefault((function, inputs.shape[:-1], inputs.device), []).append(place)
    _count([jobs[p] for places in together.values() for p in places])
    if remote:
        layers = [jobs[p][0] for p in remote]
        found = run_round([x.network for x in layers], [jobs[p][1] for p in remote], [x.weight for x in layers])
        for place, values in zip(remote, found, strict=True):
            results[place] = values
    under_way = sharing.current()
    for (simulate, _, _), places in together.items():
        layers = [jobs[p][0] for p in places]
        given = [(jobs[p][1], jobs[p][0].groups) for p in places]
        takes_turns = isinstance(simulate, Simulator) and all(x is given[0][0] for x, _ in given)
        if takes_turns:  # query, key and value of the same tokens
            given = given[:1]
        inputs = _join([x.unflatten(-1, (groups, -1)) for x, groups in given], dim=-2)
        if under_way is not None and isinstance(simulate, Simulator) and simulate.shares:
            values = simulate.with_prepared(inputs, under_way.coefficients(simulate, layers))
        else:
            values = simulate(inputs, _join([layer.weight.view(layer.groups, -1) for layer in layers], dim=0))
        parts = values.split([layer.groups for layer in layers], dim=-2) if len(layers) > 1 else [values]
        for place, part in zip(places, parts, strict=True):
            results[place] = part.flatten(-2)
    return [
        values if layer.replacement is None else layer.replacement(values, inputs)
        for (layer, inputs), values in zip(jobs, results, strict=True)
        if values is not None
    ]


def _join(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=dim)


def _count(jobs: list[tuple[QuantumLayer, Tensor]]) -> None:
    """Let each backend know of the round it would have been asked for; its simulator evaluates it."""
    for backend in dict.fromkeys(layer.backend for layer, _ in jobs):
        own = [(layer, x) for layer, x in jobs if layer.backend is backend]
        circuits = sum(x[..., 0].numel() * layer.groups * backend.circuits_for(layer.template) for layer, x in own)
        backend.begin_round(circuits, [layer.network.tag for layer, _ in own])

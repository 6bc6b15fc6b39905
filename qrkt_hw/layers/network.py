"""A template on a backend as Qiskit Machine Learning's NeuralNetwork."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit_machine_learning.neural_networks import NeuralNetwork

from qrkt_hw.backends import Backend, Call
from qrkt_hw.circuits.template import CircuitTemplate
from qrkt_hw.layers.gradients import Wanted, rule_of, simulated_jacobian


class TemplateNetwork(NeuralNetwork):
    """``groups`` copies of a template side by side, each with its own weights.

    Inputs ``(samples, groups * inputs)``, weights ``(groups * weights,)``, outputs ``(samples, groups * observables)``;
    group g owns the g-th slice of each. Works under the stock ``TorchConnector``.
    """

    def __init__(self, template: CircuitTemplate, backend: Backend, groups: int = 1, tag: str = "") -> None:
        self.template = template
        self.backend = backend
        self.groups = groups
        self.tag = tag
        super().__init__(
            num_inputs=groups * template.num_inputs,
            num_weights=groups * template.num_weights,
            sparse=False,
            output_shape=groups * template.num_outputs,
            input_gradients=True,
        )

    @property
    def outputs(self) -> int:
        """Size of the last axis of the result."""
        return self.groups * self.template.num_outputs

    def call(self, inputs: NDArray[np.float64], weights: NDArray[np.float64]) -> Call:
        """The call that evaluates ``inputs (samples, groups * inputs)``; its values are ``(samples, groups, ...)``."""
        samples = inputs.shape[0]
        shaped = inputs.reshape(samples, self.groups, self.template.num_inputs)
        sets = np.broadcast_to(weights.reshape(1, self.groups, -1), (samples, self.groups, self.template.num_weights))
        return Call(self.template, np.concatenate([shaped, sets], axis=-1).astype(np.float64), self.tag)

    def _forward(self, input_data: NDArray | None, weights: NDArray | None) -> NDArray:
        assert input_data is not None and weights is not None
        (values,) = self.backend.run([self.call(input_data, weights)])
        return values.reshape(len(input_data), -1)

    def _backward(self, input_data: NDArray | None, weights: NDArray | None) -> tuple[NDArray, NDArray]:
        """Jacobians ``(samples, outputs, inputs)`` and ``(samples, outputs, weights)`` by the backend's rule."""
        assert input_data is not None and weights is not None
        call, wanted = self.call(input_data, weights), Wanted()
        evaluate = self.backend.simulator(self.template, torch.complex128) if self.backend.differentiable else None
        if evaluate is not None:
            jacobian = simulated_jacobian(call, evaluate, wanted)
        else:
            rule = rule_of(self.backend)
            plan = rule.calls(call, wanted)
            jacobian = rule.jacobian(call, wanted, self.backend.run(plan) if plan else [])
        samples, groups, template = len(input_data), self.groups, self.template
        by_input = np.zeros((samples, groups, template.num_outputs, groups, template.num_inputs))
        by_weight = np.zeros((samples, groups, template.num_outputs, groups, template.num_weights))
        own = np.arange(groups)  # a group's outputs depend on its own inputs and weights alone
        by_input[:, own, :, own] = jacobian[..., : template.num_inputs].swapaxes(0, 1)
        by_weight[:, own, :, own] = jacobian[..., template.num_inputs :].swapaxes(0, 1)
        size = groups * template.num_outputs
        return by_input.reshape(samples, size, -1), by_weight.reshape(samples, size, -1)

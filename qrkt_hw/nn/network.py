"""A template on a backend as Qiskit Machine Learning's NeuralNetwork."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit_machine_learning import QiskitMachineLearningError
from qiskit_machine_learning.neural_networks import NeuralNetwork
from torch import Tensor

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends import Backend, Call
from qrkt_hw.compiler import derive
from qrkt_hw.errors import UserError
from qrkt_hw.nn.gradients import Wanted, rule_of, simulated_jacobian
from qrkt_hw.simulator.derived import derived_jacobian, derived_values


class TemplateNetwork(NeuralNetwork):
    """``groups`` copies of a template side by side, each with its own weights.

    Inputs ``(samples, groups * inputs)``, weights ``(groups * weights,)``, outputs ``(samples, groups * observables)``;
    group g owns the g-th slice of each. Works under the stock ``TorchConnector``. Inputs or weights are None for a
    circuit without them.

    Args:
        template: the circuit. Angles that are no linear functions of its parameters, such as those of
            ``zz_feature_map``, become derived inputs: ``evaluated`` is what runs.
        backend: where.
        groups: copies.
        tag: what calls are for.
        input_gradients: whether ``backward`` differentiates by the inputs; the stock ``TorchConnector`` needs it
            wherever something trainable stands before it. Without, no circuit is run for them.

    Raises:
        UserError: the template cannot be evaluated.
    """

    def __init__(
        self,
        template: CircuitTemplate,
        backend: Backend,
        groups: int = 1,
        tag: str = "",
        input_gradients: bool = True,
    ) -> None:
        try:
            self.derived = derive(template)
        except ValueError as error:
            raise UserError(f"ansatz {template.name!r} cannot be simulated: {error}") from error
        self.template = template
        self.evaluated = self.derived.template
        self.backend = backend
        self.groups = groups
        self.tag = tag
        super().__init__(
            num_inputs=groups * template.num_inputs,
            num_weights=groups * template.num_weights,
            sparse=False,
            output_shape=groups * template.num_outputs,
            input_gradients=input_gradients,
        )

    @property
    def outputs(self) -> int:
        """Size of the last axis of the result."""
        return self.groups * self.template.num_outputs

    def derive(self, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs ``(..., groups, inputs)`` and weights ``(groups, weights)`` of ``evaluated`` from the template's."""
        return derived_values(self.derived, inputs, weights)

    def call(self, inputs: NDArray[np.float64], weights: NDArray[np.float64]) -> Call:
        """The call for ``evaluated``'s inputs ``(samples, groups * inputs)``, values ``(samples, groups, ...)``."""
        return Call(self.evaluated, self._joined(self.evaluated, inputs, weights), self.tag)

    def _joined(self, template: CircuitTemplate, inputs: NDArray, weights: NDArray) -> NDArray[np.float64]:
        """``(samples, groups, inputs + weights)``."""
        shaped = inputs.reshape(len(inputs), self.groups, template.num_inputs)
        sets = np.broadcast_to(
            weights.reshape(1, self.groups, template.num_weights), (len(inputs), self.groups, template.num_weights)
        )
        return np.concatenate([shaped, sets], axis=-1).astype(np.float64)

    def _values(self, input_data: NDArray | None, weights: NDArray | None) -> NDArray[np.float64]:
        """The template's own parameters ``(samples, groups, inputs + weights)``."""
        for what, found, wanted in (("inputs", input_data, self.num_inputs), ("weights", weights, self.num_weights)):
            size = 0 if found is None else found.shape[-1]
            if size != wanted:
                raise QiskitMachineLearningError(f"ansatz {self.template.name!r} takes {wanted} {what}, not {size}")
        x = np.zeros((1, 0)) if input_data is None else input_data
        return self._joined(self.template, x, np.zeros(0) if weights is None else weights)

    def _forward(self, input_data: NDArray | None, weights: NDArray | None) -> NDArray:
        values = self._values(input_data, weights)
        (found,) = self.backend.run([Call(self.evaluated, self.derived.values(values), self.tag)])
        return found.reshape(len(values), -1)

    def _backward(self, input_data: NDArray | None, weights: NDArray | None) -> tuple[NDArray | None, NDArray | None]:
        """Jacobians ``(samples, outputs, inputs)`` and ``(samples, outputs, weights)`` by the backend's rule.

        The first is None without ``input_gradients``; either is None where there is nothing to differentiate by.
        """
        values = self._values(input_data, weights)
        by_inputs, by_weights = self.input_gradients and self.num_inputs > 0, self.num_weights > 0
        if not (by_inputs or by_weights):
            return None, None
        chain, inner = None, self.evaluated.num_inputs
        wanted = Wanted(by_inputs, by_weights)
        if not self.derived.trivial:
            chain = derived_jacobian(self.derived, values)
            held = self.template.num_inputs  # a derived input may hold a weight, such as w in x * w
            mixed = bool((chain[..., :inner, held:] != 0).any())
            wanted = Wanted(by_inputs or mixed, by_weights)
        call = Call(self.evaluated, self.derived.values(values), self.tag)
        evaluate = self.backend.simulator(self.evaluated, torch.complex128) if self.backend.differentiable else None
        if evaluate is not None:
            jacobian = simulated_jacobian(call, evaluate, wanted)
        else:
            rule = rule_of(self.backend)
            plan = rule.calls(call, wanted)
            jacobian = rule.jacobian(call, wanted, self.backend.run(plan) if plan else [])
        if chain is not None:
            jacobian = jacobian @ chain
        samples, groups, template = len(values), self.groups, self.template
        spread = [np.zeros((samples, groups, template.num_outputs, groups, n)) for n in
                  (template.num_inputs, template.num_weights)]  # fmt: skip
        own = np.arange(groups)  # a group's outputs depend on its own inputs and weights alone
        spread[0][:, own, :, own] = jacobian[..., : template.num_inputs].swapaxes(0, 1)
        spread[1][:, own, :, own] = jacobian[..., template.num_inputs :].swapaxes(0, 1)
        shapes = [(samples, self.outputs, n) for n in (self.num_inputs, self.num_weights)]
        return (
            spread[0].reshape(shapes[0]) if by_inputs else None,
            spread[1].reshape(shapes[1]) if by_weights else None,
        )

"""The exact simulator as a backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.base import Call, Gradient, LocalBackend, TensorFunction
from qrkt_hw.errors import UserError
from qrkt_hw.simulator import simulator

# (batch, groups, inputs), (groups, weights) -> (batch, groups, rows)
Evaluate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class ExactBackend(LocalBackend):
    """Exact expectation values by the torch simulator; layers differentiate straight through it.

    Args:
        device: ``cpu``, ``cuda``, or ``auto``: layers compute where their tensors are, ``run`` on CUDA where there is
            one.
        gradient: ``adjoint`` differentiates the simulator; the others evaluate as a sampling backend would.

    Raises:
        UserError: ``cuda`` where torch sees no GPU.
    """

    kind = "exact simulator"

    def __init__(self, name: str, device: str = "auto", gradient: Gradient = "adjoint") -> None:
        super().__init__(name)
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                f"backend {name!r}: device is 'cuda', but torch sees no GPU here; device: auto or cpu works"
            )
        self.device = device
        self.gradient = gradient
        self.differentiable = gradient == "adjoint"

    def simulator(
        self, template: CircuitTemplate, dtype: torch.dtype = torch.complex64, method: str = "auto"
    ) -> TensorFunction:
        function = simulator(template, dtype, method)
        return function if self.device == "auto" else OnDevice(function, self.device)

    def about(self) -> dict[str, Any]:
        return {**super().about(), "device": self._device()}

    def _device(self) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def _evaluate(self, call: Call) -> NDArray[np.float64]:
        function = simulator(call.template, torch.complex128)
        return evaluate_by_weights(call, function, call.template.num_outputs, self._device())


class OnDevice:
    """A tensor function that computes on one device and returns where its input was."""

    def __deepcopy__(self, memo: dict) -> OnDevice:
        return self

    def __init__(self, function: TensorFunction, device: str) -> None:
        self.function, self.device = function, device

    @property
    def method(self) -> str:
        return self.function.method

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        return self.function(inputs.to(self.device), weights.to(self.device)).to(inputs.device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OnDevice) and (self.function, self.device) == (other.function, other.device)

    def __hash__(self) -> int:
        return hash((self.function, self.device))


def evaluate_by_weights(call: Call, evaluate: Evaluate, rows: int, device: str = "cpu") -> NDArray[np.float64]:
    """Values ``(samples, rows)`` of a call by a function that takes one weight set per group."""
    inputs_wide = call.template.num_inputs
    flat = np.ascontiguousarray(call.values, dtype=np.float64).reshape(call.samples, -1)
    sets, which = _weight_sets(flat[:, inputs_wide:])
    order = np.argsort(which, kind="stable")
    counts = np.bincount(which, minlength=len(sets))
    result = np.empty((len(flat), rows))
    with torch.no_grad():
        starts = np.cumsum(counts) - counts
        for count in np.unique(counts):  # weight sets with equally many samples go together
            alike = np.flatnonzero(counts == count)
            places, weights = order[starts[alike, None] + np.arange(count)], sets[alike]
            inputs = torch.from_numpy(flat[places.T, :inputs_wide]).to(device)
            values = evaluate(inputs, torch.from_numpy(np.ascontiguousarray(weights)).to(device))
            result[places.T] = values.cpu().numpy()
    return result


def _weight_sets(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    if weights.shape[1] == 0:
        return weights[:1], np.zeros(len(weights), dtype=np.intp)
    rows = np.ascontiguousarray(weights).view(np.dtype((np.void, weights.itemsize * weights.shape[1]))).ravel()
    _, first, which = np.unique(rows, return_index=True, return_inverse=True)
    return weights[first], which.reshape(-1)

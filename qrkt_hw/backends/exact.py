"""The exact simulator as a backend."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.base import Call, LocalBackend, TensorFunction
from qrkt_hw.errors import UserError
from qrkt_hw.simulator import simulator

Evaluate = Callable[[Tensor, Tensor], Tensor]  # (batch, groups, inputs), (groups, weights) -> (batch, groups, rows)


class ExactBackend(LocalBackend):
    """Exact expectation values by the torch simulator; layers differentiate straight through it.

    On the device ``auto`` layers compute where their tensors are, :meth:`run` on CUDA where there is one. The gradient
    ``adjoint`` differentiates the simulator; the others evaluate as a sampling backend would. Raises UserError:
    ``cuda`` where torch sees no GPU.
    """

    kind = "exact simulator"

    def __init__(self, name: str, device: str = "auto") -> None:
        super().__init__(name)
        if device == "cuda" and not torch.cuda.is_available():
            why = "device is 'cuda', but torch sees no GPU here; device: auto or cpu works"
            raise UserError(f"backend {name!r}: {why}")
        self.device = device

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        return self.gradient == "adjoint"

    def simulator(
        self, template: CircuitTemplate, dtype: torch.dtype = torch.complex64, method: str = "auto"
    ) -> TensorFunction:
        function = simulator(template, dtype, method)
        return function if self.device == "auto" else OnDevice(function, self.device)

    def about(self) -> dict[str, Any]:
        return {**super().about(), "device": self._device()}

    def _device(self) -> str:
        if self.device != "auto":
            return self.device  # without a question to a driver
        return "cuda" if torch.cuda.is_available() else "cpu"

    def _evaluate(self, call: Call) -> NDArray[np.float64]:
        function = simulator(call.template, torch.complex128)
        return evaluate_by_weights(call, function, call.template.num_outputs, self._device())


@dataclass(frozen=True)
class OnDevice:
    """A tensor function that computes on one device and returns where its input was."""

    function: TensorFunction
    device: str

    def __deepcopy__(self, memo: dict) -> Self:
        return self

    @property
    def method(self) -> str:
        return self.function.method

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        return self.function(inputs.to(self.device), weights.to(self.device)).to(inputs.device)


def evaluate_by_weights(call: Call, evaluate: Evaluate, outputs: int, device: str = "cpu") -> NDArray[np.float64]:
    """Values ``(samples, outputs)`` of a call by a function that takes one weight set per group."""
    inputs_wide = call.template.num_inputs
    flat = np.ascontiguousarray(call.values, dtype=np.float64).reshape(call.samples, -1)
    every = np.ascontiguousarray(flat[:, inputs_wide:])
    wide = np.dtype((np.void, every.itemsize * every.shape[1]))
    rows = every.view(wide).ravel() if every.shape[1] else np.zeros(len(flat))
    _, first, which = np.unique(rows, return_index=True, return_inverse=True)
    sets, which = every[first], which.reshape(-1)
    order = np.argsort(which, kind="stable")
    counts = np.bincount(which, minlength=len(sets))
    result = np.empty((len(flat), outputs))
    with torch.no_grad():
        starts = np.cumsum(counts) - counts
        for count in np.unique(counts):  # weight sets with equally many samples go together
            alike = np.flatnonzero(counts == count)
            places = order[starts[alike, None] + np.arange(count)].T
            inputs, weights = torch.from_numpy(flat[places, :inputs_wide]), torch.from_numpy(sets[alike])
            result[places] = evaluate(inputs.to(device), weights.to(device)).cpu().numpy()
    return result

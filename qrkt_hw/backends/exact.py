"""The exact simulator as a backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.base import Call, Gradient, LocalBackend, TensorFunction
from qrkt_hw.backends.grouping import evaluate_by_weights
from qrkt_hw.errors import UserError
from qrkt_hw.simulator import simulator


class ExactBackend(LocalBackend):
    """Exact expectation values by the torch simulator; layers differentiate straight through it.

    Args:
        device: ``cpu``, ``cuda``, or ``auto``: layers compute where their tensors are, ``run`` on CUDA where there is
        one. gradient: ``adjoint`` differentiates the simulator; the others evaluate as a sampling backend would.

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

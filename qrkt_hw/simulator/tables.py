"""Constants of a compiled program, copied to each device once."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Tables:
    """Named constant tensors, by device."""

    def __init__(self) -> None:
        self._made: dict[str, Tensor] = {}
        self._by_device: dict[torch.device, dict[str, Tensor]] = {}

    def add(self, name: str, values: NDArray, dtype: torch.dtype) -> None:
        if not dtype.is_complex and np.iscomplexobj(values):
            values = values.real
        self._made[name] = torch.as_tensor(np.ascontiguousarray(values)).to(dtype)

    def on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._by_device:
            self._by_device[device] = {name: table.to(device) for name, table in self._made.items()}
        return self._by_device[device]


def taking_turns(inputs: Tensor, groups: int) -> Tensor:
    """Inputs ``(batch, fewer groups, inputs)`` repeated to as many groups as there are weight sets."""
    times = groups // max(1, inputs.shape[1])
    return inputs if times == 1 else torch.cat([inputs] * times, dim=1)

"""Splitting a call by weight set, so that what depends on the weights alone is computed once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from qrkt_hw.backends.base import Call

# (batch, groups, inputs), (groups, weights) -> (batch, groups, rows)
Evaluate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


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

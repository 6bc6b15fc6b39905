"""Derivatives on backends that can only be evaluated: which calls to make, and what to make of their values.

``parameter_shift`` is exact up to sampling noise; ``spsa`` takes two evaluations however many parameters there are
(Spall 1992, IEEE Trans. Automatic Control 37, 332); ``adjoint`` differentiates the noiseless simulator, which on a
noisy backend is a biased surrogate: it points where the ideal circuit would improve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qrkt_hw.backends import Backend, Call
from qrkt_hw.compiler import split
from qrkt_hw.simulator import simulator


@dataclass(frozen=True)
class Wanted:
    """Which derivatives are needed."""

    inputs: bool = True
    weights: bool = True


class ParameterShift:
    """The shift rules of every gate parameter, as one broadcast call per layer."""

    def calls(self, call: Call, wanted: Wanted) -> list[Call]:
        """One call with all shifted angles ``(..., evaluations, slots)``; none where no derivative is wanted."""
        parts = split(call.template)
        slots = self._slots(call, wanted)
        if not slots:
            return []
        angles = call.values @ parts.slopes.T + parts.offsets
        steps = []
        for slot in slots:
            for shift in parts.rules[slot].shifts:
                for sign in (1.0, -1.0):
                    step = np.zeros(len(parts.rules))
                    step[slot] = sign * shift
                    steps.append(step)
        return [Call(parts.template, angles[..., None, :] + np.array(steps), f"{call.tag} shifted".strip())]

    def jacobian(self, call: Call, wanted: Wanted, values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """``(..., observables, inputs + weights)``; zero where no derivative was wanted."""
        parts = split(call.template)
        slots = self._slots(call, wanted)
        result = np.zeros((*call.values.shape[:-1], call.template.num_outputs, call.values.shape[-1]))
        if not slots:
            return result
        pairs = values[0][..., 0::2, :] - values[0][..., 1::2, :]
        by_slot = np.zeros((len(slots), pairs.shape[-2]))
        column = 0
        for row, slot in enumerate(slots):
            coefficients = parts.rules[slot].coefficients
            by_slot[row, column : column + len(coefficients)] = coefficients
            column += len(coefficients)
        slopes = parts.slopes[slots]
        if not wanted.inputs:
            slopes = np.concatenate(
                [np.zeros_like(slopes[:, : call.template.num_inputs]), slopes[:, call.template.num_inputs :]], 1
            )
        if not wanted.weights:
            slopes = np.concatenate(
                [slopes[:, : call.template.num_inputs], np.zeros_like(slopes[:, call.template.num_inputs :])], 1
            )
        return np.einsum("...ko,sk,sp->...op", pairs, by_slot, slopes, optimize=True)

    def _slots(self, call: Call, wanted: Wanted) -> list[int]:
        inputs = call.template.num_inputs
        used = np.zeros(call.values.shape[-1], dtype=bool)
        used[:inputs], used[inputs:] = wanted.inputs, wanted.weights
        return [s for s, row in enumerate(split(call.template).slopes) if row[used].any()]


class SPSA:
    """Two evaluations along one random direction; the direction is shared by all samples of the batch.

    Args:
        size: of the step, in radians.
        generator: of the directions.
    """

    def __init__(self, size: float, generator: np.random.Generator) -> None:
        self.size = size
        self.generator = generator
        self.directions: dict[int, NDArray[np.float64]] = {}

    def direction(self, call: Call) -> NDArray[np.float64]:
        """Signs ``(groups..., inputs + weights)``: one per parameter of every weight set, equal along the samples."""
        if id(call) not in self.directions:
            shape = call.values.shape[1:] if call.values.ndim > 1 else call.values.shape
            self.directions[id(call)] = self.generator.choice(np.array([-1.0, 1.0]), size=shape)
        return self.directions[id(call)]

    def calls(self, call: Call, wanted: Wanted) -> list[Call]:
        """One call ``(2, ...)``: the step forwards and backwards along the parameters that are wanted."""
        step = self.size * self._masked(call, wanted)
        both = np.stack([call.values + step, call.values - step])
        return [Call(call.template, both, f"{call.tag} perturbed".strip())]

    def jacobian(self, call: Call, wanted: Wanted, values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """``(..., observables, inputs + weights)``: unbiased up to terms of order ``size^2``."""
        slope = (values[0][0] - values[0][1]) / (2 * self.size)
        return slope[..., :, None] * self._masked(call, wanted)[..., None, :]  # 1/sign is the sign

    def _masked(self, call: Call, wanted: Wanted) -> NDArray[np.float64]:
        signs = self.direction(call).copy()
        inputs = call.template.num_inputs
        signs[..., :inputs] *= wanted.inputs
        signs[..., inputs:] *= wanted.weights
        return signs


class Adjoint:
    """Reverse differentiation of the noiseless simulator; asks nothing of the backend."""

    def calls(self, call: Call, wanted: Wanted) -> list[Call]:
        return []

    def jacobian(self, call: Call, wanted: Wanted, values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """``(..., observables, inputs + weights)``."""
        return simulated_jacobian(call, simulator(call.template, torch.complex128), wanted)


Rule = ParameterShift | SPSA | Adjoint


def rule_of(backend: Backend, generator: np.random.Generator | None = None) -> Rule:
    """The rule a backend is configured for."""
    if backend.gradient == "parameter_shift":
        return ParameterShift()
    if backend.gradient == "spsa":
        return SPSA(backend.perturbation, generator or np.random.default_rng(int(torch.randint(2**31, ()).item())))
    return Adjoint()


def simulated_jacobian(call: Call, evaluate, wanted: Wanted) -> NDArray[np.float64]:
    """``(..., observables, inputs + weights)`` by differentiating a tensor function."""
    template = call.template
    flat = np.asarray(call.values, dtype=np.float64).reshape(call.samples, call.values.shape[-1])
    # one weight set per sample, so that a summed output still has separate derivatives
    features = torch.tensor(flat[:, : template.num_inputs]).requires_grad_(wanted.inputs)
    weights = torch.tensor(flat[:, template.num_inputs :]).requires_grad_(wanted.weights)
    result = np.zeros((call.samples, template.num_outputs, flat.shape[1]))
    parts = [(t, s) for t, s in ((features, slice(0, template.num_inputs)), (weights, slice(template.num_inputs, None)))
             if t.requires_grad]  # fmt: skip
    with torch.enable_grad():  # autograd.Function.backward runs without
        outputs = evaluate(features[None], weights)[0].sum(0).unbind()
    for m, output in enumerate(outputs):
        if not output.requires_grad:
            continue
        slopes = torch.autograd.grad(
            output, [t for t, _ in parts], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for (_, where), slope in zip(parts, slopes, strict=True):
            result[:, m, where] = slope.numpy()
    return result.reshape(*call.values.shape[:-1], template.num_outputs, -1)

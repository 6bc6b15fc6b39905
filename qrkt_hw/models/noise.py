"""Noise at the outputs of circuits: injected in training, and how much of it reaches the logits.

A device estimates the expectation value v of a Pauli string as the mean of ``shots`` outcomes, 1 or -1. Their mean is
d v, damped by readout errors ((1 - 2 p) for each qubit that is read) and by gates, and the estimate has the variance
(1 - (d v)^2) / shots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qrkt_hw.ansatz import CircuitTemplate, by_angles, remembered
from qrkt_hw.backends import Backend
from qrkt_hw.backends.exact import ExactBackend
from qrkt_hw.data import ranks
from qrkt_hw.errors import UserError, flag
from qrkt_hw.models.factory import quantum_layers
from qrkt_hw.nn.quantum import QuantumLayer
from qrkt_hw.runs.config import TrainingConfig

FLOOR = 1e-4  # least variance of an outcome, where values are 1 or -1: the gradient of its root stays finite
TINY = 1e-6  # least norm of features by which values are divided
SPREAD = 0.05  # expected deviation of the damping of one output from that of its layer


@remembered
def strings(template: CircuitTemplate) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Coefficient of each observable, a multiple of one Pauli string, and how many qubits it reads.

    Raises UserError: an observable that is a sum of strings, whose outcomes have no such variance.
    """
    terms = [observable.simplify().to_sparse_list() for observable in template.observables]
    if any(len(one) > 1 for one in terms):
        raise UserError(
            f"ansatz {template.name!r} measures sums of Pauli strings; shot noise is known of single ones only"
        )
    first = [one[0] for one in terms]
    return np.array([c.real for _, _, c in first]), np.array([len(qubits) for _, qubits, _ in first])


def check_strings(model: nn.Module, option: str) -> None:
    """Raises UserError, in terms of ``option``: a circuit measures sums of Pauli strings."""
    for layer in quantum_layers(model):
        try:
            strings(layer.template)
        except UserError as error:
            raise UserError(f"{option}: {error}") from error


def deviation(layer: QuantumLayer, features: Tensor, values: Tensor) -> Tensor:
    """Standard deviation of one shot of each of a layer's values, which it gives of these features."""
    largest, u = _units(layer, features, values)
    return largest * (1 - u.square()).clamp_min(FLOOR).sqrt()


def _units(layer: QuantumLayer, features: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The largest that values can be, 0 where nothing is read, and the values divided by it."""
    coefficients, read = strings(layer.template)
    largest = torch.from_numpy(np.abs(coefficients)).to(values).repeat(layer.groups)
    if layer.network.unary:  # the circuit's values are multiplied by the norm of its features
        norms = features.unflatten(-1, (layer.groups, -1)).norm(dim=-1).to(values)
        largest = largest * norms.repeat_interleave(layer.template.num_outputs, -1)
    reads = torch.from_numpy(read > 0).to(values).repeat(layer.groups)
    return largest * reads, values / largest.clamp_min(TINY)


class OutputNoise:
    """A forward hook of a quantum layer: its values as a device gives them, in training.

    Gradients go through values and deviations (the reparametrisation trick). The random numbers are torch's, and do not
    depend on the number of ranks.

    Args:
        damping: factor on each value; of every output, or one for all.
        shots: of each circuit; None for the limit of many.
        offset: is added to each value, in units of the largest that it can be.
        always: in evaluation mode too.
    """

    def __init__(self, damping: Any = 1.0, shots: float | None = None, offset: Any = 0.0, always: bool = False) -> None:
        self.damping, self.offset = (torch.as_tensor(one, dtype=torch.float64) for one in (damping, offset))
        self.shots, self.always = shots, always

    def __call__(self, layer: Any, given: tuple[Tensor, ...], values: Tensor) -> Tensor:
        if not (layer.training or self.always):
            return values
        largest, _ = _units(layer, given[0], values)
        mean = values * self.damping.to(values) + largest * self.offset.to(values)
        if self.shots is None:
            return mean

        def draw(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, dtype=values.dtype, device=values.device)

        return mean + deviation(layer, given[0], mean) / self.shots**0.5 * ranks.drawn(draw, values.shape)


def add_hooks(model: nn.Module, make: Callable[[QuantumLayer], Any]) -> Callable[[], None]:
    """Give every quantum layer of a model the hook that is made for it; what is returned removes them."""
    handles = [layer.register_forward_hook(make(layer)) for layer in quantum_layers(model)]

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


class Response(NamedTuple):
    """What a device makes of a layer's exact values, in units of the largest that they can be."""

    damping: NDArray[np.float64]  # factor on each output
    offset: NDArray[np.float64]  # added to it
    shots: float  # of which the rest has the variance, whatever makes it

    @classmethod
    def of(cls, layer: QuantumLayer, exact: NDArray[np.float64], found: NDArray[np.float64]) -> Response:
        """The least squares of values that a device found on the exact ones, both ``(samples, outputs)``.

        Outputs that hardly vary say little of their own damping; they are drawn to the layer's.
        """
        size = np.maximum(np.abs(np.tile(strings(layer.template)[0], layer.groups)), TINY)
        u, v = exact / size, found / size
        du, dv = u - u.mean(0), v - v.mean(0)
        squares, products = (du * du).sum(0), (du * dv).sum(0)
        mean = damping = (products.sum() + TINY) / (squares.sum() + TINY)
        for _ in range(2):  # the second time with the variance that the first one left
            rest = float(((dv - damping * du) ** 2).mean())
            weight = rest / SPREAD**2
            damping = (products + weight * mean) / np.maximum(squares + weight, TINY)
        one_shot = float((1 - np.clip(v, -1, 1) ** 2).mean())
        return cls(damping, v.mean(0) - damping * u.mean(0), one_shot / max(rest, one_shot * 1e-9, 1e-12))

    def noise(self) -> OutputNoise:
        """The hook that gives a layer's values in this way, also in evaluation mode."""
        return OutputNoise(self.damping, self.shots, self.offset, always=True)


def training_noise(
    shots: int | None, readout_error: float, device: str | None
) -> Callable[[QuantumLayer], OutputNoise]:
    """Noise of training: shots, and damping by a readout error for each qubit or by a device's calibration."""

    def make(layer: QuantumLayer) -> OutputNoise:
        _, read = strings(layer.template)
        damping = (1 - 2 * readout_error) ** read if device is None else device_damping(layer.template, device)
        return OutputNoise(np.tile(damping, layer.groups), shots)

    return make


@remembered
def device_damping(template: CircuitTemplate, device: str) -> NDArray[np.float64]:
    """Factor by which a device damps each value of a template, by its calibration: the mean over the replicas packed.

    That of a replica is the ESP of the gates in the output's light cone, times 1 - 2 p for each qubit that is read.

    Raises UserError: no such device, or a simulator, which has no calibration.
    """
    from qrkt_hw.backends.device.packing import DeviceBackend
    from qrkt_hw.backends.registry import resolve

    try:
        found = resolve(device, shots=1) if device.startswith("fake_") else resolve(device, strict=True)
    except UserError as error:
        raise UserError(f"--noise-device: {str(error).partition(': ')[2]}") from error
    if not isinstance(found, DeviceBackend):
        way = "name a device, such as fake_torino"
        raise UserError(f"--noise-device: {device} is a simulator, which has no calibration; {way}")
    return calibrated_damping(template, found)[0]


def calibrated_damping(template: CircuitTemplate, backend: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factors by which a device damps each value of a template, and by which its readout alone does: means over the
    replicas packed."""
    from qrkt_hw.backends.device.measurement import bases
    from qrkt_hw.backends.device.transpile import cone_success, failure

    template, target = by_angles(template), backend.target
    damping, by_readout = np.ones((2, template.num_outputs))
    for basis in bases(template):
        group = backend.packer.group(template, basis)
        circuit, measured = group.placed.circuit, group.placed.measured
        for row, _, mask in basis.terms:
            read = [measured[q] for q in range(template.num_qubits) if mask >> q & 1]
            factors, reads = [], []
            for replica in group.replicas:
                (success,) = cone_success(circuit, target, [read], replica.physical)
                right = [np.exp(-failure(target, "measure", [replica.physical[q]])) for q in read]
                factors.append(success * np.prod([(2 * p - 1) / p for p in right]))
                reads.append(np.prod([2 * p - 1 for p in right]))
            damping[row], by_readout[row] = np.mean(factors), np.mean(reads)
    return damping, by_readout


def inject(model: nn.Module, options: TrainingConfig, backend: Backend) -> None:
    """Give a model the noise of its training, where it has some.

    Raises UserError: circuits that torch does not differentiate, whose values are noisy without it, or that measure
    sums of Pauli strings.
    """
    shots, error, device = options.shot_noise, options.readout_error, options.noise_device
    key = "shot_noise" if shots else "readout_error" if error else "noise_device" if device else None
    if key is None or not quantum_layers(model):
        return
    if not backend.differentiable:
        what = f"circuits on {backend.name!r} have the noise of what evaluates them"
        raise UserError(f"{flag(key)}: {what}; leave it out, or take --backend exact")
    if (error or device) and not isinstance(backend, ExactBackend):
        raise UserError(
            f"{flag(key)}: values on {backend.name!r} are damped already; leave it out, or take --backend exact"
        )
    check_strings(model, flag(key))
    add_hooks(model, training_noise(shots, error, device))


def sensitivities(model: nn.Module, inputs: Tensor, stages: Sequence[Sequence[str]]) -> list[float]:
    """For each sequential stage the variance of the margin where its circuits had one shot each, mean over the inputs.

    The margin is the largest logit less the next one; of it the first order counts: the squared Jacobian by every value
    of a stage, times the value's variance.

    Args:
        model: in evaluation mode, on the exact backend.
        inputs: images or texts.
        stages: names of the quantum layers that are called in each stage.
    """
    places = {name: [k for k, stage in enumerate(stages) if name in stage] for stage in stages for name in stage}
    seen: list[tuple[int, Tensor, Tensor]] = []

    def make(layer: QuantumLayer) -> Callable[..., Tensor]:
        turns = iter(places[layer.network.tag])

        def watch(_: nn.Module, given: tuple[Tensor, ...], values: Tensor) -> Tensor:
            moved = torch.zeros_like(values, requires_grad=True)
            seen.append((next(turns), moved, deviation(layer, given[0], values).detach()))
            return values + moved

        return watch

    remove = add_hooks(model, make)
    try:
        with torch.enable_grad():
            first, second = model(inputs).topk(2, -1).values.unbind(-1)
            gradients = torch.autograd.grad((first - second).sum(), [moved for _, moved, _ in seen])
    finally:
        remove()
    found = [0.0] * len(stages)
    for (stage, _, spread), gradient in zip(seen, gradients, strict=True):
        found[stage] += float((gradient * spread).square().sum()) / len(inputs)
    return found


def allocated(sensitivity: Sequence[float], seconds: Sequence[float], shots: int) -> list[int]:
    """Shots of each stage for the least variance of the margin in the time that ``shots`` everywhere would take.

    By Lagrange they are proportional to the root of sensitivity over seconds of a shot, but at least an eighth of
    ``shots``: with very few, the first order says little.
    """
    least, cost = max(1, shots // 8), np.asarray(seconds)
    wanted = np.sqrt(np.asarray(sensitivity) / cost)
    free = np.ones(len(cost), dtype=bool)
    found = np.full(len(cost), float(least))
    while free.any():
        left = shots * cost.sum() - (least * cost[~free]).sum()
        found[free] = left * wanted[free] / max((cost * wanted)[free].sum(), 1e-300)
        low = free & (found < least)
        if not low.any():
            break
        found[low], free = least, free & ~low
    return [int(n) for n in np.floor(found + 1e-9)]

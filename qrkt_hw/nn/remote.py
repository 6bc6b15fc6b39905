"""Circuits on backends that torch cannot differentiate: values as one circuit batch, gradients by the backend's rule.

``parameter_shift`` is exact up to sampling noise; ``spsa`` takes two evaluations however many parameters there are
(Spall 1992, IEEE Trans. Automatic Control 37, 332); ``adjoint`` differentiates the noiseless simulator, which on a
noisy backend is a biased surrogate: it points where the ideal circuit would improve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qrkt_hw.backends import Backend, Call
from qrkt_hw.backends.base import TensorFunction
from qrkt_hw.compiler import split
from qrkt_hw.simulator import simulator, traced
from qrkt_hw.simulator.subspace import linear_map

if TYPE_CHECKING:
    from qrkt_hw.nn.quantum import TemplateNetwork


@dataclass(frozen=True)
class Wanted:
    """Which derivatives are needed."""

    inputs: bool = True
    weights: bool = True

    def __bool__(self) -> bool:
        return self.inputs or self.weights

    def columns(self, call: Call) -> NDArray[np.float64]:
        """1 for each parameter of the call by which to differentiate, 0 for the others."""
        template = call.template
        return np.repeat([float(self.inputs), float(self.weights)], [template.num_inputs, template.num_weights])


class ParameterShift:
    """The shift rules of every gate parameter, as one broadcast call per layer."""

    def calls(self, call: Call, wanted: Wanted) -> list[Call]:
        """One call with all shifted angles ``(..., evaluations, slots)``; none where no derivative is wanted."""
        parts = split(call.template)
        angles, units = call.values @ parts.jacobian.T + parts.offsets, np.eye(len(parts.rules))
        steps = [
            sign * shift * units[slot]
            for slot in self._slots(call, wanted)
            for shift in parts.rules[slot].shifts
            for sign in (1.0, -1.0)
        ]
        shifted = f"{call.tag} shifted".strip()
        return [Call(parts.template, angles[..., None, :] + np.array(steps), shifted)] if steps else []

    def jacobian(self, call: Call, wanted: Wanted, values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """``(..., observables, inputs + weights)``; zero where no derivative was wanted."""
        parts, slots = split(call.template), self._slots(call, wanted)
        if not slots:
            return np.zeros((*call.values.shape[:-1], call.template.num_outputs, call.values.shape[-1]))
        columns = wanted.columns(call)
        chain = np.concatenate([np.outer(parts.rules[s].coefficients, parts.jacobian[s] * columns) for s in slots])
        return np.einsum("...ko,kp->...op", values[0][..., 0::2, :] - values[0][..., 1::2, :], chain, optimize=True)

    def _slots(self, call: Call, wanted: Wanted) -> list[int]:
        used = wanted.columns(call) > 0
        return [s for s, row in enumerate(split(call.template).jacobian) if row[used].any()]


class SPSA:
    """Two evaluations of a call along one random direction, which all samples of the batch share.

    Args:
        size: of the step, in radians.
        generator: of the direction.

    Attributes:
        signs: the direction ``(groups..., inputs + weights)``: one for each parameter of every weight set.
    """

    def __init__(self, size: float, generator: np.random.Generator) -> None:
        self.size = size
        self.generator = generator
        self.signs: NDArray[np.float64] | None = None

    def direction(self, call: Call) -> NDArray[np.float64]:
        """The direction of the call; drawn once."""
        if self.signs is None:
            shape = call.values.shape[1:] if call.values.ndim > 1 else call.values.shape
            self.signs = self.generator.choice(np.array([-1.0, 1.0]), size=shape)
        return self.signs

    def calls(self, call: Call, wanted: Wanted) -> list[Call]:
        """One call ``(2, ...)``: the step forwards and backwards along the parameters that are wanted."""
        step = self.size * self.direction(call) * wanted.columns(call)
        return [
            Call(call.template, np.stack([call.values + step, call.values - step]), f"{call.tag} perturbed".strip())
        ]

    def jacobian(self, call: Call, wanted: Wanted, values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """``(..., observables, inputs + weights)``: unbiased up to terms of order ``size^2``."""
        derivative = (values[0][0] - values[0][1]) / (2 * self.size)
        signs = self.direction(call) * wanted.columns(call)
        return derivative[..., :, None] * signs[..., None, :]  # 1/sign is the sign


class Adjoint:
    """Reverse differentiation of the noiseless simulator; asks nothing of the backend."""

    def calls(self, call: Call, wanted: Wanted) -> list[Call]:
        return []

    def jacobian(self, call: Call, wanted: Wanted, values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """``(..., observables, inputs + weights)``."""
        return simulated_jacobian(call, simulator(call.template, torch.complex128), wanted)

    def product(self, call: Call, cotangent: NDArray[np.float64]) -> NDArray[np.float64]:
        """The cotangent's product with the Jacobian, ``(samples, groups, inputs + weights)``, of one weight set."""
        inputs = call.template.num_inputs
        features = torch.tensor(call.values[..., :inputs]).requires_grad_()
        weights = torch.tensor(call.values[0, :, inputs:]).requires_grad_()
        with torch.enable_grad():
            values = simulator(call.template, torch.complex128)(features, weights)
            by_inputs, by_weights = torch.autograd.grad(
                values, (features, weights), torch.tensor(cotangent), allow_unused=True, materialize_grads=True
            )
        # the weights are one set for all samples: their gradient is already the sum, kept in the first sample's place
        spread = np.zeros((*call.values.shape[:-1], weights.shape[-1]))
        spread[0] = by_weights.numpy()
        return np.concatenate([by_inputs.numpy(), spread], axis=-1)


Rule = ParameterShift | SPSA | Adjoint


def rule_of(backend: Backend, generator: np.random.Generator | None = None) -> Rule:
    """The gradient rule of one call that a backend is configured for."""
    if backend.gradient == "parameter_shift":
        return ParameterShift()
    if backend.gradient == "spsa":
        return SPSA(backend.perturbation, generator or np.random.default_rng(int(torch.randint(2**31, ()).item())))
    return Adjoint()


def jacobian(call: Call, backend: Backend, wanted: Wanted) -> NDArray[np.float64]:
    """``(..., observables, inputs + weights)`` as the backend differentiates; zero where no derivative is wanted."""
    evaluate = backend.simulator(call.template, torch.complex128) if backend.differentiable else None
    if evaluate is not None:
        return simulated_jacobian(call, evaluate, wanted)
    rule = rule_of(backend)
    plan = rule.calls(call, wanted)
    return rule.jacobian(call, wanted, backend.run(plan) if plan else [])


def of_groups(part: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Jacobians ``(*shape, groups * size)`` from each group's own, ``(samples, groups, outputs, size)``."""
    samples, groups, outputs, size = part.shape
    own = np.arange(groups)  # a group's outputs depend on its own inputs and weights alone
    found = np.zeros((samples, groups, outputs, groups, size))
    found[:, own, :, own] = part.swapaxes(0, 1)
    return found.reshape(*shape, groups * size)


def simulated_jacobian(call: Call, evaluate: TensorFunction, wanted: Wanted) -> NDArray[np.float64]:
    """``(..., observables, inputs + weights)`` by differentiating a tensor function."""
    inputs, outputs = call.template.num_inputs, call.template.num_outputs
    flat = torch.tensor(call.values).reshape(call.samples, call.values.shape[-1])
    # one weight set per sample, so that a summed output still has separate derivatives
    features = flat[:, :inputs].clone().requires_grad_(wanted.inputs)
    weights = flat[:, inputs:].clone().requires_grad_(wanted.weights)
    result = torch.zeros(call.samples, outputs, flat.shape[1], dtype=flat.dtype)
    parts = [(t, s) for t, s in ((features, result[..., :inputs]), (weights, result[..., inputs:])) if t.requires_grad]
    with torch.enable_grad():  # autograd.Function.backward runs without
        values = evaluate(features[None], weights)[0].sum(0).unbind()
    for m, value in enumerate(values):
        if value.requires_grad:
            given = [t for t, _ in parts]
            found = torch.autograd.grad(value, given, retain_graph=True, allow_unused=True, materialize_grads=True)
            for (_, place), gradient in zip(parts, found, strict=True):
                place[:, m] = gradient
    return result.numpy().reshape(*call.values.shape[:-1], outputs, -1)


def run_batch(networks: Sequence[TemplateNetwork], inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Values ``(..., groups * observables)`` of independent networks, by one ``Backend.run`` for each backend.

    Args:
        networks: independent of each other.
        inputs: of their templates, ``(..., groups, inputs)`` each.
        weights: ``(groups, weights)`` each. Values have the dtype that torch promotes inputs and weights to.

    Raises:
        TypeError: complex inputs or weights.
        ValueError: inputs or weights that are not finite: no device takes them.
        RuntimeError: under ``torch.func``, tracing or fake tensors.
    """
    names = _names(networks)
    if traced(*inputs, *weights) or any(t.is_meta for t in (*inputs, *weights)):
        raise RuntimeError(
            f"circuits on {names} are asked for in numbers, which torch.func, tracing, meta and fake tensors cannot "
            "follow; take the exact backend there"
        )
    derived = [network.derive(x, w) for network, x, w in zip(networks, inputs, weights, strict=True)]
    for tensor in (t for pair in derived for t in pair):
        if tensor.is_complex():
            raise TypeError(f"inputs and weights of circuits are real angles, not {tensor.dtype}")
        if not tensor.isfinite().all():
            raise ValueError(f"inputs and weights of circuits on {names} must be finite numbers; NaN or inf was found")
    # the angles of a unary encoding are not differentiated: they are singular at 0
    given = (x.detach() if network.unary else x for network, (x, _) in zip(networks, derived, strict=True))
    found = _Batch.apply(tuple(networks), *given, *(w for _, w in derived))
    return [
        network.outputs_of(_decoded(network, v, x, w)).to(torch.promote_types(x.dtype, w.dtype))
        for network, v, x, w in zip(networks, found, inputs, weights, strict=True)
    ]


def _decoded(network: TemplateNetwork, values: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """Values of features from those of the circuits.

    Those after a unary encoding are multiplied by the norm of the features; their gradient by the features is that of
    the exact matrix of the weights.
    """
    if not network.unary:
        return values
    x = x.double()  # norms of whole numbers or in half precision; autocast leaves it alone
    scaled = (values.unflatten(-1, (network.groups, -1)) * x.detach().norm(dim=-1, keepdim=True)).flatten(-2)
    if not (x.requires_grad and torch.is_grad_enabled()):
        return scaled
    # adds 0, and the gradient by x: a function of w, as gradient penalties need it
    return scaled + torch.einsum("goi,...gi->...go", linear_map(network.template, w), x - x.detach()).flatten(-2)


class _Batch(torch.autograd.Function):
    """Forward on the backend in double precision; backward a vector-Jacobian product by the backend's gradient rule.

    Only derivatives that are needed are evaluated, and those of all networks go together as one batch. Values come back
    in the dtype that torch promotes input and weight to, so that an input of whole numbers does not cut them; gradients
    in that of their tensor. It is not twice differentiable, and says so.
    """

    @staticmethod
    def forward(ctx: Any, networks: tuple[TemplateNetwork, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        pairs = list(zip(tensors[: len(networks)], tensors[len(networks) :], strict=True))
        calls = [
            network.call(network.parameters(_numpy(x).reshape(x.shape[:-2].numel(), *x.shape[-2:]), _numpy(w)))
            for network, (x, w) in zip(networks, pairs, strict=True)
        ]
        ctx.networks, ctx.calls = networks, calls
        ctx.save_for_backward(*tensors)
        values = _run([(network.backend, call) for network, call in zip(networks, calls, strict=True)])
        return tuple(
            torch.as_tensor(
                v.reshape(*x.shape[:-2], network.groups * network.template.num_outputs),
                dtype=torch.promote_types(x.dtype, w.dtype),
                device=x.device,
            )
            for v, network, (x, w) in zip(values, networks, pairs, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: a gradient penalty would silently be taken for a constant
            names = _names(ctx.networks)
            raise RuntimeError(
                f"circuits on {names} are not twice differentiable; train on exact for gradient penalties"
            )
        count, tensors, needs = len(ctx.networks), ctx.saved_tensors, ctx.needs_input_grad[1:]
        wanted = [Wanted(needs[k], needs[count + k]) for k in range(count)]
        rules = [rule_of(network.backend) for network in ctx.networks]
        plans = [rule.calls(call, w) if w else [] for rule, call, w in zip(rules, ctx.calls, wanted, strict=True)]
        flat = [(network.backend, call) for network, plan in zip(ctx.networks, plans, strict=True) for call in plan]
        values = iter(_run(flat))
        gradients: list[Tensor | None] = [None] * len(tensors)
        for k, (rule, call, plan) in enumerate(zip(rules, ctx.calls, plans, strict=True)):
            found = [next(values) for _ in plan]
            if not wanted[k]:
                continue
            if call.samples:
                cotangent = _numpy(cotangents[k]).reshape(*call.values.shape[:-1], call.template.num_outputs)
                if isinstance(rule, Adjoint):
                    product = rule.product(call, cotangent)
                else:
                    product = np.einsum("...o,...op->...p", cotangent, rule.jacobian(call, wanted[k], found))
            else:
                product = np.zeros(call.values.shape)
            inputs = call.template.num_inputs
            if wanted[k].inputs:
                gradients[k] = _like(product[..., :inputs], tensors[k])
            if wanted[k].weights:
                gradients[count + k] = _like(product[..., inputs:].sum(0), tensors[count + k])
        return None, *gradients


def _run(calls: Sequence[tuple[Backend, Call]]) -> list[NDArray[np.float64]]:
    """Values of all calls, in order: one ``run`` for each backend among them."""
    values: dict[int, NDArray[np.float64]] = {}
    for backend in dict.fromkeys(backend for backend, _ in calls):
        places = [k for k, (other, _) in enumerate(calls) if other is backend]
        values |= zip(places, backend.run([calls[k][1] for k in places]), strict=True)
    return [values[k] for k in range(len(calls))]


def _names(networks: Sequence[TemplateNetwork]) -> str:
    return ", ".join(sorted({network.backend.name for network in networks}))


def _numpy(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()


def _like(values: NDArray[np.float64], tensor: Tensor) -> Tensor:
    return torch.as_tensor(values.reshape(tensor.shape), dtype=tensor.dtype, device=tensor.device)

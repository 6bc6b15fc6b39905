"""Several layers evaluated as one round on a backend that torch cannot differentiate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qrkt_hw.backends import Backend, Call
from qrkt_hw.nn.gradients import Adjoint, Wanted, rule_of
from qrkt_hw.nn.network import TemplateNetwork
from qrkt_hw.simulator import native, simulator


def run_round(networks: Sequence[TemplateNetwork], inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Values ``(..., groups * observables)`` of each network, by one ``Backend.run`` per backend.

    Args:
        networks: independent of each other.
        inputs: ``(..., groups * inputs)`` each.
        weights: ``(groups * weights,)`` each. Values have the dtype that torch promotes inputs and weights to.

    Raises:
        TypeError: complex inputs or weights.
        ValueError: inputs or weights that are not finite: no device takes them.
        RuntimeError: under ``torch.func``, tracing or fake tensors.
    """
    names = ", ".join(sorted({network.backend.name for network in networks}))
    if native.traced(*inputs, *weights):
        raise RuntimeError(
            f"circuits on {names} are asked for in numbers, which torch.func, tracing and fake tensors cannot follow; "
            "take the exact backend there"
        )
    for tensor in (*inputs, *weights):
        if tensor.is_complex():
            raise TypeError(f"inputs and weights of circuits are real angles, not {tensor.dtype}")
        if not tensor.isfinite().all():
            raise ValueError(f"inputs and weights of circuits on {names} must be finite numbers; NaN or inf was found")
    return list(_Round.apply(tuple(networks), *inputs, *weights))


class _Round(torch.autograd.Function):
    """Forward on the backend in double precision; backward a vector-Jacobian product by the backend's gradient rule.

    Only derivatives that are needed are evaluated, and those of all layers go together as one round. Values come back
    in the dtype that torch promotes input and weight to, so that an input of whole numbers does not cut them; gradients
    in that of their tensor. It is not twice differentiable, and says so.
    """

    @staticmethod
    def forward(ctx: Any, networks: tuple[TemplateNetwork, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, weights = tensors[: len(networks)], tensors[len(networks) :]
        calls = [
            network.call(_numpy(x).reshape(-1, x.shape[-1]), _numpy(w))
            for network, x, w in zip(networks, inputs, weights, strict=True)
        ]
        ctx.networks, ctx.calls = networks, calls
        ctx.save_for_backward(*tensors)
        values = run_together([n.backend for n in networks], calls)
        return tuple(
            torch.as_tensor(
                v.reshape(*x.shape[:-1], n.outputs), dtype=torch.promote_types(x.dtype, w.dtype), device=x.device
            )
            for v, x, w, n in zip(values, inputs, weights, networks, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: a gradient penalty would silently be taken for a constant
            names = ", ".join(sorted({network.backend.name for network in ctx.networks}))
            raise RuntimeError(
                f"circuits on {names} are not twice differentiable; train on exact for gradient penalties"
            )
        count, tensors = len(ctx.networks), ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        wanted = [Wanted(needs[k], needs[count + k]) for k in range(count)]
        rules = [rule_of(network.backend) for network in ctx.networks]
        plans = [
            rule.calls(call, w) if w.inputs or w.weights else []
            for rule, call, w in zip(rules, ctx.calls, wanted, strict=True)
        ]
        flat = [(network.backend, call) for network, plan in zip(ctx.networks, plans, strict=True) for call in plan]
        values = iter(run_together([b for b, _ in flat], [c for _, c in flat]) if flat else [])
        gradients: list[Tensor | None] = [None] * len(tensors)
        for k, (rule, call, plan) in enumerate(zip(rules, ctx.calls, plans, strict=True)):
            found = [next(values) for _ in plan]
            if not (wanted[k].inputs or wanted[k].weights):
                continue
            if not call.samples:
                for place, needed in ((k, wanted[k].inputs), (count + k, wanted[k].weights)):
                    gradients[place] = torch.zeros_like(tensors[place]) if needed else None
                continue
            cotangent = _numpy(cotangents[k]).reshape(*call.values.shape[:-1], call.template.num_outputs)
            if isinstance(rule, Adjoint):
                product = _adjoint_product(call, cotangent)
            else:
                product = np.einsum("...o,...op->...p", cotangent, rule.jacobian(call, wanted[k], found))
            inputs = call.template.num_inputs
            if wanted[k].inputs:
                gradients[k] = _like(product[..., :inputs], tensors[k])
            if wanted[k].weights:
                gradients[count + k] = _like(product[..., inputs:].sum(0), tensors[count + k])
        return None, *gradients


def run_together(backends: Sequence[Backend], calls: Sequence[Call]) -> list[NDArray[np.float64]]:
    """Values of all calls, in order: one ``run`` for each backend among them."""
    values: list[NDArray[np.float64] | None] = [None] * len(calls)
    for backend in dict.fromkeys(backends):
        places = [k for k, b in enumerate(backends) if b is backend]
        for k, value in zip(places, backend.run([calls[k] for k in places]), strict=True):
            values[k] = value
    return [v for v in values if v is not None]


def _adjoint_product(call: Call, cotangent: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(samples, groups, inputs + weights)`` by reverse differentiation of the noiseless simulator."""
    inputs = call.template.num_inputs
    features = torch.tensor(call.values[..., :inputs]).requires_grad_()
    weights = torch.tensor(
        call.values[0, :, inputs:] if len(call.values) else np.zeros((call.values.shape[1], 0))
    ).requires_grad_()
    with torch.enable_grad():
        values = simulator(call.template, torch.complex128)(features, weights)
        by_inputs, by_weights = torch.autograd.grad(
            values, (features, weights), torch.tensor(cotangent), allow_unused=True, materialize_grads=True
        )
    # the weights are one set for all samples: their gradient is already the sum, kept in the first sample's place
    spread = np.zeros((*call.values.shape[:-1], weights.shape[-1]))
    spread[0] = by_weights.numpy()
    return np.concatenate([by_inputs.numpy(), spread], axis=-1)


def _numpy(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()


def _like(values: NDArray[np.float64], tensor: Tensor) -> Tensor:
    return torch.as_tensor(values.reshape(tensor.shape), dtype=tensor.dtype, device=tensor.device)

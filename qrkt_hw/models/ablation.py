"""Classical stand-ins for circuits: replaced outputs in a trained model, and trainable layers of the same structure."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qrkt_hw.ansatz import CircuitTemplate, remembered
from qrkt_hw.errors import UserError
from qrkt_hw.nn.quantum import QuantumLayer
from qrkt_hw.simulator.analysis import cones
from qrkt_hw.simulator.subspace import linear_map

# values (..., outputs) and features (..., features) to replaced values (..., outputs)
Replacement = Callable[[Tensor, Tensor], Tensor]


def batch_mean(values: Tensor, features: Tensor) -> Tensor:
    """Every output is its mean over batch and tokens: nothing of the input passes the circuit."""
    return values.mean(dim=tuple(range(values.ndim - 1)), keepdim=True).expand_as(values)


def sine(values: Tensor, features: Tensor) -> Tensor:
    """The sine of the feature with the same place: an element-wise function without any circuit."""
    if features.shape != values.shape:
        raise UserError("--ablate: sine needs circuits with as many outputs as inputs")
    return torch.sin(features)


REPLACEMENTS: dict[str, Replacement] = {"batch-mean": batch_mean, "sine": sine}


@contextmanager
def ablated(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """Within the context every quantum layer of ``model`` gives the replaced output.

    Args:
        model: any model with quantum layers.
        name: a key of :data:`REPLACEMENTS`.

    Raises UserError: the model has no circuits.
    """
    layers = [m for m in model.modules() if isinstance(m, QuantumLayer)]
    if not layers:
        raise UserError("--ablate: this model has no circuits")
    replace = REPLACEMENTS[name]
    handles = [m.register_forward_hook(lambda _, given, values: replace(values, given[0])) for m in layers]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


SAME, ELEMENTWISE, BLOCKS = "same matrix", "element-wise", "block-diagonal"


@dataclass(frozen=True)
class Structure:
    """A trainable classical layer with the structure of a circuit.

    Attributes:
        kind: ``same matrix``: the circuit is linear in its features, and this is the same product with the same matrix
            of its angles; ``element-wise``: every output depends on one feature, and this is a Fourier series of it;
            ``block-diagonal``: a linear layer for the features of each circuit.
        features, outputs: of a circuit.
        parameters: of the layer, for each circuit.
        weights: angles of the circuit.
        read: of an element-wise layer, the feature of each output.
    """

    kind: str
    features: int
    outputs: int
    parameters: int
    weights: int
    read: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}, {self.features} features"

    @property
    def difference(self) -> str:
        """What distinguishes the layer from the circuit, in a sentence."""
        if self.kind == SAME:
            return (
                "identical by construction: the circuit multiplies its features by a matrix of its angles, and the "
                "classical layer is the same product, so there is nothing to train"
            )
        counts = f"{self.parameters} parameters for the {self.weights} angles of each circuit"
        if self.kind == ELEMENTWISE:
            return (
                f"each output of the circuit depends on one feature; the classical layer is a Fourier series of that "
                f"feature ({counts}) with free coefficients, those of the circuit follow from its angles"
            )
        return (
            f"the classical layer is a linear layer for the {self.features} features of each circuit ({counts}); the "
            "circuit's outputs are bounded and not linear in its features"
        )


@remembered
def structure(template: CircuitTemplate) -> Structure:
    """The classical layer that has the structure of a circuit."""
    sizes = template.num_features, template.num_outputs
    weights = template.num_weights
    if template.encoding != "angle":
        return Structure(SAME, *sizes, weights, weights)
    inputs = [cone.inputs for cone in cones(template)]
    if all(len(read) == 1 for read in inputs):
        terms = max(1, weights // template.num_outputs)
        return Structure(ELEMENTWISE, *sizes, terms * template.num_outputs, weights, tuple(k for (k,) in inputs))
    return Structure(BLOCKS, *sizes, template.num_features * template.num_outputs, weights)


class StructuredLayer(nn.Module):
    """Maps ``(..., features)`` to ``(..., groups * outputs)`` as :func:`structure` says, without a circuit."""

    def __init__(self, features: int, template: CircuitTemplate) -> None:
        super().__init__()
        self.features, self.template, self.structure = features, template, structure(template)
        inner = self.structure
        if features % inner.features:
            raise UserError(f"--qubits: {features} features cannot be split into groups of {inner.features}")
        self.groups = features // inner.features
        self.outputs = self.groups * inner.outputs
        if inner.kind == SAME:
            weight = torch.empty(self.groups, inner.weights).uniform_(-torch.pi, torch.pi)
        elif inner.kind == ELEMENTWISE:
            weight = torch.zeros(self.groups, inner.outputs, inner.parameters // inner.outputs)
            weight[..., 0] = 1.0  # sin x
        else:
            bound = inner.features**-0.5  # as nn.Linear
            weight = torch.empty(self.groups, inner.outputs, inner.features).uniform_(-bound, bound)
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (self.groups, self.structure.features))
        if self.structure.kind == ELEMENTWISE:  # coefficients of sin x, cos x, sin 2x, cos 2x, ...
            place = torch.arange(self.weight.shape[-1], device=x.device)
            angle = x[..., list(self.structure.read)].unsqueeze(-1) * (place // 2 + 1) + (place % 2) * (torch.pi / 2)
            return (angle.sin() * self.weight).sum(-1).flatten(-2)
        matrix = linear_map(self.template, self.weight).to(x) if self.structure.kind == SAME else self.weight
        return torch.einsum("...gi,goi->...go", x, matrix).flatten(-2)

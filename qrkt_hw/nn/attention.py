"""Multi-head attention with injected projections, and circuits over the tokens in its place."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qrkt_hw.data import ranks
from qrkt_hw.errors import UserError
from qrkt_hw.nn import remote
from qrkt_hw.nn.quantum import ProjectionFactory, QuantumLayer, QuantumProjection
from qrkt_hw.simulator import apart, compiling, full_precision
from qrkt_hw.simulator.subspace import affine_map

FUSED = 64 * 64  # query tokens times key tokens above which torch's fused attention takes over


class Attention(nn.Module):
    """Softmax attention over tokens ``(batch, tokens, hidden)``.

    Args:
        hidden: width; a multiple of ``heads``.
        heads: number of heads.
        projection: makes q, k, v and the output projection, each hidden -> hidden; None is the classical baseline
            with one linear layer for q, k and v.
        dropout: on the attention weights.
    """

    def __init__(self, *, hidden: int, heads: int, projection: ProjectionFactory | None, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.classical = projection is None
        if projection is None:
            self.fused = nn.Linear(hidden, 3 * hidden)
            self.output: nn.Module = nn.Linear(hidden, hidden)
        else:
            self.query = projection(hidden)
            self.key = projection(hidden)
            self.value = projection(hidden)
            self.output = projection(hidden)

    def projections(self, y: Tensor) -> list[tuple[nn.Module, Tensor]]:
        """What :meth:`mix` needs of ``y``: modules and their inputs, for :func:`project_together`."""
        if self.classical:
            return [(self.fused, y)]
        return [(self.query, y), (self.key, y), (self.value, y)]

    def mix(self, *projected: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention of projected tokens, before the output projection.

        Args:
            projected: query, key and value, or one tensor with the three side by side.
            mask: ``(batch, tokens)``, True where a token is read, False where it is padding.
        """
        query, key, value = projected[0].chunk(3, dim=-1) if len(projected) == 1 else projected
        return attend(query, key, value, self.heads, self.dropout if self.training else 0.0, mask)

    def forward(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.output(self.mix(*project_together(self.projections(y)), mask=mask))


class HigherOrderAttention(nn.Module):
    """Circuits over the tokens in the place of softmax: products of many tokens' features in one layer.

    A circuit for each head reads one feature of all tokens, and so each feature of its head in turn. A template with
    one observable, such as ``higher_order``, gives every token the same; one with an observable a token, each its own.
    Padding counts as 0. After Xu et al., arXiv:2606.11673, whose circuit and read-out it does not repeat.

    Args:
        hidden: width; a multiple of the number of heads.
        circuits: over heads times the most tokens that there can be.
        projection: makes the values and the output projection, each hidden -> hidden; None: linear layers.

    Raises:
        UserError: a template with neither one observable nor one for each of its features.
        ValueError: a width that is no multiple of the number of heads.
    """

    def __init__(self, *, hidden: int, circuits: QuantumLayer, projection: ProjectionFactory | None) -> None:
        super().__init__()
        template = circuits.template
        if template.num_outputs not in (1, template.num_features):
            raise UserError(
                f"--ansatz: {template.name!r} gives {template.num_outputs} values for {template.num_features} tokens; "
                "higher-order attention needs one, or one for each token"
            )
        if hidden % circuits.groups:
            raise ValueError(f"hidden is {hidden}; it must be a multiple of the {circuits.groups} heads")
        make: ProjectionFactory = projection or (lambda features: nn.Linear(features, features))
        self.value = make(hidden)
        self.circuits = circuits
        self.output = make(hidden)

    def projections(self, y: Tensor) -> list[tuple[nn.Module, Tensor]]:
        """What :meth:`mix` needs of ``y``: modules and their inputs, for :func:`project_together`."""
        return [(self.value, y)]

    def mix(self, *projected: Tensor, mask: Tensor | None = None) -> Tensor:
        """The circuits' values of projected tokens ``(batch, tokens, hidden)``, before the output projection.

        Args:
            projected: the values alone; 1 is an angle of 90 degrees.
            mask: ``(batch, tokens)``, False where a token is padding.

        Raises:
            ValueError: more tokens than the circuits take.
        """
        (value,) = projected
        tokens, most, heads = value.shape[-2], self.circuits.template.num_features, self.circuits.groups
        if tokens > most:
            raise ValueError(f"value has {tokens} tokens; the circuits take at most {most}")
        if mask is not None:
            value = value.masked_fill(~mask.unsqueeze(-1), 0.0)
        angles = F.pad(value * (math.pi / 2), (0, 0, 0, most - tokens))
        # a head's features one after the other through its circuit: (batch, features of a head, heads * tokens)
        values = self.circuits(angles.mT.unflatten(-2, (heads, -1)).transpose(-3, -2).flatten(-2))
        mixed = values.unflatten(-1, (heads, -1)).transpose(-3, -2).flatten(-3, -2).mT
        return mixed.expand(*mixed.shape[:-2], tokens, -1) if mixed.shape[-2] == 1 else mixed[..., :tokens, :]

    def forward(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.output(self.mix(*project_together(self.projections(y)), mask=mask))


class CrossAttention(nn.Module):
    """Attention of tokens to the encoder's output.

    Args:
        hidden, heads, projection, dropout: as for :class:`Attention`.
        output_only: query, key and value are the tokens themselves, as in the thesis' published counts.
    """

    def __init__(
        self,
        *,
        hidden: int,
        heads: int,
        projection: ProjectionFactory | None,
        dropout: float = 0.0,
        output_only: bool = False,
    ) -> None:
        super().__init__()
        make: ProjectionFactory = projection or (lambda features: nn.Linear(features, features))
        self.heads = heads
        self.dropout = dropout
        names = ("output",) if output_only else ("query", "key", "value", "output")
        self.maps = nn.ModuleDict({name: make(hidden) for name in names})

    def forward(self, y: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(batch, tokens, hidden)`` attending to ``memory (batch, others, hidden)``; ``mask (batch, others)``."""
        query, key, value = y, memory, memory
        if "query" in self.maps:
            inputs = {"query": y, "key": memory, "value": memory}
            query, key, value = project_together([(self.maps[name], x) for name, x in inputs.items()])
        return self.maps["output"](attend(query, key, value, self.heads, self.dropout if self.training else 0.0, mask))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, dropout: float, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention in ``heads`` heads: ``(batch, tokens, hidden)``, like ``query``.

    Over few tokens it is differentiable any number of times, in both modes; torch's fused one, which takes over where
    the attention weights would fill memory, is so once. Where a mask lets nothing be read the result is 0.

    Raises:
        ValueError: shapes, heads, a mask that is no bool ``(batch, others)``, or a dropout that do not fit.
    """
    _check(query, key, value, heads, dropout, mask)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(-2, -3) for t in (query, key, value))
    seen = None if mask is None else mask[..., None, None, :]
    if q.shape[-2] * k.shape[-2] > FUSED and not (
        dropout and ranks.shared()
    ):  # it would draw for this rank's samples alone
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)
    else:
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        if seen is None:
            weights = scores.softmax(-1)
        else:
            weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~seen, 0.0)
        mixed = (ranks.dropout(weights, dropout) if dropout else weights) @ v
    return mixed.transpose(-2, -3).flatten(-2)


def _check(query: Tensor, key: Tensor, value: Tensor, heads: int, dropout: float, mask: Tensor | None) -> None:
    """Refuse what broadcasting, or a mask that is added, would take for something else."""
    q, k = query.shape, key.shape
    if q[:-2] != k[:-2] or q[-1:] != k[-1:] or value.shape != k or min(len(q), len(k)) < 2:
        raise ValueError(
            "query must be (batch, tokens, hidden), key and value (batch, others, hidden); found "
            f"{tuple(q)}, {tuple(k)} and {tuple(value.shape)}"
        )
    if heads < 1 or q[-1] % heads:
        raise ValueError(f"heads must divide the hidden size {q[-1]}; {heads} does not")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must lie between 0 and 1, not {dropout}")
    if mask is not None and (mask.dtype is not torch.bool or mask.shape != k[:-1]):
        raise ValueError(f"mask must be a bool tensor {tuple(k[:-1])}, not {mask.dtype} {tuple(mask.shape)}")


def project_together(jobs: Sequence[tuple[nn.Module, Tensor]]) -> list[Tensor]:
    """Outputs of independent projections of their inputs; circuits that run elsewhere go as one circuit batch.

    A projection with hooks is called by itself: that costs a sequential stage more, and the hooks see their module.
    """
    if compiling() and any(isinstance(module, QuantumProjection) for module, _ in jobs):
        return apart(project_together, jobs)
    found = affine_maps(jobs)
    batch = [
        (k, module, module.layer.grouped(module.before(x)))
        for k, (module, x) in enumerate(jobs)
        if k not in found and isinstance(module, QuantumProjection) and module.joins_batches
    ]
    if batch:
        stacked = zip(*(pair for *_, pair in batch), strict=True)
        values = remote.run_batch([module.layer.network for _, module, _ in batch], *stacked)
        found |= {k: module.after(v) for (k, module, _), v in zip(batch, values, strict=True)}
    return [found[k] if k in found else module(x) for k, (module, x) in enumerate(jobs)]


def affine_maps(jobs: Sequence[tuple[nn.Module, Tensor]]) -> dict[int, Tensor]:
    """Outputs of those projections that share their input and their template and are affine maps, by one product."""
    alike: dict[tuple[int, int, bool, bool], list[tuple[int, QuantumProjection]]] = {}
    for k, (module, x) in enumerate(jobs):
        if isinstance(module, QuantumProjection) and isinstance(module.layer, QuantumLayer):
            key = id(x), id(module.layer.template), module.scale is None, module.bias is None
            if module.input_scale is None:
                alike.setdefault(key, []).append((k, module))
    found: dict[int, Tensor] = {}
    for members in alike.values():
        x = jobs[members[0][0]][1]
        maps = [module.affine(x) for _, module in members] if len(members) > 1 else [None]
        parts = [own for own in maps if own is not None]
        if len(parts) == len(members):
            weights, scales, biases = zip(*parts, strict=True)
            scale, bias = (None if own[0] is None else torch.cat(own) for own in (scales, biases))
            with full_precision(x):
                values = affine_map(members[0][1].layer.template, x, torch.cat(weights), scale, bias)
            found |= zip((k for k, _ in members), values.chunk(len(members), dim=-1), strict=True)
    return found

"""What stands between tokens and tokens: feed-forward, pre-norm blocks, Runge-Kutta blocks and their tableaus."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qrkt_hw.data.ranks import Dropout, DropPath
from qrkt_hw.nn.attention import Attention, CrossAttention, HigherOrderAttention, project_together
from qrkt_hw.nn.quantum import ProjectionFactory


class FeedForward(nn.Module):
    """``linear(hidden -> size), projection(size), dropout, GELU, linear(size -> hidden)``, as in the thesis.

    Args:
        hidden: width of the tokens.
        size: width of the hidden layer.
        projection: makes the map between the linear layers; None leaves it out (the classical MLP).
        dropout: behind the hidden layer.
    """

    def __init__(self, *, hidden: int, size: int, projection: ProjectionFactory | None, dropout: float = 0.0) -> None:
        super().__init__()
        self.enter = nn.Linear(hidden, size)
        self.projection = projection(size) if projection is not None else nn.Identity()
        self.dropout = Dropout(dropout)
        self.activation = nn.GELU()
        self.leave = nn.Linear(size, hidden)

    def finish(self, projected: Tensor) -> Tensor:
        """What follows the projection."""
        return self.leave(self.activation(self.dropout(projected)))

    def forward(self, y: Tensor) -> Tensor:
        """``(..., hidden)`` to ``(..., hidden)``."""
        return self.finish(self.projection(self.enter(y)))


class TransformerBlock(nn.Module):
    """The pre-norm block: ``y += attention(norm(y))``, cross-attention or none, ``y += feed_forward(norm(y))``.

    Args:
        attention, feed_forward: its steps; nothing is masked ahead.
        hidden: width of the tokens.
        dropout: on each step.
        cross_attention: a step between, which reads the encoder's output; None: an encoder's block.
        drop_path: how often a sample leaves out a step in training.
    """

    def __init__(
        self,
        attention: Attention | HigherOrderAttention,
        feed_forward: FeedForward,
        *,
        hidden: int,
        dropout: float = 0.0,
        cross_attention: CrossAttention | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden)
        self.attention = attention
        # in this place: the state of an optimizer knows parameters by their order
        self.cross_attention_norm = nn.LayerNorm(hidden) if cross_attention is not None else None
        self.cross_attention = cross_attention
        self.feed_forward_norm = nn.LayerNorm(hidden)
        self.feed_forward = feed_forward
        self.dropout = Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, y: Tensor, mask: Tensor | None = None, memory: Tensor | None = None, seen: Tensor | None = None
    ) -> Tensor:
        """``(batch, tokens, hidden)``, same out; ``memory (batch, others, hidden)`` is what cross-attention reads.

        ``mask`` of ``y`` and ``seen`` of ``memory`` are False at padding. Raises ValueError: one that nothing reads.
        """
        if (memory is None) != (self.cross_attention is None) or (seen is not None and memory is None):
            raise ValueError("memory goes with cross-attention, and seen with memory: give both or neither")
        y = y + self.drop_path(self.dropout(self.attention(self.attention_norm(y), mask)))
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            y = y + self.drop_path(self.dropout(self.cross_attention(self.cross_attention_norm(y), memory, seen)))
        return y + self.drop_path(self.dropout(self.feed_forward(self.feed_forward_norm(y))))


class TransformerField(nn.Module):
    """The right-hand side ``F(y) = attention(norm(y)) + feed_forward(norm(y))``: two sequential stages of circuits.

    Query, key, value and the hidden layer of the feed-forward go together, then the output projection.

    Args:
        norm: stands before both; None: nothing does, and F sees how large the tokens are.
        attention, feed_forward: what F is made of.
        dropout: on F.
        feed_forward_norm: stands before the feed-forward instead of ``norm``.
    """

    def __init__(
        self,
        norm: nn.LayerNorm | None,
        attention: Attention | HigherOrderAttention,
        feed_forward: FeedForward,
        dropout: float = 0.0,
        feed_forward_norm: nn.LayerNorm | None = None,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.attention = attention
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward
        self.dropout = Dropout(dropout)

    def forward(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(batch, tokens, hidden)``, same out; ``mask (batch, tokens)`` is True where a token is not padding."""
        attention, mlp = self.attention, self.feed_forward
        z = y if self.norm is None else self.norm(y)
        entered = mlp.enter(z if self.feed_forward_norm is None else self.feed_forward_norm(y))
        *qkv, hidden = project_together([*attention.projections(z), (mlp.projection, entered)])
        return self.dropout(attention.output(attention.mix(*qkv, mask=mask)) + mlp.finish(hidden))


@dataclass(frozen=True)
class Tableau:
    """Stage i is ``k_i = F(y + step * sum_j a[i][j] k_j)``; the step is ``y + step * sum_i b[i] k_i``.

    Attributes:
        name: as on the command line.
        a: strictly lower triangular, row i with i entries.
        b: weights of the stages; they sum to 1 for a consistent method.
        order: order of convergence; None for a method that is not consistent.
        reference: its source.

    Raises:
        ValueError: rows of the wrong length, or weights that do not sum to 1 although an order is claimed.
    """

    name: str
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int | None
    reference: str

    def __post_init__(self) -> None:
        if len(self.a) != len(self.b):
            raise ValueError(f"tableau {self.name!r}: {len(self.a)} stages but {len(self.b)} weights")
        for i, row in enumerate(self.a):
            if len(row) != i:
                raise ValueError(f"tableau {self.name!r}: row {i} must have {i} entries (explicit), not {len(row)}")
        if self.order is not None and abs(sum(self.b) - 1) > 1e-12:
            raise ValueError(f"tableau {self.name!r}: weights sum to {sum(self.b)}, a consistent method needs 1")

    @property
    def stages(self) -> int:
        return len(self.b)


def _rows(*rows: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    return rows


EULER = Tableau("rk1", _rows(()), (1.0,), 1, "Euler")
HEUN = Tableau("rk2", _rows((), (1.0,)), (1 / 2, 1 / 2), 2, "Heun")
BOGACKI_SHAMPINE = Tableau(
    "rk3", _rows((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 3 / 9, 4 / 9), 3, "Bogacki and Shampine 1989, third-order weights"
)
CLASSICAL = Tableau(
    "rk4", _rows((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 2 / 6, 2 / 6, 1 / 6), 4, "Kutta 1901"
)
# The thesis' empirical variant against vanishing gradients. Its weights sum to 2: not consistent, no order.
ENHANCED = Tableau(
    "rk4-enhanced", _rows((), (1.0,), (0.0, 1.0), (0.0, 0.0, 1.0)), (1.0, 0.0, 0.0, 1.0), None,
    "QRKT-GAN thesis, 2024: an empirical rule, not a consistent method",
)  # fmt: skip

TABLEAUS: dict[str, Tableau] = {t.name: t for t in (EULER, HEUN, BOGACKI_SHAMPINE, CLASSICAL, ENHANCED)}


class RungeKuttaBlock(nn.Module):
    """One step of an explicit Runge-Kutta method for ``y' = F(y)``.

    Args:
        field: F, a module that keeps the shape; or one module per stage (the published code's unshared stages).
        tableau: the method.
        step: step size h.
        drop_path: how often a sample leaves out the whole step in training; its increment counts more where it does
            not. The stages are those of the equation itself, so that on average over the draws the output is that of
            the evaluation; a draw per stage, or a factor within F, would solve another equation.

    Raises:
        ValueError: a number of fields that is neither 1 nor the number of stages.
    """

    def __init__(
        self, field: nn.Module | Sequence[nn.Module], tableau: Tableau, step: float = 1.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        fields = [field] if isinstance(field, nn.Module) else list(field)
        if len(fields) not in (1, tableau.stages):
            raise ValueError(f"{tableau.name} has {tableau.stages} stages; {len(fields)} fields do not fit")
        self.fields = nn.ModuleList(fields)
        self.tableau = tableau
        self.step = step
        self.drop_path = DropPath(drop_path)

    def forward(self, y: Tensor, *context: Any) -> Tensor:
        """Same shape as ``y``; F is given ``context`` (such as a mask) in every stage."""
        stages: list[Tensor] = []
        for stage, row in enumerate(self.tableau.a):
            field = self.fields[stage if len(self.fields) > 1 else 0]
            stages.append(field(_combine(y, stages, row, self.step), *context))
        if self.training and self.drop_path.p:
            return y + self.drop_path(_combine(torch.zeros_like(y), stages, self.tableau.b, self.step))
        return _combine(y, stages, self.tableau.b, self.step)


def _combine(y: Tensor, stages: Sequence[Tensor], weights: Sequence[float], step: float) -> Tensor:
    for stage, weight in zip(stages, weights, strict=True):
        if weight:
            y = torch.add(y, stage, alpha=step * weight)
    return y

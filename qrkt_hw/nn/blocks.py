"""What stands between tokens and tokens: feed-forward, pre-norm blocks, and the field of a Runge-Kutta block."""

from torch import Tensor, nn

from qrkt_hw.data.ranks import Dropout, DropPath
from qrkt_hw.nn.attention import Attention, CrossAttention, HigherOrderAttention
from qrkt_hw.nn.quantum import ProjectionFactory, project_together


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

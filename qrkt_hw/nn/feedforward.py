"""Feed-forward with a projection between its two dense maps, as in the thesis."""

from __future__ import annotations

from torch import Tensor, nn

from qrkt_hw.nn.projection import ProjectionFactory, project_together


class FeedForward(nn.Module):
    """``linear(hidden -> size), projection(size), dropout, GELU, linear(size -> hidden)``.

    Args:
        hidden: width of the tokens.
        size: width of the hidden layer.
        projection: makes the map between the dense ones; None leaves it out (the classical MLP).
        dropout: behind the hidden layer.
    """

    def __init__(self, *, hidden: int, size: int, projection: ProjectionFactory | None, dropout: float = 0.0) -> None:
        super().__init__()
        self.enter = nn.Linear(hidden, size)
        self.projection = projection(size) if projection is not None else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.activation = nn.GELU()
        self.leave = nn.Linear(size, hidden)

    def requests(self, y: Tensor) -> list[tuple[nn.Module, Tensor]]:
        """The projection of the first round."""
        return [(self.projection, self.enter(y))]

    def finish(self, projected: Tensor) -> Tensor:
        return self.leave(self.activation(self.dropout(projected)))

    def forward(self, y: Tensor) -> Tensor:
        """``(..., hidden)`` to ``(..., hidden)``."""
        return self.finish(*project_together(self.requests(y)))

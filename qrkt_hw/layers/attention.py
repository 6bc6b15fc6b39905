"""Multi-head self-attention with injected projections."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from qrkt_hw.layers.projection import ProjectionFactory, project_together


class Attention(nn.Module):
    """Softmax attention over tokens ``(batch, tokens, hidden)``.

    Args:
        hidden: width; a multiple of ``heads``.
        heads: number of heads.
        projection: makes q, k, v and the output map, each hidden -> hidden.
        dropout: on the attention weights.
    """

    def __init__(self, *, hidden: int, heads: int, projection: ProjectionFactory, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = projection(hidden)
        self.key = projection(hidden)
        self.value = projection(hidden)
        self.output = projection(hidden)

    def requests(self, y: Tensor) -> list[tuple[nn.Module, Tensor]]:
        """The projections of the first round: query, key and value of ``y``."""
        return [(self.query, y), (self.key, y), (self.value, y)]

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of projected tokens, before the output projection."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for t in (query, key, value))
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return mixed.transpose(-2, -3).flatten(-2)

    def forward(self, y: Tensor) -> Tensor:
        return self.output(self.mix(*project_together(self.requests(y))))

"""One training step of the thesis' MNIST model (QRK4), of the default model, and of classical twins, in milliseconds.

The twin is plain torch with one fused map for query, key and value, torch's attention, and the same tokens.

python benchmarks/model_step.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import median_ms, save
from torch import Tensor, nn

from qrkt_hw.data.base import DataShape
from qrkt_hw.models.factory import build_model
from qrkt_hw.models.transformer import Transformer
from qrkt_hw.nn.embeddings import ImageTokens
from qrkt_hw.nn.runge_kutta import TABLEAUS, RungeKuttaBlock
from qrkt_hw.runs.config import Config, VitConfig

THESIS = dict(ansatz="qrkt", qubits=6, layers=1, hidden=6, heads=2, mlp=3, patch=14, rk_blocks=3, rk="rk4")


class FusedField(nn.Module):
    """Attention with one map for q, k and v, and an MLP with a third map in its middle, as the circuit is there."""

    def __init__(self, hidden: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, mlp), nn.Linear(mlp, mlp), nn.Dropout(dropout), nn.GELU(), nn.Linear(mlp, hidden)
        )

    def forward(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        z = self.norm(y)
        q, k, v = self.qkv(z).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        p = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)) + self.mlp(z))


def twin(o: Config, shape: DataShape) -> nn.Module:
    m = o.model
    assert isinstance(m, VitConfig)
    blocks = [
        RungeKuttaBlock(FusedField(m.hidden, m.heads, m.mlp, m.dropout), TABLEAUS[m.rk]) for _ in range(m.rk_blocks)
    ]
    tokens = ImageTokens(
        image_size=shape.image_size, channels=1, patch=m.patch, hidden=m.hidden, positions=m.positions,
        class_token=m.pool == "class", dropout=m.dropout,
    )  # fmt: skip
    return Transformer(tokens, blocks, hidden=m.hidden, classes=shape.classes)


def time_step(model: nn.Module, batch: int, size: int) -> dict[str, float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def run(argument):
        images, labels = argument
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()

    return median_ms(lambda: (torch.randn(batch, 1, size, size), torch.randint(0, 10, (batch,))), run, repeats=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name, o, size, batch in (
        ("thesis QRK4", Config(**THESIS, output_scale=False), 28, 65),
        ("default digits", Config(), 8, 64),
    ):
        shape = DataShape(channels=1, image_size=size, classes=10)
        quantum = time_step(build_model(o, shape), batch, size)
        classical = time_step(twin(o, shape), batch, size)
        rows.append(
            {"model": name, "ours_ms": quantum["median"], "ours_minimum_ms": quantum["minimum"],
             "twin_ms": classical["median"], "twin_minimum_ms": classical["minimum"],
             "ours_processor_ms": quantum["processor"], "twin_processor_ms": classical["processor"],
             "ratio": quantum["median"] / classical["median"],
             "ratio_of_minima": quantum["minimum"] / classical["minimum"]}
        )  # fmt: skip
    save(options.json, rows)


if __name__ == "__main__":
    main()

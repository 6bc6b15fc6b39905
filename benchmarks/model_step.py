"""CPU milliseconds of a training step of shipped models beside their classical baselines, on one thread.

A step is forward, cross-entropy, backward, clipping and AdamW on random inputs of the preset's batch size.

python benchmarks/model_step.py [--repeats 12] [--json FILE]
"""

import argparse
import time
from pathlib import Path

import torch
from timing import save
from torch import nn

from qrkt_hw.data.base import DataShape
from qrkt_hw.experiments import presets
from qrkt_hw.models.factory import build_model
from qrkt_hw.runs.config import Config

# preset: shape of its data, and the sizes of its parameter-matched baseline in docs/results.md (none: size-matched)
MODELS = {
    "digits": (DataShape(1, 8, 10), {}),
    "best-mnist": (DataShape(1, 28, 10), {"hidden": 12, "heads": 4, "mlp": 18}),
    "best-cifar10": (DataShape(3, 32, 10), {"hidden": 20, "heads": 5, "mlp": 48, "pool_maps": 4}),
    "best-cifar10-4-qubits": (DataShape(3, 32, 10), {"hidden": 20, "heads": 5}),
    "best-mnist-4-qubits": (DataShape(1, 28, 10), {"hidden": 12, "heads": 4, "mlp": 18}),
    "thesis-mnist-qrk4": (DataShape(1, 28, 10), {}),
}


def fastest_ms(config: Config, shape: DataShape, repeats: int) -> float:
    """CPU milliseconds of the fastest of ``repeats`` steps."""
    torch.manual_seed(0)
    model, batch = build_model(config, shape).train(), config.data.batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    images = torch.randn(batch, shape.channels, shape.image_size, shape.image_size)
    labels = torch.randint(0, shape.classes, (batch,))
    seconds = []
    for _ in range(5 + repeats):
        started = time.process_time()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        seconds.append(time.process_time() - started)
    return 1e3 * min(seconds[5:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, (shape, matched) in MODELS.items():
        options = presets.load(name)
        quantum = fastest_ms(Config(**options), shape, given.repeats)
        baseline = fastest_ms(Config(**{**options, "projection": "classical", **matched}), shape, given.repeats)
        rows.append({"preset": name, "ours_ms": quantum, "baseline_ms": baseline, "ratio": quantum / baseline})
    save(given.json, rows)


if __name__ == "__main__":
    main()

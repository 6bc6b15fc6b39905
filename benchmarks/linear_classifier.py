"""The test accuracy of a linear classifier on the pixels that a run's model reads, and its CPU seconds.

    python benchmarks/linear_classifier.py --run results/best-mnist-device/seed-0 --data-dir DIR

Multinomial logistic regression by Adam on the training split of the run; the epoch is chosen by validation loss.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qrkt_hw.data.batches import loader
from qrkt_hw.experiments.loading import read_splits
from qrkt_hw.runs import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, action="append")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--steps", type=int, default=4300, help="of batches of 128, whole epochs")
    parser.add_argument("--out", type=Path, default=Path("results/linear_classifier.json"))
    given = parser.parse_args()
    found = json.loads(given.out.read_text()) if given.out.is_file() else {}
    for path in given.run:
        splits = read_splits(RunFolder.open(path), given.data_dir)
        found[path.parent.name] = fitted(splits, given.steps)
        given.out.write_text(json.dumps(found, indent=2) + "\n")
        print(path.parent.name, found[path.parent.name], flush=True)


def fitted(splits: Mapping[str, Any], steps: int) -> dict[str, float]:
    (x, y), (held, labels), (test, truth) = (
        next(iter(loader(splits[name], len(splits[name])))) for name in ("train", "validation", "test")
    )
    x, held, test = (part.flatten(1) for part in (x, held, test))
    torch.manual_seed(0)
    model, started = nn.Linear(x.shape[1], int(y.max()) + 1), time.process_time()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    best = (float("inf"), 0.0)
    for _ in range(-(-steps // -(-len(x) // 128))):
        for rows in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(nn.functional.cross_entropy(model(held), labels))
            if loss < best[0]:
                best = loss, float((model(test).argmax(-1) == truth).double().mean())
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "accuracy": best[1],
        "parameters": parameters,
        "images": len(test),
        "cpu_seconds": round(time.process_time() - started, 2),
    }


if __name__ == "__main__":
    main()

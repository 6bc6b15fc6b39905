"""CPU milliseconds of a training step of shipped models beside their classical baselines, on one thread.

A step is forward, cross-entropy, backward, clipping and AdamW on random inputs of the preset's batch size. ``gain`` is
how much faster two threads make it by the clock, ``loop`` how much faster they compute without memory in the same run.

python benchmarks/model_step.py [--repeats 12] [--presets NAME ...] [--json FILE]
"""

import argparse
import time
from pathlib import Path

import torch
from timing import save
from torch import nn
from wide_layers import loop

from qrkt_hw.data.base import DataShape
from qrkt_hw.experiments import presets
from qrkt_hw.models.factory import build_model
from qrkt_hw.runs.config import Config

# preset: shape of its data, and the sizes of its parameter-matched baseline in docs/results.md (none: size-matched)
MODELS = {
    "digits": (DataShape(1, 8, 10), {}),
    "best-mnist": (DataShape(1, 28, 10), {"hidden": 12, "heads": 4, "mlp": 18}),
    "best-cifar10": (DataShape(3, 32, 10), {"hidden": 20, "heads": 5, "mlp": 48, "pool_maps": 4, "rk_blocks": 3}),
    "best-cifar10-4-qubits": (DataShape(3, 32, 10), {"hidden": 20, "heads": 5}),
    "best-mnist-4-qubits": (DataShape(1, 28, 10), {"hidden": 12, "heads": 4, "mlp": 18}),
    "thesis-mnist-qrk4": (DataShape(1, 28, 10), {}),
}


def fastest_ms(config: Config, shape: DataShape, repeats: int, threads: int = 1) -> dict[str, float]:
    """Milliseconds of the fastest of ``repeats`` steps: CPU time, and by the clock."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, batch = build_model(config, shape).train(), config.data.batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    images = torch.randn(batch, shape.channels, shape.image_size, shape.image_size)
    labels = torch.randint(0, shape.classes, (batch,))
    clock, used = [], []
    for _ in range(5 + repeats):
        started, before = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        clock.append(time.perf_counter() - started)
        used.append(time.process_time() - before)
    return {"cpu": 1e3 * min(used[5:]), "clock": 1e3 * min(clock[5:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--presets", nargs="*", default=list(MODELS), choices=list(MODELS), metavar="NAME")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for name in given.presets:
        shape, matched = MODELS[name]
        options = presets.load(name)
        ours, baseline = Config(**options), Config(**{**options, "projection": "classical", **matched})
        one, other = (fastest_ms(config, shape, given.repeats) for config in (ours, baseline))
        two, other_two = (fastest_ms(config, shape, given.repeats, 2)["clock"] for config in (ours, baseline))
        rows.append({
            "preset": name, "ours_ms": one["cpu"], "baseline_ms": other["cpu"], "ratio": one["cpu"] / other["cpu"],
            "gain": one["clock"] / two, "baseline gain": other["clock"] / other_two, "loop": loop(1) / loop(2),
        })  # fmt: skip
    save(given.json, rows)


if __name__ == "__main__":
    main()

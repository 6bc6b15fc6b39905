"""CPU milliseconds of a training step of shipped models beside their classical baselines, on one thread.

A step is forward, cross-entropy, backward, clipping and AdamW on random inputs of the preset's batch size. ``gain`` is
how much faster two threads make it by the clock, ``loop`` how much faster they compute without memory: lower quartiles
of steps that alternate, as the speed of a virtual machine changes from minute to minute.

python benchmarks/model_step.py [--repeats 12] [--presets NAME ...] [--json FILE]
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from timing import save
from torch import nn
from wide_layers import computing

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


def stepper(config: Config, shape: DataShape) -> Callable[[], None]:
    """One training step of a new model."""
    torch.manual_seed(0)
    model, batch = build_model(config, shape).train(), config.data.batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    images = torch.randn(batch, shape.channels, shape.image_size, shape.image_size)
    labels = torch.randint(0, shape.classes, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()

    return step


def fastest_ms(step: Callable[[], None], repeats: int) -> float:
    """CPU milliseconds of the fastest of ``repeats`` steps on one thread."""
    torch.set_num_threads(1)
    used = []
    for _ in range(5 + repeats):
        before = time.process_time()
        step()
        used.append(time.process_time() - before)
    return 1e3 * min(used[5:])


def gains(steps: Sequence[Callable[[], None]], repeats: int) -> list[float]:
    """How much faster each is on two threads."""
    clock: dict[tuple[int, int], list[float]] = {}
    for _ in range(repeats):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for k, step in enumerate(steps):
                for _ in range(3):
                    started = time.perf_counter()
                    step()
                    clock.setdefault((k, threads), []).append(time.perf_counter() - started)
    quartile = {key: sorted(seconds)[len(seconds) // 4] for key, seconds in clock.items()}
    return [quartile[k, 1] / quartile[k, 2] for k in range(len(steps))]


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
        both = (
            stepper(Config(**options), shape),
            stepper(Config(**{**options, "projection": "classical", **matched}), shape),
        )
        ours, baseline = (fastest_ms(step, given.repeats) for step in both)
        gain, other, least = gains([*both, computing()], given.repeats)
        rows.append({
            "preset": name, "ours_ms": ours, "baseline_ms": baseline, "ratio": ours / baseline,
            "gain": gain, "baseline gain": other, "loop": least,
        })  # fmt: skip
    save(given.json, rows)


if __name__ == "__main__":
    main()

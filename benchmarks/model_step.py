"""CPU milliseconds of a training step of shipped models beside their classical baselines, on one thread.

A step is forward, cross-entropy, backward, clipping and AdamW on random inputs of the preset's batch size. ``gain`` is
how much faster two threads make it by the clock, ``loop`` how much faster they compute without memory. All take turns,
and ratios are medians over rounds: the speed of a virtual machine changes from minute to minute.

python benchmarks/model_step.py [--rounds 30] [--presets NAME ...] [--json FILE]
"""

import argparse
import ctypes
import statistics
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


def times(steps: Sequence[Callable[[], None]], rounds: int) -> dict[tuple[int, int, str], list[float]]:
    """Milliseconds by (step, threads, clock), of each round the least of three steps: on 1 and 2 threads, ``cpu`` time
    and by the ``wall`` clock."""
    clocks = {"cpu": time.process_time, "wall": time.perf_counter}
    found: dict[tuple[int, int, str], list[float]] = {}
    for number in range(2 + rounds):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for k, step in enumerate(steps):
                spent = []
                for _ in range(3):
                    started = [clock() for clock in clocks.values()]
                    step()
                    spent.append([clock() - begun for clock, begun in zip(clocks.values(), started, strict=True)])
                if number >= 2:  # the first two warm up
                    for name, least in zip(clocks, map(min, zip(*spent, strict=True)), strict=True):
                        found.setdefault((k, threads, name), []).append(1e3 * least)
    return found


def quartiles(above: list[float], below: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile of the ratios of rounds."""
    return statistics.quantiles((a / b for a, b in zip(above, below, strict=True)), n=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--presets", nargs="*", default=list(MODELS), choices=list(MODELS), metavar="NAME")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    # A training keeps the memory of its steps; two models in turns would give it back to the system and take it anew.
    libc = ctypes.CDLL(None)
    for option, value in ((-1, 2**31 - 1), (-3, 2**25)) if hasattr(libc, "mallopt") else ():  # trim, mmap thresholds
        libc.mallopt(option, value)
    rows = []
    for name in given.presets:
        shape, matched = MODELS[name]
        options = presets.load(name)
        both = (
            stepper(Config(**options), shape),
            stepper(Config(**{**options, "projection": "classical", **matched}), shape),
        )
        found = times([*both, computing()], given.rounds)
        ours, baseline = found[0, 1, "cpu"], found[1, 1, "cpu"]
        low, ratio, high = quartiles(ours, baseline)
        gains = (quartiles(found[k, 1, "wall"], found[k, 2, "wall"])[1] for k in range(3))
        rows.append({
            "preset": name, "ours_ms": statistics.median(ours), "baseline_ms": statistics.median(baseline),
            "ratio": ratio, "lower quartile": low, "upper quartile": high,
            **dict(zip(("gain", "baseline gain", "loop"), gains, strict=True)),
        })  # fmt: skip
    save(given.json, rows)


if __name__ == "__main__":
    main()

"""CPU time and memory of a training step of a GAN preset beside its baselines: discriminator, penalty, generator, EMA.

The steps are the training's own, on random images: the penalty and the generator's step fall due as in the preset.
The networks take turns, and of each the fastest round counts: what else the machine does only adds time. Memory is
what a process of its own grows by from before the networks are built: weights, optimizers and one step.
Usage: ``OMP_NUM_THREADS=1 python benchmarks/gan_step.py [--preset NAME] [--batch N] [--accumulate N] [--steps N]
[--rounds N]``.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from qrkt_hw.commands.options import merge
from qrkt_hw.data.base import Data, DataShape, Indexed
from qrkt_hw.experiments.baselines import parameter_counts, parameter_matched
from qrkt_hw.runs.config import Config
from qrkt_hw.runs.sections import SIDES
from qrkt_hw.training.fit import seconds_per_step


def random_data(options: Config) -> Data:
    """A batch of noise in the shape of the options' data set."""
    name, count = options.data.dataset, options.data.batch_size
    side, channels = options.data.image_size or SIDES[name], 1 if name in ("digits", "mnist") else 3
    images, labels = torch.randn(count, channels, side, side), torch.arange(count) % 10
    names, middle = tuple(map(str, range(10))), (0.5,) * channels
    split = Indexed(images, labels, lambda kept: kept)
    return Data(name, DataShape(channels, side, 10), names, middle, middle, {"train": split, "test": split})


def megabytes(options: Config) -> float:
    """By which this process, a fresh one, grows with a training; Linux only."""
    torch.set_num_threads(1)
    data = random_data(options)
    before = kilobytes("VmRSS")
    seconds_per_step(options, data, 1)
    return (kilobytes("VmHWM") - before) / 1024


def kilobytes(name: str) -> int:
    """Of the memory of this process that is resident (VmRSS), or was at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="qrkt-gan-mnist")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--parameter-matched", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    flags: dict[str, Any] = {"threads": 1, "accumulate": given.accumulate}
    flags |= {"batch_size": given.batch} if given.batch else {}
    options = merge(given.preset, None, flags)
    data = random_data(options)
    networks = {"quantum": options, "size-matched": options.without_circuits()}
    if given.parameter_matched:
        networks["parameter-matched"] = parameter_matched(options, data.shape)
    found: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(given.rounds):
        for name, one in networks.items():
            found[name].append(seconds_per_step(one, data, given.steps))
    fresh = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    memory = dict(zip(networks, fresh.map(megabytes, networks.values()), strict=True))
    rounds = f"fastest of {given.rounds} rounds of {given.steps} steps"
    print(f"{given.preset}, batch {options.data.batch_size}, one thread, {rounds}")
    for name, times in found.items():
        ratio = min(found["quantum"]) / min(times)
        counts = parameter_counts(networks[name], data.shape)
        sizes = ", ".join(f"{network} {count:,}" for network, count in counts.items())
        cost = f"{min(times) * 1e3:8.1f} ms CPU {memory[name]:6.0f} MB"
        print(f"{name:18}{cost}   quantum : this {ratio:.2f}   {sizes}")


if __name__ == "__main__":
    main()

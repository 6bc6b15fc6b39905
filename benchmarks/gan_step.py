"""CPU time of a training step of a GAN preset beside its classical baselines: discriminator, penalty, generator, EMA.

The steps are the training's own, on random images: the penalty and the generator's step fall due as in the preset.
The networks take turns, so that what else the machine does falls on all.
Usage: ``OMP_NUM_THREADS=1 python benchmarks/gan_step.py [--preset NAME] [--batch N] [--steps N] [--rounds N]``.
"""

from __future__ import annotations

import argparse
import statistics
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="qrkt-gan-mnist")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parameter-matched", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    flags: dict[str, Any] = {"threads": 1, **({"batch_size": given.batch} if given.batch else {})}
    options = merge(given.preset, None, flags)
    data = random_data(options)
    networks = {"quantum": options, "size-matched": options.without_circuits()}
    if given.parameter_matched:
        networks["parameter-matched"] = parameter_matched(options, data.shape)
    found: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(given.rounds):
        for name, one in networks.items():
            found[name].append(seconds_per_step(one, data, given.steps))
    print(f"{given.preset}, batch {options.data.batch_size}, one thread, {given.rounds} times {given.steps} steps")
    for name, times in found.items():
        ratio = statistics.median(a / b for a, b in zip(found["quantum"], times, strict=True))
        counts = parameter_counts(networks[name], data.shape)
        sizes = ", ".join(f"{network} {count:,}" for network, count in counts.items())
        print(f"{name:18}{statistics.median(times) * 1e3:8.1f} ms CPU   quantum : this {ratio:.2f}   {sizes}")


if __name__ == "__main__":
    main()

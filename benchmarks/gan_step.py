"""Time of a training step of the QRKT-GAN at the thesis' dimensions (384, 96, 24) beside its classical baseline.

One qrkt layer in groups of 4 qubits, 3 channels of 32x32 pixels, wgangp-eps with its penalty in every step. A step is
one of the discriminator and one of the generator.
Usage: ``python benchmarks/gan_step.py [--batch N] [--steps N] [--preset NAME] [--threads N]``.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from qrkt_hw.commands.options import merge
from qrkt_hw.data.base import DataShape
from qrkt_hw.models.factory import build_model
from qrkt_hw.runs.config import Config
from qrkt_hw.training.gan import discriminator_loss, generator_loss, penalty


def stepper(options: Config):
    """A function that makes one training step on random images."""
    torch.manual_seed(0)
    gan = build_model(options, DataShape(3, 32, 10))
    sides = gan.sides
    optimizers = {n: torch.optim.Adam(s.parameters(), lr=1e-4, betas=(0.0, 0.99), fused=True) for n, s in sides.items()}
    real = torch.rand(options.data.batch_size, 3, 32, 32) * 2 - 1

    def step() -> None:
        fake = gan(torch.randn(len(real), options.gan.latent))
        score = gan.discriminator
        on_real, on_fake = score(torch.cat([real, fake.detach()])).chunk(2)
        loss = discriminator_loss(options.gan.loss, on_real, on_fake) + penalty(options.gan, score, real, fake.detach())
        optimizers["discriminator"].zero_grad()
        loss.backward()
        optimizers["discriminator"].step()
        score.requires_grad_(False)
        optimizers["generator"].zero_grad()
        generator_loss(options.gan.loss, score(fake)).backward()
        optimizers["generator"].step()
        score.requires_grad_(True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--preset", default="qrkt-gan-cifar10")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    options = merge(given.preset, None, {"batch_size": given.batch})
    # one after the other in turns, so that what else the machine does falls on both
    steps = {"quantum": stepper(options), "classical baseline": stepper(options.without_circuits())}
    wall: dict[str, list[float]] = {name: [] for name in steps}
    busy: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(given.steps + 1):
        for name, step in steps.items():
            started, used = time.perf_counter(), time.process_time()
            step()
            if number:  # the first one warms up
                wall[name].append(time.perf_counter() - started)
                busy[name].append(time.process_time() - used)
    print(f"{given.preset}, batch {given.batch}, {given.threads} threads, median of {given.steps} steps")
    for name in steps:
        w, b = statistics.median(wall[name]), statistics.median(busy[name])
        print(f"{name:18}{w * 1e3:9.0f} ms wall {b * 1e3:9.0f} ms CPU")
    ratio = [statistics.median(t["quantum"]) / statistics.median(t["classical baseline"]) for t in (wall, busy)]
    print(f"quantum : baseline: {ratio[0]:.2f} (wall), {ratio[1]:.2f} (CPU)")


if __name__ == "__main__":
    main()

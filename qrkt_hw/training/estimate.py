"""What a training takes where circuits are evaluated one by one, measured on a few samples before it starts."""

from __future__ import annotations

import copy
import time
import warnings

import torch
from torch import nn

from qrkt_hw.backends import Backend, BackendWarning, from_options
from qrkt_hw.data import Data
from qrkt_hw.data.batches import first, loader
from qrkt_hw.models.factory import quantum_layers, set_backend
from qrkt_hw.models.gan import Gan
from qrkt_hw.options.run import RunOptions

SAMPLES = 4
LONG = 20.0  # seconds after which the first sample, with all that is prepared once, has to do


def estimate(options: RunOptions, data: Data, model: nn.Module, backend: Backend) -> str | None:
    """A line on the circuits and the time of a training; None where torch differentiates the circuits, or where
    trying costs money.

    A copy of the model on a backend of its own trains on one sample and then on a few: the run's random numbers and
    counters stay as they are.
    """
    if backend.differentiable or backend.bills or not quantum_layers(model):
        return None
    probe = copy.deepcopy(model).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BackendWarning)
        own = from_options(options, options.seed)
    set_backend(probe, own)
    sizes = {name: len(split) for name, split in data.splits.items()}  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        few = 1
        step, forward, circuits = _measured(probe, data, own, few)
        if step < LONG and sizes["train"] > 1:
            few = min(SAMPLES, sizes["train"])
            step, forward, circuits = _measured(probe, data, own, few)
    checked = 0 if isinstance(probe, Gan) else sizes["validation"]
    epoch = (step * sizes["train"] + forward * checked) / few
    whole = epoch * options.epochs + (forward * (checked + sizes["test"]) / few if checked else 0)
    circuits //= few
    return (
        f"{backend.name} evaluates {circuits:,} circuits for a training sample, {circuits * sizes['train']:,} in an "
        f"epoch: about {_time(epoch)} an epoch and {_time(whole)} in all (from {few} sample{'s' if few > 1 else ''}); "
        "faster, without noise: --backend exact"
    )


def _measured(probe: nn.Module, data: Data, backend: Backend, count: int) -> tuple[float, float, int]:
    """Seconds of a training step on so many samples and of its forward pass, and circuits of the step."""
    inputs, _ = next(iter(loader(first(data.splits["train"], count), count)))
    inputs = inputs.to(next(probe.parameters()).dtype) if inputs.is_floating_point() else inputs
    before, started = backend.counters.circuits, time.perf_counter()
    if isinstance(probe, Gan):
        drawn = probe.generator(torch.randn(count, probe.latent, dtype=inputs.dtype))
        probe.discriminator(torch.cat([inputs, drawn.detach()])).sum().backward()
        value = probe.discriminator(drawn).sum()
    else:
        value = probe(inputs).sum()
    forward = time.perf_counter() - started
    value.backward()
    return time.perf_counter() - started, forward, backend.counters.circuits - before


def _time(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"

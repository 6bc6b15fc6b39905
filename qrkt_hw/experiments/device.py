"""Inference on a backend beside the exact simulator: accuracy of both, what it took, and a progress bar."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from qrkt_hw.backends import Backend
from qrkt_hw.backends.exact import ExactBackend
from qrkt_hw.experiments.watching import Watched
from qrkt_hw.models.factory import set_backend
from qrkt_hw.models.metrics import logits_of, mcnemar, wilson
from qrkt_hw.resources.logical import trace

EVERY = 20.0  # seconds between two lines on what is waited for, where there is no terminal


def on_backend(
    model: torch.nn.Module,
    batches: Any,
    backend: Backend,
    console: Console | None,
    layers: bool = False,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits on the backend, labels, and a report beside the exact simulator.

    Args:
        model: in evaluation mode; its circuits are moved to the backend and stay there.
        batches: a sized iterable of inputs and labels.
        backend: where the circuits run; a device that bills is held open by whoever calls.
        console: for the progress bar; None shows nothing.
        layers: compare every value with the exact one at the same inputs.

    Returns:
        Logits ``(images, classes)``, labels ``(images,)``, and: ``backend_details`` (name, kind, shots, device,
        calibration date), ``circuits``, ``executions``, ``rounds``, ``wall_seconds``, ``interval`` of the accuracy,
        ``exact_accuracy``, ``exact_interval``, ``agreement`` (share of images classified alike) and
        ``agreement_interval``; ``discordant`` (images that the backend alone, and that the exact simulator alone,
        classifies rightly) and the ``p_value`` of the exact McNemar test on them. Intervals are Wilson's of 95 %.
        With ``layers`` also the rows of :class:`qrkt_hw.experiments.watching.Watched`.
    """
    set_backend(model, ExactBackend("exact"))
    exact, labels = logits_of(model, batches)
    total = len(trace(model, next(iter(batches))[0][:1])) * len(batches)
    watched = Watched(backend, compare=layers)
    set_backend(model, watched)
    before = asdict(backend.counters)
    started = time.perf_counter()
    with _progress(console, total) as tell, backend.reporting(tell):
        logits, _ = logits_of(model, batches)
    wall = time.perf_counter() - started
    used = {key: value - before[key] for key, value in asdict(backend.counters).items()}
    count = len(labels)
    right, right_exact = logits.argmax(-1) == labels, exact.argmax(-1) == labels
    alike = logits.argmax(-1) == exact.argmax(-1)
    discordant = [int((right & ~right_exact).sum()), int((right_exact & ~right).sum())]
    set_backend(model, backend)
    return logits, labels, {
        **({"layers": watched.rows()} if layers else {}),
        "backend_details": backend.about(),
        "circuits": used["circuits"],
        "executions": used["executions"],
        "rounds": used["rounds"],
        "wall_seconds": round(wall, 3),
        "interval": wilson(int(right.sum()), count),
        "exact_accuracy": right_exact.double().mean().item(),
        "exact_interval": wilson(int(right_exact.sum()), count),
        "agreement": alike.double().mean().item(),
        "agreement_interval": wilson(int(alike.sum()), count),
        "discordant": discordant,
        "p_value": mcnemar(*discordant),
    }  # fmt: skip


class _progress:
    """A bar over circuit batches that names the one being waited for; now and then lines where there is no terminal."""

    def __init__(self, console: Console | None, total: int) -> None:
        self.console, self.total, self.done = console, total, 0
        self.last = time.monotonic()
        live = console is not None and console.is_terminal
        columns = [TextColumn("circuit batch"), MofNCompleteColumn(), BarColumn(bar_width=30),
                   TextColumn("{task.description}"), TimeElapsedColumn(), TextColumn("left"),
                   TimeRemainingColumn()]  # fmt: skip
        self.bar = Progress(*columns, console=console, disable=not live, transient=True)
        self.every = max(1, total // 5)

    def __enter__(self) -> _progress:
        self.bar.start()
        self.task = self.bar.add_task("starting", total=self.total)
        return self

    def update(self, text: str) -> None:
        """What is waited for within the circuit batch."""
        self.bar.update(self.task, description=text if len(text) <= 110 else text[:107] + "...")
        if self.console is not None and not self.console.is_terminal and time.monotonic() - self.last > EVERY:
            self.last = time.monotonic()
            self.console.print(f"waiting for {text}", highlight=False, markup=False, soft_wrap=True)

    def __call__(self, text: str) -> None:
        shown = text if len(text) <= 90 else text[:87] + "..."
        self.bar.update(self.task, description=f"waiting for {shown}", completed=self.done)
        if self.console is not None and not self.console.is_terminal and self.done % self.every == 0:
            self.console.print(
                f"circuit batch {self.done + 1} of {self.total}: waiting for {shown}", highlight=False, soft_wrap=True
            )
        self.done += 1

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

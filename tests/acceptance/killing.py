"""Kill this very process (SIGKILL) at a named moment of a training; at ``MOMENT@SIGINT`` as by Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

SIGNALS = [signal.SIGKILL]


def die() -> None:
    os.kill(os.getpid(), SIGNALS[0])


def before(owner: Any, name: str, nth: int) -> None:
    """Die at the ``nth`` call of ``owner.name``, before it does anything."""
    _wrap(owner, name, nth, lambda original, args, kwargs: die())


def after(owner: Any, name: str, nth: int) -> None:
    """Die when the ``nth`` call of ``owner.name`` has returned."""

    def run(original: Callable[..., Any], args: Any, kwargs: Any) -> None:
        original(*args, **kwargs)
        die()

    _wrap(owner, name, nth, run)


def _wrap(owner: Any, name: str, nth: int, action: Callable[..., None]) -> None:
    original, calls = getattr(owner, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == nth:
            action(original, args, kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def half_written_checkpoint(nth: int) -> None:
    """Die while the ``nth`` checkpoint is written: half of its bytes are in the temporary file."""
    import torch

    original, calls = torch.save, [0]

    def save(content: Any, path: Any) -> None:
        original(content, path)
        calls[0] += 1
        if calls[0] == nth:
            os.truncate(path, os.path.getsize(path) // 2)  # noqa: PTH202
            die()

    torch.save = save


def arrange(moment: str) -> None:
    """Let this process die at a moment."""
    moment, _, name = moment.partition("@")
    if name:
        SIGNALS[0] = signal.Signals[name]
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may ignore it
    from qrkt_hw.plots import charts
    from qrkt_hw.runs import RunFolder
    from qrkt_hw.training import classifier, fit, loop
    from qrkt_hw.training.classifier import ClassifierTask
    from qrkt_hw.training.gan import GanTask

    moments: dict[str, Callable[[], None]] = {
        "folder-made": lambda: after(RunFolder, "create", 1),
        "first-step": lambda: before(ClassifierTask, "step", 1),
        "first-epoch": lambda: after(ClassifierTask, "step", 3),
        "first-validation": lambda: after(classifier, "logits_of", 1),
        "metrics-written-first-epoch": lambda: after(loop, "_write_metrics", 1),
        "second-epoch": lambda: after(ClassifierTask, "step", 6),
        "gan-second-epoch": lambda: after(GanTask, "step", 5),
        "later-validation": lambda: after(classifier, "logits_of", 2),
        "best-model-written": lambda: after(loop, "save_weights", 2),
        "checkpoint-half-written": lambda: half_written_checkpoint(2),
        "checkpoint-written": lambda: after(loop, "replace_with", 4),
        "last-epoch": lambda: before(ClassifierTask, "step", 12),
        "evaluation": lambda: before(charts, "plot_confusion", 1),
        "before-results": lambda: before(fit, "write_json", 2),  # the first is backend.json
    }
    moments[moment]()

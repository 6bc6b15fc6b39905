"""Reading the checkpoint of a run: it continues the training exactly, or is refused in a sentence."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qrkt_hw.backends import Backend
from qrkt_hw.errors import UserError
from qrkt_hw.models.weights import read_weights
from qrkt_hw.runs import RunFolder
from qrkt_hw.training.loop import Record, Task


def resume_from(run: RunFolder, task: Task, backend: Backend) -> Record:
    """Continue from the run's checkpoint: fills ``task`` and ``backend``; a fresh record where there is none.

    Checkpoints that Lightning's Trainer wrote for earlier releases are read too.

    Raises:
        UserError: it cannot be read, is not one of ours, or does not belong to the run's configuration.
    """
    if not run.checkpoint.is_file():
        return Record()
    state = task.modules.state_dict()
    try:
        content = _read(run.checkpoint)
        found = {name: (tensor.shape, tensor.dtype) for name, tensor in content["state_dict"].items()}
        if found == {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}:
            record = _record(content)
            moments = list(_moments(task, content["optimizer_states"], len(record.history)))
            if not all(bool(t.isfinite().all()) for t in (*content["state_dict"].values(), *moments)):
                raise ValueError("it holds values that are not finite numbers")
            task.modules.load_state_dict(content["state_dict"])
            for learner, kept in zip(task.learners, content["optimizer_states"], strict=True):
                learner.optimizer.load_state_dict(kept)
            backend.restore(_kept(content)["backend"])
    except Exception as error:  # torch raises many kinds for a file that is not whole
        why = str(error) if type(error) in (ValueError, UserError) else type(error).__name__
        raise UserError(f"{run.checkpoint} is damaged ({why}); remove it to train this run from the start") from error
    if found != {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}:
        raise UserError(f"{run.checkpoint} does not fit {run.config}: was the configuration changed since?")
    if run.model.is_file():
        read_weights(task.model, run.model, run.weights_sha256())
    done, epochs = len(record.history), task.options.training.epochs
    if done > epochs:
        raise UserError(f"{run.config}: epochs is {epochs}, but {run.checkpoint} holds {done}")
    return record


def _read(file: Path) -> dict[str, Any]:
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()  # torch does not compare the checksums
    if damaged is not None:
        raise ValueError(f"its part {damaged} is not what was written")
    return torch.load(file, map_location="cpu", weights_only=True)


def _kept(content: dict[str, Any]) -> dict[str, Any]:
    """The record; Lightning's Trainer kept it as the state of a callback."""
    return content["record"] if "record" in content else content["callbacks"]["Recorder"]


def _record(content: dict[str, Any]) -> Record:
    kept = _kept(content)
    area, loss = map(float, kept["best"])
    seconds = float(kept["train_seconds"]), float(kept["cpu_seconds"])
    record = Record(list(kept["history"]), (area, loss), int(kept["best_epoch"]), *seconds)
    numbers = [row["epoch"] for row in record.history]
    if not numbers or numbers != list(range(1, len(numbers) + 1)) or {type(n) for n in numbers} != {int}:
        raise ValueError("its epochs are not those of a training")
    return record


def _moments(task: Task, states: list[dict[str, Any]], epochs: int) -> Iterator[Tensor]:
    """All moments of the optimizers, which must be of so many epochs of the task.

    Raises:
        ValueError: another number of optimizers, updates or parameters.
    """
    expected = task.updates(epochs * len(task.batches))
    for learner, updates, kept in zip(task.learners, expected, states, strict=True):
        if bool(kept["state"]) != bool(updates):
            raise ValueError("its optimizers have not taken the steps of its epochs")
        for place, state in kept["state"].items():
            if int(state["step"]) != updates:
                raise ValueError("its optimizers have not taken the steps of its epochs")
            for name in ("exp_avg", "exp_avg_sq"):
                if state[name].shape != learner.parameters[place].shape:
                    raise ValueError("its optimizers are not those of this run")
                yield state[name]

"""The training loop, on Lightning Fabric: epochs of a task's steps; a run folder keeps each of them whole."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from qrkt_hw.backends import Backend
from qrkt_hw.backends.registry import progress
from qrkt_hw.data import Data
from qrkt_hw.data.batches import loader
from qrkt_hw.data.ranks import fabric_of, here
from qrkt_hw.errors import UserError
from qrkt_hw.models.factory import named_blocks, quantum_layers
from qrkt_hw.models.weights import read_weights, save_weights
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import replace_with, write_text
from qrkt_hw.runs.config import Config, TrainingConfig

NORMS_EVERY = 10  # updates between two measurements of the gradients; enough for a mean


Pairs = Sequence[tuple[nn.Module, Optimizer]]
AfterEpoch = Callable[[int, dict[str, float]], None] | None  # is told number and metrics of an epoch


def groups(network: nn.Module, options: TrainingConfig, rate: float) -> list[dict[str, Any]]:
    """Parameters of a network for its optimizer, all in one group; with a learning rate or weight decay of their own
    the angles of its circuits are a second one."""
    apart = options.angle_learning_rate is not None or options.angle_weight_decay is not None
    angles = {layer.weight for layer in quantum_layers(network)} if apart else set()
    own = {"lr": options.angle_learning_rate or rate, "weight_decay": options.angle_weight_decay}
    if own["weight_decay"] is None:
        own["weight_decay"] = options.weight_decay
    parameters = list(network.parameters())
    found = [{"params": [p for p in parameters if p not in angles], "lr": rate, "weight_decay": options.weight_decay}]
    return found + ([{"params": [p for p in parameters if p in angles], **own}] if angles else [])


class Learner:
    """A network with its optimizer, both on Fabric's device. The learning rate that the optimizer was made with is the
    peak of the schedule; ``clip`` is the gradient norm at which gradients are clipped."""

    def __init__(self, fabric: Fabric, network: nn.Module, optimizer: Optimizer, clip: float) -> None:
        self.ranks = here()
        self.fabric, self.clip, self.peak = fabric, clip, optimizer.param_groups[0]["lr"]
        self.ratios = [group["lr"] / self.peak for group in optimizer.param_groups]
        # walking the modules for every use costs some per cent of a step
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.blocks = named_blocks(network)
        self.network, self.optimizer = fabric.setup(network, optimizer)
        self.start_epoch()

    def start_epoch(self) -> None:
        self.updates, self._norms = 0, list[Tensor]()

    def __call__(self, *inputs: Tensor | bool | None) -> Tensor:
        return self.network(*inputs)

    def update(self, losses: Iterable[Tensor], rate: float) -> None:
        """One step down the gradient of the sum of ``losses``, over all ranks, with this learning rate, in whose
        proportion the other groups of parameters have theirs. Each is differentiated before the next is computed."""
        self.optimizer.zero_grad()
        for loss in losses:
            self.fabric.backward(loss)
        if self.ranks.count > 1:
            self.ranks.add_up([p.grad for p in self.parameters if p.grad is not None])
        if self.blocks and self.updates % NORMS_EVERY == 0:  # before clipping
            gradients = [[p.grad for p in b.parameters() if p.grad is not None] for b in self.blocks.values()]
            norms = [get_total_norm(found) if found else torch.zeros(()) for found in gradients]
            self._norms.append(torch.stack(norms).detach())
        self.updates += 1
        clip_grad_norm_(self.parameters, self.clip, foreach=True)
        for group, ratio in zip(self.optimizer.param_groups, self.ratios, strict=True):
            group["lr"] = rate * ratio
        self.optimizer.step()

    def gradient_norms(self, side: str = "") -> dict[str, float]:
        """Metrics: mean Euclidean norm of the gradients of each block in this epoch; 0 without an update."""
        means = torch.stack(self._norms).mean(0).tolist() if self._norms else [0.0] * len(self.blocks)
        return {f"gradient_norm_{side}{name}": mean for name, mean in zip(self.blocks, means, strict=True)}


@dataclass
class Record:
    """What a training has come to; a part of every checkpoint.

    Attributes:
        history: a row of ``metrics.csv`` for each epoch.
        best, best_epoch: score and number of the epoch whose weights are kept.
        train_seconds, cpu_seconds: by the clock and of the CPU, without what is written after an epoch.
        planned: epochs that the learning rates were planned for.
        rescheduled: numbers of the epochs after which that number changed.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best: tuple[float, float] = (-1.0, -math.inf)
    best_epoch: int = 0
    train_seconds: float = 0.0
    cpu_seconds: float = 0.0
    planned: int = 0
    rescheduled: list[int] = field(default_factory=list)


class Task(ABC):
    """What a step does with a batch, and what becomes of an epoch. ``averaged`` is the part of the model whose moving
    average is validated and kept; ``pairs`` are the model's networks, each with its optimizer."""

    shown: str  # an epoch's metrics in a few words: a format
    figures = True  # whether charts are drawn at the end

    def __init__(self, options: Config, data: Data, model: nn.Module, averaged: nn.Module, pairs: Pairs) -> None:
        self.options, self.data, self.model = options, data, model
        d, t = options.data, options.training
        self.ranks = here()
        self.fabric = self.ranks.fabric or fabric_of(options, devices=1)
        mixup = t.mixup if options.model.kind == "vit" else 0.0
        self.batches = loader(data.splits["train"], d.batch_size, t.seed, d.workers, d.augment, self.ranks, mixup)
        self.total_steps = options.training.epochs * len(self.batches)
        self.learners = [Learner(self.fabric, *pair, options.training.clip) for pair in pairs]
        self.averaged = AveragedModel(averaged, multi_avg_fn=self._average) if options.training.ema else None
        self.modules = nn.ModuleDict({"model": model})  # what a checkpoint holds
        if self.averaged is not None:
            self.modules["averaged"] = self.averaged

    @torch.no_grad()
    def _average(self, averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        """Exponential moving average that follows quickly at first: decay ``min(ema, (1 + n) / (10 + n))``."""
        decay = min(self.options.training.ema, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(list(averaged), list(current), 1 - decay)

    def start_epoch(self, epoch: int) -> None:
        """All random numbers and the order of samples depend on seed and epoch, so that a resume repeats them."""
        torch.manual_seed(self.options.training.seed * 1_000_003 + epoch)
        self.batches.sampler.set_epoch(epoch - 1)  # type: ignore[attr-defined]
        for learner in self.learners:
            learner.start_epoch()

    @property
    def kept(self) -> nn.Module:
        """The model that is validated and kept: averaged where weights are averaged."""
        return self.model if self.averaged is None else self.averaged.module

    def diverged(self, epoch: int, found: str) -> UserError:
        advice = "try a lower rate or --clip"
        return UserError(f"--learning-rate: training diverged in epoch {epoch} ({found}); {advice}")

    def enough(self, record: Record) -> str:
        """Why the training stops before its last epoch; empty where it goes on."""
        return ""

    def updates(self, steps: int) -> list[int]:
        """How often each learner was updated in the first ``steps`` steps of the training."""
        return [steps]

    @abstractmethod
    def step(self, batch: tuple[Tensor, ...], number: int) -> None:
        """Train on a batch; ``number`` counts from the start of the training."""

    @abstractmethod
    def end_epoch(self, epoch: int) -> dict[str, float]:
        """The epoch's metrics; a UserError where the training diverged."""

    @abstractmethod
    def keep(self, record: Record, run: RunFolder) -> bool:
        """Whether the weights of the record's last epoch are kept; rank 0 writes here what else the task keeps."""

    @abstractmethod
    def results(self, record: Record, run: RunFolder) -> dict[str, Any]:
        """The task's own part of ``results.json``; ``model`` holds the kept weights. Rank 0 draws the charts."""


METRICS = 43  # characters of the metrics of an epoch


class TrainingProgress:
    """A live bar on a terminal, a line now and then elsewhere: steps of the whole training, the last epoch's metrics
    and the time left. A context manager; ``done`` epochs lie behind a resumed run."""

    def __init__(self, console: Console, epochs: int, batches: int, done: int) -> None:
        self.console, self.epochs = console, epochs
        self.bar = progress(console, METRICS)
        self.task = self.bar.add_task(
            f"epoch {done + 1}/{epochs}", total=epochs * batches, completed=done * batches, text=""
        )

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self) -> None:
        self.bar.advance(self.task)

    def end_epoch(self, epoch: int, metrics: str) -> None:
        self.bar.update(self.task, description=f"epoch {min(epoch + 1, self.epochs)}/{self.epochs}", text=metrics)
        every = max(1, self.epochs // 10)
        if not self.console.is_terminal and (epoch % every == 0 or epoch in (1, self.epochs)):
            self.console.print(f"epoch {epoch}/{self.epochs}  {metrics}", highlight=False)


def train(
    task: Task, run: RunFolder, record: Record, backend: Backend, console: Console, after_epoch: AfterEpoch = None
) -> None:
    """Train the epochs that ``record`` lacks. A process that is killed at any moment loses the current epoch only.

    The backend's counters and random numbers go into the checkpoints; ``after_epoch`` is called when one is written.
    """
    epochs, batches, done = task.options.training.epochs, task.batches, len(record.history)
    if done < epochs:
        if done and record.planned not in (0, epochs):
            record.rescheduled.append(done)
        record.planned = epochs
    leads = task.ranks.leads
    logger = TensorBoardLogger(run.path, name=run.tensorboard.name, version="") if leads else None
    with ExitStack() as ending:
        if logger is not None:
            # also of a trial that is pruned: it writes what is not on disk yet
            ending.callback(logger.finalize, "ended")
        progress = ending.enter_context(TrainingProgress(console, epochs, len(batches), done))
        for epoch in range(done + 1, epochs + 1):
            if why := task.enough(record):
                console.print(f"stopped after epoch {epoch - 1}: {why}", highlight=False)
                break
            started = time.perf_counter(), time.process_time()
            task.start_epoch(epoch)
            for number, batch in enumerate(batches, (epoch - 1) * len(batches)):
                task.step(task.fabric.to_device(batch), number)
                progress.step()
            metrics = task.end_epoch(epoch)
            record.train_seconds += time.perf_counter() - started[0]
            record.cpu_seconds += time.process_time() - started[1]
            measured = {"peak_memory_mb": round(peak_memory(), 1), "seconds": record.train_seconds}
            record.history.append({"epoch": epoch, **metrics, **measured, "cpu_seconds": record.cpu_seconds})
            if logger is not None:
                logger.log_metrics(metrics, epoch * len(batches))
            _keep(task, run, record, backend)
            progress.end_epoch(epoch, task.shown.format(**metrics))
            if after_epoch is not None:
                after_epoch(epoch, metrics)


def _keep(task: Task, run: RunFolder, record: Record, backend: Backend) -> None:
    """Write ``metrics.csv``, the weights where they are kept, and last of all the checkpoint. A run that is killed
    anywhere between repeats the epoch and writes the same files again. Of several ranks the first one writes."""
    if not task.ranks.leads:
        task.keep(record, run)
        return
    _write_metrics(run, record)
    if task.keep(record, run):
        run.results.unlink(missing_ok=True)  # of another model: of a run that is resumed after its end
        replace_with(run.model, lambda path: save_weights(task.kept.state_dict(), path, record.best_epoch))
    content = {
        "state_dict": task.modules.state_dict(),
        "optimizer_states": [learner.optimizer.state_dict() for learner in task.learners],
        "record": {**asdict(record), "backend": backend.state()},
    }
    replace_with(run.checkpoint, lambda path: torch.save(content, path))


def _write_metrics(run: RunFolder, record: Record) -> None:
    text = io.StringIO()
    columns = list(record.history[0])  # of an earlier release where such a run is resumed
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(record.history)
    write_text(run.metrics, text.getvalue())


def resume_from(run: RunFolder, task: Task, backend: Backend) -> Record:
    """Continue from the run's checkpoint, also of an earlier release: fills ``task`` and ``backend``; a fresh record
    where there is none.

    Raises UserError: it cannot be read, is not one of ours, or does not belong to the run's configuration.
    """
    if not run.checkpoint.is_file():
        return Record()
    try:
        content = _read(run.checkpoint)
        fits = _layout(content["state_dict"]) == _layout(task.modules.state_dict())
        if fits:
            record = _record(content["record"])
            moments = list(_moments(task, content["optimizer_states"], len(record.history)))
            if not all(bool(t.isfinite().all()) for t in (*content["state_dict"].values(), *moments)):
                raise ValueError("it holds values that are not finite numbers")
            task.modules.load_state_dict(content["state_dict"])
            for learner, kept in zip(task.learners, content["optimizer_states"], strict=True):
                learner.optimizer.load_state_dict(kept)
            if content["record"]["backend"] is not None:
                backend.restore(content["record"]["backend"])
    except Exception as error:  # torch raises many kinds for a file that is not whole
        why = str(error) if type(error) in (ValueError, UserError) else type(error).__name__
        raise UserError(f"{run.checkpoint} is damaged ({why}); remove it to train this run from the start") from error
    if not fits:
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
    content = torch.load(file, map_location="cpu", weights_only=True)
    if "record" not in content:  # Lightning's Trainer, of earlier releases, kept it as the state of a callback
        content["record"] = {"backend": None, **content["callbacks"]["Recorder"]}  # the first releases kept no backend
    return content


def _layout(state: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}


def _record(kept: dict[str, Any]) -> Record:
    area, loss = map(float, kept["best"])
    seconds = float(kept["train_seconds"]), float(kept["cpu_seconds"])
    # the first releases kept no plan: it could not change
    plan = int(kept.get("planned", 0)), [int(epoch) for epoch in kept.get("rescheduled", ())]
    record = Record(list(kept["history"]), (area, loss), int(kept["best_epoch"]), *seconds, *plan)
    numbers = [row["epoch"] for row in record.history]
    if not numbers or numbers != list(range(1, len(numbers) + 1)) or {type(n) for n in numbers} != {int}:
        raise ValueError("its epochs are not those of a training")
    return record


def _moments(task: Task, states: list[dict[str, Any]], epochs: int) -> Iterator[Tensor]:
    """All moments of the optimizers; a ValueError where they are not of so many epochs of the task."""
    expected = task.updates(epochs * len(task.batches))
    for learner, updates, kept in zip(task.learners, expected, states, strict=True):
        moments = kept["state"]
        if bool(moments) != bool(updates) or any(int(state["step"]) != updates for state in moments.values()):
            raise ValueError("its optimizers have not taken the steps of its epochs")
        for place, state in moments.items():
            for name in ("exp_avg", "exp_avg_sq"):
                if state[name].shape != learner.parameters[place].shape:
                    raise ValueError("its optimizers are not those of this run")
                yield state[name]


def peak_memory() -> float:
    """Most memory this process (and the accelerator, where one is used) ever held, in MiB; NaN on Windows."""
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        held += torch.cuda.max_memory_allocated() / 2**20
    return held

"""The callback that keeps a run: metrics, best model, checkpoint; each file whole or absent at any moment."""

from __future__ import annotations

import csv
import io
import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from qrkt_hw.backends import Backend
from qrkt_hw.errors import UserError
from qrkt_hw.models.weights import save_weights
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import replace_with, write_text
from qrkt_hw.training.measures import peak_memory


class Recorder(Callback):
    """After each epoch: ``metrics.csv``, ``model.safetensors`` where validation AUROC improved, then ``last.ckpt``.

    The checkpoint comes last and holds this callback's state, so that a run killed anywhere between repeats the epoch
    and writes the same files again. The state holds what the backend counted and the state of its random numbers, so
    that a resumed training counts, and samples, as one that was never stopped.

    Args:
        run: the run.
        backend: where its circuits run.
        evaluations_per_epoch: field evaluations of an epoch's training samples.
    """

    def __init__(self, run: RunFolder, backend: Backend, evaluations_per_epoch: int = 0) -> None:
        self.run = run
        self.backend = backend
        self.started = False
        self.evaluations_per_epoch = evaluations_per_epoch
        self.history: list[dict[str, float]] = []
        self.best: tuple[float, float] = (-1.0, float("-inf"))
        self.best_epoch = 0
        self.train_seconds = 0.0
        self.cpu_seconds = 0.0
        self._clock = (0.0, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": self.history,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "train_seconds": self.train_seconds,
            "cpu_seconds": self.cpu_seconds,
            "backend": self.backend.state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for key, value in state_dict.items():
            if key == "backend":
                self.backend.restore(value)
            else:
                setattr(self, key, tuple(value) if key == "best" else value)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock = (time.perf_counter(), time.process_time())
        self.started = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = (time.perf_counter(), time.process_time())
        seconds = now[0] - self._clock[0]
        self.train_seconds += seconds
        self.cpu_seconds += now[1] - self._clock[1]
        self._clock = now
        metrics: dict[str, float] = pl_module.epoch_metrics  # type: ignore[assignment]
        epoch = trainer.current_epoch + 1
        if not (math.isfinite(metrics["train_loss"]) and math.isfinite(metrics["val_loss"])):
            raise UserError(
                f"--learning-rate: training diverged in epoch {epoch} (training loss {metrics['train_loss']}, "
                f"validation loss {metrics['val_loss']}); try a lower rate or --clip"
            )
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        measured = {
            "field_evaluations": epoch * self.evaluations_per_epoch,
            "peak_memory_mb": round(peak_memory(), 1),
            "seconds": self.train_seconds,
        }
        self.history.append({"epoch": epoch, **metrics, "learning_rate": rate, **measured})
        self._write_metrics()
        # equal AUROC (often 1.0 on easy data) is decided by the loss
        # with a class missing from the validation images the AUROC may not exist
        score = (metrics["val_auroc"] if math.isfinite(metrics["val_auroc"]) else 0.0, -metrics["val_loss"])
        if score > self.best:
            self.best, self.best_epoch = score, epoch
            self._keep_weights(pl_module.kept, epoch)
        replace_with(self.run.checkpoint, lambda path: trainer.save_checkpoint(path))

    def _keep_weights(self, model: Any, epoch: int) -> None:
        self.run.results.unlink(missing_ok=True)  # of another model: of a run that goes on after its end
        replace_with(self.run.model, lambda path: save_weights(model.state_dict(), path, epoch))

    def _write_metrics(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        write_text(self.run.metrics, text.getvalue())

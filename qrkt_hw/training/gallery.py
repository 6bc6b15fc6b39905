"""The callback that keeps a GAN's run: metrics, samples of the same noise, both sides' weights, checkpoint."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from qrkt_hw.backends import Backend
from qrkt_hw.errors import UserError
from qrkt_hw.plots.images import save_grid
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import replace_with
from qrkt_hw.training.measures import peak_memory
from qrkt_hw.training.recorder import Recorder

COLUMNS, ROWS = 8, 8


def fixed_noise(count: int, latent: int, seed: int) -> Tensor:
    """``(count, latent)``, standard normal, the same wherever it is asked for."""
    return torch.randn(count, latent, generator=torch.Generator().manual_seed(seed))


class Gallery(Recorder):
    """After each epoch: a sample grid where one is due, ``model.safetensors``, ``metrics.csv``, then ``last.ckpt``.

    The checkpoint comes last, as in :class:`Recorder`; a run killed before it repeats the epoch and writes the same.

    Args:
        run: the run.
        backend: where its circuits run.
        every: epochs between two grids; the first and the last epoch have one in any case.
    """

    def __init__(self, run: RunFolder, backend: Backend, every: int) -> None:
        super().__init__(run, backend)
        self.every = every

    @property
    def state_key(self) -> str:
        return Recorder.__qualname__

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = (time.perf_counter(), time.process_time())
        self.train_seconds += now[0] - self._clock[0]
        self.cpu_seconds += now[1] - self._clock[1]
        metrics: dict[str, float] = pl_module.epoch_metrics  # type: ignore[assignment]
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        if not all(map(math.isfinite, metrics.values())):
            raise UserError(
                f"--learning-rate: training diverged in epoch {epoch} (losses {metrics['generator_loss']} and "
                f"{metrics['discriminator_loss']}); try a lower rate or --clip"
            )
        measured: dict[str, Any] = {
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "peak_memory_mb": round(peak_memory(), 1),
            "seconds": self.train_seconds,
            "cpu_seconds": self.cpu_seconds,
        }
        self.history.append({"epoch": epoch, **metrics, **measured})
        self.best_epoch = epoch
        kept: Any = pl_module.kept  # type: ignore[union-attr]
        if epoch in (1, epochs) or epoch % self.every == 0:
            self._draw(kept, epoch)
        if epoch == epochs or epoch % self.every == 0:
            self._keep_weights(kept, epoch)
        self._write_metrics()
        replace_with(self.run.checkpoint, lambda path: trainer.save_checkpoint(path))
        self._clock = (time.perf_counter(), time.process_time())

    def _draw(self, kept: Any, epoch: int) -> None:
        was = kept.training
        kept.eval()
        with torch.no_grad():
            where = kept.generator.enter.weight.device
            images = kept(fixed_noise(COLUMNS * ROWS, kept.latent, seed=0).to(where))
        kept.train(was)
        save_grid(images, self.run.path / "samples" / f"epoch-{epoch:05d}.png", COLUMNS)

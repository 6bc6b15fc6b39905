"""A live progress bar on a terminal; a line now and then elsewhere."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class LiveProgress(Callback):
    """Steps of the whole training, with the last epoch's metrics and the time left; on standard error."""

    def __init__(self, console: Console, steps_per_epoch: int) -> None:
        self.console = console
        self.steps_per_epoch = steps_per_epoch
        self.progress = Progress(
            TextColumn("[bold]epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = (trainer.max_epochs or 0) * self.steps_per_epoch
        self.task = self.progress.add_task(
            "train", total=total, completed=trainer.global_step, epoch=trainer.current_epoch + 1, metrics=""
        )
        self.progress.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.progress.advance(self.task)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        m: dict[str, float] = pl_module.epoch_metrics  # type: ignore[assignment]
        text = _text(m)
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        self.progress.update(self.task, epoch=min(epoch + 1, epochs), metrics=text)
        every = max(1, epochs // 10)
        if not self.console.is_terminal and (epoch % every == 0 or epoch in (1, epochs)):
            self.console.print(f"epoch {epoch}/{epochs}  {text}", highlight=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.progress.stop()


def _text(m: dict[str, float]) -> str:
    if "generator_loss" in m:
        return (
            f"generator {m['generator_loss']:.3f}  discriminator {m['discriminator_loss']:.3f}  "
            f"scores {m['real_score']:+.2f} {m['fake_score']:+.2f}"
        )
    return f"loss {m['train_loss']:.3f}  val acc {m['val_accuracy']:.3f}  val AUROC {m['val_auroc']:.4f}"

"""A live progress bar on a terminal; a line now and then elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress:
    """Steps of the whole training, with the last epoch's metrics and the time left; a context manager.

    Args:
        console: where it is shown.
        epochs, batches: of the training, of an epoch.
        done: epochs that a resumed run has behind it.
    """

    def __init__(self, console: Console, epochs: int, batches: int, done: int) -> None:
        self.console, self.epochs = console, epochs
        self.bar = Progress(
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
        self.task = self.bar.add_task(
            "train", total=epochs * batches, completed=done * batches, epoch=done + 1, metrics=""
        )

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self) -> None:
        self.bar.advance(self.task)

    def end_epoch(self, epoch: int, metrics: str) -> None:
        self.bar.update(self.task, epoch=min(epoch + 1, self.epochs), metrics=metrics)
        every = max(1, self.epochs // 10)
        if not self.console.is_terminal and (epoch % every == 0 or epoch in (1, self.epochs)):
            self.console.print(f"epoch {epoch}/{self.epochs}  {metrics}", highlight=False)

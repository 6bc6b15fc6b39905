"""Curves and confusion matrix of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from qrkt_hw.plots.figure import BLUE, GREY, ORANGE, new, save, tidy


def plot_curves(history: Sequence[dict[str, float]], best_epoch: int, path: Path) -> Path:
    """Training and validation loss, and validation AUROC and accuracy, over epochs."""
    figure, (left, right) = new(columns=2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["train_loss"] for row in history], color=BLUE, label="training (with dropout)")
    left.plot(epochs, [row["val_loss"] for row in history], color=ORANGE, label="validation")
    right.plot(epochs, [row["val_auroc"] for row in history], color=BLUE, label="AUROC, one-vs-rest")
    right.plot(epochs, [row["val_accuracy"] for row in history], color=ORANGE, label="accuracy")
    for axes, name in ((left, "cross-entropy"), (right, "validation")):
        axes.axvline(best_epoch, color=GREY, linestyle=":", label=f"best epoch ({best_epoch})")
        tidy(axes, "epoch", name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)
    return save(figure, path)


def plot_confusion(predicted: Tensor, labels: Tensor, names: Sequence[str], path: Path) -> Path:
    """Counts of predicted against true classes on the test split."""
    size = len(names)
    names = [name.replace("$", r"\$") for name in names]  # a dollar sign would begin a formula
    counts = np.zeros((size, size), dtype=int)
    np.add.at(counts, (labels.numpy(), predicted.numpy()), 1)
    figure, axes = new(width=5.6, height=5.2)
    shown = axes.imshow(counts, cmap="Blues")
    figure.colorbar(shown, ax=axes, shrink=0.8, label="images")
    if size <= 20:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if count > counts.max() / 2 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(size), names, rotation=45 if max(map(len, names)) > 3 else 0, ha="center")
        axes.set_yticks(range(size), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"test: {np.trace(counts)} of {counts.sum()} correct")
    return save(figure, path)

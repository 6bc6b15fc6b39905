"""How the two sides of a GAN fare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qrkt_hw.plots.figure import BLUE, ORANGE, new, save, tidy


def plot_losses(history: Sequence[dict[str, float]], path: Path) -> Path:
    """Both losses, and the scores of real and drawn images, over epochs."""
    figure, (left, right) = new(columns=2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["generator_loss"] for row in history], color=BLUE, label="generator")
    left.plot(epochs, [row["discriminator_loss"] for row in history], color=ORANGE, label="discriminator")
    right.plot(epochs, [row["real_score"] for row in history], color=BLUE, label="real images")
    right.plot(epochs, [row["fake_score"] for row in history], color=ORANGE, label="drawn images")
    for axes, name in ((left, "loss, without penalty"), (right, "mean score")):
        tidy(axes, "epoch", name)
        axes.legend(frameon=False)
    return save(figure, path)

"""Curves of several runs in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qrkt_hw.plots.figure import new, save, tidy

History = Sequence[dict[str, float]]
QUANTITIES = {"val_loss": "validation loss", "val_auroc": "validation AUROC"}
GAN_QUANTITIES = {"generator_loss": "generator's loss", "discriminator_loss": "discriminator's loss"}
OVER = {"epoch": "epoch", "seconds": "wall time (s)", "field_evaluations": "field evaluations"}


def averaged(histories: Sequence[History], quantity: str, over: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the runs of ``over`` and of ``quantity``, and the latter's deviation, for the epochs that all have."""
    epochs = min(map(len, histories))
    x, y = (np.array([[row[key] for row in h[:epochs]] for h in histories]) for key in (over, quantity))
    return x.mean(0), y.mean(0), y.std(0, ddof=1) if len(histories) > 1 else np.zeros(epochs)


def plot_comparison(groups: Sequence[tuple[str, Sequence[History]]], folder: Path) -> list[Path]:
    """``loss.png`` and ``auroc.png``, each over epochs, wall time and field evaluations; bands are one deviation."""
    files = []
    kind = GAN_QUANTITIES if "generator_loss" in groups[0][1][0][0] else QUANTITIES
    for quantity, name in kind.items():
        figure, panels = new(columns=len(OVER), width=5.2)
        for axes, (over, title) in zip(panels, OVER.items(), strict=True):
            for place, (label, histories) in enumerate(groups):
                if not all(over in row and quantity in row for h in histories for row in h):
                    continue
                x, y, spread = averaged(histories, quantity, over)
                axes.plot(x, y, color=f"C{place % 10}", marker="." if len(x) < 3 else None, label=label)
                if len(histories) > 1:
                    axes.fill_between(x, y - spread, y + spread, color=f"C{place % 10}", alpha=0.2, linewidth=0)
            tidy(axes, title, name)
            if over == "epoch":
                axes.xaxis.get_major_locator().set_params(integer=True)
        panels[0].legend(frameon=False, fontsize=8)
        files.append(save(figure, folder / f"{quantity.removeprefix('val_')}.png"))
    return files

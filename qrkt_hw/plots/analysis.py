"""Expressibility, entangling capability and gradient variance over qubits and layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qrkt_hw.plots.figure import new, save, tidy

COLOURS = ["#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#b83280", "#718096", "#d69e2e", "#319795"]
PANELS = [
    ("expressibility", "divergence from Haar (0 is best)", True),
    ("entangling", "mean Meyer-Wallach entanglement", False),
    ("gradient_variance", "variance of the gradient", True),
]


def plot_analysis(name: str, rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw one panel per figure.

    Args:
        name: of the template.
        rows: ``qubits, layers, expressibility, entangling, gradient_variance`` each.
        path: PNG file.
    """
    figure, panels = new(columns=3, width=4.6, height=3.8)
    qubits = sorted({row["qubits"] for row in rows})
    layers = sorted({row["layers"] for row in rows})
    over, other = ("qubits", "layers") if len(qubits) >= len(layers) else ("layers", "qubits")
    for axes, (key, label, logarithmic) in zip(panels, PANELS, strict=True):
        for place, value in enumerate(sorted({row[other] for row in rows})):
            line = sorted((row[over], row[key]) for row in rows if row[other] == value)
            noun = other if value != 1 else other[:-1]
            axes.plot(
                *zip(*line, strict=True), marker="o", color=COLOURS[place % len(COLOURS)], label=f"{value} {noun}"
            )
        if logarithmic and all(row[key] > 0 for row in rows):
            axes.set_yscale("log")
        tidy(axes, over, label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[1].set_ylim(-0.03, 1.03)
    panels[0].legend(frameon=False)
    figure.suptitle(name)
    return save(figure, path)

"""Draw docs/images/overview.png: the default circuit, and how the default model learned the digits.

Usage: python benchmarks/overview_picture.py RUN
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from qiskit.visualization import circuit_drawer

from qrkt_hw import load
from qrkt_hw.circuits import build
from qrkt_hw.data import load_data
from qrkt_hw.plots.charts import BLUE, ORANGE, tidy
from qrkt_hw.runs import RunFolder


def main(run: RunFolder, target: Path) -> None:
    options, data = run.options(), load_data(run.options().data)
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[2.1, 1.1, 1.25])

    template = build(options.circuit.ansatz, options.circuit.qubits, 1)
    circuit_drawer(template.circuit, output="mpl", ax=left, fold=-1)
    left.set_title(f"{template.name}: the circuit of {options.circuit.qubits} features", fontsize=11)

    with run.metrics.open() as handle:
        rows = list(csv.DictReader(handle))
    epochs = [int(r["epoch"]) for r in rows]
    middle.plot(epochs, [float(r["val_accuracy"]) for r in rows], color=BLUE, label="validation accuracy")
    middle.plot(epochs, [float(r["val_auroc"]) for r in rows], color=ORANGE, label="validation AUROC")
    middle.set_ylim(0, 1.02)
    tidy(middle, "epoch", "")
    middle.legend(frameon=False, loc="lower right")

    images, labels = data.splits["test"][list(range(15))]
    with torch.no_grad():
        predicted = load(run)(images).argmax(-1)
    paper = images.min().item()
    tiles = torch.nn.functional.pad(images[:, 0], (2, 1, 2, 1), value=paper).reshape(3, 5, 11, 11)
    right.imshow(tiles.permute(0, 2, 1, 3).reshape(33, 55), cmap="gray_r")
    for k, (label, guess) in enumerate(zip(labels.tolist(), predicted.tolist(), strict=True)):
        colour = "#2f855a" if label == guess else "#c53030"
        right.text(k % 5 * 11 - 0.3, k // 5 * 11 + 1.6, str(guess), color=colour, fontsize=10, weight="bold")
    right.set_axis_off()
    right.set_title("test images and predicted digits", fontsize=11)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main(RunFolder.open(Path(sys.argv[1])), Path(__file__).parents[1] / "docs" / "images" / "overview.png")

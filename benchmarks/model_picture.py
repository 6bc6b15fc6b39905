"""Draw docs/images/model.png: an image through patches, Runge-Kutta blocks and circuits to a class and to the chip.

Usage: python benchmarks/model_picture.py. The chip is that of benchmarks/overview_picture.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, FancyBboxPatch
from overview_picture import COMMAND, box, chip
from overview_picture import circuit as draw_circuit
from sklearn.datasets import load_digits

from qrkt_hw.circuits import build
from qrkt_hw.plots.charts import BLUE, COLOURS, GREY, PALE

INK, SOFT = "#2d3748", "#edf2f7"


def frame(axes: Axes, x: float, y: float, width: float, height: float, title: str = "") -> None:
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.06", fc=SOFT, ec=PALE, lw=1.2)
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height - 0.04, title, ha="center", va="top", fontsize=13, color=INK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.4, "shrinkA": 0, "shrinkB": 0})


def part(axes: Axes, x: float, y: float, text: str, colour: str, width: float, height: float = 0.42) -> None:
    box(axes, x, y, text, colour, width=width, height=height)
    axes.texts[-1].set_fontsize(13)


def passage(axes: Axes) -> None:
    """From the image to its class: x from 0 to 10, y from 0 to 2.6."""
    image, size = load_digits().images[3], 1.7
    axes.imshow(image, cmap="gray", extent=(0, size, 0.45, 0.45 + size), zorder=2)
    for k in range(1, 4):
        at = k * size / 4
        axes.plot([at, at], [0.45, 0.45 + size], color="white", lw=2.2, zorder=3)
        axes.plot([0, size], [0.45 + at, 0.45 + at], color="white", lw=2.2, zorder=3)
    axes.text(size / 2, 0.3, "image in patches", ha="center", va="top", fontsize=13, color=INK)
    for k in range(5):
        colour = GREY if k != 3 else SOFT
        strip = FancyBboxPatch((2.35, 0.5 + 0.34 * k), 0.5, 0.2, boxstyle="round,pad=0.02", fc=colour, ec="none")
        axes.add_patch(strip)
    axes.text(2.6, 1.62, "···", ha="center", va="center", fontsize=13, color=INK)
    axes.text(2.6, 0.3, "tokens y", ha="center", va="top", fontsize=13, color=INK)
    for shift in (0.24, 0.12):
        sheet = FancyBboxPatch((3.6 + shift, 0.5 + shift), 3.4, 1.6, boxstyle="round,pad=0.06", fc="white", ec=PALE)
        axes.add_patch(sheet)
    frame(axes, 3.6, 0.5, 3.4, 1.6, "Runge-Kutta block")
    axes.text(5.3, 1.38, r"$k_1 = F(y)$,   $k_2 = F(y + k_1)$", ha="center", va="center", fontsize=14, color=INK)
    axes.text(5.3, 0.86, r"$y \leftarrow y + (k_1 + k_2)\,/\,2$", ha="center", va="center", fontsize=14, color=INK)
    axes.text(5.3, 0.3, "one step of $y' = F(y)$; here Heun's", ha="center", va="top", fontsize=13, color=INK)
    part(axes, 8.35, 1.3, "pool, head", GREY, 1.35)
    axes.text(9.75, 1.3, "3", ha="center", va="center", fontsize=30, color=INK)
    axes.text(9.75, 0.3, "class", ha="center", va="top", fontsize=13, color=INK)
    for start, end in ((1.78, 2.27), (2.95, 3.48), (7.4, 7.62), (9.08, 9.5)):
        arrow(axes, (start, 1.3), (end, 1.3))
    axes.set(xlim=(-0.1, 10.1), ylim=(-0.1, 2.55))


def field(axes: Axes) -> None:
    """F: attention and MLP side by side; x from 0 to 10, y from 0 to 2.4."""
    frame(axes, 0.1, 0.08, 9.8, 2.1, "F(y) = attention + MLP, on normalised tokens; blue is made of circuits")
    part(axes, 0.9, 0.9, "norm", GREY, 1.0)
    for k, name in enumerate("qkv"):
        part(axes, 2.45, 1.55 - 0.38 * k, name, BLUE, 0.75, 0.28)
        arrow(axes, (1.45, 0.9), (2.02, 1.55 - 0.38 * k))
        arrow(axes, (2.87, 1.55 - 0.38 * k), (3.47, 1.17))
    part(axes, 4.7, 1.17, r"softmax($qk^T$) $v$", GREY, 2.3)
    part(axes, 6.85, 1.17, "o", BLUE, 0.75)
    part(axes, 4.7, 0.36, "MLP", BLUE, 2.3, 0.36)
    axes.plot([0.9, 0.9, 1.2], [0.66, 0.36, 0.36], color=INK, lw=1.4)
    axes.text(8.6, 0.86, "+", ha="center", va="center", fontsize=22, color=INK)
    axes.text(9.5, 0.86, "F(y)", ha="center", va="center", fontsize=14, color=INK)
    for start, end in (((1.2, 0.36), (3.47, 0.36)), ((5.92, 1.17), (6.42, 1.17)), ((7.28, 1.17), (8.4, 0.92)),
                       ((5.92, 0.36), (8.4, 0.78)), ((8.8, 0.86), (9.12, 0.86))):  # fmt: skip
        arrow(axes, start, end)
    axes.set(xlim=(-0.1, 10.1), ylim=(-0.05, 2.3))


def main(target: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "qrkt_hw", *COMMAND.split()], capture_output=True, check=True)
    device = json.loads(done.stdout)["devices"][0]
    replicas = len(device["circuits"][0]["copy_qubits"])
    figure = Figure(figsize=(9, 9.4), layout="constrained")
    upper, middle, lower = figure.subfigures(3, 1, height_ratios=[2.6, 2.4, 4.1])
    top, inner = upper.subplots(), middle.subplots()
    passage(top)
    field(inner)
    left, right = lower.subplots(1, 2, width_ratios=[1, 1.05])
    draw_circuit(left, build("brickwork", 4, 1))
    for text in left.texts:
        text.set_fontsize(13 if len(text.get_text()) > 2 else 11)
    left.set_title("a projection: circuits of 4 qubits,\none for each 4 features of a token", fontsize=13, color=INK)
    chip(right, device["circuits"][0], device["name"], COLOURS[2:])
    title = f"a chip of {device['qubits']} qubits runs {replicas}\nof them side by side"
    right.set_title(title, fontsize=13, color=INK)
    for axes in (top, inner, left, right):
        axes.axis("off")
    top.set_aspect("auto")
    style = {"arrowstyle": "-|>", "color": GREY, "lw": 1.4, "linestyle": ":", "mutation_scale": 14}
    down = {"coordsA": "data", "coordsB": "data", **style}
    figure.add_artist(ConnectionPatch((5.3, 0.02), (5.3, 2.26), axesA=top, axesB=inner, **down))  # F of the block
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    main(Path(__file__).parents[1] / "docs" / "images" / "model.png")

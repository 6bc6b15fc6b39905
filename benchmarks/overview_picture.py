"""Draw docs/images/overview.png: from a circuit to a model, to a chip, to the bill.

Usage: python benchmarks/overview_picture.py. The figures are those that this command prints:
qrkt-hw resources --preset digits-hardware --backend fake_torino --samples 50
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.device.transpile import fake_device
from qrkt_hw.circuits import build
from qrkt_hw.plots.charts import BLUE, COLOURS, GREY, ORANGE, PALE, apart
from qrkt_hw.resources.devices import _edges, _positions

COMMAND = "resources --preset digits-hardware --backend fake_torino --samples 50 --json"


def box(axes: Axes, x: float, y: float, text: str, colour: str, width: float = 0.7, height: float = 0.56) -> None:
    shape = FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.02", lw=0, fc=colour)
    axes.add_patch(shape).set_zorder(3)
    axes.text(x, y, text, ha="center", va="center", color="white", fontsize=9, zorder=4)


def circuit(axes: Axes, template: CircuitTemplate) -> None:
    qubits = template.circuit.num_qubits
    free, data = [0] * qubits, {p.name for p in template.inputs}
    for instruction in template.circuit.data:
        on = [template.circuit.find_bit(q).index for q in instruction.qubits]
        column = max(free[q] for q in range(min(on), max(on) + 1))
        free[min(on) : max(on) + 1] = [column + 1] * (max(on) - min(on) + 1)
        if len(on) == 2:
            axes.plot([column] * 2, [-q for q in on], "o-", color="#2d3748", ms=7, lw=1.8, zorder=2)
        else:
            names = {p.name for angle in instruction.operation.params for p in getattr(angle, "parameters", ())}
            colour = ORANGE if names & data else BLUE if names else GREY
            box(axes, column, -on[0], instruction.operation.name.upper(), colour)
    for qubit in range(qubits):
        axes.plot([-0.6, max(free) - 0.3], [-qubit] * 2, color=GREY, lw=1, zorder=1)
    for k, (text, colour) in enumerate((("data", ORANGE), ("trained", BLUE), ("fixed", GREY))):
        box(axes, k * 2.1 + 0.2, -qubits - 0.1, text, colour, width=1.5)
    axes.set(xlim=(-0.8, max(free)), ylim=(-qubits - 0.6, 0.6))


def model(axes: Axes) -> None:
    axes.add_patch(FancyBboxPatch((0.35, 1.35), 4.3, 3.3, boxstyle="round,pad=0.1", fc="#edf2f7", ec=PALE))
    axes.text(2.5, 4.5, "Runge-Kutta block", ha="center", va="center", fontsize=9.5, color="#2d3748")
    box(axes, 2.5, 0.55, "image, cut into patches", GREY, width=4.3)
    for x, name in zip((0.85, 1.95, 3.05, 4.15), "qkvo", strict=True):
        box(axes, x, 1.85, name, BLUE, width=0.8)
    axes.text(2.5, 2.5, "attention: each projection is circuits", ha="center", va="center", fontsize=8.5)
    box(axes, 2.5, 3.15, "MLP with circuits", BLUE, width=4.1)
    axes.text(2.5, 3.85, "step:  y + F(y)", ha="center", va="center", fontsize=10)
    box(axes, 2.5, 5.4, "head: which digit", GREY, width=4.3)
    for y in (0.87, 4.8):
        axes.annotate("", (2.5, y + 0.35), (2.5, y), arrowprops={"arrowstyle": "->", "color": "#2d3748"})
    axes.set(xlim=(-0.1, 5.1), ylim=(0.1, 5.9))


def chip(axes: Axes, placed: dict[str, Any], device: str, shades: Sequence[str] = COLOURS) -> None:
    target = fake_device(device).target
    edges = [(a, b) for a, b, _ in _edges(target)]
    places = _positions(target.num_qubits, edges)
    replica_of = {q: k for k, replica in enumerate(placed["copy_qubits"]) for q in replica}
    colours = apart(placed["copy_qubits"], edges, shades)
    for a, b in edges:
        same = a in replica_of and replica_of[a] == replica_of.get(b)
        style = {"color": colours[a], "lw": 4} if same else {"color": PALE, "lw": 1.2}
        axes.plot(*zip(places[a], places[b], strict=True), zorder=1, **style)
    for qubit, (x, y) in enumerate(places):
        axes.scatter([x], [y], s=26, color=colours.get(qubit, "white"), edgecolor=GREY, lw=0.5, zorder=2)
    axes.set_aspect("equal")


def bill(axes: Axes, costs: list[dict[str, Any]]) -> None:
    names = {"estimator": "a PUB an\nobservable", "broadcast": "a PUB\na layer", "packed": "packed"}
    for k, (way, name) in enumerate(names.items()):
        cost = next(c for c in costs if c["way"] == way and c["task"].startswith("infer"))
        seconds, usd = cost["seconds"], cost["usd"]["payg"]
        axes.barh(-k, seconds, color=BLUE if way == "packed" else PALE, height=0.6)
        time = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
        axes.text(seconds + 60, -k, f"{time}\n{usd:,.0f} USD", va="center", fontsize=10)
        axes.text(-60, -k, name, va="center", ha="right", fontsize=9.5)
    axes.set(xlim=(0, 4200), ylim=(-2.6, 0.6))


def main(target: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "qrkt_hw", *COMMAND.split()], capture_output=True, check=True)
    report = json.loads(done.stdout)
    device = report["devices"][0]
    placed = device["circuits"][0]
    figure = Figure(figsize=(15, 4.1), layout="constrained")
    parts = figure.subplots(1, 4, width_ratios=[1.25, 1, 1.25, 1.2])
    circuit(parts[0], build("brickwork", 4, 1))
    model(parts[1])
    chip(parts[2], placed, device["name"])
    bill(parts[3], report["costs"])
    replicas = len(placed["copy_qubits"])
    titles = ("your circuit", "your model, in PyTorch",
              f"{replicas} replicas on {device['qubits']} qubits", "QPU time of 50 images")  # fmt: skip
    for axes, title in zip(parts, titles, strict=True):
        axes.set_title(title, fontsize=13, color="#2d3748")
        axes.axis("off")
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main(Path(__file__).parents[1] / "docs" / "images" / "overview.png")

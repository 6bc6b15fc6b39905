"""A circuit on a chip: which qubits it uses, how good they are, and where more copies fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qrkt_hw.plots.figure import BLUE, GREY, ORANGE, new, save

Position = tuple[float, float]


def plot_layout(
    title: str,
    positions: Sequence[Position],
    edges: Sequence[tuple[int, int, float]],
    readout: Sequence[float],
    used: Sequence[int],
    joined: Sequence[tuple[int, int]],
    copies: Sequence[Sequence[int]],
    path: Path,
) -> Path:
    """Draw a chip.

    Args:
        title: above the picture.
        positions: of every qubit, in the plane.
        edges: pairs of coupled qubits with the error of their gate.
        readout: error of reading every qubit.
        used: qubits of the circuit.
        joined: pairs the circuit couples.
        copies: qubits of further copies.
        path: PNG file.
    """
    xs, ys = zip(*positions, strict=True)
    wide = max(xs) - min(xs) + 2
    figure, axes = new(width=max(6.5, 0.52 * wide), height=max(4.2, 0.5 * (max(ys) - min(ys) + 2)))
    thick = {tuple(sorted(pair)) for pair in joined}
    for a, b, error in edges:
        mine = tuple(sorted((a, b))) in thick
        colour = ORANGE if mine else "#e53e3e" if error > 0.05 else "#cbd5e0"
        axes.plot(
            [xs[a], xs[b]], [ys[a], ys[b]], color=colour, linewidth=5 if mine else 2,
            linestyle=":" if error > 0.05 and not mine else "-", zorder=1,
        )  # fmt: skip
    taken = {q for copy in copies for q in copy}
    ranks = {q: k for k, copy in enumerate(copies) for q in copy}
    shades = ["#bee3f8", "#90cdf4", "#63b3ed", "#c6f6d5", "#9ae6b4", "#e9d8fd", "#d6bcfa", "#fefcbf"]
    for qubit, (x, y) in enumerate(positions):
        colour = ORANGE if qubit in used else shades[ranks[qubit] % len(shades)] if qubit in taken else "white"
        rim = "#e53e3e" if readout[qubit] > 0.05 else GREY
        axes.scatter([x], [y], s=210, color=colour, edgecolor=rim, linewidth=1.8 if rim != GREY else 0.8, zorder=2)
        axes.text(x, y, str(qubit), ha="center", va="center", fontsize=6.5, zorder=3)
    handles = [
        axes.scatter([], [], s=90, color=ORANGE, label="the circuit"),
        axes.scatter(
            [], [], s=90, color=shades[0], edgecolor=GREY, label=f"further copies, a shade each ({len(copies)} fit)"
        ),
        axes.scatter([], [], s=90, color="white", edgecolor="#e53e3e", linewidth=1.8, label="reads out worse than 5 %"),
        axes.plot([], [], color="#e53e3e", linestyle=":", linewidth=2, label="gate error above 5 %")[0],
    ]
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        ncols=4 if wide > 13 else 2,
        frameon=False,
        fontsize=8,
    )
    axes.set_title(title, color=BLUE, fontsize=11)
    axes.set_aspect("equal")
    axes.axis("off")
    return save(figure, path)

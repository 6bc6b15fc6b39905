"""Charts of recorded numbers, drawn without a display.

Matplotlib is imported when a chart is drawn: it would delay the first step of a training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qrkt_hw.errors import in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from qrkt_hw.ansatz import CircuitTemplate

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#718096"
RED, PALE = "#e53e3e", "#cbd5e0"
DARK = "#1a202c"  # on a filled shape
COLOURS = [BLUE, ORANGE, "#2f855a", "#805ad5", "#b83280", GREY, "#d69e2e", "#319795"]
SHADES = ["#90cdf4", "#9ae6b4", "#d6bcfa", "#faf089", "#e2e8f0"]
History = Sequence[Mapping[str, float]]  # one row per epoch
LINES = ["-", "--", "-.", ":"]  # beside colours, for those who tell few of them apart
WORST = 0.05  # error from which a qubit or a pair of qubits is marked


def new(columns: int = 1, rows: int = 1, width: float = 6.4, height: float = 4.2) -> tuple[Figure, Any]:
    """A figure and its axes; ``width`` and ``height`` in inches of each panel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, or an SVG without background whose text is text; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() != ".svg":
        figure.set_dpi(130)
        engine = figure.get_layout_engine()
        if engine is not None:  # savefig would draw everything twice to have the layout done once
            engine.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(path, dpi=130)
        return path
    from matplotlib import rc_context

    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure.savefig(path, transparent=True, metadata=nothing)
    return path


def tidy(axes: Any, x: str, y: str, whole: bool = False) -> None:
    """Names, a grid and no frame; ``whole`` numbers along x."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if whole:
        axes.xaxis.get_major_locator().set_params(integer=True)


def logarithmic(axes: Any, which: str) -> None:
    """A logarithmic axis, ``"x"`` or ``"y"``, with plain numbers on it, also where it spans less than a decade;
    nothing changes where the lines have no two positive values."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    points = np.concatenate([line.get_xydata() for line in axes.lines])
    data = points[np.isfinite(points).all(axis=1), "xy".index(which)]
    if len(set(data[data > 0])) < 2:
        return
    getattr(axes, f"set_{which}scale")("log")
    low, high = getattr(axes, f"get_{which}lim")()
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if high < 12 * low else (1.0, 2.0, 5.0) if high < 120 * low else (1.0,)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(MaxNLocator(6) if high < 4 * low else LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_locator(NullLocator())


def verbatim(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign would begin a formula, and an underscore hide a label."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def short(value: float) -> str:
    """A number for an axis: 250000 is ``250k``."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


# the label of each metric, for the name of an axis
OF_CLASSIFIER = {
    "cross-entropy": {"train_loss": "training (with dropout)", "val_loss": "validation"},
    "validation": {"val_auroc": "AUROC, one-vs-rest", "val_accuracy": "accuracy"},
}
OF_GAN = {
    "loss, without penalty": {"generator_loss": "generator", "discriminator_loss": "discriminator"},
    "mean score": {"real_score": "real images", "fake_score": "generated images"},
}


def over_epochs(
    history: History, panels: Mapping[str, Mapping[str, str]], path: Path, best: int | None = None, width: float = 6.4
) -> Path:
    """A panel for each of ``panels``, as :data:`OF_CLASSIFIER` and :data:`OF_GAN` hold them."""
    figure, drawn = new(columns=len(panels), width=width, height=width * 0.66)
    for axes, (name, lines) in zip(np.atleast_1d(drawn), panels.items(), strict=True):
        for (key, label), colour in zip(lines.items(), COLOURS, strict=False):
            x, y = [row["epoch"] for row in history], [row[key] for row in history]
            marker = "." if len(history) < 3 or not np.isfinite(y).all() else None  # a point alone makes no line
            axes.plot(x, y, color=colour, label=label, marker=marker)
        if best is not None:
            axes.axvline(best, color=GREY, linestyle=":", label=f"best epoch ({best})")
        tidy(axes, "epoch", name, whole=best is not None)
        axes.legend(frameon=False)
    return save(figure, path)


def plot_curves(history: History, best_epoch: int, path: Path) -> Path:
    """Training and validation loss, and validation AUROC and accuracy, over epochs."""
    return over_epochs(history, OF_CLASSIFIER, path, best_epoch)


def plot_losses(history: History, path: Path) -> Path:
    """Both losses of a GAN, and the scores of real and generated images, over epochs."""
    return over_epochs(history, OF_GAN, path)


def plot_confusion(predicted: Tensor, labels: Tensor, names: Sequence[str], path: Path) -> Path:
    """Counts of predicted against true classes on the test split."""
    size = len(names)
    names = [verbatim(name) for name in names]
    counts = np.zeros((size, size), dtype=int)
    np.add.at(counts, (labels.numpy(), predicted.numpy()), 1)
    figure, axes = new(width=5.6, height=5.2)
    figure.colorbar(axes.imshow(counts, cmap="Blues"), ax=axes, shrink=0.8, label="images")
    if size <= 20:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if count > counts.max() / 2 else "black"
                inside = axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
                inside.set_in_layout(False)  # a hundred of them take longer to measure than all the rest
        axes.set_xticks(range(size), names, rotation=45 if max(map(len, names)) > 3 else 0, ha="center")
        axes.set_yticks(range(size), names)
    axes.set(xlabel="predicted", ylabel="true", title=f"test: {np.trace(counts)} of {counts.sum()} correct")
    return save(figure, path)


def plot_comparison(groups: Sequence[tuple[str, Sequence[History]]], folder: Path) -> list[Path]:
    """Means of the runs of each group: ``loss.png`` and ``auroc.png``, or of GANs one for each network's loss; over
    epochs, wall time and function evaluations, for the epochs that all runs of a group have. Bands are one standard
    deviation; axes as :func:`plot_beside` chooses them."""
    over = {"epoch": "epoch", "seconds": "wall time (s)", "field_evaluations": "function evaluations"}
    return [
        plot_beside(groups, quantity, name, over, folder / f"{quantity.removeprefix('val_')}.png")
        for quantity, name in quantities_of(groups).items()
    ]


def quantities_of(groups: Sequence[tuple[str, Sequence[History]]]) -> dict[str, str]:
    """The metrics by which such runs are compared, and their names."""
    if "generator_loss" in groups[0][1][0][0]:
        return {"generator_loss": "generator's loss", "discriminator_loss": "discriminator's loss"}
    return {"val_loss": "validation loss", "val_auroc": "1 - validation AUROC"}


def plot_beside(
    groups: Sequence[tuple[str, Sequence[History]]], quantity: str, name: str, over: Mapping[str, str], path: Path,
    width: float = 3.6,
) -> Path:  # fmt: skip
    """One metric of groups of runs, a panel for each column in ``over``. Loss and 1 - AUROC are on logarithmic axes,
    as are epochs, times and evaluations of runs that differ in length by more than a factor of two."""
    figure, panels = new(columns=len(over), width=width, height=3.5)
    for axes, (key, title) in zip(panels := np.atleast_1d(panels), over.items(), strict=True):
        ends = list[float]()
        for place, (label, histories) in enumerate(groups):
            if not all(key in row and quantity in row for h in histories for row in h):
                continue
            epochs, colour = min(map(len, histories)), COLOURS[place % len(COLOURS)]
            x, y = (np.array([[row[k] for row in h[:epochs]] for h in histories]) for k in (key, quantity))
            y = 1 - y if quantity == "val_auroc" else y
            style = {"color": colour, "linestyle": LINES[place % len(LINES)], "marker": "." if epochs < 4 else None}
            axes.plot(x.mean(0), y.mean(0), label=verbatim(label), **style)
            if len(histories) > 1:
                low, high = y.mean(0) - y.std(0, ddof=1), y.mean(0) + y.std(0, ddof=1)
                axes.fill_between(x.mean(0), low, high, color=colour, alpha=0.15, linewidth=0)
            ends.append(x.mean(0)[-1])
        tidy(axes, title, name, whole=key == "epoch")
        if quantity.startswith("val_") and ends:
            logarithmic(axes, "y")
        if ends and max(ends) > 2 * min(ends) > 0:
            logarithmic(axes, "x")
        elif key == "field_evaluations":
            axes.xaxis.set_major_formatter(lambda value, _: short(value))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(over), len(labels)), frameon=False)
    return save(figure, path)


def plot_benchmark(tasks: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Accuracy of every model on every task, a panel each, with its standard error and its parameters, and chance where
    that is in view."""
    models = list(dict.fromkeys(row["model"] for row in rows))[::-1]
    shown = {name: [row for row in rows if row["task"] == name] for name in tasks}
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure, panels = new(columns, lines, width=3.4, height=1.1 + 0.32 * len(models))
    panels = np.atleast_1d(panels).ravel()
    for place, (axes, (name, own)) in enumerate(zip(panels, shown.items(), strict=False)):
        for row in own:
            colour = BLUE if row["angles"] else ORANGE
            y, bar = models.index(row["model"]), 100 * (row["standard_error"] or 0.0)
            axes.errorbar([100 * row["accuracy"]], [y], xerr=[bar], fmt="o", capsize=4, color=colour, markersize=5)
            axes.text(1.02, y, f"{row['parameters']:,}", transform=axes.get_yaxis_transform(), va="center", fontsize=7)
        ends = [100 * (r["accuracy"] + sign * (r["standard_error"] or 0.0)) for r in own for sign in (-1, 1)]
        margin = max(1.0, 0.1 * (max(ends) - min(ends)))
        axes.set_xlim(min(ends) - margin, min(max(ends) + margin, 100 + margin / 5))
        axes.axvline(100 * tasks[name]["chance"], color=GREY, linestyle=":", linewidth=1)  # where it is in view
        axes.set_yticks(range(len(models)), models if place % columns == 0 else [""] * len(models))
        axes.set_ylim(-0.6, len(models) - 0.4)
        axes.set_title(name, fontsize=11)
        tidy(axes, "test accuracy (%)", "")
    for axes in panels[len(shown) :]:
        axes.axis("off")
    handles = [
        panels[0].errorbar([], [], fmt="o", color=BLUE, label="circuits"),
        panels[0].errorbar([], [], fmt="o", color=ORANGE, label="classical layers"),
        *panels[0].plot([], [], color=GREY, linestyle=":", label="chance"),
    ]
    title = "mean and standard error over seeds\nat the right: parameters"
    place_of = {"loc": "outside lower center", "ncols": 3, "frameon": False, "fontsize": 8}
    figure.legend(handles=handles, title=title, title_fontsize=8, **place_of)
    return save(figure, path)


def plot_study(trials: Sequence[Mapping[str, Any]], importances: Mapping[str, float], path: Path) -> Path:
    """Validation AUROC of a search by trial with the best so far; and each option's share of the spread."""
    figure, (left, right) = new(columns=2)
    scored = sorted((t for t in trials if t["val_auroc"] is not None), key=lambda t: t["trial"])
    for state, colour in (("complete", BLUE), ("pruned", GREY)):
        own = [t for t in scored if t["state"] == state]
        left.scatter([t["trial"] for t in own], [t["val_auroc"] for t in own], color=colour, label=state, s=22)
    complete = [t for t in scored if t["state"] == "complete"]
    if complete:
        best = np.maximum.accumulate([t["val_auroc"] for t in complete])
        left.step([t["trial"] for t in complete], best, where="post", color=ORANGE, label="best so far")
    tidy(left, "trial", "validation AUROC")
    left.legend(frameon=False)
    names = list(importances)[::-1]
    right.barh(names, [importances[name] for name in names], color=BLUE)
    tidy(right, "share of the spread explained (fANOVA)", "")
    if not names:
        right.text(0.5, 0.5, "too few finished trials", ha="center", transform=right.transAxes, color=GREY)
    return save(figure, path)


def plot_analysis(name: str, rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Expressibility, entangling capability and gradient variance of a template over qubits or layers. Each row has
    ``qubits, layers, expressibility, entangling, gradient_variance``."""
    figure, panels = new(columns=3, width=4.6, height=3.8)
    qubits, layers = ({row[key] for row in rows} for key in ("qubits", "layers"))
    over, other = ("qubits", "layers") if len(qubits) >= len(layers) else ("layers", "qubits")
    shown = {
        "expressibility": "divergence from Haar (0 is best)",
        "entangling": "mean Meyer-Wallach entanglement",
        "gradient_variance": "variance of the gradient",
    }
    for axes, (key, label) in zip(panels, shown.items(), strict=True):
        for place, value in enumerate(sorted({row[other] for row in rows})):
            line = sorted((row[over], row[key]) for row in rows if row[other] == value)
            noun = other if value != 1 else other[:-1]
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(*zip(*line, strict=True), marker="o", color=colour, label=f"{value} {noun}")
        if key != "entangling" and all(row[key] > 0 for row in rows):
            axes.set_yscale("log")
        tidy(axes, over, label, whole=True)
    panels[1].set_ylim(-0.03, 1.03)
    panels[0].legend(frameon=False)
    figure.suptitle(verbatim(name))
    return save(figure, path)


def plot_device(record: dict[str, Any], path: Path) -> Path:
    """How far a device was from exact: mean error of the expectation values layer by layer, and both accuracies with
    their intervals; ``record`` is of an inference with ``layers``."""
    figure, (left, right) = new(columns=2)
    rows = record["layers"]
    place, errors = np.arange(len(rows)), [row["mean_error"] for row in rows]
    if any("unmitigated_mean_error" in row for row in rows):
        left.barh(place - 0.2, errors, 0.4, color=BLUE, label="mitigated")
        raw = [row.get("unmitigated_mean_error", np.nan) for row in rows]
        left.barh(place + 0.2, raw, 0.4, color=GREY, label="as read")
        left.legend()
    else:
        left.barh(place, errors, 0.6, color=BLUE)
    left.set_yticks(place, in_words(row["layer"] for row in rows).values())
    left.invert_yaxis()
    tidy(left, "mean error of the expectation values", "")
    for x, kind, colour in ((0, "exact_", GREY), (1, "", ORANGE)):
        value, (low, high) = record[f"{kind}accuracy"], record[f"{kind}interval"]
        bars = [[max(0.0, value - low)], [max(0.0, high - value)]]
        right.errorbar([x], [value], yerr=bars, fmt="o", capsize=6, color=colour)
    right.set_xticks([0, 1], ["exact", record["backend"]])
    right.set_xlim(-0.5, 1.5)
    tidy(right, "", "accuracy, 95 % interval")
    return save(figure, path)


def plot_budget(rows: Sequence[Mapping[str, Any]], limit: float, path: Path) -> Path:
    """Expected accuracy of proposals against QPU seconds, their Pareto front as a line; those that were checked on a
    fake device with their intervals. Each row has ``seconds, expected_accuracy, front, checked``."""
    figure, axes = new()
    axes.scatter([r["seconds"] for r in rows], [r["expected_accuracy"] for r in rows], color=GREY, s=16, label="others")
    front = sorted((r["seconds"], r["expected_accuracy"]) for r in rows if r["front"])
    axes.step(*zip(*front, strict=True), where="post", marker="o", color=BLUE, label="Pareto front")
    for number, row in enumerate(r for r in rows if r["checked"]):
        value, (low, high) = row["checked"]["accuracy"], row["checked"]["interval"]
        label = "on the fake device, 95 %" if not number else None
        axes.errorbar([row["seconds"]], [value], yerr=[[max(0.0, value - low)], [max(0.0, high - value)]], fmt="s",
                      capsize=4, color=ORANGE, label=label, markersize=4)  # fmt: skip
    axes.axvline(limit, color=GREY, linestyle=":", label="budget")
    tidy(axes, "QPU seconds", "accuracy")
    axes.legend(frameon=False, loc="lower right")
    return save(figure, path)


def apart(replicas: Sequence[Sequence[int]], edges: Sequence[Any], shades: Sequence[str]) -> dict[int, str]:
    """A shade for each qubit of the replicas, such that replicas on coupled qubits differ."""
    of = {qubit: k for k, replica in enumerate(replicas) for qubit in replica}
    near = [(of[a], of[b]) for a, b, *_ in edges if a in of and b in of and of[a] != of[b]]
    chosen: dict[int, str] = {}
    for k in range(len(replicas)):
        taken = {chosen.get(b if a == k else a) for a, b in near if k in (a, b)}
        chosen[k] = next((shade for shade in shades if shade not in taken), shades[k % len(shades)])
    return {qubit: chosen[k] for qubit, k in of.items()}


def plot_layout(
    title: str,
    positions: Sequence[tuple[float, float]],
    edges: Sequence[tuple[int, int, float]],
    readout: Sequence[float],
    used: Sequence[int],
    joined: Sequence[tuple[int, int]],
    replicas: Sequence[Sequence[int]],
    path: Path,
) -> Path:
    """A circuit on a chip: which qubits it uses alone, how good they are, and where replicas are packed.

    Args:
        positions: of every qubit, in the plane.
        edges: pairs of coupled qubits with the error of their gate.
        readout: error of reading every qubit.
        used, joined: qubits of the circuit, and pairs it couples.
        replicas: qubits of every packed replica; they need not be those of the circuit alone.
    """
    xs, ys = zip(*positions, strict=True)
    wide = max(xs) - min(xs) + 2
    figure, axes = new(width=max(6.5, 0.52 * wide), height=max(4.2, 0.5 * (max(ys) - min(ys) + 2)))
    colours = apart(replicas, edges, SHADES)
    behind = {"color": ORANGE, "linewidth": 17, "alpha": 0.55, "zorder": 0, "solid_capstyle": "round"}
    for a, b in joined or [(qubit, qubit) for qubit in used]:
        axes.plot([xs[a], xs[b]], [ys[a], ys[b]], **behind)
    for a, b, error in edges:
        line: dict[str, Any] = {"color": PALE, "linewidth": 2}
        if error > WORST:
            line = {"color": RED, "linewidth": 2, "linestyle": ":"}
        elif a in colours and colours[a] == colours.get(b):  # of the same replica
            line = {"color": colours[a], "linewidth": 5}
        axes.plot([xs[a], xs[b]], [ys[a], ys[b]], zorder=1, **line)
    for qubit, (x, y) in enumerate(positions):
        rim = {"edgecolor": RED, "linewidth": 1.8} if readout[qubit] > WORST else {"edgecolor": GREY, "linewidth": 0.8}
        axes.scatter([x], [y], s=210, color=colours.get(qubit, "white"), zorder=2, clip_on=False, **rim)
        ink = DARK if qubit in colours else "black"  # black is light on a dark page
        axes.text(x, y, str(qubit), ha="center", va="center", fontsize=6.5, zorder=3, color=ink)
    label = f"{len(replicas)} packed replicas, of which neighbours differ"
    handles = [
        *axes.plot([], [], **{**behind, "linewidth": 9}, label="the circuit alone"),
        axes.scatter([], [], s=90, color=SHADES[0], edgecolor=GREY, label=label),
        axes.scatter([], [], s=90, color="white", edgecolor=RED, linewidth=1.8, label="reads out worse than 5 %"),
        *axes.plot([], [], color=RED, linestyle=":", linewidth=2, label="gate error above 5 %"),
    ]
    place = {"loc": "outside lower center", "ncols": 4 if wide > 13 else 2}
    figure.legend(handles=handles, frameon=False, fontsize=8, **place)
    axes.set_title(verbatim(title), color=BLUE, fontsize=11)
    axes.set_aspect("equal")
    axes.axis("off")
    return save(figure, path)


# fill of a gate, by what its angles are: data, weights, both, or none of them
GATES = {"data": "#90cdf4", "weights": "#fbd38d", "data and weights": "#d6bcfa", "fixed": "#e2e8f0"}
FOLD = 14  # gates along a line of a drawn circuit


def plot_circuit(template: CircuitTemplate, path: Path, fold: int = FOLD) -> Path:
    """A circuit whose gates have a colour each for angles that are data and that are weights; ``fold`` gates a line."""
    gates, columns = _columns(template)
    count, lines = template.circuit.num_qubits, -(-columns // fold)
    wide, height = -(-columns // lines), template.circuit.num_qubits + 0.8
    figure, axes = new(width=max(4.4, 0.62 * wide + 1), height=0.5 * height * lines + 0.3)
    for line in range(lines):
        for qubit in range(count):
            y = -qubit - line * height
            axes.plot([-0.6, min(columns - line * wide, wide) - 0.4], [y, y], color=GREY, linewidth=0.8, zorder=0)
            axes.text(-0.75, y, f"q{qubit}", ha="right", va="center", fontsize=8)
    for column, kind, label, angle, controls, others in gates:
        x, top = column % wide, -(column // wide) * height
        dots = [*controls, *others] if label == "CZ" else controls
        ends = [top - q for q in (*controls, *others)]
        if len(ends) > 1:
            axes.plot([x, x], [min(ends), max(ends)], color=GREY, linewidth=1.4, zorder=1)
            axes.scatter([x] * len(dots), [top - q for q in dots], s=22, color=GREY, zorder=2)
        for place, qubit in enumerate(q for q in others if q not in dots):
            box = {"boxstyle": "round,pad=0.18", "facecolor": GATES[kind], "edgecolor": GREY, "linewidth": 0.7}
            text = f"{label}\n{angle}" if len(others) == 1 and angle else angle if place and angle else label
            axes.text(x, top - qubit, text, ha="center", va="center", fontsize=7, color=DARK, bbox=box, zorder=3)
    used = [kind for kind in GATES if any(gate[1] == kind for gate in gates)]
    handles = [axes.scatter([], [], marker="s", s=70, color=GATES[kind], edgecolor=GREY, label=kind) for kind in used]
    axes.legend(handles=handles, frameon=False, fontsize=8, loc="upper left", ncols=4, bbox_to_anchor=(0, 0),
                borderaxespad=0, handletextpad=0.2, columnspacing=1)  # fmt: skip
    axes.set_xlim(-1.3, max(wide - 0.3, 5.2))
    axes.set_ylim(1.3 - lines * height, 0.5)
    axes.axis("off")
    return save(figure, path)


def _columns(template: CircuitTemplate) -> tuple[list[tuple[int, str, str, str, list[int], list[int]]], int]:
    """Column, kind, name, angle, controls and other qubits of every gate, each as far left as it can stand; and how
    many columns there are."""
    free, gates = [0] * template.circuit.num_qubits, []
    inputs, weights = set(template.inputs), set(template.weights)
    for instruction in template.circuit.data:
        gate, on = instruction.operation, [template.circuit.find_bit(q).index for q in instruction.qubits]
        span = range(min(on), max(on) + 1)
        column = max(free[q] for q in span)
        if gate.name == "barrier":
            for q in span:
                free[q] = column
            continue
        used = {p for angle in gate.params for p in getattr(angle, "parameters", ())}
        kind = " and ".join(name for name, own in (("data", inputs), ("weights", weights)) if used & own) or "fixed"
        controls = getattr(gate, "num_ctrl_qubits", 0) or 0
        name = getattr(gate, "base_gate", gate).name if controls else gate.name
        name = _NAMES.get(gate.name) or _NAMES.get(name) or name.upper()
        angle = ", ".join(_angle(p) for p in gate.params[:2] if getattr(p, "parameters", None))
        gates.append((column, kind, verbatim(name[:8]), angle, on[:controls], on[controls:]))
        for q in span:
            free[q] = column + 1
    return gates, max([1, *free])


def _angle(angle: Any) -> str:
    """An angle as short text: ``theta[12]`` is θ₁₂."""
    text = re.sub(rf"\b({'|'.join(_GREEK)})\b", lambda word: _GREEK[word[1]], str(angle))
    text = re.sub(r"\[(\d+)\]|_(\d+)\b", lambda n: (n[1] or n[2]).translate(_SMALL), text)
    return verbatim(text if len(text) <= 9 else text[:8] + "…")


_NAMES = {"cz": "CZ", "cx": "⊕", "ccx": "⊕", "xx_plus_yy": "XX+YY", "xx_minus_yy": "XX−YY"}
_GREEK = {"theta": "θ", "phi": "φ", "alpha": "α", "beta": "β", "gamma": "γ"}
_SMALL = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")

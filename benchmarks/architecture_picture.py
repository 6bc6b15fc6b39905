"""The picture of docs/architecture.md, drawn from the imports: packages as layers, their imports as arcs.

Needs import-linter (`pip install -e ".[test]"`).

python benchmarks/architecture_picture.py
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import grimp
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parents[1]
HOLDS = {
    "commands": "the command line; processes' settings",
    "experiments": "infer, compare, baselines, tune, bench, export",
    "training": "one loop, two tasks: classifier and GAN",
    "resources": "the report: qubits, depth, shots, seconds, price",
    "models": "transformer, GAN; built from a config",
    "nn": "QuantumLayer, attention, Runge-Kutta blocks",
    "data": "data sets as tensors and batches",
    "plots": "pictures",
    "runs": "config, run folder, kept circuits",
    "primitives": "PackedSampler, PackedEstimator",
    "backends": "exact, Aer; devices: pack, submit, decode",
    "simulator": "propagation, statevector, subspace, noise; kernels",
    "circuits": "one short file per ansatz; the registry",
    "compiler": "program, propagation, subspace, shift rules",
    "ansatz": "CircuitTemplate and encodings",
    "errors": "UserError",
}
COLOURS = {"commands": "#8c8c8c", "experiments": "#b07aa1", "training": "#b07aa1", "resources": "#b07aa1"}


def layers() -> list[list[str]]:
    """Packages by layer, from the top, as import-linter checks them."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return [[name.strip() for name in layer.split("|")] for layer in config["contracts"][0]["layers"]]


def size(name: str) -> tuple[int, int]:
    """Files and lines of Python and C of a package or module."""
    place = ROOT / ("circuits" if name == "circuits" else f"qrkt_hw/{name}")
    files = [f for f in place.rglob("*") if f.suffix in {".py", ".c", ".h"}] or [place.with_suffix(".py")]
    return len(files), sum(len(file.read_text().splitlines()) for file in files)


def main() -> None:
    graph = grimp.build_graph("qrkt_hw", cache_dir=None, exclude_type_checking_imports=True)
    rows = layers()
    names = [name for row in rows for name in row]
    counts = {
        (a, b): sum(
            1
            for module in graph.modules
            if module.split(".")[1:2] == [a]
            for found in graph.find_modules_directly_imported_by(module)
            if found.split(".")[1:2] == [b]
        )
        for a in names
        for b in names
        if a != b
    }
    figure, axes = plt.subplots(figsize=(9, 8.4))
    height = {name: -float(k) for k, name in enumerate(names)}
    for name in names:
        files, lines = size(name)
        y = height[name]
        text = f"{files} {'file' if files == 1 else 'files'}, {lines:,} lines"
        colour = COLOURS.get(name, "#4e79a7" if height[name] > height["backends"] else "#59a14f")
        axes.add_patch(
            FancyBboxPatch((0, y - 0.36), 8.4, 0.72, boxstyle="round,pad=0.02", fc=colour, ec="none", alpha=0.22)
        )
        axes.text(0.12, y, name, va="center", weight="bold", fontsize=10)
        axes.text(1.9, y, HOLDS[name], va="center", fontsize=8.5)
        axes.text(8.3, y, text, va="center", ha="right", fontsize=7, color="#555555")
    for (a, b), count in counts.items():
        if not count or b == "errors":  # everything may raise a UserError
            continue
        distance = height[a] - height[b]
        axes.add_patch(
            FancyArrowPatch(
                (8.45, height[a] - 0.1),
                (8.45, height[b] + 0.1),
                connectionstyle=f"arc3,rad={-0.7 / (1 + 0.12 * distance)}",
                arrowstyle="-|>",
                mutation_scale=7,
                lw=0.4 + 0.12 * min(count, 20),
                color="#333333",
                alpha=0.45,
                shrinkA=0,
                shrinkB=0,
            )
        )
    axes.set_xlim(-0.1, 11)
    axes.set_ylim(height[names[-1]] - 0.6, 0.6)
    axes.axis("off")
    figure.savefig(ROOT / "docs/images/architecture.png", dpi=130, bbox_inches="tight")


if __name__ == "__main__":
    main()

"""CPU time and memory of a layer step over qubits, layers, batch and groups; JSON and a figure.

python benchmarks/scaling.py --figure docs/images/scaling.png
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import matplotlib
import torch
from timing import save

from qrkt_hw import circuits
from qrkt_hw.simulator import Simulator

matplotlib.use("Agg")
BASE = {"qubits": 6, "layers": 1, "batch": 260, "groups": 1}
# title: what changes, its values, and what else differs from BASE
AXES = {
    "qubits": ("qubits", [2, 4, 6, 8, 10, 12, 16, 20, 64, 384], {}),
    "qubits, 16 samples": ("qubits", [2, 4, 6, 8, 10, 12, 14, 16, 18, 20], {"batch": 16}),
    "layers": ("layers", [1, 2, 3, 4, 8, 16], {}),
    "batch": ("batch", [16, 64, 256, 1024, 4096], {}),
    "groups": ("groups", [1, 4, 16, 64], {}),
}


def measure(ansatz: str, qubits: int, layers: int, batch: int, groups: int) -> dict | None:
    template = circuits.build(ansatz, qubits, layers)
    simulate = Simulator(template)
    if simulate.method != "pauli" and batch * groups * 2**qubits > 2**24:
        return None  # beyond a minute or the memory of a small machine
    kept = 0

    def pack(tensor):
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    seconds = []
    for _ in range(5):
        x = torch.randn(batch, groups, qubits, requires_grad=True)
        w = torch.randn(groups, template.num_weights, requires_grad=True)
        kept = 0
        started = time.thread_time()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = simulate(x, w).square().sum()
        loss.backward()
        seconds.append(time.thread_time() - started)
        if seconds[-1] > 2:  # long enough for one to do
            break
    return {"method": simulate.method, "processor_ms": 1e3 * statistics.median_low(seconds), "kept_MB": kept / 1e6}


def draw(rows: list[dict], file: Path) -> None:
    from matplotlib import pyplot as plt

    from qrkt_hw.plots.charts import COLOURS, short

    figure, axes = plt.subplots(2, len(AXES), figsize=(12.5, 6), sharey="row", layout="constrained")
    for column, (axis, (key_of_axis, _, _)) in enumerate(AXES.items()):
        for ansatz, colour, style in zip(
            ("qrkt", "ry_rz_ring", "reuploading"), COLOURS, ("o-", "s--", "^-."), strict=False
        ):
            own = [r for r in rows if r["axis"] == axis and r["ansatz"] == ansatz]
            look = {"color": colour, "label": ansatz, "markersize": 5}
            for row, key in enumerate(("processor_ms", "kept_MB")):
                axes[row][column].loglog([r[key_of_axis] for r in own], [r[key] for r in own], style, **look)
                axes[row][column].grid(alpha=0.3)
                if "samples" in axis:  # less than a decade, where a logarithmic axis has no readable ticks
                    axes[row][column].set_xscale("linear")
        for row in (0, 1) if "samples" not in axis else ():
            axes[row][column].xaxis.set_major_formatter(lambda value, _: short(value))
        axes[1][column].set_xlabel(axis)
    axes[0][0].set_ylabel("CPU time of a step (ms)")
    axes[1][0].set_ylabel("kept for the backward pass (MB)")
    axes[0][0].legend()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for axis, (changed, values, others) in AXES.items():
        for ansatz in ("qrkt", "ry_rz_ring", "reuploading"):
            for value in values:
                if value > 20 and changed == "qubits" and ansatz != "qrkt":
                    continue
                # data that enter twice take a statevector; with one layer Pauli propagation serves every template here
                point = BASE | ({"layers": 2} if ansatz == "reuploading" else {}) | others | {changed: value}
                found = measure(ansatz, **point)
                if found is not None:
                    rows.append({"axis": axis, "ansatz": ansatz} | point | found)
    save(options.json, rows)
    if options.figure is not None:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()

"""The method chosen by cost against gate-wise on random templates: how often slower, and the geometric mean gain.

python benchmarks/automatic.py
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from timing import save

sys.path.insert(0, str(Path(__file__).parents[1]))
from qrkt_hw.simulator import Simulator
from tests.random_templates import random_template


def processor_ms(simulate: Simulator, repeats: int) -> float:
    t = simulate.template
    found = []
    for _ in range(repeats + 2):
        x = torch.randn(256, 1, t.num_inputs, requires_grad=True)
        w = torch.randn(1, t.num_weights, requires_grad=True)
        started = time.thread_time()
        simulate(x, w).square().sum().backward()
        found.append(time.thread_time() - started)
    return 1e3 * statistics.median(found[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--templates", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number (seed) of the first template")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # CPU time of one thread: other programs hardly disturb it
    rows = []
    for number in range(options.first, options.first + options.templates):
        template = random_template(np.random.default_rng(number))
        chosen = Simulator(template)
        times = [processor_ms(s, options.repeats) for s in (chosen, Simulator(template, method="adjoint"))]
        row = {"template": number, "qubits": template.num_qubits, "method": chosen.method}
        rows.append(row | {"auto_ms": times[0], "adjoint_ms": times[1], "gain": times[1] / times[0]})
    save(options.json, rows)
    gains = [row["gain"] for row in rows]
    slower = sum(g < 0.95 and row["method"] != "adjoint" for g, row in zip(gains, rows, strict=True))
    chosen_other = sum(row["method"] != "adjoint" for row in rows)
    print(f"another method than the statevector chosen: {chosen_other} of {len(rows)}")
    print(
        f"slower by more than 5 %: {slower}; geometric mean gain {math.exp(statistics.mean(map(math.log, gains))):.2f}"
    )


if __name__ == "__main__":
    main()

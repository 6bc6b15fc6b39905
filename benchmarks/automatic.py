"""How often ``auto`` takes the faster exact method, and what it loses where not.

python benchmarks/automatic.py --json results/automatic.json

Templates that both methods can evaluate: all that are shipped at 2 to 12 qubits and 1 to 4 layers, random ones of the
tests, and random ones whose data enter first (``front``). A step is forward and backward on 256 samples; the methods
alternate in one process, and CPU time of one thread counts, the fastest of up to 40 steps each.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit
from timing import save

sys.path.insert(0, str(Path(__file__).parents[1]))
from qrkt_hw import circuits
from qrkt_hw.ansatz import CircuitTemplate, z_observables
from qrkt_hw.simulator import METHODS, Simulator, cheapest
from tests.random_templates import random_template

BATCH = 256


def front(number: int) -> CircuitTemplate:
    """RY of the data, then random rotations about weights, Hadamard gates, CX and CZ."""
    rng = np.random.default_rng(number)
    qubits = int(rng.integers(2, 11))
    gates = rng.choice(["rx", "ry", "rz", "h", "cx", "cz"], size=int(rng.integers(2, 8 * qubits)))
    gates = ["ry", *gates]
    x, w = ParameterVector("x", qubits), ParameterVector("w", sum(g[0] == "r" for g in gates))
    circuit, angles = QuantumCircuit(qubits), iter(w)
    for qubit in range(qubits):
        circuit.ry(x[qubit], qubit)
    for gate in gates:
        one, other = (int(q) for q in rng.choice(qubits, size=2, replace=False))
        place = [one, other] if gate[0] == "c" else [one]
        getattr(circuit, gate)(*([next(angles)] if gate[0] == "r" else []), *place)
    return CircuitTemplate("front", circuit, x, w, z_observables(qubits))


def templates(count: int, first: int) -> Iterator[tuple[str, str, CircuitTemplate]]:
    for name in circuits.names():
        for qubits in range(2, 13):
            for layers in range(1, 5):
                yield "shipped", f"{name} {qubits} {layers}", circuits.build(name, qubits, layers)
    for number in range(first, first + count):
        yield "random", str(number), random_template(np.random.default_rng(number))
    for number in range(first, first + count // 2):
        yield "front", str(number), front(number)


def cpu_ms(template: CircuitTemplate, seconds: float = 0.3) -> dict[str, float]:
    """The fastest step of each method."""
    simulators = {name: Simulator(template, method=name) for name in METHODS}
    x = torch.randn(BATCH, 1, template.num_inputs, requires_grad=True)
    w = torch.randn(1, template.num_weights, requires_grad=True)
    best = dict.fromkeys(simulators, math.inf)
    end = time.perf_counter() + seconds
    for repeat in range(42):
        if repeat > 4 and time.perf_counter() > end:
            break
        for name, simulate in simulators.items():
            started = time.thread_time()
            simulate(x, w).square().sum().backward()
            best[name] = min(best[name], 1e3 * (time.thread_time() - started)) if repeat > 1 else math.inf
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=int, default=400, help="random ones")
    parser.add_argument("--first", type=int, default=5000, help="number (seed) of the first random template")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind, name, template in templates(options.templates, options.first):
        if not all(method.supports(template) for method in METHODS.values()):
            continue
        times = cpu_ms(template)
        chosen = cheapest(template)
        row = {"kind": kind, "template": name, "qubits": template.num_qubits, "method": chosen.name}
        row |= {f"{method}_ms": ms for method, ms in times.items()} | {"loss": times[chosen.name] / min(times.values())}
        rows.append(row)
    save(options.json, rows)
    for kind in ("all", *dict.fromkeys(row["kind"] for row in rows)):
        own = [row for row in rows if kind in ("all", row["kind"])]
        losses = [row["loss"] for row in own]
        right, close = (statistics.mean(loss <= most for loss in losses) for most in (1.0, 1.05))
        print(
            f"{kind}: {len(own)} templates, pauli for {sum(row['method'] == 'pauli' for row in own)}; the faster "
            f"method in {100 * right:.0f} %, within 5 % of it in {100 * close:.1f} %, "
            f"worst {max(losses):.2f} times as slow"
        )


if __name__ == "__main__":
    main()

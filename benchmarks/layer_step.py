"""One layer step (forward, sum of squares, backward) of ours beside the peers: median milliseconds and ratios.

python benchmarks/layer_step.py --peers .peers      (after sh benchmarks/peers/setup.sh .peers; without it, ours alone)
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import torch
from qiskit.circuit import ParameterVector, QuantumCircuit
from timing import SIZES, median_ms, save

from qrkt_hw import circuits
from qrkt_hw.circuits import CircuitTemplate
from qrkt_hw.simulator import Simulator


def su2_ring(n: int, layers: int) -> CircuitTemplate:
    """RY and RZ weights with a CX ring in between: no structure that pulls back to few qubits."""
    x, w = ParameterVector("x", n), ParameterVector("w", 2 * (layers + 1) * n)
    circuit = QuantumCircuit(n)
    for j in range(n):
        circuit.ry(x[j], j)
    angles = iter(w)
    for layer in range(layers + 1):
        row = [next(angles) for _ in range(2 * n)]
        for j in range(n):
            circuit.ry(row[j], j)
            circuit.rz(row[n + j], j)
        if layer < layers:
            for j in range(n):
                circuit.cx(j, (j + 1) % n)
    return CircuitTemplate("su2_ring", circuit, x, w)


def ours(template: CircuitTemplate, batch: int) -> tuple[str, dict[str, float]]:
    simulate = Simulator(template)

    def make():
        x = torch.randn(batch, 1, template.num_inputs, requires_grad=True)
        return x, torch.randn(1, template.num_weights, requires_grad=True)

    return simulate.method, median_ms(make, lambda a: simulate(*a).square().sum().backward())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, help="folder made by peers/setup.sh")
    parser.add_argument("--templates", default="qrkt,su2_ring")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for kind in options.templates.split(","):
        names = "ABCDE" if kind == "qrkt" else "BCD"
        peers = {}
        for peer in ("tensorcircuit", "pennylane"):
            python = options.peers and options.peers / peer / "bin" / "python"
            if python and python.exists():
                script = Path(__file__).parent / "peers" / f"{peer}_step.py"
                done = subprocess.run([python, script, kind, ",".join(names)], capture_output=True, text=True)
                if done.returncode:
                    print(f"{peer} failed: {done.stderr.strip().splitlines()[-1:]}")
                else:
                    peers[peer] = json.loads(done.stdout.splitlines()[-1])
            else:
                print(f"{peer}: no environment, left out")
        for name in names:
            n, layers, batch = SIZES[name]
            template = circuits.build("qrkt", n, layers) if kind == "qrkt" else su2_ring(n, layers)
            method, found = ours(template, batch)
            row = {"template": kind, "size": name, "method": method, "ours_ms": found["median"]}
            row |= {"ours_min_ms": found["minimum"], "ours_processor_ms": found["processor"]}
            for peer, times in peers.items():
                row |= {f"{peer}_ms": times[name]["median"], f"{peer}_first_ms": times[name]["first"]}
                row |= {f"{peer}_min_ms": times[name]["minimum"]}
            if peers:
                row["gain"] = min(t[name]["median"] for t in peers.values()) / found["median"]
                row["gain_of_minima"] = min(t[name]["minimum"] for t in peers.values()) / found["minimum"]
            rows.append(row)
    save(options.json, rows)


if __name__ == "__main__":
    main()

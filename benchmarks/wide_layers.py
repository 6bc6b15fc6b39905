"""A wide layer's step: time on one thread and on several, and the memory traffic beside what the machine can move.

python benchmarks/wide_layers.py --json results/wide_layers.json

The circuit is hardware-efficient: RY and RZ on every qubit and a chain of CX, then Z on every qubit; forward and
backward, all gradients. ``GB/s`` counts what the kernel reads and writes of states outside its blocks. ``triad`` is
what ``a = b + c * d`` on tensors of 256 MiB moves in the same run, and ``loop`` how much faster two threads compute
without memory.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from qiskit.circuit import ParameterVector, QuantumCircuit
from timing import save

from qrkt_hw.ansatz import CircuitTemplate, z_observables
from qrkt_hw.compiler.litinski import PauliRotation, absorb
from qrkt_hw.simulator import Simulator, native
from qrkt_hw.simulator.statevector import runs_of

SIZES = [(8, 8, 64), (12, 8, 16), (16, 8, 16), (18, 4, 16), (20, 4, 16)]  # qubits, layers, samples


def chain(qubits: int, layers: int) -> CircuitTemplate:
    x, w = ParameterVector("x", qubits), ParameterVector("w", 2 * qubits * layers)
    circuit, place = QuantumCircuit(qubits), 0
    for qubit in range(qubits):
        circuit.ry(x[qubit], qubit)
    for _ in range(layers):
        for qubit in range(qubits):
            circuit.ry(w[place], qubit)
            circuit.rz(w[place + 1], qubit)
            place += 2
        for qubit in range(qubits - 1):
            circuit.cx(qubit, qubit + 1)
    return CircuitTemplate("chain", circuit, x, w, z_observables(qubits))


def passes(template: CircuitTemplate, batch: int, columns: int) -> tuple[float, float]:
    """Rotations of a block each time that it is read, and the bytes of states that a step reads and writes beyond its
    blocks; 0 where a state is one block."""
    found = absorb(template)
    steps = runs_of([(s.x, s.z) if isinstance(s, PauliRotation) else None for s in found.steps], template.num_qubits)[0]
    if template.num_qubits <= native.BLOCKED:
        return len(found.steps) / steps, 0.0
    reads = runs_of([(r.x, r.z) for r in sorted(found.readings, key=lambda r: r.x)], template.num_qubits)[0]
    forward = 4 * steps - 2 + 2 * reads
    backward = 6 * reads + 8 * steps
    return len(found.steps) / steps, (forward + backward) * 2.0**template.num_qubits * 64 * -(-batch // columns)


def fastest(run, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def triad(threads: int) -> float:
    """Bytes a second."""
    torch.set_num_threads(threads)
    b, c, a = (torch.ones(2**26) for _ in range(3))
    return 3 * 2**28 / fastest(lambda: torch.add(b, c, alpha=2.0, out=a), 7)


def computing() -> Callable[[], object]:
    """Work that stays in the nearest cache: many samples of a small circuit."""
    simulate = Simulator(chain(4, 8), torch.complex64, "adjoint")
    x, w = torch.rand(2**16, 1, 4), torch.rand(1, 64)
    return lambda: simulate(x, w)


def loop(threads: int) -> float:
    """Seconds of :func:`computing`."""
    torch.set_num_threads(threads)
    return fastest(computing(), 7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--double", action="store_true", help="complex128")
    parser.add_argument("--largest", type=int, default=20, help="qubits")
    asked = parser.parse_args()
    dtype, real = (torch.complex128, torch.float64) if asked.double else (torch.complex64, torch.float32)
    rows: list[dict] = []
    first: dict[tuple, float] = {}
    for threads in asked.threads:
        rows.append({"size": "loop", "threads": threads, "ms": 1e3 * loop(threads)})
        rows.append({"size": "triad", "threads": threads, "GB/s": triad(threads) / 1e9})
        moved = rows[-1]["GB/s"]
        for qubits, layers, batch in SIZES:
            if qubits > asked.largest:
                continue
            torch.set_num_threads(threads)
            template = chain(qubits, layers)
            simulate = Simulator(template, dtype, "adjoint")
            x = torch.rand(batch, 1, qubits, dtype=real, requires_grad=True)
            w = torch.rand(1, template.num_weights, dtype=real, requires_grad=True)
            seconds = fastest(lambda x=x, w=w, s=simulate: s(x, w).square().sum().backward(), 3 if qubits > 16 else 9)
            rotations, moved_bytes = passes(template, batch, native.COLUMNS[real])
            speed = moved_bytes / seconds / 1e9
            alone = first.setdefault((qubits, layers), seconds)
            rows.append(
                {"size": f"{qubits}, {layers}, {batch}", "threads": threads, "ms": 1e3 * seconds, "GB/s": speed,
                 "of triad": speed / moved, "gain": alone / seconds, "rotations a pass": rotations}
            )  # fmt: skip
    save(asked.json, rows)


if __name__ == "__main__":
    main()

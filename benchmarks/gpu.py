"""The statevector methods and the model step on a CUDA card; ends with a sentence where torch sees none.

What is measured, fixed before any figure was seen:

1. Layer step (forward, sum of squares, backward; complex64) of ``reuploading`` with two layers, whose data enter behind
   entangling gates, so that the state has to be computed: n = 8, 10, ... 22 qubits, method ``adjoint``,
   the batch doubled until the step needs more than half of the card's memory or 2^28 amplitudes.
   Median of 10 steps behind 3 warm-up steps, each closed by a synchronisation.
2. Fraction of the memory bandwidth: the bytes that ``adjoint`` has to move at least (each rotation reads and writes the
   state once forward, and two states once backward, 16 bytes an amplitude and pass) per second, over the bandwidth that
   a copy of 1 GiB reaches on the same card in the same run.
3. Model step of the thesis' MNIST model (QRK4, batch 65 and 1,024), eager, and with ``torch.compile``
   (mode ``reduce-overhead``, which records CUDA graphs) with the time its first step takes; where compiling fails, the
   error's name stands in the table.

python benchmarks/gpu.py --json gpu.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import save
from torch import nn

from qrkt_hw import circuits
from qrkt_hw.data.base import DataShape
from qrkt_hw.models.factory import build_model
from qrkt_hw.runs.config import Config
from qrkt_hw.simulator import Simulator

LARGEST = 2**28  # amplitudes of a batch


THESIS = dict(ansatz="qrkt", qubits=6, layers=1, hidden=6, heads=2, mlp=3, patch=14, rk_blocks=3, rk="rk4")


def milliseconds(run: Callable[[], object], device: torch.device, warm: int = 3, repeats: int = 10) -> float:
    for _ in range(warm):
        run()
    found = []
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        found.append(1e3 * (time.perf_counter() - started))
    return statistics.median(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device, count: int = 2**28) -> float:
    """Bytes per second of a copy, read and written."""
    source = torch.zeros(count, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (1e-3 * milliseconds(lambda: target.copy_(source), device))


def layer_steps(device: torch.device, qubits: list[int], batches: list[int], bandwidth: float) -> list[dict]:
    rows = []
    for n in qubits:
        template = circuits.build("reuploading", n, 2)
        for method in ("adjoint",):
            simulate = Simulator(template, method=method)
            for batch in batches:
                if batch * 2**n > LARGEST:
                    break
                x = torch.randn(batch, 1, template.num_inputs, device=device, requires_grad=True)
                w = torch.randn(1, template.num_weights, device=device, requires_grad=True)

                def step(x=x, w=w, simulate=simulate):
                    simulate(x, w).square().sum().backward()

                try:
                    ms = milliseconds(step, device)
                except torch.OutOfMemoryError:
                    rows.append({"what": "layer", "method": method, "qubits": n, "batch": batch, "ms": "no memory"})
                    break
                row = {"what": "layer", "method": method, "qubits": n, "batch": batch, "ms": ms}
                if method == "adjoint":
                    passes = 3 * len(simulate._evaluate.torch.steps)  # one state forward, two backward
                    row["bandwidth_fraction"] = passes * 16 * batch * 2**n / (1e-3 * ms) / bandwidth
                rows.append(row)
    return rows


def model_steps(device: torch.device, batches: list[int]) -> list[dict]:
    rows = []
    shape = DataShape(channels=1, image_size=28, classes=10)
    for batch in batches:
        # compiling for a CPU takes minutes and says nothing about a card
        for compiled in (False, True) if device.type == "cuda" else (False,):
            model: nn.Module = build_model(Config(**THESIS, output_scale=False), shape).to(device)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
            images = torch.randn(batch, 1, 28, 28, device=device)
            labels = torch.randint(0, 10, (batch,), device=device)
            forward = torch.compile(model, mode="reduce-overhead") if compiled else model

            def step(forward=forward, model=model, optimizer=optimizer, images=images, labels=labels):
                optimizer.zero_grad()
                F.cross_entropy(forward(images), labels).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
                optimizer.step()

            row = {"what": "model compiled" if compiled else "model", "batch": batch}
            try:
                started = time.perf_counter()
                step()
                _wait(device)
                row |= {"first_ms": 1e3 * (time.perf_counter() - started), "ms": milliseconds(step, device)}
            except Exception as error:
                row["ms"] = type(error).__name__
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cpu tries the script out with small sizes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA card here; --device cpu tries the script out")
    small = device.type != "cuda"
    bandwidth = copy_bandwidth(device, 2**24 if small else 2**28)
    print(f"copy: {bandwidth / 1e9:.0f} GB/s")
    qubits = [8, 10] if small else list(range(8, 23, 2))
    batches = [16, 64] if small else [2**k for k in range(4, 21, 2)]
    rows = layer_steps(device, qubits, batches, bandwidth) + model_steps(device, [65] if small else [65, 1024])
    save(options.json, rows)


if __name__ == "__main__":
    main()

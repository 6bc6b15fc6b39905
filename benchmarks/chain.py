"""A hardware-efficient circuit beside Qulacs, lightning.qubit, TensorCircuit-NG and PennyLane on JAX, in one run.

python benchmarks/chain.py --peers .peers/all --json results/chain.json --figure docs/images/chain.png
(after sh benchmarks/peers/setup.sh .peers)

RY of the data, then layers of RY, RZ and a chain of CX, Z on every qubit; forward, sum of squares, backward, all
gradients, complex64 (Qulacs: complex128). ``benchmarks/peers/chain.py`` says how each peer is set up. Processes run on
as many cores as threads. Values and gradients of every peer are compared with ours in complex128.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import select
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from timing import save
from wide_layers import chain

from qrkt_hw.simulator import Simulator

PEERS = ("qulacs", "lightning", "tensorcircuit", "pennylane")
# qubits, layers, samples
SIZES = [(4, 2, 64), (4, 8, 64), (8, 2, 64), (8, 8, 64), (12, 2, 16), (12, 8, 16), (16, 2, 16), (16, 8, 16),
         (20, 2, 16), (20, 4, 16)]  # fmt: skip
REPEATED = 2.0  # seconds of a cell
# a peer that is further from our complex128 gets an "off" beside its time
BOUNDS = {"values": 1e-5, "grad_x": 1e-4, "grad_w": 1e-4}


def given(qubits: int, layers: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(0, 3, (batch, qubits)), rng.uniform(0, 3, 2 * qubits * layers)


def step(size: tuple[int, int, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    x, w = (torch.tensor(a, dtype=real) for a in given(*size))
    x, w = x[:, None].requires_grad_(), w[None].requires_grad_()
    values = Simulator(chain(*size[:2]), dtype)(x, w)
    values.square().sum().backward()
    return values.detach()[:, 0], x.grad[:, 0], w.grad[0]


def ours(size: tuple[int, int, int], threads: int) -> dict:
    torch.set_num_threads(threads)
    simulate = Simulator(chain(*size[:2]))
    x, w = (torch.tensor(a, dtype=torch.float32) for a in given(*size))
    x, w = x[:, None].requires_grad_(), w[None].requires_grad_()
    best, least, end = float("inf"), float("inf"), time.perf_counter() + REPEATED
    for repeat in range(100):
        if repeat > 1 and time.perf_counter() > end:
            break
        before, used = time.perf_counter(), time.process_time()
        simulate(x, w).square().sum().backward()
        best, least = min(best, time.perf_counter() - before), min(least, time.process_time() - used)
    return {"method": simulate.method, "ms": 1e3 * best, "cpu_ms": 1e3 * least}


def peer(python: Path, name: str, sizes: list, threads: int, folder: Path, limit: float) -> list[dict]:
    """One result for each size; what is no smaller than one that took too long is not tried."""
    free = 1024 * int(re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())[1])

    def confined() -> None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        resource.setrlimit(resource.RLIMIT_DATA, (int(0.7 * free),) * 2)

    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).parent / "peers" / "chain.py"
    found: dict[tuple, dict] = {}
    process = None
    for size in sizes:
        if any("ms" not in held and size[0] >= n and size[1] >= layers for (n, layers, _), held in found.items()):
            found[size] = {"error": "not tried"}
            continue
        if process is None:
            process = subprocess.Popen([python, script, name, str(REPEATED)], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
                                       preexec_fn=confined)  # fmt: skip
        x, w = given(*size)
        file = folder / "{}-{}-{}-{}-{}.npz".format(name, threads, *size)
        np.savez(file, x=x, w=w)
        process.stdin.write(f"{file}\n".encode())
        process.stdin.flush()
        start = used(process.pid)
        while not (ready := select.select([process.stdout], [], [], 1.0)[0]) and used(process.pid) - start < limit:
            pass
        line = process.stdout.readline() if ready else b""
        found[size] = json.loads(line or json.dumps({"error": "out of memory" if ready else f"> {limit:.0f} s"}))
        print(f"{name}, {threads} threads, {size}: {found[size]}", flush=True)
        if not line:
            process.kill()
            process.wait()
            process = None
        elif "ms" in found[size]:
            held, beyond = np.load(file), []
            for key, wanted in zip(("values", "grad_x", "grad_w"), step(size, torch.complex128), strict=True):
                off = np.abs(held[key] - wanted.numpy()).max() / max(1.0, wanted.abs().max().item())
                if off >= BOUNDS[key]:
                    beyond.append(f"{key} by {off:.1e}")
            if beyond:
                found[size]["off"] = ", ".join(beyond)
                print(f"{name}, {size}: off in {found[size]['off']}", flush=True)
    if process is not None:
        process.kill()
    return [found[size] for size in sizes]


def used(process: int) -> float:
    """CPU seconds of a running process."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def draw(rows: list[dict], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from qrkt_hw.plots.charts import COLOURS

    counts = sorted({row["threads"] for row in rows})
    size = 5.5 * len(counts), 7.5
    figure, axes = plt.subplots(2, len(counts), figsize=size, sharex=True, sharey=True, squeeze=False,
                                layout="constrained")  # fmt: skip
    for line, deep in zip(axes, (False, True), strict=True):
        for axis, threads in zip(line, counts, strict=True):
            key = "cpu_ms" if threads == 1 else "ms"
            of_panel = [r for r in rows if r["threads"] == threads and (r["layers"] > 2) == deep]
            styles = ("o-", "s--", "^-.", "D:", "v-", "P--")
            for name, colour, style in zip(("ours", *PEERS), COLOURS, styles, strict=False):
                own = [r for r in of_panel if f"{name}_ms" in r]
                look = {"color": colour, "label": "qrkt-hw" if name == "ours" else name}
                axis.semilogy([r["qubits"] for r in own], [r[f"{name}_{key}"] for r in own], style, **look)
            axis.set_title(f"{'8 layers (20 qubits: 4)' if deep else '2 layers'}, {threads} thread{'s'[: threads - 1]}")
            axis.grid(alpha=0.3)
            axis.set_xticks([4, 8, 12, 16, 20])
        line[0].set_ylabel("step (ms; CPU time on one thread)")
    for axis in axes[-1]:
        axis.set_xlabel("qubits (64 samples; 16 from 12 qubits on)")
    axes[0][0].legend()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="environment made by peers/setup.sh; without it, ours alone")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--largest", type=int, default=20, help="qubits")
    parser.add_argument(
        "--limit", type=float, default=60.0, help="CPU seconds that a peer has for one size, compiling too"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--resume", action="store_true", help="keep what the file of --json holds already")
    asked = parser.parse_args()
    sizes = [size for size in SIZES if size[0] <= asked.largest]
    kept = json.loads(asked.json.read_text())["rows"] if asked.resume else []
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        for threads in asked.threads:
            own = [row for row in kept if row["threads"] == threads]
            for size in sizes[len(own) :]:
                found = {f"ours_{key}": value for key, value in ours(size, threads).items()}
                own.append(dict(zip(("qubits", "layers", "batch"), size, strict=True)) | {"threads": threads} | found)
            rows += own
            for name in PEERS if asked.peers else ():
                if any(key.startswith(name) for key in own[0]):
                    continue
                python = asked.peers / "bin" / "python"
                for row, found in zip(own, peer(python, name, sizes, threads, Path(folder), asked.limit), strict=True):
                    row |= {f"{name}_{key}": value for key, value in found.items()}
                if asked.json:
                    save(asked.json, rows)
    save(asked.json, rows)
    if asked.figure is not None:
        draw(rows, asked.figure)


if __name__ == "__main__":
    main()

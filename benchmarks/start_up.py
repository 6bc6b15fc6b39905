"""Where the time goes from typing `qrkt-hw train` to the end of its first optimizer step.

    python benchmarks/start_up.py [--repeats 3] [--threads 1]

Each repeat is a new process that trains the default model on 64 digits; the first warms the disk and is left out. The
medians are seconds since the process was started (interpreter included) and its CPU time. Alternating with it:
``import torch, qiskit`` alone and ``qrkt-hw infer`` on such a run; the last two lines are CPU seconds beyond that
import, of the fastest process of each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMPORT = "import torch, qiskit"
# until the last line of output: what Python takes to end comes on top of each
INFER = """
import sys
sys.argv = ["qrkt-hw", "infer", "RUN"]
from qrkt_hw.commands import main
try:
    main()
except SystemExit as end:
    assert not end.code
"""
STAGES = ("command line", "torch", "Fabric", "qrkt-hw and Qiskit", "data and model", "first step done")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child, arguments.out)
        return
    runs, alone, inferred = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats + 1):
            run = str(Path(folder) / str(repeat))
            runs.append(launch(arguments.threads, run))
            alone.append(cpu_seconds(IMPORT, arguments.threads))
            inferred.append(cpu_seconds(INFER.replace("RUN", run), arguments.threads))
    print(f"{'until':<22}{'seconds':>9}{'of which here':>15}{'CPU':>11}")
    before = 0.0
    for stage in STAGES:
        seconds, used = (statistics.median(run[stage][k] for run in runs[1:]) for k in (0, 1))
        print(f"{stage:<22}{seconds:>9.2f}{seconds - before:>15.2f}{used:>11.2f}")
        before = seconds
    print(f"{IMPORT}: CPU {min(alone[1:]):.2f}")
    print(f"first step beyond it: {min(run[STAGES[-1]][1] for run in runs[1:]) - min(alone[1:]):.2f}")
    print(f"infer beyond it: {min(inferred[1:]) - min(alone[1:]):.2f}")


def cpu_seconds(program: str, threads: int) -> float:
    """CPU seconds of a new process until its program is through."""
    told = f"{program}\nimport time\nprint('CPU', time.process_time())"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def launch(threads: int, folder: str) -> dict[str, list[float]]:
    """Stage -> seconds since the start and CPU seconds, of one new process that trains into a folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    started = time.time()
    done = subprocess.run(
        [sys.executable, __file__, "--child", repr(started), "--out", folder],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("STAGES "))
    stages: dict[str, list[float]] = json.loads(line.removeprefix("STAGES "))
    return stages


def child(started: float, folder: str) -> None:
    """What the console script does, with a clock between its imports."""
    stages: dict[str, tuple[float, float]] = {}

    def note(stage: str) -> None:
        stages.setdefault(stage, (time.time() - started, time.process_time()))

    import qrkt_hw.commands.interface
    import qrkt_hw.commands.train
    from qrkt_hw.commands import main as command_line

    note("command line")
    import torch

    note("torch")
    _ = torch
    qrkt_hw.commands.interface.import_fabric()
    note("Fabric")
    from qrkt_hw.training import fit
    from qrkt_hw.training.classifier import ClassifierTask

    note("qrkt-hw and Qiskit")
    fitting = fit._fit

    def ready(*parts: object, **named: object) -> object:
        note("data and model")
        return fitting(*parts, **named)  # type: ignore[arg-type]

    fit._fit = ready  # type: ignore[assignment]
    step = ClassifierTask.step

    def stepped(*parts: object) -> None:
        step(*parts)  # type: ignore[arg-type]
        note("first step done")

    ClassifierTask.step = stepped  # type: ignore[assignment, method-assign]
    try:
        command_line(["train", "--epochs", "1", "--limit", "64", "--out", folder])
    except SystemExit as end:
        if end.code:
            raise
    print("STAGES " + json.dumps(stages), flush=True)


if __name__ == "__main__":
    main()

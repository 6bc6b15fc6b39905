"""Where the time goes from typing `qrkt-hw train` to the end of its first optimizer step.

    python benchmarks/start_up.py [--repeats 3] [--threads 1]

Each repeat is a new process that trains the default model on 64 digits; the first warms the disk and is left out. The
medians are seconds since the process was started (interpreter included) and its CPU time.
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

STAGES = ("command line", "torch", "Fabric", "qrkt-hw and Qiskit", "data and model", "first step done")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child)
        return
    runs = [launch(arguments.threads) for _ in range(arguments.repeats + 1)][1:]
    print(f"{'until':<22}{'seconds':>9}{'of which here':>15}{'CPU':>11}")
    before = 0.0
    for stage in STAGES:
        seconds, processor = (statistics.median(run[stage][k] for run in runs) for k in (0, 1))
        print(f"{stage:<22}{seconds:>9.2f}{seconds - before:>15.2f}{processor:>11.2f}")
        before = seconds


def launch(threads: int) -> dict[str, list[float]]:
    """Stage -> seconds since the start and CPU seconds, of one new process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    started = time.time()
    done = subprocess.run(
        [sys.executable, __file__, "--child", repr(started)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("STAGES "))
    stages: dict[str, list[float]] = json.loads(line.removeprefix("STAGES "))
    return stages


def child(started: float) -> None:
    """What the console script does, with a clock between its imports."""
    stages: dict[str, tuple[float, float]] = {}

    def note(stage: str) -> None:
        stages.setdefault(stage, (time.time() - started, time.process_time()))

    import qrkt_hw.commands.quick_start
    import qrkt_hw.commands.train
    from qrkt_hw.commands import main as command_line

    note("command line")
    import torch

    note("torch")
    _ = torch
    qrkt_hw.commands.quick_start.import_fabric()
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
    with tempfile.TemporaryDirectory() as folder:
        try:
            command_line(["train", "--epochs", "1", "--limit", "64", "--out", str(Path(folder) / "run")])
        except SystemExit as end:
            if end.code:
                raise
    print("STAGES " + json.dumps(stages), flush=True)


if __name__ == "__main__":
    main()

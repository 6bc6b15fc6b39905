"""CPU seconds of one epoch: each quantum model and its classical baselines, one after the other in one run.

    python benchmarks/energy.py --data-dir DIR [--repeats 2]     # results/energy.json; docs/results.md shows it

Energy is taken to be in proportion to CPU time. Each training is a process of its own on one thread; validation
is part of the epoch, start-up and the inference at the end are not. The least of the repeats counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RESULT = Path(__file__).parents[1] / "results" / "energy.json"


def beside(preset: str, matched: str | None = None) -> tuple[str, ...]:
    """Flags of the quantum model, of its size-matched baseline and, with the sizes of one, of the parameter-matched."""
    sides = (f"--preset {preset}", f"--preset {preset} --projection classical")
    return sides if matched is None else (*sides, f"{sides[1]} {matched}")


SIDES: dict[str, tuple[str, ...]] = {
    "thesis MNIST, order 1": ("--preset thesis-mnist-qrk1", "--preset thesis-mnist-rk1"),
    "thesis MNIST, order 4": ("--preset thesis-mnist-qrk4", "--preset thesis-mnist-rk4"),
    "thesis MNIST, enhanced": ("--preset thesis-mnist-qrk4-enhanced", "--preset thesis-mnist-rk4-enhanced"),
    "best-mnist": beside("best-mnist", "--hidden 12 --heads 4 --mlp 18"),
    "best-cifar10": beside("best-cifar10", "--hidden 20 --heads 5 --mlp 48 --pool-maps 4 --rk-blocks 3"),
    "best-mnist-4-qubits": beside("best-mnist-4-qubits", "--hidden 12 --heads 4 --mlp 18"),
    "best-cifar10-4-qubits": beside("best-cifar10-4-qubits", "--hidden 20 --heads 5"),
    "best-imdb": beside("best-imdb"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with mnist, cifar10 and imdb")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=list(SIDES), choices=list(SIDES), metavar="MODEL")
    given = parser.parse_args()
    found = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    for model in given.only:
        spent = [[epoch(flags, given.data_dir) for flags in SIDES[model]] for _ in range(given.repeats)]
        found[model] = [min(column) for column in zip(*spent, strict=True)]
        print(model, *(f"{seconds:.1f}" for seconds in found[model]), flush=True)
        RESULT.write_text(json.dumps({name: found[name] for name in SIDES if name in found}, indent=2) + "\n")


def epoch(flags: str, data_dir: Path) -> float:
    """CPU seconds of one epoch with validation."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "qrkt_hw", "train", *flags.split(), "--epochs", "1", "--out", f"{folder}/run"]
        command += ["--data-dir", str(data_dir.absolute())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True)
        return float(json.loads((Path(folder) / "run" / "results.json").read_text())["cpu_seconds"])


if __name__ == "__main__":
    main()

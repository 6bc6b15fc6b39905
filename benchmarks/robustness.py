"""The accuracy of a trained run on many devices, and on one whose errors have drifted since its calibration.

    python benchmarks/robustness.py --run results/best-mnist-device/seed-0 --data-dir DIR --shots 250 --limit 300

Rows: the first fake Heron as calibrated, drifted (every gate and readout error times a factor from 0.5 to 3, drawn
log-uniformly; circuits placed by the old calibration) and with readout errors doubled; then other devices.
The weights stay the same. A gate's error channel E becomes E to the power of its factor, which is a channel and has the
error rate times the factor to first order. Readout is corrected as `qrkt-hw infer` does by default. A stopped command
goes on where it stopped: rows of the same run, images and shots in the file of --out are not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scipy.linalg import fractional_matrix_power

from qrkt_hw.backends import resolve
from qrkt_hw.backends.noise import DeviceNoise
from qrkt_hw.data.base import DataShape
from qrkt_hw.data.batches import loader
from qrkt_hw.experiments.devices import correct_readout, on_backend
from qrkt_hw.experiments.loading import read_split, restored
from qrkt_hw.resources.forecast import BATCH
from qrkt_hw.runs import RunFolder

HERONS = ("torino", "fez", "marrakesh", "kingston", "aachen", "pittsburgh", "boston")
NIGHTHAWKS = ("miami", "berlin")


def drifted(noise: DeviceNoise, seed: int, low: float = 0.5, high: float = 3.0) -> DeviceNoise:
    """Every error rate times a factor of its own, log-uniform between the bounds."""
    rng = np.random.default_rng(seed)

    def factor() -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    gates = {key: fractional_matrix_power(error, factor()) for key, error in noise.gates.items()}
    return replace(noise, gates=gates, readout=misread(noise, [factor() for _ in noise.readout]))


def misread(noise: DeviceNoise, factors: Any) -> np.ndarray:
    """The confusion of every qubit, with errors times its factor, 0.5 at most."""
    wrong = np.minimum(noise.readout[:, [0, 1], [1, 0]] * np.asarray(factors)[..., None], 0.5)
    found = np.empty_like(noise.readout)
    found[:, [0, 1], [1, 0]], found[:, [0, 1], [0, 1]] = wrong, 1 - wrong
    return found


def variants(drifts: int) -> list[tuple[str, str, Any]]:
    """Device, what its noise is, and how it is made of the calibrated one."""
    first = f"fake_{HERONS[0]}"
    found: list[tuple[str, str, Any]] = [(first, "as calibrated", None)]
    for seed in range(drifts):
        found.append((first, f"drifted, draw {seed}", lambda noise, seed=seed: drifted(noise, seed)))
    doubled = "readout errors doubled"
    found.append((first, doubled, lambda noise: replace(noise, readout=misread(noise, 2.0))))
    return [*found, *((f"fake_{name}", "as calibrated", None) for name in (*HERONS[1:], *NIGHTHAWKS))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--shots", type=int, required=True)
    parser.add_argument("--limit", type=int, default=300, help="images of the test split")
    parser.add_argument("--drifts", type=int, default=3, help="draws of drifted noise")
    parser.add_argument("--out", type=Path, default=Path("results/robustness.json"))
    given = parser.parse_args()
    run = RunFolder.open(given.run)
    samples = read_split(run, "test", given.limit, given.data_dir)
    held: dict[str, Any] = {"run": "/".join(given.run.parts[-2:]), "images": len(samples), "shots": given.shots}
    before = json.loads(given.out.read_text()) if given.out.is_file() else {}
    there = before.pop("rows", []) if before.items() >= held.items() else []
    rows: list[dict[str, Any]] = []
    for name, what, change in variants(given.drifts):
        found = [row for row in there if (row["device"], row["noise"]) == (name, what)]
        if found:
            rows += found
            continue
        backend: Any = resolve(name, shots=given.shots, seed=0)
        if change is not None:
            backend.noise = change(backend.noise)
        model = restored(run, backend)
        correct_readout(run, model, DataShape.of(run.description()), len(samples), backend, False)
        logits, labels, report = on_backend(model, loader(samples, BATCH), backend, Console(quiet=True))
        row = {
            "device": name, "noise": what, "accuracy": float((logits.argmax(-1) == labels).double().mean()),
            "interval": report["interval"], "exact_accuracy": report["exact_accuracy"],
            "agreement": report["agreement"], "executions": report["executions"],
            "replicas": min(len(group.replicas) for group in backend.packer.groups.values()),
            "mitigation": backend.packer.mitigation, "calibrated": report["backend_details"]["calibrated"],
        }  # fmt: skip
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
        given.out.write_text(json.dumps(held | {"rows": rows}, indent=2) + "\n")
    print("| device | noise | replicas | accuracy (%) | exact, same images (%) |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['device']} | {row['noise']} | {row['replicas']} | {100 * row['accuracy']:.1f} | "
            f"{100 * row['exact_accuracy']:.1f} |"
        )


if __name__ == "__main__":
    main()

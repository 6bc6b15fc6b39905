"""Few shots on a device: shots dealt to the stages, and a model fitted to what the device returns, each beside without.

    python benchmarks/fine_tuning.py --seeds 3 --shots 16 --images 64 --out results/fine_tuning.json

Accuracy is that of the test set. "control" is a model after the same gradient steps as the fitted one, but through the
exact circuits: what the steps bring by themselves. QPU seconds are planned for the test set, the fitting included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from qrkt_hw.backends import resolve
from qrkt_hw.data.base import DataShape
from qrkt_hw.data.batches import first, loader
from qrkt_hw.experiments import devices, loading, presets
from qrkt_hw.experiments.loading import restored
from qrkt_hw.models.factory import set_backend
from qrkt_hw.resources.forecast import BATCH, forecast
from qrkt_hw.resources.logical import stages_of
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import Config
from qrkt_hw.training import fit
from qrkt_hw.training.classifier import refit

QUIET = Console(quiet=True)
ROWS = ("exact", "device", "device, shots dealt", "fitted", "control")


def measure(run: RunFolder, device: str, shots: int, images: int, limit: int | None) -> dict[str, Any]:
    """Accuracies of a trained run, and planned QPU seconds."""
    seed = run.options().training.seed
    splits, there = loading.read_splits(run), resolve(device, shots=shots, seed=seed)
    samples = first(splits["test"], limit)

    def accuracy(model: Any, backend: Any, stage_shots: list[int] | None = None) -> float:
        set_backend(model, devices.Watched(backend, False, stage_shots or []))
        logits, labels = devices.logits_everywhere(model, loader(samples, BATCH))
        return (logits.argmax(-1) == labels).double().mean().item()

    model, exact = restored(run), resolve("exact")
    stages = stages_of(model, DataShape.of(run.description()))
    dealt, said = devices.shots_of_stages(run, there, None)
    found = {"stage_shots": dealt, "said": said, "exact": accuracy(model, exact), "device": accuracy(model, there)}
    found["device, shots dealt"] = accuracy(model, there, dealt)
    control = deepcopy(model)
    set_backend(control, exact)
    refit(control, splits["train"], first(splits["validation"], devices.VALIDATED), run.options())
    found["control"] = accuracy(control, there)
    tuned = devices.fine_tuned(run, model, there, images, splits, QUIET)
    found |= {"fitted": accuracy(model, there), "exact of fitted": accuracy(model, exact), "fitting": tuned.record}
    count = len(samples)
    for name, more in {"device": 0, "fitted": images}.items():
        found[f"seconds of {name}"] = forecast(stages, count, BATCH, there, fitted=more).seconds
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds as Markdown."""
    lines = ["| | test accuracy | planned QPU seconds |", "|---|---|---|"]
    for name in ROWS:
        own = [row[name] for row in rows]
        seconds = rows[0].get(f"seconds of {'fitted' if name == 'fitted' else 'device'}")
        shown = "-" if name == "exact" else f"{seconds:.1f}"
        lines.append(f"| {name} | {np.mean(own):.4f} ± {np.std(own):.4f} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, action="append", help="a trained run, instead of training digits-hardware")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--device", default="fake_torino")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--images", type=int, default=64, help="training images to which the model is fitted")
    parser.add_argument("--limit", type=int, help="test images")
    parser.add_argument("--out", type=Path, default=Path("results/fine_tuning.json"))
    given = parser.parse_args()
    started, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.seeds):
            if given.run:
                run = RunFolder.open(given.run[seed])
            else:
                options = Config(**{**presets.load("digits-hardware"), "epochs": given.epochs, "seed": seed})
                run = fit.start(options, Path(folder) / f"run-{seed}", QUIET, figures=False)
            rows.append(measure(run, given.device, given.shots, given.images, given.limit))
            print(json.dumps(rows[-1]), flush=True)
            held = {
                "command": f"python benchmarks/fine_tuning.py --seeds {given.seeds} --epochs {given.epochs} "
                f"--device {given.device} --shots {given.shots} --images {given.images}"
                + (f" --limit {given.limit}" if given.limit else "")
                + "".join(f" --run {run}" for run in given.run or ()),
                "wall_seconds": round(time.perf_counter() - started, 1),
                "rows": rows,
            }
            given.out.write_text(json.dumps(held, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()

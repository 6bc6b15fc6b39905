"""Training through a device's noise beside training without it: accuracy of both on the device and on exact.

    python benchmarks/noise_training.py --seeds 5 --epochs 20 --device fake_torino --out results/noise_training.json

All models of a seed start from the same weights and see the same batches; only backend and noise differ. Accuracy is
that of the test set; "device" is the noisy expectation value without sampling, "shots" the same with ``--shots`` a
circuit. ``--shot-noise`` adds a model trained with noise of so many shots, damped as the device damps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from qrkt_hw.backends import resolve
from qrkt_hw.experiments.inference import infer_split
from qrkt_hw.experiments.loading import read_split, restored
from qrkt_hw.runs.config import Config
from qrkt_hw.runs.folder import read_json
from qrkt_hw.training import fit

PLACES = ("exact", "device", "shots")


def measure(options: Config, device: str, few: int) -> dict[str, float]:
    """Train once; test accuracy by place, and seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        run = fit.start(options, Path(folder) / "run", Console(stderr=True, quiet=True))
        found = {"train_seconds": read_json(run.results)["train_seconds"]}
        for place, shots in zip(PLACES, (None, 0, few), strict=True):
            name = "exact" if place == "exact" else device
            there = resolve(name, shots=shots, seed=options.training.seed)
            found[place] = infer_split(run, restored(run, there), "test", read_split(run, "test"), there)["accuracy"]
    return found


def table(rows: list[dict], few: int) -> str:
    """The rows as Markdown, with mean and standard deviation over seeds."""
    lines = [f"| seed | trained | exact | device | device, {few:,} shots | training (s) |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['seed']} | {row['trained']} | {row['exact']:.4f} | {row['device']:.4f} | {row['shots']:.4f} "
            f"| {row['train_seconds']:.0f} |"
        )
    for trained in dict.fromkeys(row["trained"] for row in rows):
        own = [row for row in rows if row["trained"] == trained]
        cells = [f"{np.mean([r[p] for r in own]):.4f} ± {np.std([r[p] for r in own]):.4f}" for p in PLACES]
        lines.append(f"| mean of {len(own)} | {trained} | {' | '.join(cells)} | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=Config().training.epochs)
    parser.add_argument("--device", default="fake_torino")
    parser.add_argument("--preset", help="options of a preset instead of the defaults")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one more option, such as layers=5"
    )
    parser.add_argument("--shots", type=int, default=1024, help="of the last column")
    parser.add_argument("--shot-noise", type=int, help="also train with noise of so many shots")
    parser.add_argument("--no-through-noise", action="store_true", help="leave the slow training on the device out")
    parser.add_argument("--out", type=Path, default=Path("results/noise_training.json"))
    given = parser.parse_args()
    chosen = {}
    if given.preset:
        from qrkt_hw.experiments import presets

        chosen = presets.load(given.preset)
    chosen.update(pair.split("=", 1) for pair in given.set)
    rows: list[dict] = []
    started = time.perf_counter()
    for seed in range(given.seeds):
        ways = {"exact": {}} if given.no_through_noise else {"exact": {}, "through noise": {"backend": given.device}}
        if given.shot_noise:
            ways["with shot noise"] = {"shot_noise": given.shot_noise, "noise_device": given.device}
        for trained, how in ways.items():
            options = Config(**{**chosen, "epochs": given.epochs, "seed": seed, **how})
            rows.append({"seed": seed, "trained": trained, **measure(options, given.device, given.shots)})
            held = {
                "command": f"python benchmarks/noise_training.py --seeds {given.seeds} --epochs {given.epochs} "
                f"--device {given.device}"
                + (f" --shots {given.shots}" if given.shots != 1024 else "")
                + (" --no-through-noise" if given.no_through_noise else "")
                + (f" --shot-noise {given.shot_noise}" if given.shot_noise else "")
                + (f" --preset {given.preset}" if given.preset else "")
                + "".join(f" --set {pair}" for pair in given.set),
                "device": resolve(given.device).about(),
                "options": Config(**{**chosen, "epochs": given.epochs}).model_dump(mode="json"),
                "torch_threads": torch.get_num_threads(),
                "wall_seconds": round(time.perf_counter() - started, 1),
                "rows": rows,
            }
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(held, indent=2) + "\n")
            print(rows[-1], flush=True)
    print(table(rows, given.shots))


if __name__ == "__main__":
    main()

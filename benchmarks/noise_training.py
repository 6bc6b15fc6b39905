"""Training through a device's noise beside training without it: accuracy of both on the device and on exact.

    python benchmarks/noise_training.py --seeds 5 --epochs 20 --device fake_torino --out results/noise_training.json

Both models of a seed start from the same weights and see the same batches; only the backend differs. Accuracy is that
of the test set; "device" is the noisy expectation value without sampling, "shots" the same with 1,024 shots a circuit.
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
from qrkt_hw.experiments.inference import infer_split, read_split
from qrkt_hw.experiments.loading import restored
from qrkt_hw.runs.config import Config
from qrkt_hw.runs.folder import read_json
from qrkt_hw.training import fit

PLACES = {"exact": None, "device": 0, "shots": 1024}


def measure(options: Config, device: str) -> dict[str, float]:
    """Train once; test accuracy by place, and seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        run = fit.start(options, Path(folder) / "run", Console(stderr=True, quiet=True))
        found = {"train_seconds": read_json(run.results)["train_seconds"]}
        for place, shots in PLACES.items():
            name = "exact" if place == "exact" else device
            there = resolve(name, shots=shots, seed=options.training.seed)
            found[place] = infer_split(run, restored(run, there), "test", read_split(run, "test"), there)["accuracy"]
    return found


def table(rows: list[dict]) -> str:
    """The rows as Markdown, with mean and standard deviation over seeds."""
    lines = ["| seed | trained | exact | device | device, 1,024 shots | training (s) |", "|---|---|---|---|---|---|"]
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
        for trained, backend in (("exact", "exact"), ("through noise", given.device)):
            options = Config(**{**chosen, "epochs": given.epochs, "seed": seed, "backend": backend})
            rows.append({"seed": seed, "trained": trained, **measure(options, given.device)})
            held = {
                "command": f"python benchmarks/noise_training.py --seeds {given.seeds} --epochs {given.epochs} "
                f"--device {given.device}"
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
    print(table(rows))


if __name__ == "__main__":
    main()

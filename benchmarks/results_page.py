"""Keep a finished run under results/, and make docs/results.md and its figures from all that are kept.

    python benchmarks/results_page.py --keep RUN --as best-mnist     # to results/best-mnist/seed-N
    python benchmarks/results_page.py                                # docs/results.md, docs/images/results-NAME/*.png

A kept run holds config.yaml, data.json, metrics.csv, results.json, environment.json and model.safetensors, and the
results of its ablations: ``qrkt-hw infer results/NAME/seed-N`` repeats its figures. Groups (``results/NAME``) stand in
the order of docs/results.yaml, which also holds the sentences between the tables and the thesis' published figures; no
figure of ours is written there. A group that is not there yet is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from qrkt_hw.experiments.comparison import read_history
from qrkt_hw.plots.comparison import plot_comparison
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.folder import read_json

ROOT = Path(__file__).parents[1]
KEPT = ("config.yaml", "data.json", "metrics.csv", "results.json", "environment.json", "model.safetensors")


def keep(run: RunFolder, name: str) -> Path:
    """Copy a finished run's small files to ``results/NAME/seed-N``."""
    options = run.options()
    if options.data_dir is not None and options.data_dir.is_absolute():
        raise SystemExit(f"{run.config}: data_dir is {options.data_dir}; a kept run names no machine's folder")
    target = ROOT / "results" / name / f"seed-{options.seed}"
    target.mkdir(parents=True, exist_ok=True)
    for file in KEPT:
        shutil.copyfile(run.path / file, target / file)
    ablations = {}
    for file in sorted((run.path / "inference").glob("*.json")) if run.inference.is_dir() else []:
        found = json.loads(file.read_text())
        ablations.update(found.get("ablations", {}))
    if ablations:
        (target / "ablations.json").write_text(json.dumps(ablations, indent=2) + "\n")
    return target


def shown(values: list[float], digits: int, percent: bool = False) -> str:
    """Mean, and the sample standard deviation of several seeds."""
    if not values:
        return "-"
    factor = 100 if percent else 1
    text = f"{factor * mean(values):,.{digits}f}"
    return f"{text} ± {factor * stdev(values):.{digits}f}" if len(values) > 1 else text


def row(name: str, title: str, runs: list[RunFolder]) -> str:
    """One line of a table of models."""
    results: list[dict[str, Any]] = [read_json(run.results) for run in runs]
    ablations = [json.loads(f.read_text()) for run in runs if (f := run.path / "ablations.json").is_file()]
    seeds = ", ".join(str(r["seed"]) for r in results)
    epochs = runs[0].options().epochs
    cells = [
        title, seeds, shown([r["test"]["accuracy"] for r in results], 2, percent=True),
        shown([r["test"]["auroc"] for r in results], 4),
        f"{results[0]['parameters']['total']:,} ({results[0]['parameters']['quantum']:,})",
        shown([a["batch-mean"]["accuracy"] for a in ablations if "batch-mean" in a], 1, percent=True),
        shown([a["sine"]["accuracy"] for a in ablations if "sine" in a], 1, percent=True),
        str(epochs), shown([r["cpu_seconds"] / epochs for r in results], 1),
        shown([r["train_seconds"] for r in results], 0),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| model | seeds | test accuracy (%) | AUROC | parameters (angles) | batch mean (%) | sine (%) | epochs "
    "| CPU s an epoch | training (s) |\n" + "|---|" * 10
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, metavar="RUN")
    parser.add_argument("--as", dest="name", metavar="NAME")
    given = parser.parse_args()
    if given.keep:
        print(keep(RunFolder.open(given.keep), given.name))
    sections = yaml.safe_load((ROOT / "docs" / "results.yaml").read_text())
    lines = ["# Results", "", "Made by `python benchmarks/results_page.py` from `results/`.", ""]
    for section in sections:
        groups = {
            name: [RunFolder.open(p) for p in sorted((ROOT / "results" / name).glob("seed-*"))]
            for name in section["groups"]
        }
        groups = {name: runs for name, runs in groups.items() if runs}
        if not groups:
            continue
        lines += [f"## {section['title']}", "", section.get("before", "").strip(), "", HEAD]
        lines += [row(name, section["groups"][name], runs) for name, runs in groups.items()]
        named = [(section["groups"][name], [read_history(r) for r in runs]) for name, runs in groups.items()]
        folder = ROOT / "docs" / "images" / f"results-{section['name']}"
        plot_comparison(named, folder)
        lines += ["", f"![Loss of {section['title']}](images/{folder.name}/loss.png)", ""]
        lines += [section.get("after", "").strip(), ""]
    text = "\n".join(lines).rstrip() + "\n"
    (ROOT / "docs" / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

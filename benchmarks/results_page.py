"""Keep finished runs under results/, and make docs/results.md and its figures from all that are kept.

    python benchmarks/results_page.py --keep RUN [RUN ...] --as best-mnist     # to results/best-mnist/seed-N
    python benchmarks/results_page.py                                          # docs/results.md and its figures

A kept run holds config.yaml, data.json, metrics.csv, results.json, environment.json and model.safetensors, and its
ablations: `qrkt-hw infer results/NAME/seed-N --data-dir DIR` repeats its figures. Sections and groups stand in the
order of docs/results.yaml, which also holds the sentences between the tables and the thesis' published figures; none
of ours is written there. A group that is not there yet is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from qrkt_hw.experiments.comparison import read_history
from qrkt_hw.models.metrics import wilson
from qrkt_hw.plots.charts import COLOURS, logarithmic, new, plot_comparison, save, tidy
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.folder import read_json

ROOT = Path(__file__).parents[1]
KEPT = ("config.yaml", "data.json", "metrics.csv", "results.json", "environment.json", "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="RUN", nargs="+", default=[])
    parser.add_argument("--as", dest="name", metavar="NAME")
    given = parser.parse_args()
    if given.keep and not given.name:
        parser.error("--keep needs --as NAME")
    for run in given.keep:
        print(keep(RunFolder.open(run), given.name))
    sections = yaml.safe_load((ROOT / "docs" / "results.yaml").read_text())
    lines = ["# Results", "", "Made by `python benchmarks/results_page.py` from the runs in `results/`.", ""]
    for section in sections:
        lines += part(section)
    text = "\n".join(lines).rstrip() + "\n"
    (ROOT / "docs" / "results.md").write_text(text)


def keep(run: RunFolder, name: str) -> Path:
    """Copy a finished run's small files to ``results/NAME/seed-N``."""
    options = run.options()
    if options.data.data_dir is not None and options.data.data_dir.is_absolute():
        raise SystemExit(f"{run.config}: data_dir is {options.data.data_dir}; a kept run names no machine's folder")
    target = ROOT / "results" / name / f"seed-{options.training.seed}"
    target.mkdir(parents=True, exist_ok=True)
    for file in KEPT:
        shutil.copyfile(run.path / file, target / file)
    records = [json.loads(path.read_text()) for path in sorted((run.path / "inference").glob("*.json"))]
    ablations = {name: found for record in records for name, found in record.get("ablations", {}).items()}
    devices = {f"{r['backend']}, {r['count']}": r for r in records if "exact_accuracy" in r}
    for name, found in (("ablations", ablations), ("devices", list(devices.values()))):
        if found:
            (target / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    return target


def part(section: dict[str, Any]) -> list[str]:
    """The lines of one section: sentences, table, figures."""
    runs = {
        name: [RunFolder.open(path) for path in sorted((ROOT / "results" / name).glob("seed-*"))]
        for name in section.get("groups", {})
    }
    runs = {name: found for name, found in runs.items() if found}
    if section.get("groups") and not runs:
        return []
    lines = [f"## {section['title']}", "", section.get("before", "").strip(), ""]
    if runs:
        groups = section["groups"]
        published = any("published" in groups[name] for name in runs)
        lines += table([row(groups[name], found, published) for name, found in runs.items()], published)
        named = [(groups[name]["title"], [read_history(run) for run in found]) for name, found in runs.items()]
        folder = ROOT / "docs" / "images" / f"results-{section['name']}"
        folder.mkdir(parents=True, exist_ok=True)
        if any(len(history) > 1 for _, histories in named for history in histories):
            plot_comparison(named, folder)
            lines += ["", f"![{section['title']}: validation loss](images/{folder.name}/loss.png)"]
        if section.get("gradients"):
            plot_gradients(named, folder / "gradients.png")
            lines += ["", f"![{section['title']}: gradient norm of each block](images/{folder.name}/gradients.png)"]
    if section.get("energy"):
        lines += energy(ROOT / "results" / "energy.json")
    if section.get("parity"):
        lines += parity(ROOT / "results" / "parity.json")
    for name in section.get("devices", []):
        lines += [*([""] if lines[-1] else []), *devices(sorted((ROOT / "results" / name).glob("seed-*/devices.json")))]
    return [*lines, "", section.get("after", "").strip(), ""]


def devices(files: Sequence[Path]) -> list[str]:
    """A table of the kept inferences on devices, and the plans that lie beside them (of ``--dry-run --json``)."""
    head = ["run", "device", "images", "accuracy there (%)", "95 % interval (Wilson)", "exact, same images (%)"]
    head += ["95 % interval (Wilson)", "agreement (%)", "correct there only, exact only, p"]
    head += ["circuits", "executions", "QPU seconds, planned", "USD, planned"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for file in files:
        plans = [json.loads(path.read_text()) for path in file.parent.glob("plan*.json")]
        for record in sorted(json.loads(file.read_text()), key=lambda record: (record["backend"], record["count"])):
            same = [p for p in plans if (p["backend"], p["samples"]) == (record["backend"], record["count"])]
            cells = [f"{file.parent.parent.name}, {file.parent.name}", record["backend"], f"{record['count']:,}"]
            for key in ("accuracy", "exact_accuracy"):  # from the counts: older records hold bootstrap intervals
                low, high = wilson(round(record[key] * record["count"]), record["count"])
                cells += [f"{100 * record[key]:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"]
            cells += [f"{100 * record['agreement']:.1f}", _paired(record)]
            cells += [f"{record['circuits']:,}", f"{record['executions']:,}"]
            cells += [f"{same[0][key]:,.0f}" if same else "" for key in ("seconds", "usd")]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _paired(record: dict[str, Any]) -> str:
    """The exact McNemar test; "-" for an older record, which kept no pairs, unless all images agree."""
    if "discordant" in record:
        there, exact = record["discordant"]
        return f"{there} and {exact}, p = {record['p_value']:.2g}"
    return "0 and 0, p = 1" if record["agreement"] == 1 else "-"


def energy(file: Path) -> list[str]:
    """A table of what ``benchmarks/energy.py`` measured: CPU seconds of one epoch."""
    head = ["", "quantum", "size-matched baseline", "parameter-matched baseline", "quantum : size-matched"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for model, spent in json.loads(file.read_text()).items():
        cells = [model, *(f"{seconds:.1f}" for seconds in spent), *["-"] * (3 - len(spent))]
        lines.append("| " + " | ".join([*cells, f"{spent[0] / spent[1]:.2f}"]) + " |")
    return lines


def parity(file: Path) -> list[str]:
    """A table of what ``benchmarks/parity.py`` measured: the smallest model of each kind that solves each order."""
    rows = json.loads(file.read_text())["rows"]
    head = ["hidden bits", "circuit: parameters", "the same function as a product", "smallest transformer", "ratio"]
    head += ["largest transformer that does not", "its best test accuracy of 20 trials (%)"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for order in sorted({row["order"] for row in rows}):
        found: dict[str, int] = {}
        for row in rows:
            if row["order"] == order and row["solved"]:
                found.setdefault(row["model"].split(",")[0], row["parameters"])
        below = [row for row in rows if row["order"] == order and "transformer" in row["model"] and not row["solved"]]
        last = max(below, key=lambda row: row["parameters"])
        cells = [str(found.get(kind, "none tried")) for kind in ("circuit", "product", "transformer")]
        ratio = f"{found['transformer'] / found['circuit']:.1f}" if {"circuit", "transformer"} <= set(found) else "-"
        cells += [ratio, str(last["parameters"]), f"{100 * last['best test of any trial']:.1f}"]
        lines.append("| " + " | ".join([str(order), *cells]) + " |")
    return lines


def table(rows: Sequence[Sequence[str]], published: bool) -> list[str]:
    """Markdown lines; a column without any figure is left out."""
    head = [
        "model",
        "seeds",
        "test accuracy (%)",
        *(["thesis (%)"] if published else []),
        "AUROC",
        "parameters (angles)",
    ]
    head += [
        "circuits replaced by batch mean: accuracy (%), AUROC",
        "by sine",
        "epochs",
        "CPU s an epoch",
        "training (s)",
    ]
    head += ["thesis (s)"] if published else []
    used = [k for k in range(len(head)) if any(cells[k] != "-" for cells in rows)]
    lines = ["| " + " | ".join(cells[k] for k in used) + " |" for cells in [head, *rows]]
    return [lines[0], "|" + "---|" * len(used), *lines[1:]]


def row(group: dict[str, Any], runs: Sequence[RunFolder], published: bool) -> list[str]:
    """The cells of one group: means over seeds, with the sample standard deviation where there are several."""
    results: list[dict[str, Any]] = [read_json(run.results) for run in runs]
    ablations = [json.loads(f.read_text()) for run in runs if (f := run.path / "ablations.json").is_file()]
    count, epochs = results[0]["parameters"], runs[0].options().training.epochs
    cells = [group["title"], ", ".join(str(r["seed"]) for r in results)]
    cells.append(shown([100 * r["test"]["accuracy"] for r in results], 2))
    cells += [str(group.get("published", "-"))] if published else []
    cells += [shown([r["test"]["auroc"] for r in results], 4), f"{count['total']:,} ({count['quantum']:,})"]
    cells += [_ablated([a[name] for a in ablations if name in a]) for name in ("batch-mean", "sine")]
    cells += [str(epochs), shown([r["cpu_seconds"] / epochs for r in results], 1)]
    cells.append(shown([r["train_seconds"] for r in results], 0))
    cells += [str(group.get("published_seconds", "-"))] if published else []
    return cells


def _ablated(found: Sequence[dict[str, float]]) -> str:
    # an ablation may only move a threshold, which accuracy sees and AUROC does not
    if not found:
        return "-"
    return f"{shown([100 * f['accuracy'] for f in found], 1)}, {mean(f['auroc'] for f in found):.3f}"


def shown(values: Sequence[float], digits: int) -> str:
    """Mean, and the sample standard deviation of several."""
    if not values:
        return "-"
    text = f"{mean(values):,.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


def plot_gradients(groups: Sequence[tuple[str, Sequence[Sequence[dict[str, float]]]]], path: Path) -> None:
    """Gradient norm of each block, from the input on: in the first epoch and, dashed, in the last of several; mean over
    seeds."""
    figure, axes = new(width=7.4)
    for place, (label, histories) in enumerate(groups):
        colour, marker = COLOURS[place % len(COLOURS)], "osD^vPX*"[place % 8]
        blocks = [name for name in histories[0][0] if name.startswith("gradient_norm_block_")]
        for when, style in ((0, "-"), (-1, "--"))[: len(histories[0])]:
            norms = [mean(history[when][name] for history in histories) for name in blocks]
            title = label if when == 0 else None
            axes.plot(range(1, len(blocks) + 1), norms, style, marker=marker, color=colour, label=title)
    logarithmic(axes, "y")
    later = " (dashed: last epoch)" if any(len(histories[0]) > 1 for _, histories in groups) else ""
    tidy(axes, "block, from the input on", f"gradient norm{later}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    save(figure, path)


if __name__ == "__main__":
    main()

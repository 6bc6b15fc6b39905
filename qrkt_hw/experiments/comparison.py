"""Several runs side by side: a table, and their curves; seeds of the same configuration are averaged."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from qrkt_hw.errors import UserError
from qrkt_hw.plots.charts import plot_comparison
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import write_text
from qrkt_hw.runs.folder import read_json

# options that say how a run was made, not what it is
INCIDENTAL = {"seed", "threads", "workers", "data_dir", "download", "backends_file", "strict_backend"}
COLUMNS = {
    "accuracy": ("test", "accuracy"),
    "f1": ("test", "f1"),
    "auroc": ("test", "auroc"),
    "val_auroc": ("validation", "auroc"),
    "best_epoch": ("best_epoch",),
    "train_seconds": ("train_seconds",),
    "quantum": ("parameters", "quantum"),
    "classical": ("parameters", "classical"),
    "parameters": ("parameters", "total"),
    "qubits": ("qubits",),
    "summed_qubits": ("summed_qubits",),
    "peak_memory_mb": ("peak_memory_mb",),
}
GAN_COLUMNS = {
    "generator": ("parameters_of", "generator", "total"),
    "discriminator": ("parameters_of", "discriminator", "total"),
    **{name: COLUMNS[name] for name in ("quantum", "classical", "parameters", "qubits", "summed_qubits")},
    **{name: COLUMNS[name] for name in ("train_seconds", "peak_memory_mb")},
    "cpu_seconds": ("cpu_seconds",),
}
MEASURES = ("fid", "kid", "inception_score", "precision", "recall")  # of an evaluation
HISTORIES = (
    {"epoch", "val_loss", "val_auroc", "seconds"},
    {"epoch", "generator_loss", "discriminator_loss", "seconds"},
)
DIGITS = {
    "cpu_seconds": 1,
    "accuracy": 4,
    "f1": 4,
    "auroc": 4,
    "val_auroc": 4,
    "best_epoch": 1,
    "train_seconds": 1,
    "peak_memory_mb": 1,
}


@dataclass
class Group:
    """Runs of one configuration that differ in their seed at most.

    Attributes:
        label: the options in which the groups differ.
        runs: the folders.
        values: column to one value per run; a run without the value has none.
        histories: rows of ``metrics.csv``, per run.
    """

    label: str
    runs: list[RunFolder]
    values: dict[str, list[float]]
    histories: list[list[dict[str, float]]]

    def shown(self, column: str) -> str:
        """Mean, and with several seeds their sample standard deviation."""
        found = self.values[column]
        if not found:
            return "-"
        measure = column.split(" [")[0]
        digits = 3 if measure in MEASURES else DIGITS.get(column, 0)
        text = f"{mean(found):.{digits}f}"
        spread = len(found) > 1 and (column in DIGITS or measure in MEASURES)
        return f"{text} ± {stdev(found):.{digits}f}" if spread else text


def grouped(runs: Sequence[RunFolder], labels: Sequence[str] | None = None) -> list[Group]:
    """Runs by configuration, in the order given.

    Args:
        runs: finished runs.
        labels: names of the runs, instead of the options they differ in; runs of the same name are averaged.

    Raises:
        UserError: a run without results, damaged, or named twice.
    """
    paths = [run.path.resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise UserError(f"run: {next(p for p in paths if paths.count(p) > 1)} is named twice")
    options = [{k: v for k, v in run.options().model_dump(mode="json").items() if k not in INCIDENTAL} for run in runs]
    differing = [key for key in options[0] if any(o[key] != options[0][key] for o in options)]
    kinds = {own["model"] == "gan" for own in options}
    if len(kinds) > 1:
        raise UserError("run: a gan and a classifier have no figure in common; compare each kind with its own")
    columns: dict[str, tuple[str, ...]] = {**GAN_COLUMNS} if kinds == {True} else {**COLUMNS}
    measured = [evaluations(run) if kinds == {True} else {} for run in runs]
    for name in dict.fromkeys(name for record in measured for name in record):
        columns[name] = ()
    found: dict[Any, Group] = {}
    for place, (run, own) in enumerate(zip(runs, options, strict=True)):
        if not run.results.is_file():
            raise UserError(f"run: {run.path} is not finished; go on with: qrkt-hw train --resume {run.path}")
        if labels is None:
            label = ", ".join(f"{key}={own[key]}" for key in differing) or run.path.name
            key: Any = repr(sorted(own.items()))
        else:
            key = label = labels[place]
        group = found.setdefault(key, Group(label, [], {column: [] for column in columns}, []))
        group.runs.append(run)
        results = read_json(run.results)
        for column, path in columns.items():
            value: Any = results if path else measured[place].get(column)
            for part in path:
                value = value.get(part) if isinstance(value, dict) else None
            if isinstance(value, int | float):
                group.values[column].append(float(value))
        group.histories.append(read_history(run))
    return list(found.values())


def evaluations(run: RunFolder) -> dict[str, float]:
    """The newest figures of a GAN under each protocol: ``fid [digest]`` and so on; protocols never share a column.

    Raises:
        UserError: a damaged record.
    """
    found: dict[str, float] = {}
    for path in sorted((run.path / "evaluation").glob("*.json")):
        record = read_json(path)
        try:
            protocol = f"{record['protocol_digest']}, {record['protocol']['samples']} {record['protocol']['split']}"
            found.update({f"{name} [{protocol}]": float(record["metrics"][name]) for name in MEASURES})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged: it holds no evaluation") from error
    return found


def read_history(run: RunFolder) -> list[dict[str, float]]:
    """The rows of ``metrics.csv``.

    Raises:
        UserError: missing or damaged.
    """
    if not run.metrics.is_file():
        raise UserError(f"{run.metrics} is missing")
    try:
        with run.metrics.open(encoding="utf-8", newline="") as handle:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(handle)]
    except OSError as error:
        raise UserError(f"{run.metrics} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(f"{run.metrics} is damaged: it is not a table of numbers") from error
    if not rows or not any(wanted <= set(rows[0]) for wanted in HISTORIES):
        raise UserError(f"{run.metrics} is damaged: columns are missing")
    return rows


def table(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text."""
    columns = list(groups[0].values)
    header = ["run", "seeds", *columns]
    return header, [[g.label, str(len(g.runs)), *(g.shown(column) for column in columns)] for g in groups]


def write_comparison(groups: Sequence[Group], folder: Path) -> list[Path]:
    """``table.md``, ``table.csv`` (plain numbers: mean and deviation) and the figures; returns the files.

    Raises:
        UserError: the folder cannot be written.
    """
    header, rows = table(groups)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    names = [name for column in groups[0].values for name in (column, f"{column}_std")]
    plain = [",".join(["run", "seeds", *(f'"{name}"' if "," in name else name for name in names)])]
    for group in groups:
        cells = ['"' + group.label.replace('"', '""') + '"', str(len(group.runs))]
        for found in group.values.values():
            cells += [repr(mean(found)) if found else "", repr(stdev(found)) if len(found) > 1 else ""]
        plain.append(",".join(cells))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "table.md", "\n".join(lines) + "\n")
        write_text(folder / "table.csv", "\n".join(plain) + "\n")
        figures = plot_comparison([(g.label, g.histories) for g in groups], folder)
    except OSError as error:
        raise UserError(f"--out: {folder} cannot be written: {error.strerror}") from error
    return [folder / "table.md", folder / "table.csv", *figures]

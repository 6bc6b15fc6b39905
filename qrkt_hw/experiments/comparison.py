"""Several runs side by side: a table, and their curves; seeds of the same configuration are averaged."""

import csv
import io
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
SIZES = {
    "quantum": ("parameters", "quantum"),
    "classical": ("parameters", "classical"),
    "parameters": ("parameters", "total"),
    "qubits": ("qubits",),
    "summed_qubits": ("summed_qubits",),
}
COLUMNS: dict[str, tuple[str, ...]] = {  # of a table: the place in results.json
    "accuracy": ("test", "accuracy"),
    "f1": ("test", "f1"),
    "auroc": ("test", "auroc"),
    "val_auroc": ("validation", "auroc"),
    "best_epoch": ("best_epoch",),
    "train_seconds": ("train_seconds",),
    **SIZES,
    "peak_memory_mb": ("peak_memory_mb",),
}
GAN_COLUMNS: dict[str, tuple[str, ...]] = {
    "generator": ("parameters_of", "generator", "total"),
    "discriminator": ("parameters_of", "discriminator", "total"),
    **SIZES,
    "train_seconds": ("train_seconds",),
    "peak_memory_mb": ("peak_memory_mb",),
    "cpu_seconds": ("cpu_seconds",),
}
MEASURES = ("fid", "kid", "inception_score", "precision", "recall")  # of an evaluation
HISTORIES = (
    {"epoch", "val_loss", "val_auroc", "seconds"},
    {"epoch", "generator_loss", "discriminator_loss", "seconds"},
)
DIGITS = {
    **dict.fromkeys(("accuracy", "f1", "auroc", "val_auroc"), 4),
    **dict.fromkeys(MEASURES, 3),
    **dict.fromkeys(("best_epoch", "train_seconds", "peak_memory_mb", "cpu_seconds"), 1),
}  # of what differs between seeds; the others are whole numbers


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
        found, digits = self.values[column], DIGITS.get(column.split(" [")[0])
        if not found:
            return "-"
        text = f"{mean(found):.{digits or 0}f}"
        return f"{text} ± {stdev(found):.{digits}f}" if len(found) > 1 and digits else text


def grouped(runs: Sequence[RunFolder], labels: Sequence[str] | None = None) -> list[Group]:
    """Runs by configuration, in the order given.

    Args:
        runs: finished runs.
        labels: names of the runs, instead of the options they differ in; runs of the same name are averaged.

    Raises UserError: a run without results, damaged, or named twice.
    """
    paths = [run.path.resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise UserError(f"run: {next(p for p in paths if paths.count(p) > 1)} is named twice")
    options = [{k: v for k, v in run.options().flat(mode="json").items() if k not in INCIDENTAL} for run in runs]
    keys = dict.fromkeys(key for own in options for key in own)  # a text and images have some of their own
    differing = [key for key in keys if any(own.get(key) != options[0].get(key) for own in options)]
    gan = options[0]["model"] == "gan"
    if any((own["model"] == "gan") != gan for own in options):
        raise UserError("run: a gan and a classifier have no figure in common; compare each kind with its own")
    measured = [evaluations(run) if gan else {} for run in runs]
    columns = {**(GAN_COLUMNS if gan else COLUMNS), **{name: () for record in measured for name in record}}
    found: dict[str, Group] = {}
    for place, (run, own) in enumerate(zip(runs, options, strict=True)):
        if not run.results.is_file():
            raise UserError(f"run: {run.path} is not finished; resume with: qrkt-hw train --resume {run.path}")
        name = ", ".join(f"{key}={own[key]}" for key in differing if key in own) or run.path.name
        label = labels[place] if labels else name
        key = label if labels else repr(sorted(own.items()))
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

    Raises UserError: a damaged record."""
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
    """The rows of ``metrics.csv``. Raises UserError: missing or damaged."""
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
    rows = [[group.label, str(len(group.runs)), *map(group.shown, columns)] for group in groups]
    return ["run", "seeds", *columns], rows


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text."""
    lines = ["| " + " | ".join(line) + " |" for line in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]]) + "\n"


def comma_separated(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """The same for programs."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def write_comparison(groups: Sequence[Group], folder: Path) -> list[Path]:
    """``table.md``, ``table.csv`` (plain numbers: mean and deviation) and the figures; returns the files.

    Raises UserError: the folder cannot be written."""
    names = [name for column in groups[0].values for name in (column, f"{column}_std")]
    plain: list[list[Any]] = [
        [group.label, len(group.runs)]
        + [f(found) if len(found) > k else "" for found in group.values.values() for k, f in enumerate((mean, stdev))]
        for group in groups
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "table.md", markdown(*table(groups)))
        write_text(folder / "table.csv", comma_separated(["run", "seeds", *names], plain))
        figures = plot_comparison([(g.label, g.histories) for g in groups], folder)
    except OSError as error:
        raise UserError(f"--out: {folder} cannot be written: {error.strerror}") from error
    return [folder / "table.md", folder / "table.csv", *figures]

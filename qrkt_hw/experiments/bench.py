"""A suite of classification tasks for circuits: each circuit beside others and beside classical layers, over seeds."""

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from rich.console import Console

from qrkt_hw import circuits
from qrkt_hw.ansatz import FILES, read_circuit
from qrkt_hw.data import Data, load_data
from qrkt_hw.data.base import SPLIT_SEED
from qrkt_hw.data.text import own as own_texts
from qrkt_hw.errors import UserError
from qrkt_hw.experiments import presets
from qrkt_hw.experiments.baselines import at_rate, best_rate, parameter_matched, rates, structures, trained
from qrkt_hw.experiments.comparison import grouped, markdown
from qrkt_hw.experiments.presets import BITS, TASKS
from qrkt_hw.models.ablation import BLOCKS, ELEMENTWISE, SAME, Structure
from qrkt_hw.models.factory import build_model
from qrkt_hw.plots.charts import plot_benchmark
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import write_json, write_text
from qrkt_hw.runs.circuits import fingerprint
from qrkt_hw.runs.config import KEYS, Config, flattened
from qrkt_hw.runs.folder import read_json
from qrkt_hw.runs.sections import OWN

Sample = tuple[str, int]
Parts = tuple[list[Sample], list[Sample], list[Sample]]  # training, validation, test
VALIDATION, TRAINING, TEST = 500, 2_500, 1_000  # of the generated tasks
LINEAR, MATCHED = "linear", "linear, matched"


def parity(order: int) -> Parts:
    """Strings of 12 bits, each in one part only, labelled by the parity of ``order`` hidden bits, the same ones always.

    A word is a position and its bit, such as ``c1``. Without the labels' other bits nothing tells the class: any set of
    fewer than ``order`` bits is independent of it.
    """
    random = np.random.RandomState(SPLIT_SEED + order)
    hidden = random.permutation(BITS)[:order]
    rows = (random.permutation(2**BITS)[:, None] >> np.arange(BITS)) & 1
    labels = rows[:, hidden].sum(axis=1) % 2
    texts = [" ".join(f"{chr(97 + k)}{bit}" for k, bit in enumerate(row)) for row in rows]
    return _parts(list(zip(texts, labels.tolist(), strict=True)))


def first_of_two() -> Parts:
    """Sequences of 12 words with one ``x`` and one ``y``: the label says whether ``y`` comes first. Each sequence is in
    one part only. The words alone, without their order, say nothing about the label."""
    random, found = np.random.RandomState(SPLIT_SEED), dict[str, int]()
    while len(found) < TRAINING + VALIDATION + TEST:
        words = random.choice(list("abcdefgh"), BITS)
        x, y = random.permutation(BITS)[:2]
        words[x], words[y] = "x", "y"
        found[" ".join(words)] = int(y < x)
    return _parts(list(found.items()))


def _parts(samples: list[Sample]) -> Parts:
    first, second = TRAINING, TRAINING + VALIDATION
    return samples[:first], samples[first:second], samples[second : second + TEST]


# of the tasks without files
GENERATED: dict[str, Callable[[], Parts]] = {
    "order": first_of_two,
    **{f"parity-{order}": partial(parity, order) for order in range(2, 7)},
}
# our models: flat keys over those of every model with circuits, for so many features in a circuit; a further model is a
# line and may set any keys, such as its own projection
OURS: dict[str, Callable[[int], dict[str, Any]]] = {
    "orthogonal_brick": lambda features: {"ansatz": "orthogonal_brick", "layers": features},
    "brickwork": lambda features: {"ansatz": "brickwork", "layers": 2},
    "qrkt": lambda features: {"ansatz": "qrkt", "layers": 2},
}


@dataclass
class Suite:
    """What to run.

    Attributes:
        tasks: names.
        ansaetze: a user's circuits, as ``--ansatz`` takes them.
        out: folder: a run folder for each cell at ``TASK/MODEL/lr-RATE/seed-SEED``, tables and the picture.
        seeds: how many; 0, 1, 2 and so on.
        trials: learning rates for each model, the best by validation with seed 0.
        quick: few epochs of small models.
        qubits, layers: features of a circuit, and layers of a user's.
        projection: where circuits stand.
        data_dir, download: as of ``train``.

    Raises UserError: a circuit that cannot be built, two models of one name, or an option that would have no effect.
    """

    tasks: Sequence[str]
    ansaetze: Sequence[str]
    out: Path
    seeds: int = 3
    trials: int = 1
    quick: bool = False
    qubits: int | None = None
    layers: int | None = None
    projection: str = "quantum-attention"
    data_dir: Path | None = None
    download: bool = False
    skipped: dict[str, str] = field(default_factory=dict)  # task -> why
    failed: dict[str, str] = field(default_factory=dict)  # cell -> why
    structures: dict[str, list[Structure]] = field(default_factory=dict)  # by model with circuits

    def __post_init__(self) -> None:
        if self.layers is not None and all(Path(name).suffix in FILES for name in self.ansaetze):
            raise UserError("--layers: it is for circuits that --ansatz builds in any size, and none is given")
        files = [
            name for name in self.tasks if name not in GENERATED and TASKS[name].options.get("dataset") != "digits"
        ]
        given = [flag for flag, value in {"--data-dir": self.data_dir, "--download": self.download}.items() if value]
        if given and not files:
            raise UserError(f"{given[0]}: none of these tasks reads files ({', '.join(self.tasks)}); leave it out")
        sized = (read_circuit(Path(name)).num_qubits for name in self.ansaetze if Path(name).suffix in FILES)
        self.features = self.qubits or next(sized, 4)
        self.circuits: dict[str, dict[str, Any]] = {}
        for name in self.ansaetze:
            label = label_of(name)
            if label in {LINEAR, MATCHED, ELEMENTWISE, BLOCKS, *self.circuits, *(OURS.keys() - {name})}:
                raise UserError(f"--ansatz: two models are called {label}; give yours another name")
            keys = OURS.get(name, lambda _: {})(self.features)
            layers = 1 if Path(name).suffix in FILES else self.layers or keys.get("layers", 2)
            self.circuits[label] = {"ansatz": name, **keys, "layers": layers}
        for circuit in self.circuits.values():  # refused before data are read
            circuits.build(circuit["ansatz"], self.features, circuit["layers"])
        for name, keys_of in OURS.items():
            self.circuits.setdefault(name, keys_of(self.features))

    def data(self, task: str) -> Data:
        """Raises UserError: files that are missing."""
        options = self.base(task)
        if task not in GENERATED:
            return load_data(options.data)
        train, validation, test = GENERATED[task]()
        return own_texts(options.data, (), train, validation, test, ("even", "odd") if "parity" in task else ("x", "y"))

    def base(self, name: str) -> Config:
        """Options of the classical model of a task; its width is near the recipe's, and fits heads and circuits."""
        task = TASKS[name]
        options = dict(task.options)
        if "preset" in options:
            shipped = flattened(presets.load(options.pop("preset")))
            of_circuits = ("circuit", "backend")
            options = {k: v for k, v in shipped.items() if KEYS[k].section not in of_circuits} | options
        options |= (task.quick or {}) if self.quick else {}
        steps = {"hidden": math.lcm(self.features, options["heads"])}
        if self.projection != "quantum-attention":
            steps["mlp"] = self.features
        options |= {key: max(1, round(options[key] / step)) * step for key, step in steps.items()}
        named: dict[str, Any] = {"dataset": OWN} if name in GENERATED else {}
        if name not in GENERATED and options["dataset"] != "digits":
            named = {"data_dir": self.data_dir, "download": self.download and ":" not in options["dataset"]}
        return Config(**{**options, **named, "projection": "classical", "threads": 1})

    def models(self, name: str, data: Data) -> dict[str, Config]:
        """The models of a task by label. Raises UserError: a circuit that does not fit."""
        base, found = self.base(name), dict[str, Config]()
        scaled = {"projection": self.projection, "qubits": self.features, "input_scale": True, "output_bias": True}
        for label, circuit in self.circuits.items():
            found[label] = base.replace(**{**scaled, **circuit})
            self.structures[label] = structures(found[label], data.shape)
        own = next(iter(found.values()))  # the user's first, or ours
        found |= {LINEAR: base, MATCHED: parameter_matched(own, data.shape)}
        for structured, label in self.structured().items():
            found[structured] = found[label].replace(structured=True)
        for label, options in found.items():
            with torch.random.fork_rng(devices=[]):
                build_model(options, data.shape)  # refused before anything is trained
            self._check_kept(options, self._place(name, label))
        return found

    def structured(self) -> dict[str, str]:
        """The distinct structured baselines, and a circuit that each has the structure of."""
        first: dict[str, str] = {}  # circuits of the same baseline differ in their number of angles at most
        for label, found in self.structures.items():
            if any(one.kind != SAME for one in found):
                first.setdefault(repr([replace(one, weights=0) for one in found]), label)
        names = {label: " + ".join(one.kind for one in self.structures[label]) for label in first.values()}
        shared = [name for name in names.values() if list(names.values()).count(name) > 1]
        return {f"{name}, {label}" if name in shared else name: label for label, name in names.items()}

    def _place(self, task: str, label: str) -> Path:
        """The folder of a model; a baseline's names the circuit that it belongs to."""
        of = {MATCHED: next(iter(self.circuits)), **self.structured()}.get(label, "")
        name = f"{label} {of}".strip()
        return self.out / task / re.sub(r"\W+", "-", name)

    def _check_kept(self, options: Config, place: Path) -> None:
        """Raises UserError: an earlier call ran another circuit under the name."""
        if not options.has_circuits:
            return
        ansatz = options.circuit.ansatz
        for config in place.glob("lr-*/seed-*/config.yaml"):
            theirs = RunFolder.open(config.parent).options()
            kept = theirs.circuits.kept or {}
            own = [(size, one.template) for (name, *size), one in kept.items() if name == ansatz]
            if any(fingerprint(one) != fingerprint(circuits.build(ansatz, *size)) for size, one in own):
                raise UserError(f"--ansatz: {ansatz} has changed since {config.parent} was made; name another --out")

    def run(self, console: Console) -> dict[str, Any]:
        """Train what is missing; returns the record that is written to ``bench.json`` after each task.

        Raises UserError: a circuit that does not fit, or a folder of other options.
        """
        rows: list[dict[str, Any]] = []
        done: list[str] = []
        for name in self.tasks:
            try:
                data = self.data(name)
            except UserError as error:
                self.skipped[name] = (str(error).partition(": ")[2] or str(error)) + TASKS[name].source
                console.print(f"{name} is skipped: {self.skipped[name]}", highlight=False, markup=False)
                continue
            for label, options in self.models(name, data).items():
                runs = list(self._cells(name, label, options, data, console))
                if runs:
                    rows.append(self._row(name, label, options, runs))
            done.append(name)
            self.write(self.record(done, rows))
        return self.record(done, rows)

    def _cells(self, task: str, label: str, options: Config, data: Data, console: Console) -> Iterator[RunFolder]:
        """The runs of a model, one for each seed, with its best learning rate."""
        place, quiet = self._place(task, label), Console(quiet=True)

        def cell(rate: float, seed: int) -> RunFolder | None:
            path, started = place / f"lr-{rate}" / f"seed-{seed}", time.perf_counter()
            known = (path / "results.json").is_file()
            try:
                run = trained(at_rate(options, rate).replace(seed=seed), path, data, quiet, figures=False)
            except UserError as error:
                if str(error).startswith("--out"):
                    raise
                self.failed[f"{task}, {label}, learning rate {rate}, seed {seed}"] = str(error)
                console.print(f"{task}  {label}  seed {seed}: {error}", highlight=False, markup=False)
                return None
            if not known:
                accuracy = read_json(run.results)["validation"]["accuracy"]
                seconds = time.perf_counter() - started
                said = f"validation accuracy {accuracy:.3f}, {seconds:.0f} s"
                console.print(f"{task}  {label}  lr {rate}  seed {seed}: {said}", highlight=False, markup=False)
            return run

        tried = {rate: cell(rate, 0) for rate in rates(options.training.learning_rate, self.trials)}
        scored = {rate: read_json(run.results)["validation"] for rate, run in tried.items() if run is not None}
        if not scored:
            return
        best = best_rate(scored)
        found = tried[best], *(cell(best, seed) for seed in range(1, self.seeds))
        yield from (run for run in found if run is not None)

    def _row(self, task: str, label: str, options: Config, runs: list[RunFolder]) -> dict[str, Any]:
        (group,) = grouped(runs, [label] * len(runs))
        values = group.values
        accuracy, seconds = values["accuracy"], [read_json(run.results)["cpu_seconds"] for run in runs]
        error = stdev(accuracy) / math.sqrt(len(accuracy)) if len(accuracy) > 1 else None
        return {
            "task": task,
            "model": label,
            "accuracy": mean(accuracy),
            "standard_error": error,
            "accuracies": accuracy,
            "parameters": int(values["parameters"][0]),
            "angles": int(values["quantum"][0]),
            "cpu_seconds": mean(seconds),
            "learning_rate": runs[0].options().training.learning_rate,
            "hidden": options.model.hidden,
            "runs": [str(run.path) for run in runs],
        }

    def record(self, tasks: Sequence[str], rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What ``bench.json`` holds; rows also get their difference to the parameter-matched model."""
        matched = {row["task"]: row for row in rows if row["model"] == MATCHED}
        for row in rows:
            other = matched.get(row["task"], row)
            row["against_matched"] = None if other is row else row["accuracy"] - other["accuracy"]
            errors = row["standard_error"], other["standard_error"]
            row["error_against_matched"] = None if other is row or None in errors else math.hypot(*errors)
        return {
            "interval": "mean and standard error over the seeds, on the whole test split; seeds change weights and "
            "batches, never the data",
            "quick": self.quick,
            "seeds": self.seeds,
            "learning_rates": self.trials,
            "projection": self.projection,
            "qubits": self.features,
            "circuits": self.circuits,
            "tasks": {name: {"about": TASKS[name].about, "chance": TASKS[name].chance} for name in tasks},
            "rows": rows,
            "structured": {
                label: "; ".join(one.difference for one in found) for label, found in self.structures.items()
            },
            "skipped": self.skipped,
            "failed": self.failed,
        }

    def write(self, record: dict[str, Any]) -> list[Path]:
        """``bench.json``, ``bench.md`` and ``bench.png``. Raises UserError: the folder cannot be written."""
        header, rows = table(record)
        text = "\n".join(f"- {line}" for line in notes(record))
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(self.out / "bench.json", record)
            write_text(self.out / "bench.md", f"{markdown(header, rows)}\n{text}\n")
            files = [self.out / "bench.md", self.out / "bench.json"]
            return [*files, plot_benchmark(record["tasks"], record["rows"], self.out / "bench.png")] if rows else files
        except OSError as error:
            raise UserError(f"--out: {self.out} cannot be written: {error.strerror}") from error


def label_of(ansatz: str) -> str:
    """The name of a circuit in tables: its own, a function's, or a file's."""
    path, colon, function = ansatz.rpartition(":")
    return function if colon and path else Path(ansatz).stem if Path(ansatz).suffix in FILES else ansatz


def table(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text; accuracies in per cent."""

    def shown(value: float | None, error: float | None, sign: str = "") -> str:
        known = "-" if value is None else f"{100 * value:{sign}.1f}"
        return known if error is None else f"{known} ± {100 * error:.1f}"

    header = ["task", "model", "test (%)", "vs matched", "params", "angles", "CPU (s)"]
    rows = [
        [
            row["task"], row["model"], shown(row["accuracy"], row["standard_error"]),
            shown(row["against_matched"], row["error_against_matched"], "+"), str(row["parameters"]),
            str(row["angles"]), f"{row['cpu_seconds']:.1f}",
        ]
        for row in record["rows"]
    ]  # fmt: skip
    return header, rows


def notes(record: dict[str, Any]) -> list[str]:
    """What the table does not say, in sentences."""
    first = next(iter(record["circuits"]))
    lines = [
        f"test (%): accuracy, {record['interval']} ({record['seeds']} here).",
        f"vs matched: accuracy less that of {MATCHED}, with the standard error of the difference.",
        f"Circuits: --projection {record['projection']}, {record['qubits']} features each. {LINEAR}: the same with "
        f"linear layers in attention and no circuit; {MATCHED}: with about as many parameters as the model of {first}.",
        "All models of a task have the same recipe. Learning rates tried for each, by validation with seed 0: "
        f"{record['learning_rates']}. CPU (s): time of a training on one thread.",
    ]
    if record["quick"]:
        whole = [name for name in record["tasks"] if TASKS[name].quick is None]
        lines += [f"{name} has no quick form: its models had the whole recipe." for name in whole]
    if record["seeds"] < 5:
        lines.append("Standard errors of fewer than five seeds are rough: claim a difference on more.")
    found = record["structured"]
    for difference in dict.fromkeys(found.values()):
        lines.append(f"{', '.join(label for label in found if found[label] == difference)}: {difference}.")
    lines += [f"{name} is skipped: {why}" for name, why in record["skipped"].items()]
    return lines + [f"not trained: {cell}: {why}" for cell, why in record["failed"].items()]

"""A run as its page shows it, and the parts of the page on circuits, chips, prices and devices."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from rich.console import Console

from qrkt_hw.backends.budget import PLAN, prices
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.data import DataShape
from qrkt_hw.errors import UserError, sentence
from qrkt_hw.experiments.comparison import read_history
from qrkt_hw.plots import charts
from qrkt_hw.plots.page import as_html, between, chart, drawn, folded, paragraphs, percent, prose, rows_of, seconds_of
from qrkt_hw.resources.devices import draw
from qrkt_hw.resources.logical import as_written
from qrkt_hw.resources.schema import Report
from qrkt_hw.resources.subject import Subject, of_options
from qrkt_hw.resources.tables import sections
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import Config
from qrkt_hw.runs.folder import read_json

MOST_GATES = 240  # of a drawn circuit
SAMPLES, SHOTS = 100, 1024  # that are priced where nothing was run
EXAMPLE = "fake_torino"  # the device of a run that knows none
REPLACED = {"batch-mean": "their mean over the batch", "sine": "the sine of their input"}


class Missing(str):
    """Why a part is empty, and what fills it."""


def unfinished(run: About, file: Path, what: str) -> Missing:
    """Why ``what`` is not there, which a training writes into ``file``."""
    if run.results is not None:
        return Missing(f"There are no {what}: `{file.name}` of this finished run is missing.")
    return Missing(f"There are no {what} yet: `qrkt-hw train --resume {run.word}` resumes the training.")


def nameless(text: str) -> str:
    """The text with the last names of absolute paths only: a page is passed on."""
    return re.sub(r"(?<![\w./])/(?!/)(?:[^\s/,;:]+/)+", "", text)


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn what a file holds in place of ``what`` into a sentence on it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is damaged: it is not {what}") from error


class Scores(BaseModel):
    """Of a split; None where undefined."""

    accuracy: float | None = None
    f1: float | None = None
    auroc: float | None = None


class Results(BaseModel):
    """What the page takes of ``results.json``."""

    test: Scores | None = None
    best_epoch: int | None = None
    train_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_memory_mb: float | None = None
    weights_sha256: str | None = None
    data_sha256: str | None = None
    schedule_changed_after: list[int] = []


@dataclass
class About:
    """A run, and how its part of the page is made."""

    folder: RunFolder
    console: Console
    data_dir: Path | None = None
    backends: Sequence[str] = ()
    limit: int | None = None
    level: int = 2  # of the headings of its parts
    key: str = ""  # in front of the parts' anchors
    like: str = ""  # another run of the page that has the same circuits

    @cached_property
    def options(self) -> Config:
        return self.folder.options()

    @cached_property
    def name(self) -> str:
        """Its folder; of an absolute path the last two names, as a page is passed on."""
        path = self.folder.path
        return "/".join(path.parts[-2:]) if path.is_absolute() else str(path)

    @property
    def word(self) -> str:
        """The name as a shell takes it."""
        return shlex.quote(self.name)

    @cached_property
    def results(self) -> Results | None:
        """``results.json``; None of a training that is not finished."""
        if not self.folder.results.is_file():
            return None
        try:
            return Results.model_validate(read_json(self.folder.results))
        except ValidationError as error:
            raise UserError(f"{self.folder.results} is damaged: {sentence(error)}") from error

    @property
    def accuracy(self) -> float | None:
        """On the test split, as recorded."""
        return self.results.test.accuracy if self.results is not None and self.results.test else None

    @cached_property
    def origin(self) -> dict[str, Any]:
        return read_json(self.folder.origin) if self.folder.origin.is_file() else {}

    @cached_property
    def history(self) -> list[dict[str, float]]:
        return read_history(self.folder) if self.folder.epochs_done() else []

    @cached_property
    def records(self) -> list[tuple[Path, dict[str, Any]]]:
        """Inferences that the run keeps, the oldest first."""
        files = sorted(self.folder.inference.glob("*.json"))
        found = [(file, read_json(file)) for file in files if not file.name.startswith("fine-tuned")]
        several = self.folder.path / "devices.json"
        if several.is_file():
            with reading(several, "a list of inferences"):
                found += [(several, dict(one)) for one in json.loads(several.read_text(encoding="utf-8"))]
        return found

    @cached_property
    def plans(self) -> list[tuple[Path, dict[str, Any]]]:
        """Plans of inferences that the run keeps."""
        return [(file, read_json(file)) for file in sorted(self.folder.path.glob("plan-*.json"))]

    @cached_property
    def subject(self) -> Subject:
        return of_options(f"run {self.name}", self.options, DataShape.of(self.folder.description()))

    @cached_property
    def on_devices(self) -> list[tuple[Path, dict[str, Any]]]:
        """Inferences elsewhere than on the exact simulator."""
        return [
            one for one in self.records if one[1].get("backend_details") or one[1].get("backend", "exact") != "exact"
        ]

    @cached_property
    def priced(self) -> tuple[int, int]:
        """Samples and shots of the newest inference on a device, as which an inference is priced."""
        for _, record in reversed(self.on_devices):
            count, shots = record.get("count"), (record.get("backend_details") or {}).get("shots")
            if isinstance(count, int) and isinstance(shots, int) and count > 0 and shots > 0:
                return count, shots
        return SAMPLES, SHOTS

    @cached_property
    def report(self) -> Report | Missing:
        """The report of ``qrkt-hw resources`` on the devices that were named, or that the run knows."""
        samples, shots = self.priced
        try:
            devices = self.backends or self._known()
            return self.subject.report(devices, (3,), shots=shots, images=samples, training_steps=0)
        except UserError as error:
            if self.backends:
                raise
            return Missing(f"{self.told(error)}. `qrkt-hw report {self.word} --backend DEVICE` fills this part.")

    def _known(self) -> list[str]:
        """The fake backends of at most two devices that the run ran on or knows."""
        from qrkt_hw.backends.device.transpile import fake_names

        there = [(record, record.get("backend_details") or {}) for _, record in self.on_devices]
        known = [str(details.get("device") or record.get("backend")) for record, details in there]
        known += [str(plan.get("backend")) for _, plan in self.plans]
        known += [self.options.training.noise_device or "", self.options.backend.name]
        each = (name for several in known for name in re.split(", ?", several))
        fakes = dict.fromkeys(name.replace("ibm_", "fake_") for name in each)  # a page asks no service
        return [name for name in fakes if name in fake_names()][:2] or [EXAMPLE]

    def told(self, error: UserError) -> str:
        """An error without the folders in it."""
        text = str(error)
        for value in (self.options.data.dataset, self.options.data.data_dir, self.data_dir):
            if found := re.fullmatch(r"(?:\w+:)?(/.*)", str(value)):
                text = text.replace(found[1], spelled(found[1]))
        return nameless(text)

    def h(self, text: str) -> str:
        """A heading within a part."""
        level = min(6, self.level + 1)
        return f"<h{level}>{prose(text)}</h{level}>\n"


def spelled(value: Any) -> str:
    """The value of an option; of an absolute path, which may have spaces, the last name."""
    if value is None or isinstance(value, bool):
        return "-" if value is None else str(value).lower()
    return re.sub(r"^(\w+:)?/(?:[^/]*/)*", r"\1", str(value))


def plain(value: float | None) -> str:
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.4f}"


def ablations(run: About) -> str | None:
    """What the model owes to its circuits."""
    if run.options.model.kind == "gan" or not run.options.has_circuits:
        return None
    alone, found = run.folder.path / "ablations.json", dict[str, dict[str, tuple[str, ...]]]()
    test = run.results.test if run.results is not None else None
    kept = [(file, record, record["ablations"]) for file, record in run.records if "ablations" in record]
    if alone.is_file():
        whole = {"split": "test", "backend": "exact", **(test.model_dump() if test is not None else {})}
        kept.insert(0, (alone, whole, read_json(alone)))
    for file, record, replaced in kept:
        with reading(file, "a record of ablations"):
            count = f"{record['count']:,} samples of " if "count" in record else ""
            rows = found.setdefault(f"{count}{record['split']} on {record['backend']}", {})
            for name, one in {"nothing": record, **replaced}.items():
                if "accuracy" in one:
                    figures = percent(one["accuracy"]), plain(one["f1"]), plain(one["auroc"])
                    rows[name] = (REPLACED.get(name, name), *figures)
    if not found:
        how = f"`qrkt-hw infer {run.word} --ablate batch-mean --ablate sine`"
        return Missing(f"Not measured: {how} replaces the circuits' outputs.")
    every = [row for where, rows in found.items() for row in ((where,), *rows.values())]
    return rows_of("Circuits' outputs replaced by something else", ("replaced by", "accuracy", "F1", "AUROC"), every)


def circuit(run: About) -> str:
    """The circuits, and what each output can depend on."""
    description, body = run.subject.description, ""
    parts = sections(Report(subject=run.name, shots=SHOTS, **dict(description)), "payg")
    found = zip(description.logical.circuits, description.verdicts, run.subject.templates(), strict=True)
    for one, verdict, template in found:
        name, gates = f"{one.template} on {one.qubits} qubits", sum(one.gates.values())
        body += run.h(name)
        alt = f"Circuit {name}: {one.inputs} inputs, {one.weights} weights, {gates} gates"
        if gates <= MOST_GATES:
            said = f"{alt}. Gates whose angles are data, and those whose angles are weights, have a colour each."
            body += drawn(said, chart(alt, charts.plot_circuit, as_written(template)), wide=True)
        else:
            how = f"`qrkt-hw export {run.word} --format qpy` writes it for Qiskit"
            body += paragraphs(f"{alt}: too many to be drawn here; {how}.")
        body += paragraphs(f"Light cones: {verdict.sentence}.", f"Without a quantum computer it is {verdict.hardness}.")
        rows = [(str(k), o.observable, _places(o.inputs), _places(o.weights)) for k, o in enumerate(verdict.outputs)]
        header = ("output", "observable", "inputs", "weights")
        title = "Inputs and weights that each output can depend on"
        body += folded(title, rows_of(title, header, rows, text=True))
    return body + "".join(as_html(section) for section in (*parts["circuits"], *parts["parameters"]))


def _places(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def chip(run: About) -> str:
    """The layout of the circuit and its replicas on each device."""
    report, body = run.report, ""
    if isinstance(report, Missing):
        return report
    for device, section in zip(report.devices, sections(report, "payg")["devices"], strict=True):
        body += run.h(device.name)
        if device.circuits:
            placed = max(device.circuits, key=lambda one: (one.level, len(one.physical)))
            where = f"the circuit on qubits {_places(placed.physical)}"
            alt = f"On {device.name} {where}, and its {placed.good_copies} packed replicas"
            body += drawn(alt, chart(alt, draw, [report.model_copy(update={"devices": [device]})]), wide=True)
        body += as_html(section)
    return body


def price(run: About) -> str:
    """What an inference costs by each way of submitting it, and the plans that the run keeps."""
    report, body = run.report, ""
    if isinstance(report, Missing):
        return report
    plans, rows, kept = prices().plans, list[tuple[str, ...]](), list[tuple[str, ...]]()
    charged = [name for name, plan in plans.items() if plan.usd_per_second]
    for device in dict.fromkeys(cost.device for cost in report.costs):
        rows.append((f"{device}: {run.priced[0]:,} samples, {report.shots:,} shots a circuit",))
        for cost in (cost for cost in report.costs if cost.device == device):
            counts = (f"{count:,}" for count in (cost.rounds, cost.jobs, cost.circuits, cost.executions))
            priced = (f"{cost.usd[name]:,.2f}" for name in charged)
            rows.append((cost.way, *counts, seconds_of(cost.seconds), *priced))
    header = ("submitted as", "circuit batches", "jobs", "circuits", "executions", "QPU time")
    if rows:
        body = rows_of("An inference of all samples together", (*header, *(f"USD, {name}" for name in charged)), rows)
    for file, one in run.plans:
        with reading(file, "a plan of qrkt-hw infer --dry-run"):
            counts = (f"{one[key]:,}" for key in ("rounds", "jobs", "circuits", "executions"))
            where = f"{one['backend']}, {one['samples']:,} samples"
            kept.append((where, *counts, seconds_of(one["seconds"]), f"{one['usd']:,.2f}"))
    if kept:
        title = "Plans that the run keeps: in batches of samples, with calibrations of readout"
        body += rows_of(title, ("device", *header[1:], "USD, payg"), kept)
    notes = [note for section in sections(report, "payg")["costs"] for note in section.notes]
    free = [f"The {name} plan has {plan.free_seconds:,.0f} free seconds in {plan.period_days} days."
            for name, plan in plans.items() if plan.free_seconds and rows]  # fmt: skip
    return body + paragraphs(*(notes or ["Circuits are simulated there: nothing is paid."]), *free)


def on_devices(run: About) -> str | None:
    """Inferences on devices beside the exact simulator, what they used, and the jobs and bills of the journal."""
    if not run.options.has_circuits:
        return None
    jobs, more = journalled(run), ""
    if not run.on_devices and not jobs:
        how = f"`qrkt-hw infer {run.word} --backend {EXAMPLE} --limit 100`"
        return Missing(f"Nothing ran on a device or a fake one: {how} does.")
    rows, bill = list[tuple[str, ...]](), list[tuple[str, ...]]()
    for file, one in run.on_devices:
        with reading(file, "what qrkt-hw infer writes"):
            if "mitigations" in one:
                more += mitigations(one)
                continue
            there = one.get("backend_details") or {}  # inputs without labels had none in earlier versions
            where = f"{one['backend']}, {one['count']:,} samples" + (f" of {one['split']}" if "split" in one else "")
            where += f", {one['repeated']:,} of them twice" if "repeated" in one else ""
            compared = ["-"] * 4
            if "exact_accuracy" in one:
                compared = [between(one["accuracy"], one["interval"])]
                compared += [between(one["exact_accuracy"], one["exact_interval"])]
                compared += [percent(one["agreement"])]
                compared += [f"{one['p_value']:.2g}" if "p_value" in one else "-"]  # not in the first versions
            shots = f"{there['shots']:,}" if there.get("shots") else "exact values" if there else "-"
            if "stage_shots" in one:
                shots = ", ".join(f"{count:,}" for count in one["stage_shots"]) + " in the stages"
            rows.append((where, shots, str(there.get("mitigation", "none" if there else "-")), *compared))
            counts = (f"{one[key]:,}" if key in one else "-" for key in ("circuits", "executions"))
            estimated, billed = (
                seconds_of(there[f"{key}_seconds"]) if f"{key}_seconds" in there else nothing
                for key, nothing in (("estimated", "-"), ("billed", "nothing" if there else "-"))
            )
            wall = seconds_of(one.get("wall_seconds", one["seconds"]))
            bill.append((where, *counts, wall, estimated, billed, str(there.get("calibrated") or "-")[:10]))
            if "layers" in one and "exact_accuracy" in one:
                alt = f"Mean error of the values of every layer on {one['backend']}, and accuracy there and exact"
                more += drawn(alt, chart(alt, charts.plot_device, one), wide=True)
    header = ("where", "shots", "mitigation", "accuracy (95 %)", "exact, same samples", "same class", "p")
    body = rows_of("Accuracy there and on the exact simulator", header, rows) if rows else ""
    header = ("where", "circuits", "executions", "wall time", "QPU time, estimated", "billed", "calibrated")
    body += rows_of("What it took", header, bill) if bill else ""
    said = "95 %: Wilson's interval. p: of equal accuracies, exact McNemar test. A fake backend bills nothing."
    return body + (paragraphs(said) if rows else "") + more + jobs


def mitigations(record: dict[str, Any]) -> str:
    """The table of ``qrkt-hw infer --compare-mitigation``."""
    rows = list[tuple[str, ...]]()
    for one in record["mitigations"]:
        if "not_run" in one:
            rows.append((one["mitigation"], f"not run: {one['not_run']}", "-", "-", "-"))
        else:
            figures = f"{one['rms_error']:.4f}", between(one["accuracy"], one["interval"]), f"{one['p_value']:.2g}"
            rows.append((one["mitigation"], *figures, seconds_of(one["seconds"])))
    title = f"Ways of mitigation on {record['backend']}, {record['count']:,} samples"
    return rows_of(title, ("mitigation", "rms error of values", "accuracy (95 %)", "p", "QPU time"), rows)


def journalled(run: About) -> str:
    """Jobs that were sent, and their bill; empty where none was."""
    if not run.folder.journal.is_file():
        return ""
    with Journal(run.folder.journal, write=False) as journal:
        jobs = journal.submissions()
    if not jobs:
        return ""
    billed = sum(job.billed or 0.0 for job in jobs)
    listed = prices()
    said = f"{len(jobs):,} jobs, {billed:,.1f} s billed"
    if PLAN in listed.plans:
        usd = billed * listed.plans[PLAN].usd_per_second
        said += f": {usd:,.2f} USD at pay-as-you-go prices of {listed.date}"
    rows = [
        (f"#{job.id} {job.device}", job.state, f"{job.executions:,}", seconds_of(job.estimated),
         "-" if job.billed is None else seconds_of(job.billed)) for job in jobs
    ]  # fmt: skip
    header = ("job", "state", "executions", "estimated", "billed")
    return paragraphs(f"{said}.") + folded("Every job", rows_of("Jobs", header, rows))

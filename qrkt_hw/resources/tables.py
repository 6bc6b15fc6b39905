"""The report as text: tables of 80 columns for a terminal, or Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from qrkt_hw.errors import in_words
from qrkt_hw.resources.schema import Circuit, Device, Logical, Report

if TYPE_CHECKING:  # a report that is kept needs no torch
    from torch import nn

    from qrkt_hw.data.base import DataShape

WIDTH = 80
WORDS = ("layers", "circuit", "gates", "model or circuit", "device", "submitted as")  # columns aligned to the left
NARROWEST = 10  # to which the first column is wrapped


class Section(NamedTuple):
    """A part of the report; "\\n" breaks a line of a cell in the terminal, and a row of one cell is a heading."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def text(report: Report, plan: str, style: str = "table") -> str:
    """The whole report, with the prices of a plan; ``style`` is ``table`` or ``markdown``."""
    title = f"# {report.subject}" if style == "markdown" else report.subject
    found = [section for part in sections(report, plan).values() for section in part]
    return "\n\n".join([title, *(_render(section, style) for section in found)])


def sections(report: Report, plan: str) -> dict[str, list[Section]]:
    """The report in parts: ``circuits``, ``devices``, ``costs``, ``simulability``, ``parameters``."""
    return {
        "circuits": [_circuits(report.logical), *_layers(report.logical)],
        "devices": [_device(device, report.logical) for device in report.devices],
        "costs": _costs(report, plan),
        "simulability": [_simulability(report)],
        "parameters": [_parameters(report)],
    }


def comparison(reports: Sequence[Report], plan: str, style: str) -> str:
    """A row per subject, device and optimisation level, the cheapest inference by packed circuits first.

    Where no device was named, the order is by circuits per image.
    """
    rows: list[tuple[float, int, list[str]]] = []
    for report in reports:
        logical, calls = report.logical, report.logical.calls_per_image
        alone = f"{sum(v.elementwise for v in report.verdicts)}/{sum(len(v.outputs) for v in report.verdicts)}"
        base = [report.subject, f"{report.parameters.total:,}", str(logical.qubits), f"{calls:,}", alone]
        if not report.costs:
            where = report.devices[0].name if report.devices else "-"
            rows.append((0.0, calls, [*base, where, "-", "-", "-", "0"]))
        for cost in (c for c in report.costs if c.way == "packed" and c.task.startswith("infer")):
            placed = [p for d in report.devices if d.name == cost.device for p in d.circuits if p.level == cost.level]
            device = [
                f"{cost.device.removeprefix('fake_')} O{cost.level}",
                str(sum(p.two_qubit_gates for p in placed)),
                f"{min(p.success for p in placed):.3f}",
            ]
            rows.append((cost.seconds, calls, [*base, *device, _time(cost.seconds), _count(cost.usd[plan])]))
    header = ["model or circuit", "para-\nmeters", "qu-\nbits", "calls", "1-\ninput", "device", "2q\ngates", "ESP"]
    if style == "markdown":
        header[1:5] = ["parameters", "qubits", "calls", "1-input"]
    notes = [
        "calls: circuits an image; 1-input: outputs that depend on at most one input; "
        "2q gates: of one circuit of each kind; ESP: estimated success probability of the worst circuit.",
    ]
    if (priced := next((r for r in reports if r.costs), None)) is not None:
        task = f"{priced.costs[0].task} images, {priced.shots:,} shots, packed circuits"
        notes.append(f"QPU time and price: {task}. Prices of {priced.prices}.")
    rows.sort(key=lambda row: row[:2])
    return _render(Section("Comparison", [*header, "QPU\ntime", f"USD\n{plan}"], [r[2] for r in rows], notes), style)


def summarize(model: nn.Module, shape: DataShape, shots: int | None, stage_shots: Sequence[int] = ()) -> list[str]:
    """Two lines on the circuits of a model for the start of a command; ``shots`` where the backend samples, or those of
    each sequential stage."""
    from qrkt_hw.resources.logical import logical, stages_of

    part = logical(stages_of(model, shape))
    if not part.layers:
        return ["no quantum layer: nothing runs on a backend"]
    rows = []
    for place, circuit in enumerate(part.circuits):
        layers = sum(len(row.layers) for row in part.layers if row.circuit == place)
        rows.append(
            f"{_many(layers, 'quantum layer')} of {circuit.template} on {circuit.qubits} qubits "
            f"(depth {circuit.depth}, {circuit.two_qubit_gates} two-qubit gates)"
        )
    sampled = ""
    if shots is not None:
        own = stage_shots or [shots] * len(part.rounds)
        executions = sum(n * call.circuits for n, stage in zip(own, part.rounds, strict=True) for call in stage)
        listed = ", ".join(f"{n:,}" for n in (own if len(set(own)) > 1 else own[:1]))
        sampled = f" of {listed} shots: {executions:,} executions"
    return ["; ".join(rows), f"per {'text' if shape.vocabulary else 'image'} {_calls(part)}{sampled}"]


def _calls(part: Logical) -> str:
    return f"{_many(part.calls_per_image, 'circuit')} in {_many(len(part.rounds), 'sequential stage')}"


def _named(circuit: Circuit) -> str:
    return f"{circuit.template} {circuit.qubits}q"


def _circuits(part: Logical) -> Section:
    rows = []
    for c in part.circuits:
        figures = (c.depth, c.two_qubit_depth, c.inputs, c.weights, c.outputs)
        gates = "\n".join(textwrap.wrap(" ".join(f"{count} {name}" for name, count in c.gates.items()), 28))
        rows.append([_named(c), *map(str, figures), gates])
    header = ["circuit", "depth", "2q\ndepth", "inputs", "weights", "outputs", "gates"]
    return Section("Circuits as written", header, rows, [] if rows else ["No quantum layer."])


def _layers(part: Logical) -> list[Section]:
    rows = []
    for row in part.layers:
        named = list(in_words(row.layers).values())
        kinds = ", ".join(dict.fromkeys(name.rsplit(" ", 1)[-1] for name in named))
        several = f"{len(named)} x {kinds}" if len(named) > 1 else named[0]
        circuit = _named(part.circuits[row.circuit])
        rows.append([several, circuit, str(row.groups), str(row.weights), f"{row.calls_per_image:,}"])
    total = sum(row.weights * len(row.layers) for row in part.layers)
    note = (
        f"An image takes {_calls(part)}: each stage waits for the one before. {total:,} weights in all. "
        f"Largest circuit {part.qubits} qubits, summed over layers and groups {part.qubits_summed:,}."
    )
    header = ["layers", "circuit", "groups", "weights\na layer", "circuits\nan image"]
    return [Section("Calls", header, rows, [note])] if rows else []


def _device(device: Device, part: Logical) -> Section:
    title, exact = f"On {device.name}", "Simulated on this machine as written: nothing is transpiled, nothing is paid."
    if not device.circuits:
        return Section(title, [], [], [exact if device.simulated else "No quantum layer."])
    about = [f"{device.qubits} qubits"]
    about += [f"calibrated {device.calibrated[:10]}"] if device.calibrated else []
    about += [f"rep_delay {device.rep_delay * 1e6:g} us"] if device.rep_delay is not None else []
    rows, where = [], []
    for p in device.circuits:
        name = _named(part.circuits[p.circuit])
        shown = [p.success, sum(p.output_success) / max(1, len(p.output_success)), p.predicted_error]
        figures = [*map(str, (p.level, p.depth, p.two_qubit_gates, p.two_qubit_depth)), f"{p.duration * 1e6:.2f}"]
        figures += ["-" if value is None else f"{value:.3f}" for value in shown]
        rows.append([name, *figures, f"{p.good_copies}/{p.copies}"])
        where.append(f"{name}, level {p.level}: on qubits {_ranges(p.physical)}.")
    header = ["circuit", "level", "depth", "2q\ngates", "2q\ndepth", "duration\n[us]", "ESP", "ESP per\noutput"]
    notes = [
        f"Device: {', '.join(about)}.",
        *where,
        "ESP: estimated success probability, of all gates and readouts; per output: within its light cone, mean; "
        "expected error: root mean square, of an expectation value; replicas: packed/all that fit, where those packed "
        "have at least half the ESP of the best.",
    ]
    return Section(title, [*header, "expected\nerror", "replicas"], rows, notes)


def _costs(report: Report, plan: str) -> list[Section]:
    """A table per device, at the highest optimisation level that was asked for."""
    found = []
    for name in dict.fromkeys(c.device for c in report.costs):
        level = max(c.level for c in report.costs if c.device == name)
        rows: list[list[str]] = []
        for cost in (c for c in report.costs if c.device == name and c.level == level):
            if cost.way == "estimator":
                rows.append([cost.task])
            counts = map(_count, (cost.rounds, cost.circuits, cost.executions))
            rows.append([f"  {cost.way}", *counts, _time(cost.seconds), _count(cost.usd[plan])])
        header = ["submitted as", "circuit\nbatches", "circuits", "executions", "QPU\ntime"]
        found.append(Section(f"Cost on {name}, level {level}", [*header, f"USD\n{plan}"], rows, []))
    notes = [
        "estimator: one PUB per observable, as EstimatorQNN; broadcast: one PUB per layer; packed: replicas side by "
        "side on the chip.",
        f"{report.shots:,} shots. QPU time, the larger of IBM's two formulas: 2 s a job + (rep_delay + duration) x "
        f"executions, or + 0.00035 s x executions. Prices of {report.prices}.",
    ]
    if any(cost.task.startswith("train") for cost in report.costs):
        notes.append(
            "adjoint differentiates the noiseless simulator on this machine and pays for the forward pass only."
        )
    return [*found[:-1], *(section._replace(notes=notes) for section in found[-1:])]


def _simulability(report: Report) -> Section:
    notes = []
    for found in report.verdicts:
        time = "" if found.microseconds is None else f", about {found.microseconds:.2g} us a circuit"
        notes.append(
            f"{_named(report.logical.circuits[found.circuit])}: {found.sentence}. Without a quantum computer: "
            f"{found.hardness}. Simulated here by {found.method!r}{time}."
        )
    return Section("Classical simulability", [], [], notes or ["No quantum layer: everything is classical."])


def _parameters(report: Report) -> Section:
    p = report.parameters
    baseline = "" if p.twin is None else f"; the size-matched classical baseline has {p.twin:,}"
    note = f"{p.total:,} in total: {p.quantum:,} circuit angles, {p.classical:,} classical{baseline}."
    return Section("Parameters", [], [], [note])


def _render(section: Section, style: str) -> str:
    title, header, rows, notes = section
    if style == "markdown":
        cells = [header, ["---"] * len(header), *rows] if rows else []
        lines = [f"| {' | '.join(row)} |".replace("\n", " ") for row in cells]
        return "\n".join([f"## {title}", "", *lines, *([""] if lines else []), *notes])
    lines = [title.upper(), *(_aligned(header, rows) if rows else [])]
    return "\n".join([*lines, *(line for note in notes for line in textwrap.wrap(note, WIDTH, subsequent_indent="  "))])


def _aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    """Columns within :data:`WIDTH`: words to the left, numbers to the right; the first column wraps where it must."""

    def width(k: int) -> int:
        return max(len(line) for row in table if len(row) > k and len(row) > 1 for line in row[k].split("\n"))

    tall = max(name.count("\n") for name in header)
    table = [["\n" * (tall - name.count("\n")) + name for name in header], *rows]
    rest = sum(map(width, range(1, len(header))))
    gap = 2 if width(0) + rest + 2 * (len(header) - 1) <= WIDTH else 1
    room = max(NARROWEST, WIDTH - rest - gap * (len(header) - 1))
    for row in (row for row in table[1:] if len(row) > 1 and len(row[0]) > room):
        row[0] = textwrap.fill(row[0], room)
    widths, lines = [width(k) for k in range(len(header))], []
    for row in table:
        cells = [cell.split("\n") for cell in row]
        for k in range(max(map(len, cells))):
            parts = [cell[k] if k < len(cell) else "" for cell in cells]
            parts = [
                part.ljust(w) if name in WORDS else part.rjust(w)
                for part, w, name in zip(parts, widths, header, strict=False)
            ]
            lines.append((" " * gap).join(parts).rstrip())
    return lines


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _count(number: float) -> str:
    return f"{number:,.0f}" if number < 1e9 else f"{number:.3e}"


def _time(seconds: float) -> str:
    for most, size, unit in ((120, 1, "s"), (7200, 60, "min"), (3.6e6, 3600, "h")):
        if seconds < most:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:,.1f} d"


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers with runs drawn together: 1-4 7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)

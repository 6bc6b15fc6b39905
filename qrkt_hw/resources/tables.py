"""The report as text: tables of 80 columns for a terminal, or Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from qrkt_hw.resources.schema import Circuit, Device, LayerRow, Logical, Report

if TYPE_CHECKING:  # a report that is kept needs no torch
    from torch import nn

    from qrkt_hw.data.base import DataShape

WIDTH = 80
WORDS = ("layers", "circuit", "gates", "model or circuit", "device", "submitted as")  # columns aligned to the left
NARROWEST = 16  # to which a column of words is wrapped


class Section(NamedTuple):
    """A part of the report: a table, sentences, or both; "\\n" in its header breaks a line in the terminal."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def text(report: Report, plan: str, style: str = "table") -> str:
    """The whole report, with the prices of a plan; ``style`` is ``table`` or ``markdown``."""
    sections = [
        _circuits(report.logical),
        *([_layers(report.logical)] if report.logical.layers else []),
        *(_device(device, report.logical) for device in report.devices),
        *_costs(report, plan),
        _simulability(report),
        _parameters(report),
    ]
    title = f"# {report.subject}" if style == "markdown" else report.subject
    return "\n\n".join([title, *(_render(section, style) for section in sections)])


def comparison(reports: Sequence[Report], plan: str, style: str) -> str:
    """A row per subject, device and optimisation level, the cheapest inference by packed circuits first.

    Where no device was named, the order is by circuits per image.
    """
    rows: list[tuple[tuple[float, int], list[str]]] = []
    for report in reports:
        logical = report.logical
        alone = f"{sum(v.elementwise for v in report.verdicts)}/{sum(len(v.outputs) for v in report.verdicts)}"
        base = [report.subject, f"{report.parameters.total:,}", str(logical.qubits), f"{logical.calls_per_image:,}"]
        base.append(alone)
        if not report.costs:
            where = report.devices[0].name if report.devices else "-"
            rows.append(((0.0, logical.calls_per_image), [*base, where, "-", "-", "-", "0"]))
        for cost in (c for c in report.costs if c.way == "packed" and c.task.startswith("infer")):
            placed = [p for d in report.devices if d.name == cost.device for p in d.circuits if p.level == cost.level]
            row = [
                *base,
                f"{cost.device.removeprefix('fake_')} O{cost.level}",
                str(sum(p.two_qubit_gates for p in placed)),
                f"{min((p.success for p in placed), default=1.0):.3f}",
                _time(cost.seconds),
                f"{cost.usd[plan]:,.0f}",
            ]
            rows.append(((cost.seconds, logical.calls_per_image), row))
    rows.sort(key=lambda row: row[0])
    header = ["model or circuit", "para-\nmeters", "qu-\nbits", "calls", "1-\ninput", "device", "2q\ngates", "ESP"]
    header += ["QPU\ntime", f"USD\n{plan}"]
    if style == "markdown":
        header[1:5] = ["parameters", "qubits", "calls", "1-input"]
    notes = [
        "calls: circuits an image; 1-input: outputs that depend on at most one input; "
        "2q gates: of one circuit of each kind; ESP: estimated success probability of the worst circuit.",
    ]
    task = next((c.task for r in reports for c in r.costs), "")
    if task:
        notes.append(
            f"QPU time and price: {task} images, {reports[0].shots:,} shots, packed circuits. "
            f"Prices of {next(r.prices for r in reports if r.prices)}."
        )
    return _render(Section("Comparison", header, [row for _, row in rows], notes), style)


def summarize(model: nn.Module, shape: DataShape, shots: int | None) -> list[str]:
    """Two lines on the circuits of a model for the start of a command; the model stays as it is.

    Args:
        model: of any kind.
        shape: of its data.
        shots: of each circuit where the backend samples.
    """
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
    sampled = "" if shots is None else f" of {shots:,} shots: {part.calls_per_image * shots:,} executions"
    return ["; ".join(rows), f"per {'text' if shape.vocabulary else 'image'} {_calls(part)}{sampled}"]


def _calls(part: Logical) -> str:
    return f"{_many(part.calls_per_image, 'circuit')} in {_many(len(part.rounds), 'sequential stage')}"


def _circuits(part: Logical) -> Section:
    rows = [
        [
            _named(c), str(c.depth), str(c.two_qubit_depth), str(c.inputs), str(c.weights), str(c.outputs),
            " ".join(f"{count} {name}" for name, count in c.gates.items()),
        ]
        for c in part.circuits
    ]  # fmt: skip
    header = ["circuit", "depth", "2q depth", "inputs", "weights", "outputs", "gates"]
    return Section("Circuits as written", header, rows, [] if rows else ["No quantum layer."])


def _layers(part: Logical) -> Section:
    rows = [
        [_several(row), _named(part.circuits[row.circuit]), str(row.groups), str(row.weights),
         f"{row.calls_per_image:,}"]
        for row in part.layers
    ]  # fmt: skip
    total = sum(row.weights * len(row.layers) for row in part.layers)
    notes = [
        f"An image takes {_calls(part)}: each stage waits for the one before. {total:,} weights in all. "
        f"Largest circuit {part.qubits} qubits, summed over layers and groups {part.qubits_summed:,}."
    ]
    return Section("Calls", ["layers", "circuit", "groups", "weights\na layer", "circuits\nan image"], rows, notes)


def _named(circuit: Circuit) -> str:
    return f"{circuit.template} {circuit.qubits}q"


def _several(row: LayerRow) -> str:
    names = [name.removesuffix(".layer").rsplit(".", 1)[-1] for name in row.layers]
    short = ", ".join(dict.fromkeys(names))
    return f"{len(row.layers)} x {short}" if len(row.layers) > 1 else short


def _device(device: Device, part: Logical) -> Section:
    title, exact = f"On {device.name}", "Simulated on this machine as written: nothing is transpiled, nothing is paid."
    if not device.circuits:
        return Section(title, [], [], [exact if device.simulated else "No quantum layer."])
    about = [f"{device.qubits} qubits"] if device.qubits else []
    about += [f"calibrated {device.calibrated[:10]}"] if device.calibrated else []
    about += [f"rep_delay {device.rep_delay * 1e6:g} us"] if device.rep_delay is not None else []
    rows = [
        [
            _named(part.circuits[p.circuit]), str(p.level), str(p.depth), str(p.two_qubit_gates),
            str(p.two_qubit_depth), f"{p.duration * 1e6:.2f}", f"{p.success:.3f}",
            f"{sum(p.output_success) / len(p.output_success) if p.output_success else 1:.3f}",
            "-" if p.predicted_error is None else f"{p.predicted_error:.3f}", f"{p.good_copies}/{p.copies}",
        ]
        for p in device.circuits
    ]  # fmt: skip
    header = ["circuit", "level", "depth", "2q\ngates", "2q\ndepth", "duration\n[us]", "ESP", "ESP per\noutput"]
    header += ["expected\nerror", "replicas"]
    notes = [f"Device: {', '.join(about)}."] if about else []
    notes += [
        f"{row[0]}, level {row[1]}: on qubits {_ranges(p.physical)}."
        for row, p in zip(rows, device.circuits, strict=True)
    ]
    notes += [
        "ESP: estimated success probability, of all gates and readouts; per output: within its causal cone, mean; "
        "expected error: root mean square, of an expectation value; "
        "replicas: packed/all that fit, where those packed have at least half the ESP of the best.",
    ]
    return Section(title, header, rows, notes)


def _costs(report: Report, plan: str) -> list[Section]:
    """A table per device, at the highest optimisation level that was asked for."""
    found = []
    for name in dict.fromkeys(c.device for c in report.costs):
        level = max(c.level for c in report.costs if c.device == name)
        rows: list[list[str]] = []
        for cost in (c for c in report.costs if c.device == name and c.level == level):
            if cost.way == "estimator":
                rows.append([cost.task])
            rows.append([
                f"  {cost.way}", f"{cost.rounds:,}", f"{cost.circuits:,}", f"{cost.executions:,}",
                _time(cost.seconds), _time(cost.seconds_quick), f"{cost.usd[plan]:,.0f}",
            ])  # fmt: skip
        header = ["submitted as", "circuit\nbatches", "circuits", "executions", "QPU\ntime", "short\nform"]
        title = f"Cost on {name}, optimisation level {level}"
        found.append(Section(title, [*header, f"USD\n{plan}"], rows, []))
    if found:
        found[-1].notes.extend([
            "estimator: one PUB per observable, as EstimatorQNN; broadcast: one PUB per layer; packed: replicas "
            "side by side on the chip.",
            f"{report.shots:,} shots. QPU time: 2 s a job + (rep_delay + duration) x executions; short form: 2 s a job "
            f"+ 0.00035 s x executions. Prices of {report.prices}.",
            "adjoint differentiates the noiseless simulator on this machine and pays for the forward pass only.",
        ])  # fmt: skip
    return found


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
        lines = [f"## {title}", ""]
        if rows:
            cells = [[name.replace("\n", " ") for name in header], ["---"] * len(header), *rows]
            lines += [f"| {' | '.join(row)} |" for row in cells] + [""]
        return "\n".join([*lines, *notes])
    lines = [title.upper(), *(_aligned(header, rows) if rows else [])]
    return "\n".join([*lines, *(line for note in notes for line in textwrap.wrap(note, WIDTH, subsequent_indent="  "))])


def _aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    """Columns within :data:`WIDTH`: words to the left, numbers to the right; a row of one cell is a heading.

    Where they are too wide, words in the first and in the last column wrap.
    """
    columns = list(zip(header, *(row for row in rows if len(row) > 1), strict=True))
    widths = [max(len(part) for cell in column for part in cell.split("\n")) for column in columns]
    gap = 2 if sum(widths) + 2 * len(widths) - 2 <= WIDTH else 1
    for k in (0, -1):
        over = sum(widths) + gap * (len(widths) - 1) - WIDTH
        widths[k] -= max(0, min(over, widths[k] - NARROWEST)) if header[k] in WORDS else 0
    lines = []
    for row in [header, *rows]:
        if len(row) == 1:
            lines.append(row[0])
            continue
        cells = [
            textwrap.wrap(cell, width) if row is not header and name in WORDS else cell.split("\n")
            for cell, width, name in zip(row, widths, header, strict=True)
        ]
        height = max(map(len, cells))
        for k in range(height):
            parts = []
            for cell, width, name in zip(cells, widths, header, strict=True):
                place = k - height + len(cell) if row is header else k  # headers stand on the line above the rows
                part = cell[place] if 0 <= place < len(cell) else ""
                parts.append(part.ljust(width) if name in WORDS else part.rjust(width))
            lines.append((" " * gap).join(parts).rstrip())
    return lines


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers with runs drawn together: 1-4 7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return " ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)

"""The report as text: tables of at most 100 columns for a terminal, or Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from qrkt_hw.resources.schema import Device, LayerRow, Logical, Report

WIDTH = 100
Rows = tuple[str, list[str], list[list[str]], list[str]]  # title, header, rows, notes below


def sections(report: Report, plan: str) -> list[Rows]:
    """Every part as a title, a header, rows and notes."""
    found = [_logical(report.logical)]
    found += [_device(device, report.logical) for device in report.devices]
    found += _costs(report, plan) if report.costs else []
    found.append(_verdicts(report))
    found.append(_parameters(report))
    return found


def text(report: Report, plan: str, style: str = "table") -> str:
    """The whole report; ``style`` is ``table`` or ``markdown``."""
    parts = [f"# {report.subject}" if style == "markdown" else report.subject]
    parts += [render(section, style) for section in sections(report, plan)]
    return "\n\n".join(parts)


def render(section: Rows, style: str) -> str:
    title, header, rows, notes = section
    if style == "markdown":
        lines = [f"## {title}", ""]
        if rows:
            lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
            lines += ["| " + " | ".join(row) + " |" for row in rows]
            lines.append("")
        return "\n".join([*lines, *notes])
    notes = [part for note in notes for part in textwrap.wrap(note, WIDTH, subsequent_indent="  ")]
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    buffer = StringIO()
    console = Console(file=buffer, width=WIDTH, color_system=None)
    console.print(title.upper(), highlight=False)
    if rows:
        table = Table(*header[:1], box=None, pad_edge=False)
        for name in header[1:]:
            table.add_column(
                name, justify="left" if name in ("layers", "gates", "plan", "qubits used", "what", "way") else "right"
            )
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in notes:
        console.print(note, highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())


def _logical(part: Logical) -> Rows:
    rows = []
    for row in part.layers:
        circuit = part.circuits[row.circuit]
        gates = " ".join(f"{count} {name}" for name, count in circuit.gates.items())
        rows.append(
            [
                _layers(row), circuit.template, str(circuit.qubits), str(row.groups), str(row.weights),
                str(circuit.depth), str(circuit.two_qubit_depth), gates, f"{row.calls_per_image:,}",
            ]
        )  # fmt: skip
    total = sum(row.weights * len(row.layers) for row in part.layers)
    notes = ["No quantum layer."] if not part.layers else [
        f"Per image: {_many(part.calls_per_image, 'circuit')} in {_many(len(part.rounds), 'round')} "
        f"(calls that wait for each other). "
        f"{total:,} weights. Largest circuit {part.qubits} qubits, summed over layers and groups {part.qubits_summed}."
    ]  # fmt: skip
    header = ["layers", "ansatz", "qubits", "groups", "weights", "depth", "2q depth", "gates", "calls/image"]
    return "Circuits as written (weights: of one layer)", header, rows, notes


def _layers(row: LayerRow) -> str:
    names = [name.removesuffix(".layer").rsplit(".", 1)[-1] for name in row.layers]
    short = ", ".join(dict.fromkeys(names))
    return f"{len(row.layers)} x {short}" if len(row.layers) > 1 else short


def _device(device: Device, part: Logical) -> Rows:
    about = [f"{device.qubits} qubits"] if device.qubits else []
    about += [f"calibrated {device.calibrated[:10]}"] if device.calibrated else []
    about += [f"rep_delay {device.rep_delay * 1e6:g} us"] if device.rep_delay is not None else []
    title = f"On {device.name}" + (f" ({', '.join(about)})" if about else "")
    if device.simulated:
        return title, [], [], ["Simulated on this machine as written: nothing is transpiled, nothing is paid."]
    rows = [
        [
            f"{part.circuits[p.circuit].template} {part.circuits[p.circuit].qubits}q", str(p.level), str(p.depth),
            str(p.two_qubit_gates), str(p.two_qubit_depth), f"{p.duration * 1e6:.2f} us", f"{p.success:.3f}",
            f"{_mean(p.output_success):.3f}", "-" if p.predicted_error is None else f"{p.predicted_error:.3f}",
            f"{p.good_copies}/{p.copies}", _runs(p.physical),
        ]
        for p in device.circuits
    ]  # fmt: skip
    header = [
        "circuit",
        "level",
        "depth",
        "2q gates",
        "2q depth",
        "duration",
        "success",
        "per output",
        "error",
        "copies",
        "qubits used",
    ]
    notes = [
        "success: no gate and no readout fails; per output: within its causal cone, mean; error: expected of a value;",
        "copies: good/all that fit, good ones having half the success of the best.",
    ]
    return title, header, rows, notes if rows else ["No quantum layer."]


def _costs(report: Report, plan: str) -> list[Rows]:
    """A table per device, at the highest optimisation level that was asked for."""
    found: list[Rows] = []
    for name in dict.fromkeys(c.device for c in report.costs):
        level = max(c.level for c in report.costs if c.device == name)
        rows = [
            [
                cost.task, cost.way, f"{cost.rounds:,}", f"{cost.circuits:,}", f"{cost.executions:,}",
                seconds(cost.seconds), seconds(cost.seconds_quick), f"{cost.usd[plan]:,.0f}",
            ]
            for cost in report.costs if cost.device == name and cost.level == level
        ]  # fmt: skip
        header = ["task", "way", "rounds", "circuits", "executions", "QPU time", "quick", f"USD {plan}"]
        found.append((f"Time and money on {name}, optimisation level {level}", header, rows, []))
    notes = [
        "estimator: one PUB per observable, as EstimatorQNN; broadcast: one PUB per layer; packed: copies on the chip.",
        f"{report.shots:,} shots. QPU time: 2 s a job + (rep_delay + duration) x executions;",
        f"quick: 2 s a job + 0.00035 s x executions. Prices of {report.prices}.",
        "adjoint differentiates the noiseless simulator on this machine and pays for the forward pass only.",
    ]
    found[-1][3].extend(notes)
    return found


def _verdicts(report: Report) -> Rows:
    notes = []
    for verdict in report.verdicts:
        circuit = report.logical.circuits[verdict.circuit]
        time = "" if verdict.microseconds is None else f", about {verdict.microseconds:.2g} us a circuit"
        notes.append(f"{circuit.template} on {circuit.qubits} qubits: {verdict.sentence}.")
        notes.append(f"  Without a quantum computer: {verdict.hardness}. Simulated here by {verdict.method!r}{time}.")
    return "How quantum it is", [], [], notes or ["Not at all: no quantum layer."]


def _parameters(report: Report) -> Rows:
    p = report.parameters
    twin = "" if p.twin is None else f"; the classical twin has {p.twin:,}"
    return (
        "Parameters",
        [],
        [],
        [f"{p.total:,} in total: {p.quantum:,} circuit angles, {p.classical:,} classical{twin}."],
    )


def summary(part: Logical, shots: int | None, sample: str = "image") -> list[str]:
    """Two lines for the start of a command; ``shots`` of each circuit where the backend samples, ``sample`` a name."""
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
    calls = f"per {sample} {_many(part.calls_per_image, 'circuit')} in {_many(len(part.rounds), 'round')}{sampled}"
    return ["; ".join(rows), calls]


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 1.0


def seconds(value: float) -> str:
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:,.1f} h"


def _runs(numbers: Sequence[int]) -> str:
    """Sorted numbers with runs drawn together: 1-4 7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return " ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)

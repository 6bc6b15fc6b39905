"""Several models or circuits against several devices in one matrix, the cheapest first."""

from __future__ import annotations

from collections.abc import Sequence

from qrkt_hw.resources.schema import Report
from qrkt_hw.resources.tables import Rows, render, seconds

WAY = "packed"


def matrix(reports: Sequence[Report], plan: str) -> Rows:
    """A row per subject, device and optimisation level: the price of inference packed on the chip decides the order.

    Where no device was named, the order is by circuits per image.
    """
    rows: list[tuple[tuple, list[str]]] = []
    for report in reports:
        logical, counts = report.logical, report.parameters
        one = sum(v.elementwise for v in report.verdicts)
        outputs = sum(len(v.outputs) for v in report.verdicts)
        base = [
            report.subject,
            f"{counts.total:,}",
            str(logical.qubits),
            f"{logical.calls_per_image:,}",
            f"{one}/{outputs}",
        ]
        if not report.costs:
            name = report.devices[0].name if report.devices else "-"
            rows.append(((0.0, logical.calls_per_image), [*base, name, "-", "-", "-", "0"]))
        inference = [c for c in report.costs if c.way == WAY and c.task.startswith("infer")]
        for cost in inference:
            placed = [p for d in report.devices if d.name == cost.device for p in d.circuits if p.level == cost.level]
            gates = sum(p.two_qubit_gates for p in placed)
            least = min((p.success for p in placed), default=1.0)
            where = f"{cost.device.removeprefix('fake_')} O{cost.level}"
            rows.append(
                (
                    (cost.seconds, logical.calls_per_image),
                    [*base, where, str(gates), f"{least:.3f}", seconds(cost.seconds), f"{cost.usd[plan]:,.0f}"],
                )
            )
    rows.sort(key=lambda row: row[0])
    header = [
        "what",
        "weights",
        "qubits",
        "calls",
        "1-input",
        "device",
        "2q gates",
        "success",
        "QPU time",
        f"USD {plan}",
    ]
    task = next((c.task for r in reports for c in r.costs), "")
    notes = [
        "calls: circuits per image; 1-input: outputs of at most one input;",
        "2q gates: of one circuit of each kind; success: of the worst circuit.",
    ]
    if task:
        notes.append(
            f"QPU time and price: {task} images, {reports[0].shots:,} shots, copies packed on the chip. "
            f"Prices of {next(r.prices for r in reports if r.prices)}."
        )
    return "Comparison", header, [row for _, row in rows], notes


def comparison(reports: Sequence[Report], plan: str, style: str) -> str:
    """The matrix as text; ``style`` is ``table`` or ``markdown``."""
    return render(matrix(reports, plan), style)

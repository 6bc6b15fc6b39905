"""How far a device's values were from the exact ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qrkt_hw.plots.figure import BLUE, GREY, ORANGE, new, save, tidy


def plot_device(record: dict[str, Any], path: Path) -> Path:
    """Mean error of the expectation values layer by layer, and both accuracies with their intervals.

    Args:
        record: of an inference with ``layers``.
        path: of the PNG.
    """
    figure, (left, right) = new(columns=2)
    rows = record["layers"]
    place = np.arange(len(rows))
    mitigated = any("unmitigated_mean_error" in row for row in rows)
    if mitigated:
        left.barh(place - 0.2, [row["mean_error"] for row in rows], 0.4, color=BLUE, label="mitigated")
        raw = [row.get("unmitigated_mean_error", np.nan) for row in rows]
        left.barh(place + 0.2, raw, 0.4, color=GREY, label="as read")
        left.legend()
    else:
        left.barh(place, [row["mean_error"] for row in rows], 0.6, color=BLUE)
    left.set_yticks(place, [row["layer"] for row in rows])
    left.invert_yaxis()
    tidy(left, "mean error of the expectation values", "")
    for x, (value, interval, colour) in enumerate(
        [(record["exact_accuracy"], record["exact_interval"], GREY), (record["accuracy"], record["interval"], ORANGE)]
    ):
        bars = [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]
        right.errorbar([x], [value], yerr=bars, fmt="o", capsize=6, color=colour)
    right.set_xticks([0, 1], ["exact", record["backend"]])
    right.set_xlim(-0.5, 1.5)
    tidy(right, "", "accuracy, 95 % interval")
    return save(figure, path)

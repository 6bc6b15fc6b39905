"""A search in one picture: how it went, and what mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qrkt_hw.plots.figure import BLUE, GREY, ORANGE, new, save, tidy


def plot_study(trials: Sequence[Mapping[str, Any]], importances: Mapping[str, float], path: Path) -> Path:
    """Validation AUROC by trial with the best so far; and each option's share of the spread."""
    figure, (left, right) = new(columns=2)
    scored = sorted((t for t in trials if t["val_auroc"] is not None), key=lambda t: t["trial"])
    for state, colour in (("complete", BLUE), ("pruned", GREY)):
        own = [t for t in scored if t["state"] == state]
        left.scatter([t["trial"] for t in own], [t["val_auroc"] for t in own], color=colour, label=state, s=22)
    complete = [t for t in scored if t["state"] == "complete"]
    if complete:
        best = np.maximum.accumulate([t["val_auroc"] for t in complete])
        left.step([t["trial"] for t in complete], best, where="post", color=ORANGE, label="best so far")
    tidy(left, "trial", "validation AUROC")
    left.legend(frameon=False)
    names = list(importances)[::-1]
    right.barh(names, [importances[name] for name in names], color=BLUE)
    tidy(right, "share of the spread explained (fANOVA)", "")
    if not names:
        right.text(0.5, 0.5, "too few finished trials", ha="center", transform=right.transAxes, color=GREY)
    return save(figure, path)

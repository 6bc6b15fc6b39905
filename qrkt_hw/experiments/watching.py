"""How far a device's values are from the exact ones, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qrkt_hw.backends import Backend, Call
from qrkt_hw.backends.exact import ExactBackend


class Watched(Backend):
    """Asks another backend for every value, which counts and tells what it does, also where torch could see through it.

    Args:
        inner: that backend.
        compare: compare every value with the exact one at the same inputs.

    Attributes:
        errors: for every tag the errors of all values, as they were returned.
        raw: the same before mitigation; empty without it.
    """

    def __init__(self, inner: Backend, compare: bool = True) -> None:
        super().__init__(inner.name)
        self.inner, self.exact, self.compare = inner, ExactBackend("exact"), compare
        self.kind, self.shots, self.counters = inner.kind, inner.shots, inner.counters
        self.gradient, self.perturbation, self.target = inner.gradient, inner.perturbation, inner.target
        self.errors: dict[str, list[NDArray[np.float64]]] = {}
        self.raw: dict[str, list[NDArray[np.float64]]] = {}

    def circuits_for(self, template: Any) -> int:
        return self.inner.circuits_for(template)

    def about(self) -> dict[str, Any]:
        return self.inner.about()

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        values = self.inner.run(calls)
        if not self.compare:
            return values
        packer = getattr(self.inner, "packer", None)
        before = getattr(packer, "unmitigated", None)
        for place, (call, exact) in enumerate(zip(calls, self.exact.run(calls), strict=True)):
            self.errors.setdefault(call.tag, []).append(np.abs(values[place] - exact).ravel())
            if before is not None and len(before) == len(calls):
                self.raw.setdefault(call.tag, []).append(np.abs(before[place] - exact).ravel())
        return values

    def rows(self) -> list[dict[str, Any]]:
        """A row a layer, in the order in which they ran: ``layer, values, mean_error, max_error``, and with
        mitigation ``unmitigated_mean_error``."""
        found = []
        for tag, parts in self.errors.items():
            error = np.concatenate(parts)
            row = {"layer": tag, "values": len(error), "mean_error": round(float(error.mean()), 6),
                   "max_error": round(float(error.max()), 6)}  # fmt: skip
            if tag in self.raw:
                row["unmitigated_mean_error"] = round(float(np.concatenate(self.raw[tag]).mean()), 6)
            found.append(row)
        return found

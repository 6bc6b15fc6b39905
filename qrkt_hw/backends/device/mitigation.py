"""Readout mitigation by mthree, with calibration circuits that are ordinary work: packed, journalled and paid like any.

Nation, Kang, Sundaresan and Gambetta, "Scalable mitigation of measurement errors on quantum computers", PRX Quantum 2,
040326 (2021). mthree would submit its calibration itself, past journal and budget; here two circuits prepare all
measured qubits of the packed registers in 0 and in 1, so that a qubit is calibrated while its neighbours are read too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHOTS = 16_384  # of each of the two calibration circuits


class Readout:
    """Confusion matrices of single qubits, and what they make of counts.

    Args:
        qubits: of the device.
    """

    def __init__(self, qubits: int) -> None:
        self.matrices: list[NDArray[np.float32] | None] = [None] * qubits
        self._seen: dict[int, list[float | None]] = {}

    def knows(self, qubits: Sequence[int]) -> bool:
        """Whether all of them are calibrated."""
        return all(self.matrices[q] is not None for q in qubits)

    def learn(self, state: int, qubits: Sequence[int], ones: Sequence[float]) -> None:
        """Take over a calibration circuit.

        Args:
            state: 0 or 1, in which all qubits were prepared.
            qubits: of the device.
            ones: for each how often it was read as 1.
        """
        for qubit, share in zip(qubits, ones, strict=True):
            kept = self._seen.setdefault(qubit, [None, None])
            kept[state] = float(share)
            if kept[0] is not None and kept[1] is not None:
                self.matrices[qubit] = np.array([[1 - kept[0], 1 - kept[1]], [kept[0], kept[1]]], dtype=np.float32)

    def corrected(self, counts: Sequence[dict[int, int]], qubits: Sequence[int]) -> list[dict[int, float]]:
        """Quasi-probabilities of outcomes, for counts read on ``qubits`` (bit 0 first)."""
        from mthree import M3Mitigation

        tool: Any = M3Mitigation()
        tool.num_qubits = len(self.matrices)
        tool.cals_from_matrices(self.matrices)
        width = len(qubits)
        texts = [{format(outcome, f"0{width}b"): count for outcome, count in one.items()} for one in counts]
        found = tool.apply_correction(texts, list(qubits), distance=width if width <= 8 else None)
        return [{int(text, 2): float(p) for text, p in one.items()} for one in found]

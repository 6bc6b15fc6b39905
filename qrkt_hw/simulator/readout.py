"""Expectation values of Pauli sums in a pure state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

from qrkt_hw.simulator.tables import Tables


class Readout(Tables):
    """``<psi|O_m|psi>`` for every observable, from states ``(groups, 2^n, batch)``.

    Pauli strings that flip the same qubits share one product ``conj(psi[k]) psi[k ^ flip]``; the Z-type ones share the
    probabilities. A sign matrix then reads all observables at once.
    """

    def __init__(self, observables: Sequence[SparsePauliOp], num_qubits: int, dtype: torch.dtype) -> None:
        super().__init__()
        real = torch.zeros((), dtype=dtype).real.dtype
        index = np.arange(2**num_qubits)
        masks: dict[int, np.ndarray] = {}
        for row, operator in enumerate(observables):
            for label, coefficient in zip(operator.paulis, operator.coeffs, strict=True):
                x, z = _mask(label.x), _mask(label.z)
                # i^{|x & z|} (-1)^{z.k'} with k' the index before the flip: Qiskit's ZX-phase convention
                sign = (-1.0) ** _parity(index & z)
                phase = (-1j) ** int(np.sum(label.x & label.z))
                matrix = masks.setdefault(x, np.zeros((len(observables), len(index)), dtype=complex))
                matrix[row] += coefficient.real * phase * sign
        self.flips = list(masks)
        for x, matrix in masks.items():
            self.add(f"real{x}", matrix.real, real)
            if x:
                self.add(f"flip{x}", index ^ x, torch.long)
                self.add(f"imag{x}", matrix.imag, real)
        self.outputs = len(observables)

    def __call__(self, state: Tensor) -> Tensor:
        """``(batch, groups, observables)``, real."""
        tables = self.on(state.device)
        total: Tensor | None = None
        for x in self.flips:
            if x == 0:
                part = tables["real0"] @ probabilities(state)
            else:
                product = state.conj() * state.index_select(1, tables[f"flip{x}"])
                part = tables[f"real{x}"] @ product.real
                if product.is_complex():
                    part = part - tables[f"imag{x}"] @ product.imag
            total = part if total is None else total + part
        assert total is not None
        return total.permute(2, 0, 1)


def probabilities(state: Tensor) -> Tensor:
    """``|psi|^2``; a real state is squared without a detour over complex numbers."""
    if not state.is_complex():
        return state * state
    return state.real.square() + state.imag.square()


def _mask(bits: np.ndarray) -> int:
    return int(sum(1 << q for q, bit in enumerate(bits) if bit))


def _parity(values: np.ndarray) -> np.ndarray:
    return np.array([int(v).bit_count() & 1 for v in values])

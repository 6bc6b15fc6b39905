"""Noisy circuits of few qubits, exactly and differentiably, as superoperators in the basis of Pauli strings.

A state of n qubits is the real vector ``r[Q] = tr(Q rho)`` over all ``4^n`` Pauli strings. Digit q of the index, base
4, is the letter on qubit q: I=0, X=1, Z=2, Y=3 (x bit + 2 * z bit), so that a product of strings is an exclusive or;
Qiskit's ``PTM`` counts I, X, Y, Z, where it is not.

The rotations by data at the head of the circuit act on single qubits, so the state behind them is a product of
one-qubit vectors. Everything behind the last rotation by data depends on the weights alone: it is applied once,
backwards, to what is measured. The whole batch then meets it in one matrix product.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.compiler import Program, Rotation
from qrkt_hw.compiler.program import PAULIS
from qrkt_hw.simulator.core import REAL
from qrkt_hw.simulator.tables import Angles, Tables, apply_matrix

LARGEST = 8  # qubits; beyond, a propagated observable has more than 65,536 entries
CHUNK = 2**23  # numbers an intermediate result may hold where no gradient is needed
KEPT = 2**25  # numbers of propagated observables that a backend keeps: 256 MiB in double precision
LETTERS = "IXZY"
_MATRICES = np.array([PAULIS[letter] for letter in LETTERS])
# P Q = _PHASES[P, Q] * (P xor Q)
_PHASES = np.array([[np.trace(_MATRICES[a ^ b] @ _MATRICES[a] @ _MATRICES[b]) / 2 for b in range(4)] for a in range(4)])
_numbers = itertools.count()


@dataclass(frozen=True, eq=False)
class Channel:
    """A fixed map of states: ``transfer`` is real ``(4^k, 4^k)``, ``qubits[0]`` the least significant digit."""

    transfer: NDArray[np.float64]
    qubits: tuple[int, ...]


NoisyStep = Channel | Rotation


def transfer_matrix(superoperator: NDArray[np.complex128]) -> NDArray[np.float64]:
    """The Pauli transfer matrix ``(4^k, 4^k)`` of a superoperator in Qiskit's column-stacking convention."""
    columns = _vectors(round(np.log2(len(superoperator)) / 2))
    return np.real(columns.conj().T @ superoperator @ columns) / len(columns) ** 0.5


def superoperator(transfer: NDArray[np.float64]) -> NDArray[np.complex128]:
    """The superoperator ``(4^k, 4^k)``, column-stacking, of a Pauli transfer matrix."""
    columns = _vectors(round(np.log2(len(transfer)) / 2))
    return columns @ transfer @ columns.conj().T / len(columns) ** 0.5


@lru_cache(maxsize=8)
def _vectors(qubits: int) -> NDArray[np.complex128]:
    """Column-stacked Pauli strings, one a column."""
    words = [np.eye(1, dtype=complex)]
    for _ in range(qubits):  # the last factor added is the most significant digit
        words = [np.kron(_MATRICES[letter], word) for letter in range(4) for word in words]
    return np.stack([word.flatten(order="F") for word in words], axis=1)


def embedded(channel: Channel, qubits: tuple[int, ...]) -> NDArray[np.float64]:
    """The transfer matrix of a channel on more qubits, the identity on the others."""
    n, k = len(qubits), len(channel.qubits)
    axes = [n - 1 - qubits.index(q) for q in reversed(channel.qubits)]
    cube = np.eye(4**n).reshape([4] * n + [4**n])
    front = np.moveaxis(cube, axes, range(k))
    moved = (channel.transfer @ front.reshape(4**k, -1)).reshape(front.shape)
    return np.moveaxis(moved, range(k), axes).reshape(4**n, 4**n)


def unitary_transfer(matrix: NDArray[np.complex128]) -> NDArray[np.float64]:
    """The Pauli transfer matrix of a unitary ``(2^k, 2^k)``."""
    return transfer_matrix(np.kron(matrix.conj(), matrix).astype(np.complex128))


class PauliSteps(Tables):
    """Applies steps to vectors ``(groups, 4^n, batch)``; or, ``backwards``, their adjoints in reverse.

    Under ``exp(-i angle/2 P)``: ``r'[Q] = (1 - anti[Q] (1 - cos)) r[Q] + sin sign[Q] r[Q ^ flip]``.
    """

    def __init__(self, steps: Sequence[NoisyStep], program: Program, real: torch.dtype, backwards: bool) -> None:
        super().__init__()
        self.num_qubits = program.num_qubits
        self.steps = list(reversed(steps)) if backwards else list(steps)
        rotations = [s for s in self.steps if isinstance(s, Rotation)]
        parameters = [r.angle for r in rotations]
        self.angles = Angles(parameters, program.num_inputs, program.num_weights, real) if rotations else None
        index = np.arange(4**self.num_qubits)
        for place, step in enumerate(self.steps):
            if isinstance(step, Channel):
                self.add(f"matrix{place}", step.transfer.T if backwards else step.transfer, real)
                continue
            flip, phase = 0, np.full(len(index), 1j)
            for letter, qubit in zip(step.pauli, step.qubits, strict=True):
                code = LETTERS.index(letter)
                flip |= code << (2 * qubit)
                phase = phase * _PHASES[code, (index >> (2 * qubit)) & 3]
            sign = np.round(phase.real)  # i P Q is Hermitian exactly where P and Q anticommute
            self.add(f"anti{place}", np.abs(sign)[:, None], real)
            self.add(f"sign{place}", (-sign if backwards else sign)[:, None], real)
            self.add(f"flip{place}", index ^ flip, torch.long)

    def __call__(self, vectors: Tensor, inputs: Tensor | None, weights: Tensor) -> Tensor:
        tables = self.on(weights.device)
        if self.angles is not None:
            angles = self.angles(inputs, weights)
            missing, sines = (1 - angles.cos()).unsqueeze(2), angles.sin().unsqueeze(2)
        rotation = 0
        for place, step in enumerate(self.steps):
            if isinstance(step, Channel):
                vectors = apply_matrix(vectors, tables[f"matrix{place}"], step.qubits, 4)
                continue
            moved = vectors.index_select(1, tables[f"flip{place}"])
            kept = vectors - (tables[f"anti{place}"] * missing[rotation]) * vectors
            vectors = kept + (tables[f"sign{place}"] * sines[rotation]) * moved
            rotation += 1
        return vectors


@dataclass(frozen=True, eq=False)
class NoisyCircuit:
    """A noisy circuit from ``|0...0>`` and what is read at its end: row k is ``sum_Q effects[Q, k] tr(Q rho)``."""

    steps: tuple[NoisyStep, ...]  # in the order of time
    num_qubits: int  # routing helpers included
    effects: NDArray[np.float64]  # (4^n, rows)


class PropagatedCache:
    """Propagated observables by circuit and weights; those that were not used for longest go first. Safe in threads.

    All together hold at most ``limit`` numbers.
    """

    def __init__(self, limit: int = KEPT) -> None:
        self.limit, self.held = limit, 0
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[PropagatedCache], tuple[int]]:
        return PropagatedCache, (self.limit,)  # a copy or a pickle begins empty

    def get(self, key: Hashable) -> Tensor | None:
        with self._lock:
            if key in self._tensors:
                self._tensors.move_to_end(key)
            return self._tensors.get(key)

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a tensor, unless it is larger than the limit by itself."""
        with self._lock:
            if tensor.numel() > self.limit or key in self._tensors:
                return
            self._tensors[key] = tensor
            self.held += tensor.numel()
            while self.held > self.limit:
                self.held -= self._tensors.popitem(last=False)[1].numel()


def fuse(steps: Sequence[NoisyStep]) -> list[NoisyStep]:
    """Multiply neighbouring fixed channels on the same qubits into one; the order on every qubit is kept."""
    done: list[NoisyStep | None] = []
    last: dict[int, int] = {}
    for step in steps:
        if isinstance(step, Channel):
            places = {last.get(q) for q in step.qubits}
            place = places.pop() if len(places) == 1 else None
            before = done[place] if place is not None else None
            if place is not None and isinstance(before, Channel) and set(before.qubits) >= set(step.qubits):
                done[place] = Channel(embedded(step, before.qubits) @ before.transfer, before.qubits)
                continue
            for q in step.qubits:
                place = last.get(q)
                before = done[place] if place is not None else None
                if place is not None and isinstance(before, Channel) and before.qubits == (q,):
                    step = Channel(step.transfer @ embedded(before, step.qubits), step.qubits)
                    done[place] = None
        for q in step.qubits:
            last[q] = len(done)
        done.append(step)
    return [s for s in done if s is not None]


class PropagatedRows(Tables):
    """Evaluates the rows of one noisy circuit: inputs ``(batch, groups, inputs)`` to ``(batch, groups, rows)``."""

    def __init__(
        self, circuit: NoisyCircuit, num_inputs: int, num_weights: int, real: torch.dtype,
        kept: PropagatedCache | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_qubits, self.real, self.kept = circuit.num_qubits, real, kept
        self.number = next(_numbers)  # names this circuit among what is kept
        program = Program((), circuit.num_qubits, num_inputs, num_weights)
        single = Program((), 1, num_inputs, num_weights)
        steps = fuse(circuit.steps)
        heads, rest = _heads(steps, program)
        self.heads = {
            q: PauliSteps([replace(s, qubits=(0,)) for s in head], single, real, backwards=False)
            for q, head in heads.items()
        }
        middle = max((i + 1 for i, s in enumerate(rest) if program.uses_inputs(s)), default=0)  # type: ignore[arg-type]
        self.middle = PauliSteps(rest[:middle], program, real, backwards=False) if middle else None
        self.tail = PauliSteps(rest[middle:], program, real, backwards=True)
        self.add("effects", circuit.effects, real)
        self.add("ground", np.array([1.0, 0.0, 1.0, 0.0])[None, :, None], real)

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        tables = self.on(inputs.device)
        effects = tables["effects"]
        propagated = self._propagated(effects, weights)
        rows, high = effects.shape[1], self.num_qubits - self.num_qubits // 2
        per_sample = effects.shape[0] if self.middle else rows * 4**high
        chunk = max(1, CHUNK // (per_sample * max(1, weights.shape[0])))
        if torch.is_grad_enabled() or len(inputs) <= chunk:
            return self._meet(inputs, weights, propagated)
        return torch.cat([self._meet(part, weights, propagated) for part in inputs.split(chunk)])

    def _propagated(self, effects: Tensor, weights: Tensor) -> Tensor:
        """The effects at the end of the data's part, ``(groups, 4^n, rows)``: they depend on the weights alone."""
        if self.kept is None or torch.is_grad_enabled():
            return self.tail(effects.expand(weights.shape[0], -1, -1), None, weights)
        key = (self.number, weights.device, weights.shape, weights.cpu().numpy().tobytes())
        if (found := self.kept.get(key)) is None:
            found = self.tail(effects.expand(weights.shape[0], -1, -1), None, weights)
            self.kept.put(key, found)
        return found

    def _meet(self, inputs: Tensor, weights: Tensor, propagated: Tensor) -> Tensor:
        batch, groups, rows = inputs.shape[0], inputs.shape[1], propagated.shape[-1]
        ground = self.on(inputs.device)["ground"].expand(groups, -1, batch)
        states = [self.heads[q](ground, inputs, weights) if q in self.heads else ground for q in range(self.num_qubits)]
        half = self.num_qubits // 2
        low, high = _product(states[:half], ground), _product(states[half:], ground)
        if self.middle is not None:
            state = self.middle((high.unsqueeze(2) * low.unsqueeze(1)).flatten(1, 2), inputs, weights)
            return torch.matmul(propagated.transpose(1, 2), state).permute(2, 0, 1)
        split = propagated.reshape(groups, 4 ** (self.num_qubits - half), 4**half, rows)
        met = torch.matmul(split.permute(0, 3, 1, 2).reshape(groups, -1, 4**half), low)
        met = met.reshape(groups, rows, high.shape[1], batch) * high.unsqueeze(1)
        return met.sum(2).permute(2, 0, 1)


class NoisySimulator:
    """Expectation values of a template on a noisy device, called like :class:`~qrkt_hw.simulator.Simulator`.

    The rows of ``circuits``, of at most :data:`LARGEST` qubits, are the template's observables; their values are added.
    ``kept`` holds what depends on the weights alone between calls without gradients. The arithmetic is real.
    """

    method: ClassVar[str] = "superoperator"

    def __init__(
        self, template: CircuitTemplate, circuits: Sequence[NoisyCircuit], dtype: torch.dtype,
        kept: PropagatedCache | None = None,
    ) -> None:  # fmt: skip
        for circuit in circuits:
            if circuit.num_qubits > LARGEST:
                raise ValueError(f"superoperators fit {LARGEST} qubits, not {circuit.num_qubits}")
        self.template, self.dtype, self.real_dtype = template, dtype, REAL[dtype]
        shape = (template.num_inputs, template.num_weights)
        self._parts = [PropagatedRows(c, *shape, self.real_dtype, kept) for c in circuits]

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Values ``(..., groups, rows)``, real; inputs ``(..., groups, inputs)``, weights ``(groups, weights)``."""
        lead, groups = inputs.shape[:-2], inputs.shape[-2]
        flat = inputs.reshape(math.prod(lead), groups, inputs.shape[-1]).to(self.real_dtype)
        values = torch.stack([part(flat, weights.to(self.real_dtype)) for part in self._parts]).sum(0)
        return values.reshape(*lead, groups, values.shape[-1])


def _heads(steps: Sequence[NoisyStep], program: Program) -> tuple[dict[int, list[NoisyStep]], list[NoisyStep]]:
    """For each qubit its one-qubit steps up to the last rotation by data in front of its first wider step; the rest."""
    leading: dict[int, list[int]] = {q: [] for q in range(program.num_qubits)}
    closed: set[int] = set()
    for place, step in enumerate(steps):
        if len(step.qubits) == 1 and step.qubits[0] not in closed:
            leading[step.qubits[0]].append(place)
        else:
            closed.update(step.qubits)
    for places in leading.values():
        end = max((i + 1 for i, p in enumerate(places) if program.uses_inputs(steps[p])), default=0)  # type: ignore[arg-type]
        del places[end:]
    heads = {qubit: [steps[p] for p in places] for qubit, places in leading.items() if places}
    taken = {p for places in leading.values() for p in places}
    return heads, [s for place, s in enumerate(steps) if place not in taken]


def _product(states: Sequence[Tensor], ground: Tensor) -> Tensor:
    """``(groups, 4^k, batch)`` of one-qubit vectors ``(groups, 4, batch)``, the first least significant; k may be 0."""
    product = torch.ones_like(ground[:, :1])
    for state in states:
        product = (state.unsqueeze(2) * product.unsqueeze(1)).flatten(1, 2)
    return product

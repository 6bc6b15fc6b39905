"""Expectation values in a statevector, differentiated by the adjoint method: memory of two states, for any depth.

The circuit is brought to rotations about Pauli strings (see :mod:`qrkt_hw.compiler.litinski`). With
``lambda = sum_m g_m O_m psi`` after a rotation about P, the gradient by its angle is ``Im <lambda| P |psi>``; then the
rotation is undone on both states, and the one before it follows (Jones and Gacon, arXiv:2009.02823). On a CPU a native
kernel does it for a few samples at a time; elsewhere torch, over the whole batch.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.compiler import Affine, Fixed, Rotation, lower
from qrkt_hw.compiler.litinski import Absorbed, PauliRotation, Reading, absorb
from qrkt_hw.simulator import native
from qrkt_hw.simulator.native import ops
from qrkt_hw.simulator.tables import Angles, Tables, apply_matrix, ordinary_tensors

LARGEST = 28  # qubits
LARGEST_NATIVE = 24  # beyond, the kernel's chunk of samples takes more memory than a sample at a time
LARGEST_MATRIX = 6  # qubits of a gate that is no rotation
LARGEST_TABLE = 2**22  # signs that are kept


class Statevector:
    """See the module."""

    name: ClassVar[str] = "adjoint"

    def __init__(self, template: CircuitTemplate, dtype: torch.dtype) -> None:
        found = absorb(template)
        sizes = (template.num_inputs, template.num_weights, template.num_outputs)
        real = torch.zeros((), dtype=dtype).real.dtype
        self.torch = TorchStatevector(found, template.num_qubits, sizes, dtype)
        self.kernel: ops.StatevectorKernel | None = None
        if native.library() is not None and template.num_qubits <= LARGEST_NATIVE:
            circuit = self.torch.parameters, _fields(found, self.torch.parameters, template)
            self.kernel = ops.StatevectorKernel(sizes, real, self.torch.reference, template.num_qubits, circuit)

    @staticmethod
    def supports(template: CircuitTemplate) -> bool:
        wide = any(isinstance(s, Fixed) and len(s.qubits) > LARGEST_MATRIX for s in lower(template).steps)
        return template.encoding == "angle" and template.num_qubits <= LARGEST and not wide

    @staticmethod
    def cost(template: CircuitTemplate) -> float:
        """Estimated nanoseconds for a batch of 256, forward and backward."""
        size, outputs = 2**template.num_qubits, template.num_outputs
        if native.library() is None:
            steps = lower(template).steps
            factors = (30.0 if isinstance(s, Rotation) else 10.0 * 2 ** len(s.qubits) for s in steps)
            return 0.9 * (1e5 + sum(8e4 + factor * size * 256 for factor in factors))
        each = sum(1.5 * 2 ** len(s.qubits) if isinstance(s, Fixed) else 1.0 for s in absorb(template).steps)
        return 1.7e5 + 256 * size * (0.34 * each + 0.17 * outputs)

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Values ``(batch, groups, observables)``."""
        if self.kernel is not None and native.serves(inputs, weights):
            return ops.evaluate(self.kernel, inputs, weights)
        if native.traced(inputs, weights):
            return self.torch.reference(inputs, weights)
        return ops.evaluate(self.torch, inputs, weights)


class TorchStatevector(Tables):
    """The same by torch's operations, on any device: states ``(groups, 2^n, batch)``."""

    def __init__(self, circuit: Absorbed, num_qubits: int, sizes: ops.Sizes, dtype: torch.dtype) -> None:
        super().__init__()
        self.steps, self.num_qubits, self.num_outputs, self.dtype = circuit.steps, num_qubits, sizes[2], dtype
        self.real = torch.zeros((), dtype=dtype).real.dtype
        rotations = [s for s in self.steps if isinstance(s, PauliRotation)]
        self.parameters = list(dict.fromkeys(s.angle for s in rotations)) or [Affine()]
        self.place = {angle: k for k, angle in enumerate(self.parameters)}
        self.angles = Angles(self.parameters, sizes[0], sizes[1], self.real)
        self.by_flip: dict[int, list[Reading]] = {}
        for reading in circuit.readings:
            self.by_flip.setdefault(reading.x, []).append(reading)
        for k, step in enumerate(self.steps):
            if isinstance(step, Fixed):
                self.add(f"matrix{k}", step.matrix, dtype)
        for x, readings in self.by_flip.items():
            factors = np.zeros((self.num_outputs, len(readings)), dtype=complex)
            for k, r in enumerate(readings):
                factors[r.observable, k] = r.factor * (-1j) ** ((r.x & r.z).bit_count() % 4)
            self.add(f"factors{x}", factors, dtype)
        self._signs: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    def reference(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Values in operations that autograd can follow any number of times."""
        return self.read(self.state(inputs, weights))

    def forward(self, inputs: Tensor, weights: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            state = self.state(inputs, weights)
            return self.read(state), (state if keep else None)

    def backward(
        self, inputs: Tensor, weights: Tensor, kept: Tensor, cotangent: Tensor, needs: Sequence[bool]
    ) -> ops.Pair:
        with torch.no_grad():
            state, (cosines, sines) = kept, self._waves(inputs, weights)
            with torch.enable_grad():  # lambda: half the gradient by the real part and by the imaginary part
                leaf = torch.view_as_real(state.detach()).clone().requires_grad_()
                value = self.read(torch.view_as_complex(leaf))
            (by_part,) = torch.autograd.grad(value, leaf, cotangent)
            other = torch.view_as_complex(by_part.contiguous()) * 0.5
            by_angle = torch.zeros_like(cosines)
            for k in reversed(range(len(self.steps))):
                step = self.steps[k]
                if isinstance(step, PauliRotation):
                    by_angle[self.place[step.angle]] += (other.conj() * self._pauli(step, state)).imag.sum(1)
                state = self._step(k, state, cosines, sines, -1)
                other = self._step(k, other, cosines, sines, -1)
            tables = self.angles.on(inputs.device)
            grad_inputs = by_angle.permute(2, 1, 0) @ tables["to_inputs"].t() if needs[0] else None
            return grad_inputs, (tables["to_weights"] @ by_angle.sum(2)).t() if needs[1] else None

    def state(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Final states ``(groups, 2^n, batch)``, qubit 0 least significant."""
        cosines, sines = self._waves(inputs, weights)
        shape = weights.shape[0], 2**self.num_qubits, inputs.shape[0]
        state = torch.zeros(shape, dtype=self.dtype, device=inputs.device)
        state[:, 0] = 1
        for k in range(len(self.steps)):
            state = self._step(k, state, cosines, sines, 1)
        return state

    def read(self, state: Tensor) -> Tensor:
        """Expectation values ``(batch, groups, observables)``.

        That of a string is ``(-i)^|x & z| sum_k (-1)^|z & k| conj(psi[k]) psi[k ^ x]``.
        """
        tables, size = self.on(state.device), state.shape[1]
        total = state.new_zeros(state.shape[0], self.num_outputs, state.shape[2], dtype=self.real)
        for x, readings in self.by_flip.items():
            product = state.conj() * self._flip(state, x) if x else (state.real**2 + state.imag**2)
            many = max(1, LARGEST_TABLE // size)
            for start in range(0, len(readings), many):
                chosen = tuple(r.z for r in readings[start : start + many])
                signs, factors = self._sign(chosen, state.device), tables[f"factors{x}"][:, start : start + many]
                if not x:
                    total = total + factors.real @ (signs @ product)
                    continue
                total = total + factors.real @ (signs @ product.real) - factors.imag @ (signs @ product.imag)
        return total.permute(2, 0, 1)

    def _waves(self, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        half = self.angles(inputs, weights) * 0.5
        return half.cos(), half.sin()

    def _step(self, k: int, state: Tensor, cosines: Tensor, sines: Tensor, direction: int) -> Tensor:
        step = self.steps[k]
        if isinstance(step, PauliRotation):
            place = self.place[step.angle]
            moved = self._pauli(step, state)
            return cosines[place].unsqueeze(1) * state + (sines[place] * (-1j * direction)).unsqueeze(1) * moved
        matrix = self.on(state.device)[f"matrix{k}"]
        return apply_matrix(state, matrix if direction == 1 else matrix.conj().t(), step.qubits, 2)

    def _pauli(self, step: PauliRotation, state: Tensor) -> Tensor:
        """``sign P |psi>``."""
        phase = step.sign * (-1j) ** ((step.x & step.z).bit_count() % 4)
        signs = self._sign((step.z,), state.device).squeeze(0).unsqueeze(1)
        return (signs * phase if phase.imag else signs * phase.real) * self._flip(state, step.x)

    def _flip(self, state: Tensor, x: int) -> Tensor:
        """``psi[k ^ x]``."""
        axes = [self.num_qubits - q for q in range(self.num_qubits) if x >> q & 1]
        if not axes:
            return state
        cube = state.reshape(state.shape[0], *([2] * self.num_qubits), state.shape[2])
        return cube.flip(axes).reshape(state.shape)

    def _sign(self, strings: tuple[int, ...], device: torch.device) -> Tensor:
        """``(-1)^|z & k|`` for all k, ``(strings, 2^n)``; kept where it is small."""
        found = self._signs.get((strings, device))
        if found is not None:
            return found
        with ordinary_tensors():
            made = torch.ones(len(strings), 1, dtype=self.real, device=device)
            for qubit in range(self.num_qubits):
                bit = torch.tensor([[1.0 - 2.0 * (z >> qubit & 1)] for z in strings], dtype=self.real, device=device)
                made = torch.cat([made, bit * made], dim=1)
        if made.numel() <= LARGEST_TABLE:
            self._signs[strings, device] = made
        return made


def _fields(circuit: Absorbed, angles: Sequence[Affine], template: CircuitTemplate) -> tuple:
    """The fields of the kernel's ``Circuit``."""
    place = {angle: k for k, angle in enumerate(angles)}
    rows: list[tuple[int, int, int, int, int, int]] = []  # x, z, sign, angle, qubits of a matrix, its place
    qubits: list[int] = []
    matrices: list[float] = []
    for step in circuit.steps:
        if isinstance(step, PauliRotation):
            rows.append((step.x, step.z, step.sign, place[step.angle], 0, 0))
            qubits += [0] * LARGEST_MATRIX
        else:
            rows.append((0, 0, 1, 0, len(step.qubits), len(matrices)))
            qubits += [*step.qubits, *([0] * (LARGEST_MATRIX - len(step.qubits)))]
            matrices += [*step.matrix.real.ravel().tolist(), *step.matrix.imag.ravel().tolist()]
    readings = sorted(circuit.readings, key=lambda r: r.x)
    rotations = [(r[0], r[1]) if not r[4] else None for r in rows]
    return (
        template.num_qubits, template.num_inputs, template.num_weights, template.num_outputs, len(rows), len(readings),
        *np.array(rows, dtype=np.int32).reshape(-1, 6).T, qubits, matrices or [0.0], [r.x for r in readings],
        [r.z for r in readings], [r.observable for r in readings], [float(r.factor) for r in readings] or [0.0],
        [any(i < template.num_inputs for i, _ in angle.terms) for angle in angles],
        *runs_of(rotations, template.num_qubits), *runs_of([(r.x, r.z) for r in readings], template.num_qubits),
    )  # fmt: skip


def runs_of(strings: Sequence[tuple[int, int] | None], qubits: int) -> tuple[int, list[int], list, list, list, list]:
    """The fields of the kernel's ``Runs``: strings ``x, z`` whose flips lie in one small span go through together.

    They are the number of runs, where each begins (and the last ends), its rank (-1: a matrix), ``qubits`` numbers for
    its basis, and the strings on its cosets.

    What is on a coset of the span stays there. So a block of so many rows, small enough for the nearest cache, takes
    all strings of its run one after the other. None is a matrix, which is a run of its own.
    """
    most = qubits if qubits <= native.BLOCKED else native.RANK
    starts, ranks, bases, local = list[int](), list[int](), list[int](), list[tuple[int, int]]()
    begin = 0
    while begin < len(strings):
        basis, end = list[int](), begin
        while end < len(strings) and (string := strings[end]) is not None:
            if (grown := _spanning(basis, string[0], most)) is None:
                break
            basis, end = grown, end + 1
        if end == begin:
            ranks.append(-1)
            local.append((0, 0))
            end = begin + 1
        else:
            for qubit in range(qubits):
                basis = _spanning(basis, 1 << qubit, most) or basis
            basis.sort()
            ranks.append(len(basis))
            for x, z in filter(None, strings[begin:end]):
                flips = sum((x >> v.bit_length() - 1 & 1) << i for i, v in enumerate(basis))
                local.append((flips, sum(((v & z).bit_count() & 1) << i for i, v in enumerate(basis))))
        bases += basis + [0] * (qubits - len(basis))
        starts.append(begin)
        begin = end
    return len(ranks), [*starts, len(strings)], ranks, bases, [x for x, _ in local], [z for _, z in local]


def _spanning(basis: list[int], x: int, most: int) -> list[int] | None:
    """Vectors that span x too, each with a highest bit that no other has; None where that takes more than ``most``."""
    for v in basis:
        x = x ^ v if x >> v.bit_length() - 1 & 1 else x
    if not x:
        return basis
    if len(basis) == most:
        return None
    top = 1 << x.bit_length() - 1
    return [v ^ x if v & top else v for v in basis] + [x]

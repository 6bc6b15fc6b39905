"""Expectation values of circuits that keep the Hamming weight, in the subspace of that weight.

With k excitations on n qubits that takes ``(n choose k)`` amplitudes instead of ``2^n``. A unary encoding has one
excitation, and its outputs are a matrix of the weights times the features: the matrix is the product of those of the
circuit's layers, and no angle of the features is computed. All operations are torch's, on any device, differentiable
any number of times.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qrkt_hw.ansatz import CircuitTemplate, remembered
from qrkt_hw.compiler import Affine
from qrkt_hw.compiler.subspace import Diagonal, Givens, Matrix, SubspaceProgram, subspace
from qrkt_hw.simulator import native
from qrkt_hw.simulator.native import ops
from qrkt_hw.simulator.tables import Angles, Tables

WIDEST = 2048  # basis states whose unitary is multiplied out


class Subspace:
    """See the module."""

    name: ClassVar[str] = "subspace"

    def __init__(self, template: CircuitTemplate, dtype: torch.dtype) -> None:
        program = subspace(template)
        assert program is not None
        evaluate = _States if template.encoding == "angle" else _LinearMap
        self.evaluate = evaluate(program, template, dtype)

    @staticmethod
    def supports(template: CircuitTemplate) -> bool:
        found = subspace(template)
        return found is not None and (template.encoding == "angle" or found.size <= WIDEST)

    @staticmethod
    def cost(template: CircuitTemplate) -> float:
        """Estimated nanoseconds for a batch of 256, forward and backward."""
        program = subspace(template)
        assert program is not None
        if template.encoding != "angle":
            return 1e5 + 2.0 * program.size**2 * len(layers(program))
        return 1e5 + len(program.steps) * (1.5e5 + 256 * 14.0 * program.size)

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Values ``(batch, groups, observables)``; inputs are features ``(batch, groups, features)``."""
        return self.evaluate(inputs, weights)


@remembered
def _map(template: CircuitTemplate) -> "_LinearMap":
    program = subspace(template)
    assert program is not None
    return _LinearMap(program, template, torch.complex128)


def linear_map(template: CircuitTemplate, weights: Tensor) -> Tensor:
    """The matrices of a unary template, ``(groups, outputs, features)`` in float64; weights ``(groups, weights)``."""
    return _map(template).matrix(weights.double())


def affine_map(
    template: CircuitTemplate, x: Tensor, weights: Tensor, scale: Tensor | None, bias: Tensor | None
) -> Tensor:
    """``scale * circuits(x) + bias`` of a unary template, ``(..., groups * outputs)``, in one product.

    x is ``(..., parts * features)``: part p is read by the groups p, p + parts, p + 2 parts, ...; weights are
    ``(groups, weights)``, scale and bias ``(groups * outputs,)``. Scaling the matrices costs less than scaling
    their products.
    """
    matrices = linear_map(template, weights)
    groups, outputs, features = matrices.shape
    matrices = (matrices if scale is None else matrices * scale.view(groups, outputs, 1)).to(x.dtype)
    parts = x.shape[-1] // features
    if parts == 1:
        return F.linear(x, matrices.flatten(0, 1), bias)
    readers = groups // parts
    rows = x.reshape(-1, parts, features).transpose(0, 1)
    stacked = matrices.view(readers, parts, outputs, features).transpose(0, 1).flatten(1, 2).mT
    if bias is None:
        found = rows @ stacked
    else:
        found = torch.baddbmm(bias.view(readers, parts, outputs).transpose(0, 1).reshape(parts, 1, -1), rows, stacked)
    found = found.unflatten(-1, (readers, outputs)).permute(1, 2, 0, 3)
    return found.reshape(*x.shape[:-1], groups * outputs)


def _angles(steps: Sequence[Diagonal | Givens | Matrix], template: CircuitTemplate, real: torch.dtype) -> Angles:
    found = [Affine() if isinstance(s, Matrix) else s.angle for s in steps] or [Affine()]
    return Angles(found, template.num_inputs, template.num_weights, real)


class _States(Tables):
    """States ``(groups, batch, size)``, step after step."""

    def __init__(self, program: SubspaceProgram, template: CircuitTemplate, dtype: torch.dtype) -> None:
        super().__init__()
        self.program = program
        self.real = torch.zeros((), dtype=dtype).real.dtype
        self.dtype = self.real if program.real else dtype
        self.angles = _angles(program.steps, template, self.real)
        for k, step in enumerate(program.steps):
            if isinstance(step, Diagonal):
                self.add(f"factor{k}", step.factor, self.real)
            elif isinstance(step, Givens):
                self.add(f"places{k}", np.concatenate([step.first, step.second]), torch.int64)
            else:
                self._matrix(f"{k}", step, self.dtype)
        for k, reading in enumerate(program.readings):
            self._matrix(f"reading{k}", reading, self.dtype)

    def _matrix(self, name: str, matrix: Matrix, dtype: torch.dtype) -> None:
        self.add(f"rows{name}", matrix.rows, torch.int64)
        self.add(f"columns{name}", matrix.columns, torch.int64)
        self.add(f"values{name}", matrix.values, dtype)

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        angles, tables = self.angles(inputs, weights).unsqueeze(-1), self.on(inputs.device)
        state = torch.zeros(
            weights.shape[0], inputs.shape[0], self.program.size, dtype=self.dtype, device=inputs.device
        )
        state[..., self.program.start] = 1
        for k, step in enumerate(self.program.steps):
            if isinstance(step, Matrix):
                moved = tables[f"values{k}"] * state[..., tables[f"columns{k}"]]
                state = torch.zeros_like(state).index_add(-1, tables[f"rows{k}"], moved)
            elif isinstance(step, Diagonal):
                angle = angles[k] * tables[f"factor{k}"]
                state = state * torch.complex(angle.cos(), -angle.sin())
            else:
                cos, sin, phase = angles[k].cos(), angles[k].sin(), step.phase
                factor = phase if self.dtype.is_complex else phase.real
                places = tables[f"places{k}"]
                a, b = state[..., places].chunk(2, dim=-1)
                moved = torch.cat([cos * a - sin * (factor.conjugate() * b), sin * (factor * a) + cos * b], dim=-1)
                state = state.index_copy(-1, places, moved)
        values = []
        for k in range(len(self.program.readings)):
            rows, columns = tables[f"rowsreading{k}"], tables[f"columnsreading{k}"]
            product = state[..., rows].conj() * state[..., columns] * tables[f"valuesreading{k}"]
            values.append((product.real if product.is_complex() else product).sum(-1))
        found = torch.stack(values, dim=-1).transpose(0, 1)
        if not found.requires_grad and angles.requires_grad:  # nothing moves them, and their gradients are 0
            found = found + 0 * angles.sum(0).transpose(0, 1)
        return found


class _LinearMap(Tables):
    """The matrix of a circuit after a unary encoding, applied to the features."""

    def __init__(self, program: SubspaceProgram, template: CircuitTemplate, dtype: torch.dtype) -> None:
        super().__init__()
        steps = program.steps[program.loading :]
        self.only_rotations = only_rotations(program)
        # nothing but rotations moves the reference, so its amplitude is left out where there is nothing else
        self.first = first = 1 if self.only_rotations else 0
        self.size = size = program.size - first
        self.real = torch.zeros((), dtype=dtype).real.dtype
        self.dtype = self.real if program.real else dtype
        self.layers = layers(program)
        self.kinds = [type(steps[layer[0]]) for layer in self.layers]
        self.angles = _angles(steps, template, self.real)
        rotations = [layer for layer, kind in zip(self.layers, self.kinds, strict=True) if kind is Givens]
        constant = np.tile(np.eye(size), (len(rotations), 1, 1))
        angle, place, factor = list[int](), list[int](), list[complex]()
        givens = [(k, row) for row, layer in enumerate(rotations) for k in layer]
        for k, row in givens:
            step = steps[k]
            assert isinstance(step, Givens)
            for a, b in zip((step.first - first).tolist(), (step.second - first).tolist(), strict=True):
                angle.append(k)
                place += [(row * size + i) * size + j for i, j in ((a, a), (b, b), (a, b), (b, a))]
                factor += [-step.phase.conjugate(), step.phase]
        self.count = len(rotations)
        self.add("constant", constant.reshape(-1), self.dtype)
        self.add("angle", np.array(angle, dtype=np.int64), torch.int64)
        self.add("place", np.array(place, dtype=np.int64).reshape(-1, 4).T.reshape(-1), torch.int64)
        self.add("factor", np.array(factor, dtype=complex).reshape(-1, 2).T, self.dtype)
        for layer in self.layers:
            lone = steps[layer[0]]
            if isinstance(lone, Diagonal):
                self.add(f"factor{layer[0]}", lone.factor, self.real)
            elif isinstance(lone, Matrix):
                whole = np.zeros((size, size), dtype=complex)
                np.add.at(whole, (lone.rows, lone.columns), lone.values)
                self.add(f"matrix{layer[0]}", whole, self.dtype)
        # an observable reads features through the reference, whose amplitude is 1 before its phase
        read = np.zeros((template.num_outputs, program.size), dtype=complex)
        for k, reading in enumerate(program.readings):
            through = reading.rows == 0
            np.add.at(read[k], reading.columns[through], reading.values[through])
        self.add("read", read[:, first:], self.dtype)
        self.kernel: ops.GivensKernel | None = None
        if self.only_rotations and not self.dtype.is_complex and native.library() is not None:
            turned = [one for layer in self.layers for k in layer if isinstance(one := steps[k], Givens)]
            inputs = template.num_inputs
            angles = [Affine(tuple((i - inputs, c) for i, c in g.angle.terms), g.angle.offset) * g.phase.real
                      for g in turned]  # fmt: skip
            # one excitation has one pair for each rotation
            pairs = [int(g.first[0]) - first for g in turned], [int(g.second[0]) - first for g in turned]
            self.kernel = ops.GivensKernel(template.num_weights, self.real, self._reference, size, (angles, pairs))
        self.reads_all = bool(np.array_equal(read[:, 1:], np.eye(program.size - 1)))

    def matrix(self, weights: Tensor) -> Tensor:
        """``(groups, outputs, features)`` of weights ``(groups, weights)``."""
        read = self.on(weights.device)["read"]
        if self.kernel is not None and native.serves(weights):
            unitary = ops.evaluate(self.kernel, weights.new_empty(0, len(weights), 0), weights)
        else:
            unitary = self._unitary(weights)
        if self.only_rotations:
            found = unitary if self.reads_all else read @ unitary
        else:
            found = (unitary[:, :1, :1].conj() * (read @ unitary))[..., 1:]
        return found.real if found.is_complex() else found

    def _reference(self, inputs: Tensor, weights: Tensor) -> Tensor:
        return self._unitary(weights)

    def _unitary(self, weights: Tensor) -> Tensor:
        """That of all steps after the encoding, ``(groups, size, size)``."""
        groups, size, tables = len(weights), self.size, self.on(weights.device)
        angles = self.angles(None, weights)[..., 0].t()
        rotating = angles[:, tables["angle"]]
        cosines, sines = rotating.cos().to(self.dtype), rotating.sin()
        entries = torch.cat([cosines, cosines, *(sines * factor for factor in tables["factor"])], dim=1)
        whole = tables["constant"].expand(groups, -1).index_copy(1, tables["place"], entries)
        rotations = whole.view(groups, self.count, size, size)
        if self.only_rotations and self.count:
            return _product(rotations)
        rows = iter(rotations.unbind(1))
        factors = [torch.eye(size, dtype=self.dtype, device=weights.device).expand(groups, -1, -1)]
        for layer, kind in zip(self.layers, self.kinds, strict=True):
            if kind is Givens:
                factors.append(next(rows))
            elif kind is Matrix:
                factors.append(tables[f"matrix{layer[0]}"].expand(groups, -1, -1))
            else:
                angle = angles[:, layer[0], None] * tables[f"factor{layer[0]}"]
                factors.append(torch.diag_embed(torch.complex(angle.cos(), -angle.sin())))
        return _product(torch.stack(factors, dim=1))

    def __call__(self, features: Tensor, weights: Tensor) -> Tensor:
        matrix = self.matrix(weights)
        if len(matrix) == 1:
            return features @ matrix[0].mT
        return (features.transpose(0, 1) @ matrix.mT).transpose(0, 1)


def only_rotations(program: SubspaceProgram) -> bool:
    """Whether all steps after the encoding are Givens rotations."""
    return all(isinstance(s, Givens) for s in program.steps[program.loading :])


def layers(program: SubspaceProgram) -> list[list[int]]:
    """Steps after the encoding that can be one matrix: Givens rotations on amplitudes apart; each other step alone."""
    found, ready = list[list[int]](), np.zeros(program.size, dtype=int)  # the first layer that may take an amplitude
    open_until = 0
    for k, step in enumerate(program.steps[program.loading :]):
        if not isinstance(step, Givens):
            found.append([k])
            ready[:] = open_until = len(found)
            continue
        both = np.concatenate([step.first, step.second])
        place = max(int(ready[both].max(initial=0)), open_until)
        if place == len(found):
            found.append([])
        found[place].append(k)
        ready[both] = place + 1
    return found


def _product(factors: Tensor) -> Tensor:
    """``factors[:, -1] @ ... @ factors[:, 0]``, by pairs."""
    while factors.shape[1] > 1:
        even = factors.shape[1] & ~1
        paired = factors[:, 1:even:2] @ factors[:, 0:even:2]
        factors = torch.cat([paired, factors[:, even:]], dim=1) if factors.shape[1] & 1 else paired
    return factors[:, 0]

"""What a template can do: which parameters its outputs depend on, how much of its state space it reaches, how much it
entangles, and how flat its training landscape is.

Expressibility and entangling capability: Sim, Johnson, Aspuru-Guzik, Advanced Quantum Technologies 2, 1900070 (2019).
Variance of the gradient: McClean et al., Nature Communications 9, 4812 (2018).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit.quantum_info import SparsePauliOp

from qrkt_hw.ansatz import CircuitTemplate, remembered
from qrkt_hw.compiler import Program, Rotation, derive, lower
from qrkt_hw.compiler.litinski import Absorbed, Reading, rotations
from qrkt_hw.compiler.propagation import propagate, terms_of
from qrkt_hw.simulator.core import simulator
from qrkt_hw.simulator.statevector import TorchStatevector
from qrkt_hw.simulator.subspace import linear_map
from qrkt_hw.simulator.tables import derived_jacobian

LARGEST_SUM = 2048  # Pauli strings up to which an observable is propagated
LARGEST_STATE = 12  # qubits up to which a statevector decides instead
# numbers touched over all observables, some seconds' worth; beyond, the light cone bounds what they depend on
LARGEST_WORK = 2e8
POINTS = 3
TOLERANCE = 1e-13
PAIRS, BINS = 5000, 75  # as published
LARGEST = 14  # qubits whose states are sampled
_AMPLITUDES = 2**21  # amplitudes held at once


@dataclass(frozen=True)
class Cone:
    """What one observable depends on.

    Attributes:
        inputs, weights: indices, sorted.
        exact: each of them moves the observable at almost every point; else they are all that can, "at most".
        strings: most Pauli strings the observable became on its way back; 0 where they were too many to follow.
    """

    inputs: tuple[int, ...]
    weights: tuple[int, ...]
    exact: bool
    strings: int


@remembered
def cones(template: CircuitTemplate) -> tuple[Cone, ...]:
    """The light cone of every observable of a template, in order.

    A parameter is in the cone where the derivative at random points is not zero, which holds with probability one for a
    function that moves. Pauli propagation finds the derivatives where the strings stay few; else a statevector does for
    few qubits, and the light cone (every parameter of a gate that can reach the observable) bounds them for many.
    """
    if template.encoding != "angle":
        return _cones_of_matrix(template)
    derived = derive(template)
    program = lower(derived.template)
    drawn = derived.points(POINTS, seed=20)
    points, chain = derived.values(drawn), None if derived.trivial else derived_jacobian(derived, drawn)
    work = len(program.steps) * (1.0 + len(template.observables)) * POINTS * 2**program.num_qubits
    by_state: NDArray[np.float64] | None = None
    found: list[Cone] = []
    for place, observable in enumerate(template.observables):
        propagated = propagate(program, observable, points, LARGEST_SUM, LARGEST_WORK / len(template.observables))
        gradients, strings = (propagated[0][:, 1:], propagated[1]) if propagated else (None, 0)
        if gradients is None and program.num_qubits <= LARGEST_STATE and work <= LARGEST_WORK:
            by_state = jacobian(derived.template, points) if by_state is None else by_state
            gradients = by_state[:, place]
        if gradients is not None:
            by_parameter = gradients if chain is None else np.einsum("ps,psk->pk", gradients, chain)
            moves = (np.abs(by_parameter) > TOLERANCE).any(axis=0)
        else:
            reached = light_cone(program, observable)
            moves = reached if chain is None else (chain[:, reached] != 0).any(axis=(0, 1))
        where = np.flatnonzero(moves)
        split = np.searchsorted(where, template.num_inputs)
        inputs, weights = where[:split].tolist(), (where[split:] - template.num_inputs).tolist()
        found.append(Cone(tuple(inputs), tuple(weights), gradients is not None, strings))
    return tuple(found)


def _cones_of_matrix(template: CircuitTemplate) -> tuple[Cone, ...]:
    """The same after a unary encoding, whose outputs are a matrix of the weights times the features."""
    drawn = np.random.default_rng(20).uniform(-np.pi, np.pi, (POINTS, template.num_weights))
    weights = torch.from_numpy(drawn).requires_grad_()
    with torch.enable_grad():
        matrix = linear_map(template, weights)
    cones = []
    for row in matrix.unbind(1):
        inputs = np.flatnonzero((row.abs() > TOLERANCE).any(0).numpy()).tolist()
        moved = torch.zeros_like(weights)
        if row.requires_grad:
            mixed = torch.linspace(1, 2, row.shape[1], dtype=row.dtype).expand_as(row)
            (moved,) = torch.autograd.grad(row, weights, mixed, retain_graph=True)
        cones.append(
            Cone(tuple(inputs), tuple(np.flatnonzero((moved.abs() > TOLERANCE).any(0).numpy()).tolist()), True, 0)
        )
    return tuple(cones)


def light_cone(program: Program, observable: SparsePauliOp) -> NDArray[np.bool_]:
    """Parameters of gates that can reach the observable, ``(inputs + weights,)``."""
    reached = {q for _, qubits, c in observable.to_sparse_list() if c for q in qubits}
    moves = np.zeros(program.num_inputs + program.num_weights, dtype=bool)
    for step in reversed(program.steps):
        if reached.isdisjoint(step.qubits):
            continue
        reached.update(step.qubits)
        if isinstance(step, Rotation):
            moves[[i for i, c in step.angle.terms if c]] = True
    return moves


@dataclass(frozen=True)
class Measures:
    """Figures of one template; inputs and weights are drawn alike, uniform in [0, 2 pi).

    Attributes:
        expressibility: Kullback-Leibler divergence of its pair fidelities from those of Haar-random states; 0 is best.
            The estimate of a Haar-random circuit is not 0 but about ``(bins - 1) / (2 * pairs)``.
        entangling: mean Meyer-Wallach entanglement of its states, 0 (products) to 1.
        gradient_variance: variance of ``d<O>/d(weight)``, averaged over weights and observables.
        dead_weights: weights that move no observable.
    """

    expressibility: float
    entangling: float
    gradient_variance: float
    dead_weights: int


def measure(template: CircuitTemplate, *, pairs: int = PAIRS, samples: int = 200, seed: int = 0) -> Measures:
    """All figures of a template of at most about 14 qubits, over random parameters.

    ``pairs`` of states give the expressibility and the entangling capability, ``samples`` the variance of the gradient.
    """
    fidelities, entanglement = [], []
    for left, right in zip(_states(template, pairs, seed), _states(template, pairs, seed + 1), strict=True):
        fidelities.append(np.abs(np.einsum("bi,bi->b", left.conj(), right)) ** 2)
        entanglement.append(meyer_wallach(left))
    found = gradients(template, samples, seed + 2)
    moving = (np.abs(found) > 1e-11).any(axis=(0, 1)) if found.size else np.zeros(0, dtype=bool)
    return Measures(
        expressibility=divergence_from_haar(np.concatenate(fidelities), template.num_qubits),
        entangling=float(np.concatenate(entanglement).mean()),
        gradient_variance=float(found.var(axis=0, ddof=1).mean()) if found.size else 0.0,
        dead_weights=int((~moving).sum()),
    )


def expressibility(template: CircuitTemplate, *, pairs: int = PAIRS, bins: int = BINS, seed: int = 0) -> float:
    """Divergence of the template's pair fidelities from those of Haar-random states; 0 where it reaches all."""
    states = zip(_states(template, pairs, seed), _states(template, pairs, seed + 1), strict=True)
    fidelities = [np.abs(np.einsum("bi,bi->b", left.conj(), right)) ** 2 for left, right in states]
    return divergence_from_haar(np.concatenate(fidelities), template.num_qubits, bins)


def entangling_capability(template: CircuitTemplate, *, samples: int = PAIRS, seed: int = 0) -> float:
    """Mean Meyer-Wallach entanglement over random parameters: 0 for products, 1 where every qubit is fully mixed."""
    return float(np.concatenate([meyer_wallach(psi) for psi in _states(template, samples, seed)]).mean())


def gradients(template: CircuitTemplate, samples: int, seed: int = 0) -> NDArray[np.float64]:
    """``d<O>/d(weight)`` at random parameters, ``(samples, observables, weights)``."""
    derived, drawn = derive(template), _uniform(template, samples, seed)
    found = jacobian(derived.template, derived.values(drawn))
    if not derived.trivial:
        found = found @ derived_jacobian(derived, drawn)
    return found[..., template.num_inputs :]


def typical_values(template: CircuitTemplate, samples: int = 40, seed: int = 11) -> NDArray[np.float64]:
    """Root mean square of every observable over random inputs and weights, ``(observables,)``."""
    evaluated = derive(template).template
    inputs, weights = _tensors(evaluated, _draw(template, samples, seed))
    values = simulator(evaluated, torch.complex128, "adjoint")(inputs, weights)[0].numpy()
    return np.sqrt((values**2).mean(axis=0))


def jacobian(template: CircuitTemplate, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    """Derivatives ``(samples, observables, inputs + weights)`` at parameters ``(samples, inputs + weights)``."""
    inputs, weights = (t.requires_grad_() for t in _tensors(template, parameters))
    with torch.enable_grad():
        values = simulator(template, torch.complex128, "adjoint")(inputs, weights)[0]
    totals = (values[:, place].sum() for place in range(template.num_outputs))
    found = [torch.autograd.grad(total, (inputs, weights), retain_graph=True) for total in totals]
    return torch.stack([torch.cat([by_input[0], by_weight], dim=1) for by_input, by_weight in found], dim=1).numpy()


def divergence_from_haar(fidelities: NDArray[np.float64], num_qubits: int, bins: int = BINS) -> float:
    """Kullback-Leibler divergence in nats of a histogram over ``bins`` equal bins from ``(N - 1)(1 - F)^(N - 2)``."""
    counts, edges = np.histogram(np.clip(fidelities, 0, 1), bins=bins, range=(0.0, 1.0))
    share = counts / counts.sum()
    # log of (1-low)^(N-1) - (1-high)^(N-1): the bins near F = 1 are far below the smallest float
    power = 2**num_qubits - 1
    with np.errstate(divide="ignore"):
        low, high = power * np.log1p(-edges[:-1]), power * np.log1p(-edges[1:])
    logs = low + np.log1p(-np.exp(high - low))
    seen = share > 0
    return float((share[seen] * (np.log(share[seen]) - logs[seen])).sum())


def meyer_wallach(psi: NDArray[np.complex128]) -> NDArray[np.float64]:
    """``2 (1 - mean purity of single qubits)`` of states ``(batch, 2^n)``; ``(batch,)``."""
    n = psi.shape[1].bit_length() - 1
    purities = []
    for qubit in range(n):
        halves = np.moveaxis(psi.reshape(len(psi), -1, 2, 2**qubit), 2, 1).reshape(len(psi), 2, -1)
        reduced = halves @ halves.conj().swapaxes(1, 2)
        purities.append((np.abs(reduced) ** 2).sum(axis=(1, 2)))
    return 2 * (1 - np.mean(purities, axis=0))


def _states(template: CircuitTemplate, count: int, seed: int) -> Iterator[NDArray[np.complex128]]:
    """States ``(batch, 2^n)`` at random parameters, some at a time."""
    evaluated, drawn = derive(template).template, _draw(template, count, seed)
    sizes = (evaluated.num_inputs, evaluated.num_weights, evaluated.num_outputs)
    readings = tuple(Reading(0, c, x, z) for (x, z), c in terms_of(evaluated.observables[0]))
    circuit = Absorbed(rotations(lower(evaluated)), readings)
    simulate = TorchStatevector(circuit, template.num_qubits, sizes, torch.complex128)
    step = max(1, _AMPLITUDES >> template.num_qubits)
    for start in range(0, count, step):
        inputs, weights = _tensors(evaluated, drawn[start : start + step])
        with torch.no_grad():
            found = simulate.state(inputs, weights)
        yield found.squeeze(2).numpy()


def _tensors(template: CircuitTemplate, parameters: NDArray[np.float64]) -> tuple[torch.Tensor, torch.Tensor]:
    """Parameters ``(samples, parameters)`` as inputs ``(1, samples, inputs)`` and weights ``(samples, weights)``."""
    found = torch.tensor(parameters, dtype=torch.float64)
    return found[None, :, : template.num_inputs].clone(), found[:, template.num_inputs :].clone()


def _draw(template: CircuitTemplate, count: int, seed: int) -> NDArray[np.float64]:
    """Parameters of the derived template, ``(count, parameters)``; the template's own are uniform in [0, 2 pi)."""
    found = derive(template).values(_uniform(template, count, seed))
    if not np.isfinite(found).all():
        what = "an angle has no value somewhere in [0, 2 pi), where it is measured"
        raise ValueError(f"template {template.name!r}: {what}")
    return found


def _uniform(template: CircuitTemplate, count: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(0, 2 * np.pi, (count, len(template.parameters)))

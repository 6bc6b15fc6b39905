"""How much of its state space a template reaches, how much it entangles, and how flat its training landscape is.

Expressibility and entangling capability: Sim, Johnson, Aspuru-Guzik, Advanced Quantum Technologies 2, 1900070 (2019).
Variance of the gradient: McClean et al., Nature Communications 9, 4812 (2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.compiler.derived import derive
from qrkt_hw.compiler.program import Program, lower
from qrkt_hw.compiler.states import expectations, jacobian, states

PAIRS, BINS = 5000, 75  # as published
LARGEST = 14  # qubits whose states are sampled
_AMPLITUDES = 2**21  # amplitudes held at once


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
    """All figures of a template.

    Args:
        template: of at most about 14 qubits.
        pairs: of states for the expressibility; their states also give the entangling capability.
        samples: parameter sets for the variance of the gradient.
        seed: of the parameters.
    """
    program, one, two = _program(template), _draw(template, pairs, seed), _draw(template, pairs, seed + 1)
    fidelities, entanglement = [], []
    step = max(1, _AMPLITUDES >> program.num_qubits)
    for start in range(0, pairs, step):
        left, right = (states(program, part[start : start + step]) for part in (one, two))
        fidelities.append(np.abs(np.einsum("bi,bi->b", left.conj(), right)) ** 2)
        entanglement.append(meyer_wallach(left))
    slopes = gradients(template, samples, seed + 2)
    moving = (np.abs(slopes) > 1e-11).any(axis=(0, 1)) if slopes.size else np.zeros(0, dtype=bool)
    variance = float(slopes.var(axis=0, ddof=1).mean()) if slopes.size else 0.0
    return Measures(
        expressibility=divergence_from_haar(np.concatenate(fidelities), program.num_qubits),
        entangling=float(np.concatenate(entanglement).mean()),
        gradient_variance=variance,
        dead_weights=int((~moving).sum()),
    )


def expressibility(template: CircuitTemplate, *, pairs: int = PAIRS, bins: int = BINS, seed: int = 0) -> float:
    """Divergence of the template's pair fidelities from those of Haar-random states; 0 where it reaches all."""
    program = _program(template)
    left, right = (states(program, _draw(template, pairs, seed + k)) for k in (0, 1))
    fidelities = np.abs(np.einsum("bi,bi->b", left.conj(), right)) ** 2
    return divergence_from_haar(fidelities, program.num_qubits, bins)


def entangling_capability(template: CircuitTemplate, *, samples: int = PAIRS, seed: int = 0) -> float:
    """Mean Meyer-Wallach entanglement over random parameters: 0 for products, 1 where every qubit is fully mixed."""
    return float(meyer_wallach(states(_program(template), _draw(template, samples, seed))).mean())


def gradients(template: CircuitTemplate, samples: int, seed: int = 0) -> NDArray[np.float64]:
    """``d<O>/d(weight)`` at random parameters, ``(samples, observables, weights)``."""
    derived, drawn = derive(template), _uniform(template, samples, seed)
    slopes = jacobian(lower(derived.template), template.observables, derived.values(drawn))
    if not derived.trivial:
        slopes = slopes @ derived.jacobian(drawn)
    return slopes[..., template.num_inputs :]


def typical_values(template: CircuitTemplate, samples: int = 40, seed: int = 11) -> NDArray[np.float64]:
    """Root mean square of every observable over random inputs and weights, ``(observables,)``."""
    psi = states(_program(template), _draw(template, samples, seed))
    return np.sqrt((expectations(template.observables, psi) ** 2).mean(axis=0))


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


def _program(template: CircuitTemplate) -> Program:
    return lower(derive(template).template)


def _draw(template: CircuitTemplate, count: int, seed: int) -> NDArray[np.float64]:
    """Parameters of the program, ``(count, parameters)``; the template's own are uniform in [0, 2 pi)."""
    found = derive(template).values(_uniform(template, count, seed))
    if not np.isfinite(found).all():
        raise ValueError(
            f"template {template.name!r}: an angle has no value somewhere in [0, 2 pi), where it is measured"
        )
    return found


def _uniform(template: CircuitTemplate, count: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(0, 2 * np.pi, (count, len(template.parameters)))

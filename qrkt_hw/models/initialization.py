"""Isometric initialisation: angles to begin with that let a signal through a circuit.

With angles drawn uniformly a circuit barely depends on its inputs: for standard normal x the linear part of its values,
``C = E[f(x) x^T]``, which is the mean Jacobian ``E[df/dx]`` (Stein's lemma), has singular values of some hundredths,
where a linear layer has them around one. Deep networks learn best where these are large and alike (Saxe et al. 2014,
arXiv:1312.6120; Pennington et al. 2017, arXiv:1711.04735). :func:`condition` moves the angles to where
``log det(C C^T)`` is largest. An ansatz may have no such place: :func:`linear_part` says what was reached.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.errors import UserError
from qrkt_hw.nn.quantum import QuantumLayer
from qrkt_hw.simulator import simulator

SAMPLES = 256
SIGNAL_SAMPLES = 4096
STEPS = 150
RATE = 0.1  # of Adam; angles change by up to this much a step
LARGEST = 12  # qubits
AMPLITUDES = 2**16  # of all circuits of a step, for one sample
FLOOR = 1e-6  # keeps the determinant of a circuit that ignores some direction finite


def condition(layers: Sequence[QuantumLayer]) -> None:
    """Move the angles of quantum layers, in place, from where they are to a nearby maximum of ``log det(C C^T)``.

    Circuits are evaluated without noise on the exact simulator, whatever backend the layers have; the inputs are drawn
    from torch's generator.

    Raises UserError: circuits of more than 12 qubits, whose 38,400 evaluations and gradients would take too long.
    """
    alike: dict[tuple, list[QuantumLayer]] = {}
    for layer in layers:
        template = layer.template
        if template.num_qubits > LARGEST:
            raise UserError(
                f"--initial-angles: conditioned is for circuits of at most {LARGEST} qubits, not "
                f"{template.num_qubits}; take uniform"
            )
        if layer.weight.numel() and not layer.network.unary:  # whose Jacobian is orthogonal already
            alike.setdefault((layer.network.evaluated, layer.dtype, layer.requested_method), []).append(layer)
    for together in alike.values():
        angles = torch.cat([layer.weight.detach().view(layer.groups, -1) for layer in together])
        at_once = max(1, AMPLITUDES >> together[0].template.num_qubits)
        moved = torch.cat([_ascend(together[0], part) for part in angles.split(at_once)])
        with torch.no_grad():
            for layer, part in zip(together, moved.split([layer.groups for layer in together]), strict=True):
                layer.weight.copy_(part.reshape(-1))


def linear_part(layer: QuantumLayer, samples: int = SAMPLES) -> Tensor:
    """``C = E[f(x) x^T]`` of each circuit for standard normal inputs, ``(groups, outputs, inputs)``.

    Args:
        layer: its circuits.
        samples: inputs drawn from torch's generator, half of them the other half's negatives; the entries' errors are
            about ``samples ** -0.5``.
    """
    weights = layer.weight.detach().view(layer.groups, layer.template.num_weights)
    with torch.no_grad():
        return _linear(layer, _inputs(layer, layer.groups, samples), weights)


def signal(template: CircuitTemplate, draws: int = 8, seed: int = 0) -> tuple[float, float]:
    """How much of a small signal a circuit passes: the geometric mean of the singular values of ``C``.

    A sine of each input has ``exp(-1/2)``, about 0.61; 0 says that the values hold nothing linear in some direction.

    Args:
        template: of some inputs; at most about 10 qubits.
        draws: sets of angles; the result is their median.
        seed: of angles and inputs; torch's generator is left alone.

    Returns:
        With angles as drawn, and as :func:`condition` leaves them.

    Raises:
        ValueError: an angle such as ``log(x)`` has no value for some inputs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = QuantumLayer(draws * template.num_features, ansatz=template, initial_weights="uniform")
        found = linear_part(layer, SIGNAL_SAMPLES)
        if not found.isfinite().all():
            raise ValueError(f"template {template.name!r}: an angle has no value for some normally distributed inputs")
        drawn = torch.linalg.svdvals(found)
        condition([layer])
        conditioned = torch.linalg.svdvals(linear_part(layer, SIGNAL_SAMPLES))
    before, after = (found.clamp_min(1e-12).log().mean(-1).exp().median().item() for found in (drawn, conditioned))
    return before, after


def _ascend(layer: QuantumLayer, angles: Tensor) -> Tensor:
    angles = angles.clone().requires_grad_()
    x = _inputs(layer, len(angles), SAMPLES)
    optimiser = torch.optim.Adam([angles], lr=RATE)
    for _ in range(STEPS):
        c = _linear(layer, x, angles)
        gram = c @ c.mT if c.shape[-2] <= c.shape[-1] else c.mT @ c
        floor = FLOOR * torch.eye(gram.shape[-1], dtype=gram.dtype)
        optimiser.zero_grad()
        (-torch.linalg.slogdet(gram + floor).logabsdet.sum()).backward()
        optimiser.step()
    return angles.detach()


def _inputs(layer: QuantumLayer, groups: int, samples: int) -> Tensor:
    x = torch.randn(samples // 2, groups, layer.template.num_features, dtype=layer.weight.dtype)
    return torch.cat([x, -x])  # even parts of the values, which C does not hold, then cancel to the last bit


def _linear(layer: QuantumLayer, x: Tensor, weights: Tensor) -> Tensor:
    evaluate = simulator(layer.network.simulated, layer.dtype, layer.requested_method)
    values = evaluate(*layer.network.derive(x, weights))
    return torch.einsum("sgo,sgi->goi", values, x) / len(x)

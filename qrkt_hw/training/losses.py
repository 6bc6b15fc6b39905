"""Losses of a GAN, and the gradient penalties that differentiate its discriminator twice.

``wgangp-eps``: Gulrajani et al. 2017 with Karras et al.'s drift term (2018). ``hinge``: Lim and Ye 2017.
``nonsaturating-r1``: Goodfellow et al. 2014 with the penalty of Mescheder et al. 2018.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qrkt_hw.runs.config import GanConfig

DRIFT = 1e-3
Score = Callable[[Tensor], Tensor]


def generator_loss(loss: str, fake: Tensor) -> Tensor:
    """Of the scores of drawn images."""
    return F.softplus(-fake).mean() if loss == "nonsaturating-r1" else -fake.mean()


def discriminator_loss(loss: str, real: Tensor, fake: Tensor) -> Tensor:
    """Of the scores of real and drawn images, without penalty."""
    if loss == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if loss == "nonsaturating-r1":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    return fake.mean() - real.mean() + DRIFT * real.mean().square()


def penalty(options: GanConfig, score: Score, real: Tensor, fake: Tensor) -> Tensor:
    """The gradient penalty of the options' loss, weighted; 0 for a loss without one.

    R1 is ``weight / 2 * mean |grad score(real)|^2``. wgangp-eps is ``weight / phi^2 * mean (|grad score| - phi)^2``
    at random points between real and drawn images.

    Args:
        options: loss, weight and phi.
        score: the discriminator.
        real, fake: images as it sees them, ``(batch, channels, size, size)``.
    """
    if options.loss == "hinge" or not options.penalty:
        return real.new_zeros(())
    if options.loss == "nonsaturating-r1":
        return options.penalty / 2 * _slopes(score, real).square().flatten(1).sum(1).mean()
    count = min(len(real), len(fake))
    between = torch.rand(count, 1, 1, 1, dtype=real.dtype, device=real.device)
    points = between * real[:count] + (1 - between) * fake[:count]
    norms = _slopes(score, points).flatten(1).norm(dim=1)
    phi = options.penalty_target
    return options.penalty / phi**2 * (norms - phi).square().mean()


def _slopes(score: Score, images: Tensor) -> Tensor:
    """Gradient of each score in its image, itself differentiable."""
    points = images.detach().requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no second derivative
        (slopes,) = torch.autograd.grad(score(points).sum(), points, create_graph=True)
    return slopes

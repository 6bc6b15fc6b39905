"""DiffAugment: differentiable augmentation of real and drawn images alike (Zhao et al. 2020, NeurIPS)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 1 / 8  # of a side
HOLE = 1 / 2  # of a side


def diff_augment(images: Tensor, policy: str) -> Tensor:
    """Images ``(batch, channels, size, size)`` in [-1, 1], augmented by the policies named with commas between.

    ``color``: brightness +-0.5, saturation times 0 to 2, contrast times 0.5 to 1.5. ``translation``: up to 1/8 of a
    side, padded with 0. ``cutout``: a square of half a side becomes 0. Every image has its own random numbers, of
    torch's generator.
    """
    for name in () if policy == "none" else policy.split(","):
        images = POLICIES[name](images)
    return images


def color(images: Tensor) -> Tensor:
    brightness, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, dtype=images.dtype, device=images.device)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (2 * saturation) + grey
    middle = images.mean((1, 2, 3), keepdim=True)
    return (images - middle) * (contrast + 0.5) + middle


def translation(images: Tensor) -> Tensor:
    size = images.shape[-1]
    most = int(size * SHIFT + 0.5)
    padded = F.pad(images, (most,) * 4)
    moves = torch.randint(0, 2 * most + 1, (2, len(images), 1, 1), device=images.device)
    along = torch.arange(size, device=images.device)
    rows, columns = moves[0] + along[:, None], moves[1] + along[None, :]
    picture = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[picture, :, rows, columns].permute(0, 3, 1, 2)


def cutout(images: Tensor) -> Tensor:
    size = images.shape[-1]
    side = int(size * HOLE + 0.5)
    corners = torch.randint(0, size + 1 - side % 2, (2, len(images), 1, 1), device=images.device) - side // 2
    along = torch.arange(size, device=images.device)
    inside = [(along >= corner) & (along < corner + side) for corner in corners]
    hole = inside[0].transpose(-1, -2) & inside[1]
    return images * ~hole[:, None]


POLICIES = {"color": color, "translation": translation, "cutout": cutout}

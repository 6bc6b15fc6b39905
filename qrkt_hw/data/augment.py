"""Augmentation of a batch of images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def augmented(images: Tensor, kind: str, random: np.random.Generator) -> Tensor:
    """A batch ``(batch, channels, height, width)``, each image on its own flipped left to right, shifted, or both.

    Args:
        images: normalised, so that the zero of the border is the mean colour.
        kind: ``flip``, ``crop`` or ``crop-flip``; a crop is taken from the image with a border of an eighth. ``shift``
            moves by a sixteenth at most, at least by up to a pixel, and repeats the edge: for images, like digits,
            whose border is not the mean colour.
        random: where the choices come from.
    """
    count, _, height, width = images.shape
    if "crop" in kind or kind == "shift":
        border = max(1, height // (16 if kind == "shift" else 8))
        padded = F.pad(images, (border,) * 4, mode="replicate" if kind == "shift" else "constant")
        rows, columns = (torch.from_numpy(random.integers(0, 2 * border + 1, count)) for _ in range(2))
        row = rows[:, None] + torch.arange(height)
        column = columns[:, None] + torch.arange(width)
        images = padded[torch.arange(count)[:, None, None], :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)
    if "flip" in kind:
        flips = torch.from_numpy(random.random(count) < 0.5)
        images = torch.where(flips[:, None, None, None], images.flip(-1), images)
    return images.contiguous()

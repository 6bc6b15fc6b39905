"""What augmentation does to images."""

from __future__ import annotations

import numpy as np
import torch

from qrkt_hw.data.batches import augmented


def test_a_shift_moves_by_a_pixel_at_most_and_repeats_the_edge():
    images = torch.arange(28.0 * 28).reshape(1, 1, 28, 28).expand(200, 1, 28, 28)
    moved = augmented(images, "shift", np.random.default_rng(0))
    padded = torch.nn.functional.pad(images[:1], (1,) * 4, mode="replicate")[0, 0]
    places = [(r, c) for r in range(3) for c in range(3)]
    found = [
        next(p for p in places if torch.equal(image[0], padded[p[0] : p[0] + 28, p[1] : p[1] + 28])) for image in moved
    ]
    assert set(found) == set(places)


def test_a_crop_has_a_border_of_the_mean_colour():
    images = torch.ones(100, 3, 32, 32)
    moved = augmented(images, "crop", np.random.default_rng(0))
    assert set(moved.unique().tolist()) == {0.0, 1.0}


def test_a_flip_turns_half_of_the_images():
    images = torch.arange(8.0).expand(1000, 1, 8, 8)
    turned = augmented(images, "flip", np.random.default_rng(0))[:, 0, 0, 0] == 7
    assert 400 < turned.sum() < 600

"""DiffAugment moves, recolours and cuts, and gradients pass."""

import torch

from qrkt_hw.training.gan import color, cutout, diff_augment, translation


def test_translation_moves_by_an_eighth_at_most_and_pads_with_zero():
    images = torch.zeros(200, 1, 16, 16)
    images[:, :, 8, 8] = 1
    moved = translation(images)
    rows, columns = (moved.flatten(1).argmax(1) // 16 - 8), (moved.flatten(1).argmax(1) % 16 - 8)
    assert set(rows.tolist()) == set(columns.tolist()) == set(range(-2, 3))
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(200))
    assert (translation(torch.ones(50, 3, 16, 16)).flatten(1).min(1).values == 0).any()


def test_cutout_clears_at_most_a_square_of_half_a_side():
    cleared = (cutout(torch.ones(200, 3, 8, 8)) == 0)[:, 0].flatten(1).sum(1)
    assert cleared.max() == 16 and cleared.min() >= 4


def test_color_keeps_the_picture_and_shifts_brightness_within_bounds():
    grey = torch.zeros(500, 3, 4, 4)
    assert color(grey).abs().max() <= 0.5 and color(grey).std() > 0.2
    images = torch.rand(64, 3, 4, 4)
    spread = color(images).mean(1).flatten(1).std(1) / images.mean(1).flatten(1).std(1)
    assert spread.min() >= 0.5 - 1e-4 and spread.max() <= 1.5 + 1e-4


def test_gradients_pass_and_none_changes_nothing():
    images = torch.rand(4, 3, 8, 8, requires_grad=True)
    assert diff_augment(images, "none") is images
    diff_augment(images, "color,translation,cutout").sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_the_seed_decides():
    images = torch.rand(4, 3, 8, 8)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(diff_augment(images, "color,translation,cutout"))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])

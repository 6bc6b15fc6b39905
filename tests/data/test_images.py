"""A user's own pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from qrkt_hw.data.images import read_image
from qrkt_hw.errors import UserError

GREY = {"channels": 1, "image_size": 8, "mean": [0.25], "std": [0.5]}
COLOUR = {"channels": 3, "image_size": 8, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)


@pytest.fixture
def saved(tmp_path):
    def save(image, name="picture.png"):
        image.save(tmp_path / name)
        return tmp_path / name

    return save


def test_pixels_are_scaled_and_normalised(saved):
    tensor = read_image(saved(Image.fromarray(PIXELS)), GREY)
    torch.testing.assert_close(tensor, (torch.tensor(PIXELS)[None].float() / 255 - 0.25) / 0.5)


def test_sixteen_bits_are_eight_bits_with_more_digits(saved):
    deep = saved(Image.fromarray(PIXELS.astype(np.uint16) * 257), "deep.png")
    torch.testing.assert_close(read_image(deep, GREY), read_image(saved(Image.fromarray(PIXELS)), GREY))


def test_grey_is_read_as_colour_and_colour_as_grey(saved):
    grey = saved(Image.fromarray(PIXELS))
    colour = saved(Image.fromarray(np.stack([PIXELS] * 3, -1)), "colour.png")
    torch.testing.assert_close(read_image(grey, COLOUR), read_image(colour, COLOUR))
    torch.testing.assert_close(read_image(grey, GREY), read_image(colour, GREY), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ["p.bmp", "p.gif", "p.tiff", "ünï.png"])
def test_formats(name, saved):
    torch.testing.assert_close(
        read_image(saved(Image.fromarray(PIXELS), name), GREY), read_image(saved(Image.fromarray(PIXELS)), GREY)
    )


def test_what_cannot_be_read_as_eight_bits_is_refused(saved):
    with pytest.raises(UserError, match="mode F"):
        read_image(saved(Image.fromarray(PIXELS.astype(np.float32)), "float.tiff"), GREY)

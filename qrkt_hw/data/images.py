"""A user's own image files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from qrkt_hw.errors import UserError

LARGEST_FILE = 64 * 2**20


def read_image(path: Path, description: dict[str, Any]) -> Tensor:
    """One image file as a normalised tensor ``(channels, size, size)``.

    Args:
        path: any format Pillow reads.
        description: a run's ``data.json``: channels, image_size, mean, std.

    Raises:
        UserError: no such file, not an image, or another size than the model's.
    """
    size = description["image_size"]
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"--image: {path} is larger than 64 MiB")
        with _opened(path) as image:
            if image.size != (size, size):
                raise UserError(
                    f"--image: {path} is {image.size[0]}x{image.size[1]} pixels; this model takes {size}x{size}"
                )
            if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            elif image.mode in ("I", "F"):
                raise UserError(f"--image: {path} has pixels of mode {image.mode}; 8 or 16 bits per channel are read")
            pixels = np.asarray(image.convert("L" if description["channels"] == 1 else "RGB"), dtype=np.float32) / 255
    except FileNotFoundError as error:
        raise UserError(f"--image: no file {path}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"--image: {path} is not an image that can be read ({type(error).__name__})") from error
    tensor = torch.from_numpy(pixels.reshape(size, size, -1)).permute(2, 0, 1)
    mean, std = (torch.tensor(description[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return (tensor - mean) / std


def _opened(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        # opening reads the header alone, and the size is checked before any pixel is
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path)

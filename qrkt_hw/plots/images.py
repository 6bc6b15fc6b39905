"""Tensors of images as pictures: grids as PNG, films as GIF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from qrkt_hw.runs.atomic import replace_with

LEAST = 48  # pixels that a small image is enlarged to


def to_bytes(images: Tensor) -> np.ndarray:
    """Images ``(count, channels, size, size)`` in [-1, 1] as bytes ``(count, size, size, channels)``."""
    pixels = ((images.detach().cpu().double().clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.permute(0, 2, 3, 1).numpy()


def picture(image: np.ndarray) -> Image.Image:
    """Of bytes ``(height, width, 1 or 3)``."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def grid(images: Tensor, columns: int, gap: int = 2) -> Image.Image:
    """Images row by row, small ones enlarged without smoothing."""
    tiles = to_bytes(images)
    count, size, _, channels = tiles.shape
    factor, rows = max(1, -(-LEAST // size)), -(-count // columns)
    step = size * factor + gap
    canvas = np.full((rows * step + gap, columns * step + gap, channels), 90, np.uint8)
    for k, tile in enumerate(tiles):
        top, left = gap + k // columns * step, gap + k % columns * step
        canvas[top : top + step - gap, left : left + step - gap] = tile.repeat(factor, 0).repeat(factor, 1)
    return picture(canvas)


def save_grid(images: Tensor, path: Path, columns: int) -> Path:
    """Write :func:`grid` as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_with(path, lambda target: grid(images, columns).save(target, format="PNG"))
    return path


def save_film(images: Tensor, path: Path, columns: int) -> Path:
    """Rows of an interpolation as an animated GIF, there and back: a frame for each column of their :func:`grid`."""
    rows = len(images) // columns
    frames = [grid(images[k::columns], min(rows, columns)).convert("P") for k in range(columns)]
    return _save_gif(frames + frames[-2:0:-1], path, 80)


def save_animation(frames: Sequence[Path], path: Path, milliseconds: int = 250) -> Path:
    """The pictures of some files one after another, as an animated GIF; the last stays for two seconds."""
    pictures = [Image.open(frame).convert("P") for frame in frames]
    return _save_gif(pictures, path, [milliseconds] * (len(pictures) - 1) + [2000])


def _save_gif(frames: Sequence[Image.Image], path: Path, milliseconds: int | list[int]) -> Path:
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": milliseconds, "loop": 0}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_with(path, lambda target: frames[0].save(target, format="GIF", **options))
    return path

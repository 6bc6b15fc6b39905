"""Images in memory or in files, as normalised tensors; and a user's own image files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from qrkt_hw.errors import UserError

LARGEST_FILE = 64 * 2**20
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


class MemoryImages(Dataset[Any]):
    """Images held as bytes ``(samples, channels, size, size)``, normalised when they are read."""

    def __init__(self, pixels: Tensor, labels: Tensor, statistics: Statistics) -> None:
        self.pixels, self.labels, self.statistics = pixels, labels, statistics

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return normalised(self.pixels[indices], self.statistics), self.labels[indices]


class FileImages(Dataset[Any]):
    """Images decoded from their files when they are read, scaled and cropped to ``size``."""

    def __init__(self, paths: Sequence[Path], labels: Tensor, size: int, statistics: Statistics) -> None:
        self.paths, self.labels, self.size, self.statistics = paths, labels, size, statistics

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        pixels = torch.stack([decoded(self.paths[i], str(self.paths[i]), 3, self.size) for i in indices])
        return normalised(pixels, self.statistics), self.labels[indices]


def decoded(source: Path | bytes, name: str, channels: int, size: int | None) -> Tensor:
    """An encoded image as bytes ``(channels, height, width)``.

    Args:
        source: a file, or its content.
        name: what to call it in an error.
        channels: 1 or 3.
        size: scale the shorter side to this and crop the centre; None keeps the image's own size.

    Raises:
        UserError: no image, a damaged one, or a file that cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} is not an image that can be read ({type(error).__name__})") from error
    if size is not None and image.size != (size, size):
        image = _scaled(image, size)
    pixels = np.array(image, dtype=np.uint8)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def _scaled(image: Any, size: int) -> Any:
    from PIL import Image

    width, height = image.size
    factor = size / min(width, height)
    image = image.resize(
        (max(size, round(width * factor)), max(size, round(height * factor))), Image.Resampling.BICUBIC
    )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def normalised(pixels: Tensor, statistics: Statistics) -> Tensor:
    """Bytes ``(..., channels, height, width)`` as float32 with the mean and deviation of the training part removed."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in statistics)
    return (pixels.float() / 255 - mean) / std


def statistics_of(chunks: Iterable[Tensor]) -> Statistics:
    """Mean and standard deviation per channel of chunks of bytes ``(samples, channels, height, width)``, in [0, 1]."""
    total, squares, count = torch.zeros(1), torch.zeros(1), 0
    for chunk in chunks:
        values = chunk.transpose(0, 1).flatten(1).double() / 255
        total, squares, count = total + values.sum(1), squares + values.square().sum(1), count + values.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(1e-12).sqrt().clamp_min(1e-3)
    return tuple(mean.tolist()), tuple(std.tolist())


def read_image(path: Path, description: dict[str, Any]) -> Tensor:
    """One image file as a normalised tensor ``(channels, size, size)``.

    Args:
        path: any format Pillow reads.
        description: a run's ``data.json``: channels, image_size, mean, std; with ``resized`` any size is taken.

    Raises:
        UserError: no such file, not an image, or another size than the model's.
    """
    size = description["image_size"]
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"--image: {path} is larger than 64 MiB")
        if description.get("resized", False):
            scaled = decoded(path, f"--image: {path}", description["channels"], size)
            return normalised(scaled, (tuple(description["mean"]), tuple(description["std"])))
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

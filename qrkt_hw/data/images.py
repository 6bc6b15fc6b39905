"""Images in memory or in files, as normalised tensors; and a user's own image files.

Pillow reads and scales. torchvision's transforms.v2 would do the same arithmetic for a whole batch at once, with other
rounding of sizes and, for augmentation, one draw for all images; and importing it takes a second or more.
"""

import io
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from qrkt_hw.data.base import Data, DataShape, Indices, held_out, indexed, regular
from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import DataConfig

LARGEST_FILE = 64 * 2**20
MOST_PIXELS = 2**27  # that are decoded or scaled to: 400 MB in colour
# formats of pixels alone; Pillow's others run programs (EPS), come from the net (FITS, FLI) or had overflows (PSD)
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
Part = tuple[Tensor, Indices]  # bytes (samples, channels, size, size), and labels (samples,)


def decoded(source: Path | bytes, name: str, channels: int, size: int | None, scale: bool = True) -> Tensor:
    """An encoded image as bytes ``(channels, height, width)``; of several frames the first, without transparency.

    Args:
        source: a file, or its content.
        name: what to call it in an error.
        size: scale the shorter side to this and crop the centre; None keeps the image's own size.
        scale: False refuses an image of another size instead, before its pixels are read.

    Raises UserError: no image, a damaged or unreadable one, or pixels that are not of 8 or 16 bits.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are checked here, and of odd metadata
            content = io.BytesIO(source) if isinstance(source, bytes) else regular(source, name)
            with Image.open(content, formats=FORMATS) as opened:
                if not scale and opened.size != (size, size):
                    raise UserError(f"{name} is {times(opened.size)} pixels; this model takes {size}x{size}")
                if opened.width * opened.height > MOST_PIXELS:
                    raise UserError(f"{name} is {times(opened.size)} pixels; at most {MOST_PIXELS:,} in all are read")
                image = _eight_bits(opened, name, channels)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is not an image that can be read ({', '.join(FORMATS)})") from error
    except Exception as error:  # a damaged image raises nearly anything
        raise UserError(f"{name} is not an image that can be read ({type(error).__name__})") from error
    if size is not None and image.size != (size, size):
        if size * size * max(image.size) > MOST_PIXELS * min(image.size):
            raise UserError(f"{name} is {times(image.size)} pixels; it is too long to be scaled to a side of {size}")
        width, height = (max(size, round(side * (size / min(image.size)))) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    pixels = np.array(image, dtype=np.uint8)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def _eight_bits(image: Image.Image, name: str, channels: int) -> Image.Image:
    """The image in mode L or RGB. 16 bits are rounded to 8, where Pillow would clip them; transparency is left out, as
    torchvision does, so that what a palette or alpha hides counts as it is stored."""
    if image.mode.startswith("I"):
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # of a TIFF; 12 would be taken for dark 16
        if bits not in (16, 32):
            raise UserError(f"{name} has {bits} bits per channel; 8 or 16 are read")
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise UserError(f"{name} has pixels from {deep.min()} to {deep.max()}; 8 or 16 bits per channel are read")
        image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise UserError(f"{name} has pixels of mode F; 8 or 16 bits per channel are read")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # by way of it: a palette with transparency and one without give the same
    return image.convert("L" if channels == 1 else "RGB")


def resized(pixels: Tensor, size: int | None) -> Tensor:
    """Bytes ``(samples, channels, height, width)`` scaled to ``size``; None leaves them."""
    if size is None or pixels.shape[-1] == size:
        return pixels
    scale = partial(interpolate, size=(size, size), mode="bicubic", antialias=True)
    return torch.cat([scale(chunk.float()).round().clamp(0, 255).to(torch.uint8) for chunk in pixels.split(2048)])


def normalised(pixels: Tensor, statistics: Statistics) -> Tensor:
    """Bytes ``(..., channels, height, width)`` as float32 with the mean and deviation of the training part removed."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in statistics)
    return (pixels.float() / 255 - mean) / std


def read_files(files: Iterable[Path], size: int, statistics: Statistics) -> Tensor:
    """Image files in colour, scaled and cropped to ``size``, normalised."""
    return normalised(torch.stack([decoded(file, str(file), 3, size) for file in files]), statistics)


def statistics_of(chunks: Iterable[Tensor]) -> Statistics:
    """Mean and standard deviation per channel of chunks of bytes ``(samples, channels, height, width)``, in [0, 1]."""
    total, squares, count = torch.zeros(1), torch.zeros(1), 0
    for chunk in chunks:
        values = chunk.transpose(0, 1).flatten(1).double() / 255
        total, squares, count = total + values.sum(1), squares + values.square().sum(1), count + values.shape[1]
    if not count:
        raise ValueError("no images to take mean and deviation of")
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(1e-12).sqrt().clamp_min(1e-3)
    return tuple(mean.tolist()), tuple(std.tolist())


def in_memory(options: DataConfig, names: Sequence[str], train: Part, test: Part) -> Data:
    """A data set of images in memory; labels without a name and parts of different sizes are refused."""
    (pixels, labels), dataset = train, f"--dataset {options.dataset}"
    if not len(test[1]):
        raise UserError(f"{dataset}: the test part holds no images")
    for part in (labels, test[1]):
        wrong = part[(part < 0) | (part >= len(names))]
        if len(wrong):
            raise UserError(f"{dataset}: label {int(wrong[0])} found; there are {len(names)} classes")
    if test[0].shape[1:] != pixels.shape[1:]:
        sizes = " and ".join(times(found.shape[2:]) for found in (pixels, test[0]))
        raise UserError(f"{dataset}: training and test images are {sizes} pixels; give --image-size")
    # of the whole training part, also where --limit takes less of it: the input stays the same
    whole = torch.from_numpy(held_out(labels, None)[0])
    statistics = statistics_of(pixels[index] for index in whole.split(2048))
    splits = indexed(train, test, partial(normalised, statistics=statistics), options.limit, mixed=False)
    shape = DataShape(pixels.shape[1], pixels.shape[-1], len(names))
    return Data(options.dataset, shape, tuple(names), *statistics, splits, resized=options.image_size is not None)


def read_image(path: Path, description: dict[str, Any]) -> Tensor:
    """One image file as a normalised tensor ``(channels, size, size)``, after a run's ``data.json``: its channels,
    image_size, mean and std; with ``resized`` a file of any size is taken.

    Raises UserError: no such file, not an image, or another size than the model's.
    """
    size, name = description["image_size"], f"--image: {path}"
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{name} is larger than 64 MiB")
    except FileNotFoundError as error:
        raise UserError(f"--image: no file {path}") from error
    except (OSError, ValueError) as error:  # no permission, or a name that no file can have
        raise UserError(f"{name} cannot be read ({type(error).__name__})") from error
    pixels = decoded(path, name, description["channels"], size, description.get("resized", False))
    return normalised(pixels, (tuple(description["mean"]), tuple(description["std"])))


def times(sizes: Sequence[int]) -> str:
    """``28x28``."""
    return "x".join(map(str, sizes))

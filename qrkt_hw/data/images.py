"""Images in memory or in files, as normalised tensors; and a user's own image files.

Pillow reads and scales. torchvision's transforms.v2 would do the same arithmetic for a whole batch at once, with other
rounding of sizes and, for augmentation, one draw for all images; and importing it takes a second or more.
"""

import hashlib
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from qrkt_hw.data.base import Data, DataShape, Indices, held_out, indexed, regular, stratified
from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import DataConfig

LARGEST_FILE = 64 * 2**20
DIGIT_SETS = ("digits", "mnist")
LEAST_CONTRAST = 24  # of 255, between a digit and its background
MOST_PIXELS = 2**27  # that are decoded or scaled to: 400 MB in colour
# formats of pixels alone; Pillow's others run programs (EPS), come from the net (FITS, FLI) or had overflows (PSD)
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm", ".pnm")
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
Part = tuple[Tensor, Indices]  # bytes (samples, channels, size, size), and labels (samples,)


def decoded(
    source: Path | bytes, name: str, channels: int, size: int | None, scale: bool = True, upright: bool = False
) -> Tensor:
    """An encoded image as bytes ``(channels, height, width)``; of several frames the first, without transparency.

    Args:
        source: a file, or its content.
        name: what to call it in an error.
        size: scale the shorter side to this and crop the centre; None keeps the image's own size.
        scale: False refuses an image of another size instead, before its pixels are read.
        upright: turn a photograph as its camera was held, and draw transparent parts on paper.

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
                if upright:
                    ImageOps.exif_transpose(opened, in_place=True)
                image = _eight_bits(_opaque(opened) if upright else opened, name, channels)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is not an image that can be read ({', '.join(FORMATS)})") from error
    except Exception as error:  # a damaged image raises nearly anything
        why = str(error) or type(error).__name__
        raise UserError(f"{name} is not an image that can be read: {why}; save it again") from error
    if size is not None and image.size != (size, size):
        if size * size * max(image.size) > MOST_PIXELS * min(image.size):
            raise UserError(f"{name} is {times(image.size)} pixels; it is too long to be scaled to a side of {size}")
        width, height = (max(size, round(side * (size / min(image.size)))) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    pixels = np.array(image, dtype=np.uint8)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def _opaque(image: Image.Image) -> Image.Image:
    """A drawing on paper: white under transparent parts, or black where what is drawn is light."""
    if not image.has_transparency_data:
        return image
    drawn = image.convert("RGBA")
    ink, alpha = (np.asarray(drawn.convert("LA"), dtype=float)[..., part] for part in (0, 1))
    light = (ink * alpha).sum() > 127 * alpha.sum()
    paper = Image.new("RGBA", drawn.size, "black" if light else "white")
    return Image.alpha_composite(paper, drawn).convert("RGB")


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


def read_image(path: Path, description: dict[str, Any], done: list[str] | None = None) -> Tensor:
    """One image file as a normalised tensor ``(channels, size, size)``, after a run's ``data.json``: its channels,
    image_size, mean and std. With ``done`` a file of any size is taken, as :func:`converted`; else only with
    ``resized``.

    Raises UserError: no such file, not an image, or another size than the model's.
    """
    _check_files(description)
    size, name = description["image_size"], f"--image: {path}" if done is None else str(path)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{name} is larger than 64 MiB")
    except FileNotFoundError as error:
        raise UserError(f"{'--image: ' if done is None else ''}no file {path}") from error
    except (OSError, ValueError) as error:  # no permission, or a name that no file can have
        raise UserError(f"{name} cannot be read ({type(error).__name__})") from error
    if done is None:
        pixels = decoded(path, name, description["channels"], size, description.get("resized", False))
    else:
        pixels = converted(path, name, description, done)
    return normalised(pixels, (tuple(description["mean"]), tuple(description["std"])))


def _check_files(description: dict[str, Any]) -> None:
    if description.get("as_given"):
        raise UserError(
            "images: this model was trained on tensors that were given in Python, and how they are made of a file is "
            "not known; give tensors: qrkt_hw.Run(run).infer(tensors)"
        )


def converted(source: Path | bytes, name: str, description: dict[str, Any], done: list[str]) -> Tensor:
    """An image of any size as bytes ``(channels, size, size)``, as the training images of a run's ``data.json`` were
    made; ``done`` is filled with what changed it.

    The shorter side is scaled to the model's and the centre cropped. A handwritten digit is made light on dark, which
    is guessed from its edges, and where it has another size than the model's, it is cut out and centred as those of its
    training set were.
    """
    _check_files(description)
    size, digits = description["image_size"], description["dataset"] in DIGIT_SETS
    pixels = decoded(source, name, description["channels"], None if digits else size, upright=digits)
    if not digits:
        return pixels
    ink = pixels[0].float()
    edges = torch.cat([ink[:, 0], ink[:, -1], *(() if ink.shape == (size, size) else (ink[0], ink[-1]))])
    paper = float(edges.median())
    if paper > 127:
        ink, paper = 255 - ink, 255 - paper
        done.append("inverted: its background is light, and the training digits are light on dark")
    if ink.shape != (size, size):
        done.append(f"digit cut out of {times(list(ink.shape)[::-1])} pixels, scaled and centred")
        ink = _centred(ink - paper, size, description["dataset"] == "mnist", name)
    return ink.round().to(torch.uint8).unsqueeze(0)


def _otsu(ink: Tensor) -> float:
    """The threshold that divides values from 0 to 255 into two classes with the largest variance between them."""
    counts, levels = torch.histc(ink, 256, 0, 255).double(), torch.arange(256.0)
    below, mass = counts.cumsum(0), (counts * levels).cumsum(0)
    between = (mass[-1] * below / below[-1] - mass).square() / (below * (below[-1] - below)).clamp_min(1)
    return float(between.argmax())


def _centred(ink: Tensor, size: int, mnist: bool, name: str) -> Tensor:
    """A digit ``(size, size)``, 0 to 255, of a light one on a background of 0, cut out at a quarter of its peak, or for
    MNIST, whose strokes are sharp, at Otsu's threshold (IEEE Trans. SMC 9, 62, 1979). MNIST's fit a box of 20 of 28
    pixels, with the centre of mass in the middle (LeCun et al., 1998); scikit-learn's fill the height."""
    top = float(ink.max())
    if top < LEAST_CONTRAST:
        raise UserError(f"{name} shows no digit: nothing in it stands out from the background at its edges")
    ink = ink.clamp(0, 255)
    mask = ink > (min(_otsu(ink), top - 1) if mnist else top / 4)
    peak = float(ink[mask].quantile(0.9)) if int(mask.sum()) < 2**24 else top  # torch's quantile takes no more
    rows, columns = (mask.any(axis).nonzero().flatten() for axis in (1, 0))
    digit = ink[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1].clamp(max=peak) / peak * 255
    digit[digit < 16] = 0
    box = round(size * 20 / 28) if mnist else size
    sides = [max(1, round(side * box / max(digit.shape))) for side in digit.shape]
    scaled = Image.fromarray(digit.numpy()).resize((sides[1], sides[0]), Image.Resampling.BILINEAR)
    small = torch.from_numpy(np.array(scaled))
    corner = [(size - side) // 2 for side in sides]
    if mnist:
        places = [torch.arange(side) + 0.5 for side in sides]
        mass = small.sum()
        middle = [(small.sum(1 - axis) * places[axis]).sum() / mass for axis in (0, 1)]
        corner = [min(max(round(size / 2 - float(m)), 0), size - side) for m, side in zip(middle, sides, strict=True)]
    found = torch.zeros(size, size)
    found[corner[0] : corner[0] + sides[0], corner[1] : corner[1] + sides[1]] = small
    return found.clamp(0, 255)


class Samples(Dataset[Any]):
    """Batches, by index lists, of a map-style dataset of a user: ``dataset[k]`` is ``(input, label)``; float tensors as
    they are, bytes normalised."""

    def __init__(self, dataset: Any, indices: Indices, labels: Indices, statistics: Statistics) -> None:
        self.dataset, self.indices, self.labels, self.statistics = dataset, indices, labels, statistics

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, places: list[int]) -> tuple[Tensor, Tensor]:
        inputs = [_input(self.dataset, int(self.indices[k])) for k in places]
        odd = next((one for one in inputs if (one.shape, one.dtype) != (inputs[0].shape, inputs[0].dtype)), None)
        if odd is not None:
            raise UserError(f"train: inputs of {_about(inputs[0])} and of {_about(odd)}; all must be alike")
        batch = torch.stack(inputs)
        batch = normalised(batch, self.statistics) if batch.dtype == torch.uint8 else batch.float()
        return batch, torch.from_numpy(self.labels[places])


def _about(one: Tensor) -> str:
    return f"shape {tuple(one.shape)} ({str(one.dtype).removeprefix('torch.')})"


def pair(dataset: Any, index: int, named: str = "train") -> Any:
    found = dataset[index]
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise UserError(f"{named}: a sample is {type(found).__name__}, not a pair (input, label)")
    return found


def _input(dataset: Any, index: int, named: str = "train") -> Tensor:
    found = pair(dataset, index, named)[0]
    found = tensor_of(found) if isinstance(found, np.ndarray) else found
    if not isinstance(found, Tensor) or not (found.is_floating_point() or found.dtype == torch.uint8):
        kind = f"{type(found).__name__}" if not isinstance(found, Tensor) else _about(found)
        advice = "give the dataset a transform, such as torchvision.transforms.ToTensor()"
        raise UserError(f"{named}: an input is {kind}; floating-point or uint8 tensors are read: {advice}")
    return found


def labels_of(dataset: Any, named: str) -> Indices:
    """Labels of a map-style dataset: its ``targets``, as torchvision's have them, or one pass over its samples where
    these have others, as with a ``target_transform``."""
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or not len(dataset):
        kind = type(dataset).__name__
        raise UserError(f"{named}: {kind} is no map-style dataset with samples (__len__, __getitem__)")
    found = getattr(dataset, "targets", None)
    some = {0, len(dataset) // 3, len(dataset) // 2, len(dataset) - 1}
    if (
        found is None
        or len(found) != len(dataset)
        or any(not np.array_equal(found[k], pair(dataset, k, named)[1]) for k in some)
    ):
        found = [pair(dataset, k, named)[1] for k in range(len(dataset))]
    try:
        labels = np.asarray([int(label) for label in found], dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{named}: a label is {type(found[0]).__name__}, not a whole number") from error
    odd = next(
        (label for label, whole in zip(found, labels, strict=True) if label != whole and label != str(whole)), None
    )
    if odd is not None:
        raise UserError(f"{named}: label {odd} found; labels are whole numbers")
    if labels.min() < 0:
        raise UserError(f"{named}: label {labels.min()} found; labels count from 0")
    return labels


class Parts(NamedTuple):
    """Splits of a user's datasets: names of the classes, for each split its dataset and indices, labels of the
    datasets, and all training samples, whatever ``limit`` takes of them."""

    names: tuple[str, ...]
    chosen: dict[str, tuple[str, Indices]]
    labels: dict[str, Indices]
    whole: Indices


def parts_of(options: DataConfig, given: dict[str, Any], names: Sequence[str] | None) -> Parts:
    """The splits of map-style datasets ``train``, ``validation``, ``test``. Without ``test``, a tenth of ``train``
    becomes it; without ``validation``, a tenth of the rest: classes in proportion, the same samples for every seed."""
    train = given["train"]
    labels = {name: labels_of(part, name) for name, part in given.items() if part is not None}
    known = names if names is not None else getattr(train, "classes", None)
    most, samples = 1 + int(max(found.max() for found in labels.values())), len(labels["train"])
    if isinstance(known, str) or (known is None and most > max(samples, 1000)):
        what = f"is the text {known!r}" if known is not None else f"is needed for label {most - 1} of {samples} samples"
        raise UserError(f"class_names: it {what}; give a list with a name for each class, the first for label 0")
    names = tuple(map(str, known)) if known is not None else tuple(map(str, range(most)))
    if len(names) < most:
        raise UserError(f"class_names: label {most - 1} found; there are {len(names)} classes")
    twice = next((name for k, name in enumerate(names) if name in names[:k]), None)
    if twice is not None:
        raise UserError(f"class_names: {twice!r} is there twice; classes are told apart by their names")
    rest = np.arange(len(labels["train"]))
    chosen = {name: (name, np.arange(len(found))) for name, found in labels.items()}
    if given["test"] is None:
        drawn, rest = stratified(labels["train"], max(1, round(len(rest) / 10)), salt=1)
        chosen["test"] = ("train", drawn)
    if given["validation"] is None:
        kept, held = held_out(labels["train"][rest], None)
        chosen["validation"], rest = ("train", rest[held]), rest[kept]
    whole = rest
    if options.limit is not None and options.limit < len(rest):
        rest = rest[stratified(labels["train"][rest], options.limit, salt=2)[0]]
    chosen["train"] = ("train", rest)
    return Parts(names, chosen, labels, whole)


def own(
    options: DataConfig, train: Any, validation: Any = None, test: Any = None, names: Sequence[str] | None = None,
    backbone: nn.Module | None = None,
) -> Data:  # fmt: skip
    """A user's map-style torch datasets as a data set, split by :func:`parts_of`. Floats are taken as they are, bytes
    (uint8) normalised by the training part. ``names`` of the classes default to ``train.classes``."""
    parts = {"train": train, "validation": validation, "test": test}
    if isinstance(backbone, type) or not (backbone is None or isinstance(backbone, nn.Module)):
        raise UserError(f"backbone: {backbone!r} is no torch module")
    names, chosen, labels, whole = parts_of(options, parts, names)
    first = _input(train, 0)
    for part in ("validation", "test"):
        if parts[part] is not None and _about(other := _input(parts[part], 0, part)) != _about(first):
            raise UserError(f"{part}: inputs of {_about(other)}, and in train of {_about(first)}; all must be alike")
    statistics: Statistics = ((0.0,) * first.shape[0], (1.0,) * first.shape[0]) if first.ndim else ((), ())
    if first.dtype == torch.uint8:
        statistics = statistics_of(_input(train, int(k)).unsqueeze(0) for k in whole)
    splits = {n: Samples(parts[p], index, labels[p][index], statistics) for n, (p, index) in chosen.items()}
    sample, shape = splits["train"][[0]][0], tuple(first.shape)
    if backbone is not None:
        if first.dtype == torch.uint8:
            raise UserError(
                "train: a backbone reads floating-point tensors; give the dataset a transform that makes them"
            )
        sample = features_of(backbone, sample)
    if sample.ndim != 4 or sample.shape[2] != sample.shape[3]:
        raise UserError(f"train: inputs of {_about(first)}; images are (channels, size, size), or give a backbone")
    data = DataShape(sample.shape[1], sample.shape[2], len(names))
    statistics = statistics if len(statistics[0]) == data.channels else ((0.0,) * data.channels, (1.0,) * data.channels)
    found = hashlib.sha256(b"".join(labels[p][index].tobytes() for p, index in chosen.values())).hexdigest()
    return Data(
        options.dataset, data, names, *statistics, splits, as_given=first.is_floating_point(), backbone=backbone,
        input_shape=shape, labels_sha256=found,
    )  # fmt: skip


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode; afterwards each part has the mode it had, such as a frozen normalisation."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@torch.no_grad()
def features_of(backbone: nn.Module, inputs: Tensor) -> Tensor:
    """Features of some inputs as images; torch's random numbers and the module stay as they are."""
    weight = next(backbone.parameters(), torch.zeros(()))
    with evaluating(backbone):
        return as_images(backbone(inputs.to(weight.device)))


def as_images(features: Any) -> Tensor:
    """Features as images ``(batch, channels, side, side)``: feature maps, a square number of tokens ``(batch, tokens,
    channels)``, or vectors ``(batch, channels)``."""
    if isinstance(features, Tensor) and features.ndim == 2:
        return features[:, :, None, None]
    if isinstance(features, Tensor) and features.ndim == 3:
        side = math.isqrt(features.shape[1])
        if side * side == features.shape[1]:
            return features.transpose(1, 2).unflatten(2, (side, side))
    if not isinstance(features, Tensor) or features.ndim != 4 or features.shape[2] != features.shape[3]:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(
            f"backbone: it gives {found}; a model reads (batch, channels, side, side), (batch, tokens, channels) with "
            "a square number of tokens, or (batch, channels)"
        )
    return features


def tensor_of(array: Any) -> Tensor:
    """A tensor of an array of any byte order and strides, or of a tensor."""
    if isinstance(array, np.ndarray):
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return torch.as_tensor(array)


def times(sizes: Sequence[int]) -> str:
    """``28x28``."""
    return "x".join(map(str, sizes))

"""A model from its run folder or a preset, with what turns raw images or texts into its inputs."""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from qrkt_hw.backends import Backend
from qrkt_hw.data import DataShape, load_data
from qrkt_hw.data.base import regular
from qrkt_hw.data.batches import first
from qrkt_hw.data.images import (
    LARGEST_FILE,
    SUFFIXES,
    converted,
    decoded,
    evaluating,
    normalised,
    read_image,
    tensor_of,
)
from qrkt_hw.data.text import encode, trimmed
from qrkt_hw.errors import RunWarning, UserError
from qrkt_hw.experiments import presets
from qrkt_hw.models.factory import build_model, quantum_layers
from qrkt_hw.models.initialization import condition
from qrkt_hw.models.weights import load_weights
from qrkt_hw.resources.subject import usual_shape
from qrkt_hw.runs import RunFolder, newest
from qrkt_hw.runs.config import Config, flattened, problem, unused
from qrkt_hw.simulator import native

PRETRAINED = Path(__file__).parent / "pretrained"  # links to kept runs of seed 0; what they need is in the wheel
DIGITS = 16.0  # largest pixel of scikit-learn's digits


def load(
    run: str | Path | RunFolder | None = None,
    backend: str | Backend = "exact",
    *,
    trust: bool = False,
    backbone: nn.Module | None = None,
) -> nn.Module:
    """The trained model of a run, in evaluation mode; ``model(inputs)`` takes inputs as training saw them.

    It has ``config``. A classifier also has ``preprocess``, from raw images or texts to its inputs (:class:`Reader`),
    ``predict``, from raw ones to class names (:class:`Predictor`), and ``class_names``. It warns once of images that
    are not normalised. A GAN generates images from noise and has none of these three.

    Args:
        run: its folder; None takes the newest under ``runs/`` that has a trained model.
        backend: where its circuits run; the weights do not depend on it.
        trust: import the Python file that an old run without kept circuits names as its ansatz.
        backbone: the module that the run was trained with, where there was one; its weights are the run's.

    Raises:
        UserError: not a run, a damaged one, one without a trained model yet, or one that needs ``trust``.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder.open(Path(run) if run is not None else newest(), trust)
    options, model = folder.options(), restored(folder, backend, backbone)
    return _equipped(model, options, folder.description() if options.model.kind != "gan" else None)


def _equipped(model: nn.Module, options: Config, description: dict[str, Any] | None) -> nn.Module:
    cast(Any, model).config = options
    if description is not None:
        found = cast(Any, model)
        reader, names = Reader(options, description), tuple(description["class_names"])
        found.preprocess, found.class_names, found.predict = reader, names, Predictor(model, reader, names)
        if not reader.vocabulary:
            model.register_forward_pre_hook(reader.look)
    return model


def list_models(pretrained: bool = False) -> list[str]:
    """Names that :func:`create_model` takes: the presets of classifiers, or those whose weights come with the package.

    Args:
        pretrained: only those with weights.
    """
    if pretrained:
        return sorted(file.parent.name for file in PRETRAINED.glob("*/model.safetensors"))
    return [name for name in presets.names() if _classifies(name)]


def _classifies(preset: str) -> bool:
    return flattened(presets.load(preset)).get("model") != "gan"


def create_model(
    name: str, pretrained: bool = False, *, backend: str | Backend = "exact", **overrides: Any
) -> nn.Module:
    """The model of a preset: untrained, or with the weights of its kept run of seed 0. Nothing is downloaded.

    The trained one is in evaluation mode and is what :func:`load` gives of that run, with ``config``, ``preprocess``,
    ``predict`` and ``class_names``. The untrained one is in training mode, initialised from torch's generator. It has
    all but ``config`` only where the package knows the data set: scikit-learn's digits, or that of a trained model.

    Args:
        name: of :func:`list_models`.
        pretrained: with weights; ``list_models(pretrained=True)`` names those that have some.
        backend: where its circuits run; the weights do not depend on it.
        overrides: options of an untrained model over the preset's, such as ``rk="rk4"``.

    Raises:
        UserError: no such preset, one without weights, or options that cannot be.
    """
    known = name in presets.names()
    if not known or not _classifies(name):
        why = "is a preset that generates images" if known else "is no preset"
        raise UserError(f"name: {name!r} {why}; qrkt_hw.list_models() names those that can be made")
    if pretrained:
        if overrides:
            keys = ", ".join(overrides)
            raise UserError(f"pretrained: {keys} cannot change a trained model; leave it out, or pretrained=False")
        return load(shipped(name), backend)
    try:
        options = Config(**{**flattened(presets.load(name)), **flattened(overrides)})
    except ValueError as error:
        said = problem(error)[1] if isinstance(error, ValidationError) else str(error)
        raise UserError(said) from error
    if options.model.kind == "gan":
        raise UserError("model: create_model makes classifiers; qrkt-hw train --model gan makes a GAN")
    reason = unused(options, flattened(overrides))
    if reason is not None:
        raise UserError(reason)
    description = _known(options)
    size = usual_shape(options)
    if description is None and size is None:
        raise UserError(
            f"dataset: the classes of {options.data.dataset} are not known without its files; take qrkt_hw.train"
        )
    if options.data.image_size is not None and size is not None:
        size = {**size, "image_size": options.data.image_size}
    shape = DataShape.of(description) if description is not None else DataShape(**cast(Any, size))
    model = build_model(options, shape, backend)
    if options.circuit.initial_angles == "conditioned":
        condition(quantum_layers(model))
    return _equipped(model, options, description)


def shipped(name: str) -> Path:
    """The run folder, without its records, of a trained model that comes with the package.

    Raises:
        UserError: none comes with it.
    """
    names = list_models(pretrained=True)
    if name not in names:
        have = f"those of {', '.join(names)} do" if names else "this installation has none"
        raise UserError(f"pretrained: no weights of {name!r} come with qrkt-hw; {have}; train it: train({name!r})")
    return PRETRAINED / name


def _known(options: Config) -> dict[str, Any] | None:
    """What a run on these data would keep of them, where the package knows it without reading files."""
    data = options.data
    if data.dataset == "digits":
        return load_data(data).describe()
    for name in list_models(pretrained=True):
        folder = RunFolder(PRETRAINED / name)
        theirs = folder.options().data
        keys = ("dataset", "image_size", "vocabulary", "word_pairs")
        if all(getattr(data, key) == getattr(theirs, key) for key in keys):
            found = folder.description()
            return {**found, "length": data.text_length} if "length" in found else found
    return None


def restored(folder: RunFolder, backend: str | Backend = "exact", backbone: nn.Module | None = None) -> nn.Module:
    """The trained model of a run alone, in evaluation mode; raises as :func:`load`."""
    description = folder.description()
    model = build_model(folder.options(), DataShape.of(description), backend)
    kept = description.get("backbone")
    if backbone is not None:
        if not kept:
            raise UserError(f"backbone: {folder.path} was trained without one; leave it out")
        cast(Any, model).attach(backbone, tuple(kept["input_shape"]))
    return trained(folder, model)


def trained(folder: RunFolder, model: nn.Module) -> nn.Module:
    """``model`` with the weights of the run, in evaluation mode; raises as :func:`load`."""
    if not folder.model.is_file():
        raise UserError(
            f"run: {folder.path} has no trained model yet; resume with: qrkt-hw train --resume {folder.path}"
        )
    kept = folder.description().get("backbone")
    if kept and getattr(model, "backbone", None) is None:
        raise UserError(
            f"run: {folder.path} has a backbone of your own ({kept['class']}), whose code it does not keep; load it in "
            "Python: qrkt_hw.load(run, backbone=...)"
        )
    load_weights(model, folder.model, folder.weights_sha256())
    return model.eval()


class Reader:
    """Raw images or texts as inputs of a trained model.

    Images are arrays, tensors, PIL images or a list of these: ``(height, width)``, ``(channels, height, width)``,
    ``(images, channels, height, width)``, and of one channel ``(images, height, width)``; uint8 from 0 to 255, or
    floats from 0 to 1. A model of scikit-learn's digits also takes 0 to 16, as ``load_digits`` gives them.
    PIL images and files (paths) of any size are scaled and cropped as the training images were, with a warning where a
    digit's polarity was guessed.

    Returns float32 ``(images, channels, size, size)``, or int64 token ids ``(texts, longest)`` of one text or a list.

    Raises:
        ValueError: another shape, size or range of values.
        TypeError: another dtype, or something else than images or texts.
    """

    def __init__(self, options: Config, description: dict[str, Any]) -> None:
        self.description, self.as_given = description, bool(description.get("as_given"))
        self.dataset, self.channels = description["dataset"], description["channels"]
        self.size, self.resized = description["image_size"], bool(description.get("resized", False))
        self.vocabulary: list[str] = description.get("vocabulary") or []
        self.length = description.get("length", 0)
        self.words = {"unique": options.data.unique_words, "pairs": options.data.word_pairs}
        self.statistics = (tuple(description["mean"]), tuple(description["std"]))
        self.warned = False

    def __call__(self, raw: Any) -> Tensor:
        if self.vocabulary:
            return self._texts([raw] if isinstance(raw, str) else raw)
        if isinstance(raw, (Image.Image, str, Path)):
            raw = [raw]
        if isinstance(raw, (list, tuple)):
            if not raw:
                raise ValueError("no images: an empty list")
            return torch.cat([self._one(one) for one in raw])
        return self._array(raw)

    def _one(self, raw: Any) -> Tensor:
        done: list[str] = []
        if isinstance(raw, (str, Path)):
            found = read_image(Path(raw), self.description, done)[None]
        else:
            found = self._image(raw, done) if isinstance(raw, Image.Image) else self._array(raw)
        if done:
            warnings.warn(f"{raw if isinstance(raw, (str, Path)) else 'image'}: {'; '.join(done)}", RunWarning)
        return found

    def _texts(self, texts: Any) -> Tensor:
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"this model reads texts: a str or a list of them, not {type(texts).__name__}")
        return trimmed(encode(texts, self.vocabulary, self.length, **self.words))

    def _image(self, image: Image.Image, done: list[str]) -> Tensor:
        file = io.BytesIO()
        try:  # read as training reads a file
            (image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "LAB", "HSV") else image).save(file, "PNG")
        except OSError as error:
            raise TypeError(f"a PIL image of mode {image.mode} is not read; convert it to L or RGB") from error
        if self.resized or image.size == (self.size, self.size):
            return self._array(decoded(file.getvalue(), "image", self.channels, self.size))
        return normalised(converted(file.getvalue(), "image", self.description, done), self.statistics)[None]

    def _array(self, raw: Any) -> Tensor:
        if not isinstance(raw, (np.ndarray, Tensor)):
            raise TypeError(f"images are arrays, tensors or PIL images, not {type(raw).__name__}")
        pixels = self._four(tensor_of(raw))
        if pixels.dtype == torch.uint8 and self.dataset == "digits" and pixels.numel() and pixels.max() <= DIGITS:
            pixels = pixels.float() / DIGITS  # scikit-learn's whole numbers; of 255 they would be all but black
        if pixels.dtype == torch.uint8:
            return normalised(pixels, self.statistics)
        if self.as_given and pixels.is_floating_point():
            return pixels.float()  # as they were in training
        if not pixels.is_floating_point():
            kind = str(pixels.dtype).removeprefix("torch.")
            raise TypeError(f"images of {kind} are not read: give uint8 from 0 to 255, or floats from 0 to 1")
        low, high = (float(pixels.min()), float(pixels.max())) if pixels.numel() else (0.0, 0.0)
        most = DIGITS if self.dataset == "digits" and high > 1 else 1.0
        if not (low >= 0 and high <= most):
            also = ", or from 0 to 16 as scikit-learn has its digits" if self.dataset == "digits" else ""
            raise ValueError(
                f"images of floats from {low:g} to {high:g} are not read: give floats from 0 to 1{also}, or uint8 from "
                "0 to 255"
            )
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in self.statistics)
        return ((pixels / most).float() - mean.to(pixels.device)) / std.to(pixels.device)

    def _four(self, pixels: Tensor) -> Tensor:
        """``(images, channels, size, size)``."""
        if "backbone" in self.description:  # shape and all are its affair
            return pixels if pixels.ndim > len(self.description["backbone"]["input_shape"]) else pixels[None]
        found = pixels[None] if pixels.ndim == 2 else pixels
        if found.ndim == 3:
            found = found.unsqueeze(1) if self.channels == 1 and found.shape[0] != 1 else found[None]
        if found.shape[1:] != (self.channels, self.size, self.size):
            one = f"({self.size}, {self.size}), " if self.channels == 1 else ""
            raise ValueError(
                f"images of shape {tuple(pixels.shape)} are not read by this model: give {one}"
                f"({self.channels}, {self.size}, {self.size}) or (images, {self.channels}, {self.size}, {self.size})"
            )
        return found

    def look(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Warn once of images that training cannot have seen; before every forward pass."""
        if self.warned or not inputs or not isinstance(inputs[0], Tensor) or torch.compiler.is_compiling():
            return
        images = inputs[0].detach()
        if self.as_given:
            return
        # without values to look at; integers torch refuses itself
        if native.traced(images) or images.is_meta or not images.numel() or not images.is_floating_point():
            return
        low, high = float(images.min()), float(images.max())
        least = min((0 - m) / s for m, s in zip(*self.statistics, strict=True))
        most = max((1 - m) / s for m, s in zip(*self.statistics, strict=True))
        if low < least - 0.01 or high > most + 0.01:
            why = f"training saw {least:.3g} to {most:.3g}"
        elif low >= 0 and high > 0.5 and high <= 1:
            why = "they look like pixels that were not normalised"
        else:
            return
        self.warned = True
        warnings.warn(
            f"images from {low:.3g} to {high:.3g}: {why}; model(model.preprocess(images)) takes raw ones",
            RunWarning,
            stacklevel=5,
        )


class Predictor:
    """Names of the classes of raw images or texts, one for each; ``model(model.preprocess(raw))`` has all logits."""

    def __init__(self, model: nn.Module, reader: Reader, names: Sequence[str]) -> None:
        self.model, self.reader, self.names = model, reader, names

    def __call__(self, raw: Any) -> list[str]:
        weight = next(self.model.parameters())
        inputs = self.reader(raw).to(weight.device)
        with evaluating(self.model), torch.no_grad():
            logits = self.model(inputs)
        return [self.names[k] for k in logits.argmax(-1).tolist()]


def read_splits(run: RunFolder, data_dir: Path | None = None) -> Mapping[str, Any]:
    """All splits by name, as the run's model reads them; None as ``data_dir`` takes the run's."""
    options = run.options()
    there = options.replace(limit=None, data_dir=data_dir or options.data.data_dir)
    return load_data(there.data, run.description().get("vocabulary", ())).splits


def read_split(run: RunFolder, split: str, limit: int | None = None, data_dir: Path | None = None) -> Any:
    """The first ``limit`` samples of one of :func:`read_splits`."""
    return first(read_splits(run, data_dir)[split], limit)


class Inputs(NamedTuple):
    """Raw inputs of a run's model.

    Attributes:
        kind: ``images`` or ``texts``.
        samples: as the model reads them.
        names: the files, or the texts themselves.
        notes: for each, what was done to it beyond reading.
    """

    kind: str
    samples: Tensor
    names: list[str]
    notes: list[list[str]]


def read_images(run: RunFolder, paths: Sequence[Path]) -> Inputs:
    """Image files of the size of the run's model, taken as they are. Raises UserError: a file that cannot be read."""
    description = run.description()
    read = [read_image(path, description) for path in paths]
    return Inputs("images", torch.stack(read), list(map(str, paths)), [[] for _ in paths])


def read_texts(run: RunFolder, texts: Sequence[str]) -> Inputs:
    """Texts as the run's model reads them."""
    return Inputs("texts", Reader(run.options(), run.description())(texts), list(texts), [[] for _ in texts])


def read_paths(run: RunFolder, paths: Sequence[Path]) -> Inputs:
    """Image files of any size, converted as the training images were; or texts, one from each line of text files.

    A folder gives the images (or ``.txt`` files) in it and below, in the order of their names.
    """
    description = run.description()
    texts = bool(description.get("vocabulary"))
    suffixes, what = ((".txt",), "text files (.txt)") if texts else (SUFFIXES, "images")
    files = list[Path]()
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
        files += [found for found in inside if not any(part[0] == "." for part in found.relative_to(path).parts)]
        if not inside:
            raise UserError(f"{path} holds no {what}; the model of {run.path} reads {what}")
    if texts:
        lines = [line for file in files for line in _lines(file)]
        if not lines:
            raise UserError(f"{files[0]} holds no text")
        return read_texts(run, lines)
    notes: list[list[str]] = [[] for _ in files]
    read = [read_image(file, description, done) for file, done in zip(files, notes, strict=True)]
    return Inputs("images", torch.stack(read), list(map(str, files)), notes)


def _lines(file: Path) -> list[str]:
    try:
        if regular(file).stat().st_size > LARGEST_FILE:
            raise UserError(f"{file} is larger than 64 MiB")
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"no file {file}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no text in UTF-8; this run's model reads texts, one from each line") from error
    return [line.strip() for line in text.splitlines() if line.strip()]

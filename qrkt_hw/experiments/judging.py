"""Training the judge: on the same data, and on noise about which it must not be sure.

Two thirds of every batch are training images, slightly moved; one third are negatives, whose target is the uniform
distribution (outlier exposure, Hendrycks et al. 2019): images with shuffled pixels, and Gaussian images of the training
part's mean and deviation, independent or with its covariance. Without them a classifier is sure about noise, and its
confidence says nothing about an image.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from qrkt_hw.backends.device.cache import cache_folder, digest
from qrkt_hw.data import Data
from qrkt_hw.data.batches import loader
from qrkt_hw.errors import UserError
from qrkt_hw.models.reference import ReferenceClassifier
from qrkt_hw.runs.atomic import replace_with

SURE = 0.8
BATCH = 256
STEPS = 1200
VERSION = 3  # of this recipe


@dataclass
class Judged:
    """A trained judge and what it is worth.

    Attributes:
        model: in evaluation mode.
        sha256: of its file.
        quality: ``test_accuracy``; ``sure_of_test``, ``sure_of_gaussian``, ``sure_of_covariance`` (Gaussian images of
            the data's covariance) and ``sure_of_shuffled``: how often it is more than 0.8 sure of such an image.
    """

    model: ReferenceClassifier
    sha256: str
    quality: dict[str, float]


def pixels(data: Data, split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and labels of a split, in order."""
    images, labels, count = [], [], 0
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    for batch, marks in loader(data.splits[split], 1024):
        images.append((batch * std + mean) * 2 - 1)
        labels.append(marks)
        count += len(marks)
        if limit is not None and count >= limit:
            break
    return torch.cat(images)[:limit], torch.cat(labels)[:limit]


class Noise:
    """Images that are none, with the statistics of some images ``(count, channels, size, size)``."""

    def __init__(self, images: Tensor) -> None:
        flat = images.flatten(1).double()
        self.images, self.mean, self.std = images, flat.mean(0), flat.std()
        values, vectors = torch.linalg.eigh(torch.cov(flat.t()))
        self.root = vectors * values.clamp_min(0).sqrt()

    def gaussian(self, count: int, generator: torch.Generator) -> Tensor:
        """Independent pixels of the images' overall mean and deviation."""
        noise = torch.randn(count, *self.images.shape[1:], generator=generator)
        return (noise * float(self.std) + float(self.mean.mean())).clamp(-1, 1)

    def covariance(self, count: int, generator: torch.Generator) -> Tensor:
        """Pixels of the images' mean and covariance."""
        noise = torch.randn(count, self.root.shape[1], generator=generator, dtype=torch.float64)
        flat = self.mean + noise @ self.root.t()
        return flat.clamp(-1, 1).float().unflatten(1, self.images.shape[1:])

    def shuffled(self, count: int, generator: torch.Generator) -> Tensor:
        """Images whose pixels changed places, each in its own way."""
        chosen = self.images[torch.randint(len(self.images), (count,), generator=generator)].flatten(2)
        order = torch.rand(count, 1, chosen.shape[-1], generator=generator).argsort(-1).expand_as(chosen)
        return chosen.gather(-1, order).unflatten(-1, self.images.shape[2:])


def judge(data: Data, console: Console, file: Path | None = None) -> Judged:
    """The judge of a data set: read from ``file`` or the cache, or trained and kept there.

    Raises:
        UserError: the file is not a judge of such images, or cannot be read or written.
    """
    shape = data.shape
    place = (
        file or cache_folder() / "judges" / f"{data.name.replace('/', '-').replace(':', '-')}-{_key(data)}.safetensors"
    )
    model = ReferenceClassifier(shape.channels, shape.classes)
    if place.exists() and not place.is_file():
        raise UserError(f"--judge: {place} is not a regular file")
    if not place.is_file():
        try:  # before a training that would be lost
            place.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=place.parent).close()
        except OSError as error:
            raise UserError(
                f"--judge: {place.parent} cannot be written: {error.strerror}; name a file elsewhere"
            ) from error
        console.print(f"training a judge for {data.name}, kept as {place}", highlight=False)
        quality = _train(model, data)
        state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
        described = {name: repr(value) for name, value in quality.items()}
        try:
            replace_with(place, lambda path: save_file(state, path, described))
        except OSError as error:
            raise UserError(f"--judge: {place} cannot be written: {error.strerror}") from error
    try:
        content = place.read_bytes()
        model.load_state_dict(load(content))
        if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
            raise ValueError("its weights are not finite numbers")
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        quality = {name: float(value) for name, value in header.get("__metadata__", {}).items()}
    except OSError as error:
        raise UserError(f"--judge: {place} cannot be read: {error.strerror}") from error
    except (SafetensorError, RuntimeError, ValueError, AttributeError) as error:
        raise UserError(f"--judge: {place} is not a judge of these images ({type(error).__name__})") from error
    return Judged(model.eval(), hashlib.sha256(content).hexdigest(), quality)


def _key(data: Data) -> str:
    shape = data.shape
    size = len(data.splits["train"])  # type: ignore[arg-type]
    return digest(VERSION, STEPS, data.name, shape.channels, shape.image_size, shape.classes, size, data.mean)[:12]


def _train(model: ReferenceClassifier, data: Data) -> dict[str, float]:
    images, labels = pixels(data, "train", 60_000)
    noise, random = Noise(images), torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in model.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, total_steps=STEPS)
    kinds = (noise.gaussian, noise.covariance, noise.shuffled)
    model.train()
    most = max(1, images.shape[-1] // 12)
    for step in range(STEPS):
        chosen = torch.randint(len(images), (96,), generator=random)
        real = images[chosen]
        moves = torch.randint(-most, most + 1, (2,), generator=random)
        if step % 2:  # a picture at the other edge is no digit: what leaves is lost
            real = F.pad(real, (most,) * 4, value=-1)
            top, left = most + int(moves[0]), most + int(moves[1])
            real = real[..., top : top + images.shape[-1], left : left + images.shape[-1]]
        others = kinds[step % 3](48, random)
        logits = model(torch.cat([real, others])).log_softmax(-1)
        loss = F.nll_loss(logits[:96], labels[chosen]) - logits[96:].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    tested, marks = pixels(data, "test", 10_000)
    check = torch.Generator().manual_seed(1)
    unseen = Noise(tested)
    return {
        "test_accuracy": (logits_of(model, tested).argmax(-1) == marks).float().mean().item(),
        "sure_of_test": sure(logits_of(model, tested)),
        "sure_of_gaussian": sure(logits_of(model, unseen.gaussian(1000, check))),
        "sure_of_covariance": sure(logits_of(model, unseen.covariance(1000, check))),
        "sure_of_shuffled": sure(logits_of(model, unseen.shuffled(1000, check))),
    }


@torch.no_grad()
def logits_of(model: ReferenceClassifier, images: Tensor) -> Tensor:
    return torch.cat([model(part) for part in images.split(1024)])


@torch.no_grad()
def features_of(model: ReferenceClassifier, images: Tensor) -> Tensor:
    return torch.cat([model.features(part) for part in images.split(1024)])


def sure(logits: Tensor) -> float:
    """How many of the images the judge is more than 0.8 sure of."""
    return (logits.softmax(-1).max(-1).values > SURE).float().mean().item()


def verdict(model: ReferenceClassifier, images: Tensor) -> dict[str, Any]:
    """What the judge says of images: the share it is sure of, and the share each class takes."""
    logits = logits_of(model, images)
    shares = torch.bincount(logits.argmax(-1), minlength=logits.shape[1]) / len(logits)
    return {"sure": sure(logits), "threshold": SURE, "shares": [round(x, 4) for x in shares.tolist()]}

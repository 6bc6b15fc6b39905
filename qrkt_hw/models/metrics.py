"""Metrics of a classifier's logits and of a GAN's images, and how far a backend is from its stand-in.

Those of logits are written out here because importing torchmetrics or scikit-learn takes as long as importing torch;
the values are theirs.

The reference classifier, whose features FID and KID compare, is trained on the same data, and on noise of which it must
not be confident. Two thirds of every batch are training images, slightly moved; one third are negatives, whose target
is the uniform distribution (outlier exposure, Hendrycks et al. 2019). Without them a classifier is confident of noise,
and its confidence says nothing about an image.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Generator, Tensor, nn
from torch.utils.data import Subset

from qrkt_hw.backends import Backend, Call
from qrkt_hw.backends.device.cache import cache_folder, digest
from qrkt_hw.backends.exact import ExactBackend, evaluate_by_weights
from qrkt_hw.data import Data
from qrkt_hw.data.batches import first, in_memory, loader
from qrkt_hw.data.images import evaluating
from qrkt_hw.errors import UserError, extras
from qrkt_hw.models.factory import evaluated_on
from qrkt_hw.models.transformer import Gan
from qrkt_hw.runs.atomic import check_writable, replace_with
from qrkt_hw.simulator import REAL

BOUNDS = {torch.complex128: 1e-8, torch.complex64: 1e-5}  # of a difference of two expectation values
AGREEMENT_SAMPLES = 32  # that a backend evaluates after a training
NEIGHBOURS = 3
MOST_NEIGHBOURS = 10_000  # images in precision and recall
DIRECTIONS = 512  # of the sliced Wasserstein distance
CONFIDENT = 0.8
EXTRACTORS = Path(__file__).parent / "extractors"  # reference classifiers that come with the package
STEPS = 1200  # of training one
VERSION, OF_COLOURS = 3, 5  # of the recipe, for images of one channel and of three
FEATURES = 128
BATCH = 1024  # images that are read at once
EXTRACTED = 128  # that it takes at once: the memory of more is returned to the system and faulted in again


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """``loss`` (mean cross-entropy), ``accuracy``, ``f1`` (macro) and ``auroc`` (macro, one-vs-rest).

    The AUROC is the mean over the classes that occur in ``labels`` but do not make up all of them; where there is no
    such class it is NaN. The F1 is the mean over the classes that occur in labels or predictions. Where a logit is
    not finite, or without a sample, all are NaN: no class was predicted.

    Args:
        logits: ``(samples, classes)``.
        labels: ``(samples,)``, int64.
    """
    if not len(labels) or not logits.isfinite().all():
        return dict.fromkeys(("loss", "accuracy", "f1", "auroc"), math.nan)
    logits = logits.float()
    scores = logits.softmax(-1)
    predicted = scores.argmax(-1)
    classes = torch.arange(logits.shape[-1], device=logits.device)
    chosen, true = predicted[:, None] == classes, labels[:, None] == classes
    both, either = (chosen & true).sum(0), chosen.sum(0) + true.sum(0)
    occurs = (either > 0).float()
    return {
        "loss": F.cross_entropy(logits, labels).item(),
        "accuracy": ((predicted == labels).sum() / len(labels)).item(),
        "f1": (2 * both / either.clamp(min=1) * occurs / occurs.sum()).sum().item(),
        "auroc": _auroc(scores, true),
    }


def _auroc(scores: Tensor, true: Tensor) -> float:
    areas = []
    for score, positive in zip(scores.T, true.T, strict=True):
        if not positive.any() or positive.all():
            continue
        order = score.argsort(descending=True)
        ends = F.pad(score[order].diff(), (0, 1), value=1).nonzero()[:, 0]  # the last of samples with equal scores
        found = positive[order].cumsum(0)[ends]
        false = ends + 1 - found
        areas.append(torch.trapezoid(F.pad(found / found[-1], (1, 0)), F.pad(false / false[-1], (1, 0))))
    return torch.stack(areas).mean().item() if areas else math.nan


def wilson(right: int, count: int) -> list[float]:
    """Ends of the 95 % Wilson score interval of a proportion of ``right`` in ``count``; NaN without a sample.

    Unlike a bootstrap it has a width where all or none are right. Wilson, J. Am. Stat. Assoc. 22, 1927.
    """
    from scipy.stats import binomtest  # only now: it takes a while to import

    if not count:
        return [math.nan, math.nan]
    found = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return [float(found.low), float(found.high)]


def discordant(first: Tensor, second: Tensor) -> list[int]:
    """How many samples the first classifier alone is right on, and the second alone; of bool ``(samples,)`` each."""
    return [int((first & ~second).sum()), int((second & ~first).sum())]


def mcnemar(first_only: int, second_only: int) -> float:
    """p-value of the exact McNemar test: whether two classifiers of the same samples are right equally often.

    Two-sided and binomial on the samples where one alone is right; 1 where there is none.
    """
    from scipy.stats import binomtest

    discordant = first_only + second_only
    return float(binomtest(first_only, discordant).pvalue) if discordant else 1.0


@torch.no_grad()
def logits_of(model: torch.nn.Module, batches) -> tuple[Tensor, Tensor]:
    """Logits ``(samples, classes)`` and labels of all batches, the model in evaluation mode."""
    with evaluating(model):
        parts = [(model(inputs), labels) for inputs, labels in batches]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def refined(model: torch.nn.Module, samples: Any, logits: Tensor, count: int, batch_size: int) -> Tensor:
    """Logits of which those of the ``count`` most uncertain samples are means with those of a second evaluation.

    The most uncertain samples are those whose two largest logits differ least.
    """
    largest, next_one = logits.topk(2, -1).values.unbind(-1)
    chosen = sorted((largest - next_one).argsort(stable=True)[:count].tolist())
    again, _ = logits_of(model, loader(Subset(in_memory(samples), chosen), batch_size))
    return logits.index_copy(0, torch.tensor(chosen), (logits[chosen] + again) / 2)


class _Both(Backend):
    """Values of a backend; ``largest`` is how far those of the torch simulator were from them, in each precision."""

    def __init__(self, backend: Backend, stand_in: ExactBackend) -> None:
        super().__init__(backend.name)
        self.backend, self.other = backend, stand_in
        self.largest = dict.fromkeys(BOUNDS, 0.0)

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        found = self.backend.run(calls)
        for call, values in zip(calls, found, strict=True):
            for dtype in BOUNDS:
                function, real = self.other.simulator(call.template, dtype), REAL[dtype]

                def computed(inputs: Tensor, weights: Tensor, function: Any = function, real: Any = real) -> Tensor:
                    return function(inputs.to(real), weights.to(real)).double()

                other = evaluate_by_weights(call, computed, call.template.num_outputs)
                difference = np.abs(values.reshape(other.shape) - other)
                # NaN is as wrong as can be
                self.largest[dtype] = max(self.largest[dtype], float(np.nan_to_num(difference, nan=np.inf).max()))
        return found


def agreement(backend: Backend, model: nn.Module, data: Data, count: int = 1) -> dict[str, Any]:
    """Compare a backend with ``backend.stand_in``, which computes in its place in a training.

    Args:
        backend: with a stand-in.
        model: a classifier, or a GAN.
        data: its first test samples are evaluated; a GAN generates images and scores them.
        count: samples; fewer where the split has fewer.

    Returns:
        What ``results.json`` keeps under ``agreement``: ``samples``, ``accuracy`` of a classifier, ``circuits``,
        ``largest_difference`` of two expectation values, and ``seconds``.

    Raises:
        UserError: an expectation value differs by more than rounding.
    """
    started, both = time.perf_counter(), _Both(backend, backend.stand_in)  # type: ignore[arg-type]
    circuits, found, like = backend.counters.circuits, dict[str, Any](), next(model.parameters())
    with evaluated_on(model, both):
        if isinstance(model, Gan):
            noise = torch.randn(count, model.latent, generator=torch.Generator().manual_seed(0))
            model.discriminator(model.generator(noise.to(like)))
        else:
            inputs, labels = next(iter(loader(first(data.splits["test"], count), count)))
            classes = model(inputs.to(like.device)).argmax(-1).cpu()
            count, found = len(labels), {"accuracy": float((classes == labels).double().mean())}
    for dtype, bound in BOUNDS.items():
        if not both.largest[dtype] <= bound:
            what = f"an expectation value differs by {both.largest[dtype]:.1e} from the torch simulator's ({dtype})"
            raise UserError(
                f"backend {backend.name!r}: {what}; the bound is {bound:g}. Train with --backend exact, or with "
                "--gradient parameter_shift on this backend"
            )
    return {
        "samples": count, **found, "circuits": backend.counters.circuits - circuits,
        "largest_difference": both.largest[torch.complex128], "seconds": round(time.perf_counter() - started, 3),
    }  # fmt: skip


def fid(generated: Tensor, real: Tensor) -> float:
    """Frechet inception distance of features ``(images, features)`` of two samples."""
    with extras():
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    found = fid_statistics_to_metric(fid_features_to_statistics(generated), fid_features_to_statistics(real), False)
    return float(found["frechet_inception_distance"])


def image_metrics(generated: tuple[Tensor, Tensor], real: tuple[Tensor, Tensor]) -> dict[str, float]:
    """FID, KID, Inception Score, precision and recall of features and logits."""
    with extras():
        from torch_fidelity.metric_isc import isc_features_to_metric
        from torch_fidelity.metric_kid import kid_features_to_metric
        from torch_fidelity.metric_prc import prc_features_to_metric

    (ours, logits), (theirs, _) = generated, real
    size = min(1000, len(ours), len(theirs))
    kid = kid_features_to_metric(ours, theirs, kid_subset_size=size, kid_subsets=100, verbose=False)
    both = (ours[:MOST_NEIGHBOURS], theirs[:MOST_NEIGHBOURS])
    overlap = prc_features_to_metric(*both, prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False)
    return {
        "fid": fid(ours, theirs),
        "kid": kid["kernel_inception_distance_mean"],
        "kid_deviation": kid["kernel_inception_distance_std"],
        "inception_score": isc_features_to_metric(logits)["inception_score_mean"],
        "precision": overlap["precision"],
        "recall": overlap["recall"],
    }


def sliced_wasserstein(images: Tensor, others: Tensor, seed: int = 0) -> float:
    """Sliced Wasserstein-1 distance of the pixels of two samples, images of equal shape.

    The mean over random directions of the Wasserstein distance of both samples' projections, in units of the pixels'
    values; the larger sample is thinned to the size of the smaller one. It needs no feature extractor (Rabin et al.
    2011; Bonneel et al. 2015).
    """
    count, random = min(len(images), len(others)), Generator().manual_seed(seed)
    thinned = [part[torch.linspace(0, len(part) - 1, count).round().long()].flatten(1) for part in (images, others)]
    directions = F.normalize(torch.randn(thinned[0].shape[1], DIRECTIONS, generator=random), dim=0)
    ours, theirs = ((part @ directions).sort(0).values for part in thinned)
    return (ours - theirs).abs().mean().item()


def pixels(data: Data, split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and labels of a split, in order."""
    batches = [(shown(data, batch), labels) for batch, labels in loader(first(data.splits[split], limit), BATCH)]
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def shown(data: Data, images: Tensor) -> Tensor:
    """Normalised images as pixels in [-1, 1]."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return (images * std + mean) * 2 - 1


class ReferenceClassifier(nn.Module):
    """Images ``(batch, channels, size, size)`` in [-1, 1] to logits ``(batch, classes)``: a small convolutional net.

    Args:
        channels, classes: of the images.
        width: channels behind the first convolution.
        stride: of the first convolution.
    """

    def __init__(self, channels: int, classes: int, width: int = 32, stride: int = 1) -> None:
        super().__init__()

        def convolved(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()]

        self.body = nn.Sequential(
            *convolved(channels, width, stride),
            *convolved(width, 2 * width, 2),
            *convolved(2 * width, 2 * width),
            *convolved(2 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * width, FEATURES),
            nn.GELU(),
        )
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))

    @torch.no_grad()
    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(images, 128)`` and logits of any number of images."""
        features = torch.cat([self.body(part) for part in images.split(EXTRACTED)])
        return features, self.head(features)


def reference_classifier(
    data: Data, console: Console, file: Path | None = None
) -> tuple[ReferenceClassifier, dict[str, Any]]:
    """The reference classifier of a data set: read from ``file``, the package or the cache, or trained and kept.

    Returns:
        The classifier in evaluation mode, and of it: ``sha256`` of its file; ``quality``: ``test_accuracy`` and
        ``confident_of_test``, ``_gaussian``, ``_covariance`` and ``_shuffled``, the share of such images of which its
        confidence is above 0.8.

    Raises UserError: the file is no classifier of such images, or cannot be read or written.
    """
    flag, place = "--reference-classifier", file
    if place is None:
        place = EXTRACTORS / file_name(data)
        if not place.is_file():
            place = cache_folder() / "judges" / place.name  # the folder of earlier versions
    if place.exists() and not place.is_file():
        raise UserError(f"{flag}: {place} is not a regular file")
    if not place.is_file():
        check_writable(place.parent, flag)  # before a training that would be lost
        console.print(f"training a reference classifier for {data.name}, kept as {place}", highlight=False)
        trained, quality = _train(data)
        state = {name: _kept(data, value).contiguous().clone() for name, value in trained.state_dict().items()}
        described = {name: repr(value) for name, value in quality.items()}
        try:
            replace_with(place, lambda path: save_file(state, path, described))
        except OSError as error:
            raise UserError(f"{flag}: {place} cannot be written: {error.strerror}") from error
    model = _untrained(data)
    try:
        content = place.read_bytes()
        model.load_state_dict(load(content))
        if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
            raise ValueError("its weights are not finite numbers")
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
        # the names of earlier versions are read
        quality = {name.replace("sure_of", "confident_of"): float(value) for name, value in header.items()}
    except OSError as error:
        raise UserError(f"{flag}: {place} cannot be read: {error.strerror}") from error
    except (SafetensorError, RuntimeError, ValueError, AttributeError) as error:
        raise UserError(f"{flag}: {place} is no classifier of these images ({type(error).__name__})") from error
    return model.eval(), {"sha256": hashlib.sha256(content).hexdigest(), "quality": quality}


def file_name(data: Data) -> str:
    """Of the reference classifier of a data set; it depends on the recipe and on what it is trained on."""
    shape, size = data.shape, len(data.splits["train"])  # type: ignore[arg-type]
    version = VERSION if shape.channels == 1 else OF_COLOURS
    key = digest(version, STEPS, data.name, shape.channels, shape.image_size, shape.classes, size, data.mean)[:12]
    return f"{data.name.replace('/', '-').replace(':', '-')}-{key}.safetensors"


def negatives(images: Tensor) -> dict[str, Callable[[int, Generator], Tensor]]:
    """Draws of images that are none, from the statistics of some images ``(count, channels, size, size)``.

    ``gaussian``: independent pixels of the images' overall mean and deviation; ``covariance``: pixels of their mean
    and covariance; ``shuffled``: images whose pixels changed places, each in its own way.
    """
    flat = images.flatten(1).double()
    mean, std = flat.mean(0), flat.std()
    values, vectors = torch.linalg.eigh(torch.cov(flat.t()))
    root = vectors * values.clamp_min(0).sqrt()

    def gaussian(count: int, random: Generator) -> Tensor:
        drawn = torch.randn(count, *images.shape[1:], generator=random)
        return (drawn * float(std) + float(mean.mean())).clamp(-1, 1)

    def covariance(count: int, random: Generator) -> Tensor:
        drawn = mean + torch.randn(count, root.shape[1], generator=random, dtype=torch.float64) @ root.t()
        return drawn.clamp(-1, 1).float().unflatten(1, images.shape[1:])

    def shuffled(count: int, random: Generator) -> Tensor:
        chosen = images[torch.randint(len(images), (count,), generator=random)].flatten(2)
        order = torch.rand(count, 1, chosen.shape[-1], generator=random).argsort(-1).expand_as(chosen)
        return chosen.gather(-1, order).unflatten(-1, images.shape[2:])

    return {"gaussian": gaussian, "covariance": covariance, "shuffled": shuffled}


def class_shares(logits: Tensor) -> Tensor:
    """The share of each class among the predictions of logits ``(images, classes)``."""
    return torch.bincount(logits.argmax(-1), minlength=logits.shape[1]) / len(logits)


def confident(logits: Tensor) -> float:
    """The share of images with a confidence above 0.8."""
    return (logits.softmax(-1).max(-1).values > CONFIDENT).float().mean().item()


def _untrained(data: Data) -> ReferenceClassifier:
    shape = data.shape
    large = shape.channels > 1 and shape.image_size > 32
    return ReferenceClassifier(shape.channels, shape.classes, stride=2 if large else 1)


def _kept(data: Data, value: Tensor) -> Tensor:
    """As the file has it: matrices in half precision, which halves the file, but for images of one channel, whose files
    are older than that."""
    return value.half() if data.shape.channels > 1 and value.ndim > 1 else value


def _train(data: Data) -> tuple[ReferenceClassifier, dict[str, float]]:
    images, labels = pixels(data, "train", 60_000)
    kinds, random = list(negatives(images).values()), Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _untrained(data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, total_steps=STEPS)
    size = images.shape[-1]
    most = max(1, size // 12)
    for step in range(STEPS):
        chosen = torch.randint(len(images), (96,), generator=random)
        real = images[chosen]
        top, left = torch.randint(0, 2 * most + 1, (2,), generator=random).tolist()
        if step % 2:  # a picture at the other edge is no digit: what leaves is lost
            border: Any = {"value": -1} if real.shape[1] == 1 else {"mode": "replicate"}
            real = F.pad(real, (most,) * 4, **border)[..., top : top + size, left : left + size]
        if real.shape[1] > 1 and step % 4 < 2:
            real = real.flip(-1)
        logits = model(torch.cat([real, kinds[step % 3](48, random)])).log_softmax(-1)
        loss = F.nll_loss(logits[:96], labels[chosen]) - logits[96:].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(_kept(data, weight))
    tested, marks = pixels(data, "test", 10_000)
    check = Generator().manual_seed(1)
    _, logits = model.extract(tested)
    quality = {
        "test_accuracy": (logits.argmax(-1) == marks).float().mean().item(),
        "confident_of_test": confident(logits),
    }
    for name, noisy in negatives(tested).items():
        quality[f"confident_of_{name}"] = confident(model.extract(noisy(1000, check))[1])
    return model, quality

"""Images of a GAN, and how good they are: FID, KID, Inception Score, precision, recall and a reference classifier.

torch-fidelity computes all metrics from the features of one extractor: Inception-v3 (images enlarged to 299 pixels as
in TensorFlow 1), or the reference classifier. A figure belongs to its protocol and is compared with no other.

The reference classifier is trained on the same data, and on noise of which it must not be confident. Two thirds of
every batch are training images, slightly moved; one third are negatives, whose target is the uniform distribution
(outlier exposure, Hendrycks et al. 2019). Without them a classifier is confident of noise, and its confidence says
nothing about an image.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Generator, Tensor, nn

from qrkt_hw.backends import Backend
from qrkt_hw.backends.device.cache import cache_folder, digest
from qrkt_hw.data import Data, load_data
from qrkt_hw.data.batches import first, loader
from qrkt_hw.data.ranks import Ranks, here
from qrkt_hw.errors import UserError, extras
from qrkt_hw.experiments.loading import restored
from qrkt_hw.models.transformer import Gan
from qrkt_hw.plots.charts import picture, save_grid, to_bytes
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import check_writable, replace_with, write_json

NEIGHBOURS = 3
MOST_NEIGHBOURS = 10_000  # images in precision and recall
CONFIDENT = 0.8
STEPS = 1200  # of training the reference classifier
VERSION = 3  # of its recipe
FEATURES = 128
BATCH, OF_INCEPTION = 1024, 1000  # images that an extractor takes at once; whole batches of Inception's 50
GENERATED = 250  # images that a generator computes at once
Extractor = Callable[[Tensor], tuple[Tensor, Tensor]]  # images to features and logits


def evaluate(
    run: RunFolder,
    console: Console,
    *,
    samples: int,
    seed: int,
    split: str,
    inception: Path | None = None,
    classifier: Path | None = None,
    reference_scores: bool = False,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """Measure the GAN of a run; the record is kept under its ``evaluation/``. Of several ranks each draws a part of the
    samples and extracts features of a part of all images; the first one compares them.

    Args:
        run, console: the run; for progress.
        samples, seed: number of generated samples; the seed of their noise.
        split: the real images they are compared with.
        inception: weights as torch-fidelity publishes them; None takes the reference classifier's features.
        classifier: file of the reference classifier; None takes the data set's own.
        reference_scores: also measure the real test images, and Gaussian images of the data's mean and covariance.
        data_dir: folder with the data set's files; None takes the run's.

    Raises UserError: no GAN, weights that are none, or a folder that cannot be written.
    """
    model, there = gan_of(run), here()
    folder = run.path / "evaluation"
    there.first(lambda: check_writable(folder, "run"))  # before the work that would be lost
    options = run.options()
    data = there.together(
        lambda: load_data(options.replace(limit=None, data_dir=data_dir or options.data.data_dir).data)
    )
    reference, about = there.first(lambda: reference_classifier(data, console, classifier))
    # the old word: the protocol's digest says which figures may be compared
    own = (reference.extract, f"judge sha256 {about['sha256']}")
    extract, extractor = own if inception is None else there.together(lambda: _inception(inception))
    size = BATCH if inception is None else OF_INCEPTION
    images = draw(model, noise(samples, model.latent, seed))
    generated = _extracted(there, extract, images, size)
    logits = generated[1] if inception is None else _extracted(there, reference.extract, images, BATCH)[1]
    real = _of_split(data, split, extract, size, there)
    train = pixels(data, "train", 60_000)[0] if there.leads else images[:0]
    others = {}
    if reference_scores:
        random = Generator().manual_seed(seed)
        gaussian = there.first(lambda: negatives(train)["covariance"](samples, random))
        others["test images"] = _of_split(data, "test", extract, size, there)
        others["gaussian images"] = _extracted(there, extract, gaussian, size)

    protocol = {
        "extractor": extractor,
        "dataset": data.name,
        "split": split,
        "real_images": len(real[0]),
        "samples": samples,
        "resize": "bilinear to 299, as TensorFlow 1" if inception else "none",
        "bits": 8,
        "precision_recall": {"neighbours": NEIGHBOURS, "most": MOST_NEIGHBOURS},
    }

    def compared() -> dict[str, Any]:
        closest, distances = nearest(images[:1000], train)
        _, usual = nearest(pixels(data, "test", 1000)[0], train)
        shares = torch.bincount(logits.argmax(-1), minlength=logits.shape[1]) / len(logits)
        record: dict[str, Any] = {
            "protocol": protocol,
            "protocol_digest": digest(protocol)[:8],
            "noise_seed": seed,
            "metrics": metrics(generated, real),
            "reference_classifier": {
                "confident": confident(logits),
                "threshold": CONFIDENT,
                "shares": [round(x, 4) for x in shares.tolist()],
                **about,
            },
            "nearest_training_image": {
                "median_distance": distances.median().item(),
                "median_distance_of_test_images": usual.median().item(),
                "copies": (distances < 0.2 * usual.median()).float().mean().item(),
            },
        }
        if others:
            record["reference_scores"] = {name: metrics(found, real) for name, found in others.items()}
        rows = [t for k in range(0, 32, 16) for t in (*images[k : k + 16], *train[closest[k : k + 16]])]
        try:
            save_grid(torch.stack(rows), folder / "nearest.png", 16)
            save_grid(images[:64], folder / "samples.png", 8)
            write_json(folder / f"{datetime.now().strftime('%Y%m%d-%H%M%S-%f')}.json", record)
        except OSError as error:
            raise UserError(f"run: {folder} cannot be written: {error.strerror}") from error
        return record

    return there.first(compared)


def metrics(generated: tuple[Tensor, Tensor], real: tuple[Tensor, Tensor]) -> dict[str, float]:
    """FID, KID, Inception Score, precision and recall of features and logits."""
    with extras():
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
        from torch_fidelity.metric_isc import isc_features_to_metric
        from torch_fidelity.metric_kid import kid_features_to_metric
        from torch_fidelity.metric_prc import prc_features_to_metric

    (ours, logits), (theirs, _) = generated, real
    fid = fid_statistics_to_metric(fid_features_to_statistics(ours), fid_features_to_statistics(theirs), False)
    size = min(1000, len(ours), len(theirs))
    kid = kid_features_to_metric(ours, theirs, kid_subset_size=size, kid_subsets=100, verbose=False)
    both = (ours[:MOST_NEIGHBOURS], theirs[:MOST_NEIGHBOURS])
    overlap = prc_features_to_metric(*both, prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False)
    return {
        "fid": float(fid["frechet_inception_distance"]),
        "kid": kid["kernel_inception_distance_mean"],
        "kid_deviation": kid["kernel_inception_distance_std"],
        "inception_score": isc_features_to_metric(logits)["inception_score_mean"],
        "precision": overlap["precision"],
        "recall": overlap["recall"],
    }


def nearest(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """For each image the index of the nearest other one, and its Euclidean distance in pixels of [-1, 1]."""
    found = [torch.cdist(part.flatten(1), others.flatten(1)).min(1) for part in images.split(500)]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])


def pixels(data: Data, split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and labels of a split, in order."""
    batches = [(_shown(data, batch), labels) for batch, labels in loader(first(data.splits[split], limit), BATCH)]
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def _shown(data: Data, images: Tensor) -> Tensor:
    """Normalised images as pixels in [-1, 1]."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return (images * std + mean) * 2 - 1


def _of_split(data: Data, split: str, extract: Extractor, size: int, there: Ranks) -> tuple[Tensor, Tensor]:
    """Features and logits of a split, of which each rank reads and extracts its part."""
    batches = loader(data.splits[split], size, ranks=there)
    found = [extract(_shown(data, images)) for images, _ in batches]
    features, logits = batches.whole([torch.cat([one[k] for one in found]) for k in range(2)])
    return features, logits


def _extracted(there: Ranks, extract: Extractor, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
    features, logits = there.map_rows(extract, images, size)
    return features, logits


def _inception(weights: Path) -> tuple[Extractor, str]:
    """Features and logits of Inception-v3, and its name with the hash of its weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    if not weights.is_file():  # a pipe would wait for ever
        raise UserError(f"--inception-weights: {weights} is not a regular file")
    try:
        name = hashlib.sha256(weights.read_bytes()).hexdigest()
        inception = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
        )
    except Exception as error:  # whatever a file that is no Inception-v3 makes torch raise
        raise UserError(
            f"--inception-weights: {weights} does not hold torch-fidelity's Inception-v3 ({type(error).__name__})"
        ) from error

    @torch.no_grad()
    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for part in images.split(50):
            bytes_ = ((part + 1) * 127.5).round().clamp(0, 255).byte()
            found.append(inception(bytes_.expand(-1, 3, -1, -1).contiguous()))
        return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])

    return extract, f"inception-v3-compat sha256 {name}"


class ReferenceClassifier(nn.Module):
    """Images ``(batch, channels, size, size)`` in [-1, 1] to logits ``(batch, classes)``: a small convolutional net."""

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()

        def convolved(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()]

        self.body = nn.Sequential(
            *convolved(channels, width),
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
        features = torch.cat([self.body(part) for part in images.split(BATCH)])
        return features, torch.cat([self.head(part) for part in features.split(BATCH)])


def reference_classifier(
    data: Data, console: Console, file: Path | None = None
) -> tuple[ReferenceClassifier, dict[str, Any]]:
    """The reference classifier of a data set: read from ``file`` or the cache, or trained and kept there.

    Returns:
        The classifier in evaluation mode, and of it: ``sha256`` of its file; ``quality``: ``test_accuracy`` and
        ``confident_of_test``, ``_gaussian``, ``_covariance`` and ``_shuffled``, the share of such images of which its
        confidence is above 0.8.

    Raises UserError: the file is no classifier of such images, or cannot be read or written.
    """
    shape, flag, place = data.shape, "--reference-classifier", file
    if place is None:
        size = len(data.splits["train"])  # type: ignore[arg-type]
        key = digest(VERSION, STEPS, data.name, shape.channels, shape.image_size, shape.classes, size, data.mean)[:12]
        name = data.name.replace("/", "-").replace(":", "-")
        place = cache_folder() / "judges" / f"{name}-{key}.safetensors"  # the folder of earlier versions
    if place.exists() and not place.is_file():
        raise UserError(f"{flag}: {place} is not a regular file")
    if not place.is_file():
        check_writable(place.parent, flag)  # before a training that would be lost
        console.print(f"training a reference classifier for {data.name}, kept as {place}", highlight=False)
        trained, quality = _train(data)
        state = {name: value.contiguous().clone() for name, value in trained.state_dict().items()}
        described = {name: repr(value) for name, value in quality.items()}
        try:
            replace_with(place, lambda path: save_file(state, path, described))
        except OSError as error:
            raise UserError(f"{flag}: {place} cannot be written: {error.strerror}") from error
    model = ReferenceClassifier(shape.channels, shape.classes)
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


def confident(logits: Tensor) -> float:
    """The share of images with a confidence above 0.8."""
    return (logits.softmax(-1).max(-1).values > CONFIDENT).float().mean().item()


def _train(data: Data) -> tuple[ReferenceClassifier, dict[str, float]]:
    images, labels = pixels(data, "train", 60_000)
    kinds, random = list(negatives(images).values()), Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ReferenceClassifier(data.shape.channels, data.shape.classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, total_steps=STEPS)
    size = images.shape[-1]
    most = max(1, size // 12)
    for step in range(STEPS):
        chosen = torch.randint(len(images), (96,), generator=random)
        real = images[chosen]
        top, left = torch.randint(0, 2 * most + 1, (2,), generator=random).tolist()
        if step % 2:  # a picture at the other edge is no digit: what leaves is lost
            real = F.pad(real, (most,) * 4, value=-1)[..., top : top + size, left : left + size]
        logits = model(torch.cat([real, kinds[step % 3](48, random)])).log_softmax(-1)
        loss = F.nll_loss(logits[:96], labels[chosen]) - logits[96:].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
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


def gan_of(run: RunFolder, backend: str | Backend = "exact") -> Gan:
    """The GAN of a run. Raises UserError: the run is a classifier, or has no weights yet."""
    if run.options().model.kind != "gan":
        raise UserError(f"run: {run.path} is a classifier; a GAN is needed (qrkt-hw train --model gan)")
    model = restored(run, backend)
    assert isinstance(model, Gan)
    return model


def noise(count: int, latent: int, seed: int, interpolate: bool = False, row: int = 8) -> Tensor:
    """``(count, latent)`` of this seed: independent, or in rows that lead from one point to the next on the sphere."""
    random = torch.Generator().manual_seed(seed)
    if not interpolate:
        return torch.randn(count, latent, generator=random)
    ends = torch.randn(-(-count // row), 2, latent, generator=random)
    units = ends / ends.norm(dim=-1, keepdim=True)
    angle = (units[:, 0] * units[:, 1]).sum(-1).clamp(-1, 1).acos()[:, None, None]
    t = torch.linspace(0, 1, row)[None, :, None]
    path = (((1 - t) * angle).sin() * ends[:, :1] + (t * angle).sin() * ends[:, 1:]) / angle.sin()
    return path.flatten(0, 1)[:count]


@torch.no_grad()
def draw(model: Gan, points: Tensor, there: Ranks | None = None) -> Tensor:
    """Images ``(count, channels, size, size)`` in [-1, 1] of noise, rounded to 8 bits as a file would hold them; each
    rank draws its part. Raises UserError: values that are not finite."""

    def levels(part: Tensor) -> list[Tensor]:
        images = model(part).float().clamp(-1, 1)
        if not images.isfinite().all():
            raise UserError(
                "run: the generator draws no finite pixels; its weights are damaged, or its training diverged"
            )
        return [((images + 1) * 127.5).round().byte()]

    (found,) = (there or here()).map_rows(levels, points, GENERATED)
    return found / 127.5 - 1


def save_images(images: Tensor, folder: Path) -> None:
    """One PNG for each image, ``00000.png`` and so on. Raises UserError: the folder cannot be written."""
    temporary = folder / f".{os.getpid()}.tmp"  # a picture is whole or not there, whenever the process ends
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(to_bytes(images)):
            picture(image).save(temporary, format="PNG")
            temporary.replace(folder / f"{number:05d}.png")
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"--out: {folder} cannot be written: {error.strerror}") from error

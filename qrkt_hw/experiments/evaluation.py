"""Images of a GAN, and how good they are: FID, KID, Inception Score, precision, recall and a reference classifier.

torch-fidelity computes these from the features of one extractor: Inception-v3 (images enlarged to 299 pixels as in
TensorFlow 1), or the reference classifier. The sliced Wasserstein distance needs no extractor: it compares pixels. A
figure belongs to its protocol and is compared with no other.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Generator, Tensor

from qrkt_hw.backends import Backend
from qrkt_hw.backends.device.cache import digest
from qrkt_hw.data import Data, load_data
from qrkt_hw.data.batches import loader
from qrkt_hw.data.ranks import Ranks, here
from qrkt_hw.errors import UserError
from qrkt_hw.experiments.loading import restored
from qrkt_hw.models.metrics import (
    BATCH,
    CONFIDENT,
    MOST_NEIGHBOURS,
    NEIGHBOURS,
    class_shares,
    confident,
    image_metrics,
    negatives,
    pixels,
    reference_classifier,
    shown,
    sliced_wasserstein,
)
from qrkt_hw.models.transformer import Gan
from qrkt_hw.plots.images import picture, save_grid, to_bytes
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import check_writable, write_json

OF_INCEPTION = 1000  # images that Inception takes at once; whole batches of its 50
GENERATED = 250  # images that a generator computes at once
PROJECTED = 5_000  # images in the sliced Wasserstein distance
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
    images = draw(model, noise(samples, model.latent, seed), classes_of(model, samples))
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
    if model.classes:
        protocol["classes"] = "in turn"

    def compared() -> dict[str, Any]:
        closest, distances = nearest(images[:1000], train)
        tested = pixels(data, "test", PROJECTED)[0]
        _, usual = nearest(tested[:1000], train)
        record: dict[str, Any] = {
            "protocol": protocol,
            "protocol_digest": digest(protocol)[:8],
            "noise_seed": seed,
            "metrics": image_metrics(generated, real),
            "reference_classifier": {
                "confident": confident(logits),
                "threshold": CONFIDENT,
                "shares": [round(x, 4) for x in class_shares(logits).tolist()],
                **about,
            },
            "sliced_wasserstein": {
                "samples": min(PROJECTED, len(images)),
                "run": sliced_wasserstein(images[:PROJECTED], train),
                "test images": sliced_wasserstein(tested, train),
            },
            "nearest_training_image": {
                "median_distance": distances.median().item(),
                "median_distance_of_test_images": usual.median().item(),
                "copies": (distances < 0.2 * usual.median()).float().mean().item(),
            },
        }
        if others:
            record["reference_scores"] = {name: image_metrics(found, real) for name, found in others.items()}
        rows = [t for k in range(0, 32, 16) for t in (*images[k : k + 16], *train[closest[k : k + 16]])]
        try:
            save_grid(torch.stack(rows), folder / "nearest.png", 16)
            save_grid(images[:64], folder / "samples.png", 8)
            write_json(folder / f"{datetime.now().strftime('%Y%m%d-%H%M%S-%f')}.json", record)
        except OSError as error:
            raise UserError(f"run: {folder} cannot be written: {error.strerror}") from error
        return record

    return there.first(compared)


def nearest(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """For each image the index of the nearest other one, and its Euclidean distance in pixels of [-1, 1]."""
    found = [torch.cdist(part.flatten(1), others.flatten(1)).min(1) for part in images.split(500)]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])


def _of_split(data: Data, split: str, extract: Extractor, size: int, there: Ranks) -> tuple[Tensor, Tensor]:
    """Features and logits of a split, of which each rank reads and extracts its part."""
    batches = loader(data.splits[split], size, ranks=there)
    found = [extract(shown(data, images)) for images, _ in batches]
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


def gan_of(run: RunFolder, backend: str | Backend = "exact") -> Gan:
    """The GAN of a run. Raises UserError: the run is a classifier, or has no weights yet."""
    if run.options().model.kind != "gan":
        raise UserError(f"run: {run.path} is a classifier; a GAN is needed (qrkt-hw train --model gan)")
    model = restored(run, backend)
    assert isinstance(model, Gan)
    return model


def noise(
    count: int, latent: int, seed: int, interpolate: bool = False, row: int = 8, truncation: float | None = None
) -> Tensor:
    """``(count, latent)`` of this seed: independent, or in rows that lead from one point to the next on the sphere.

    With ``truncation`` the normal distribution is cut off at plus and minus this value (Brock et al. 2019).
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        if truncation is None:
            return torch.randn(*shape, generator=random)
        return torch.nn.init.trunc_normal_(torch.empty(shape), a=-truncation, b=truncation, generator=random)

    if not interpolate:
        return normal(count, latent)
    ends = normal(-(-count // row), 2, latent)
    units = ends / ends.norm(dim=-1, keepdim=True)
    angle = (units[:, 0] * units[:, 1]).sum(-1).clamp(-1, 1).acos()[:, None, None]
    t = torch.linspace(0, 1, row)[None, :, None]
    path = (((1 - t) * angle).sin() * ends[:, :1] + (t * angle).sin() * ends[:, 1:]) / angle.sin()
    return path.flatten(0, 1)[:count]


def classes_of(model: Gan, count: int, chosen: int | None = None, row: int = 1) -> Tensor | None:
    """The class of each image, ``(count,)``: the chosen one, or all in turn, a row of images after another; None of a
    GAN without classes."""
    if not model.classes:
        return None
    turns = torch.arange(count) // row % model.classes
    return turns if chosen is None else torch.full_like(turns, chosen)


@torch.no_grad()
def draw(model: Gan, points: Tensor, labels: Tensor | None = None, there: Ranks | None = None) -> Tensor:
    """Images ``(count, channels, size, size)`` in [-1, 1] of noise, rounded to 8 bits as a file would hold them; each
    rank draws its part. Raises UserError: values that are not finite."""

    def levels(rows: Tensor) -> list[Tensor]:
        images = model(points[rows], None if labels is None else labels[rows]).float().clamp(-1, 1)
        if not images.isfinite().all():
            raise UserError(
                "run: the generator draws no finite pixels; its weights are damaged, or its training diverged"
            )
        return [((images + 1) * 127.5).round().byte()]

    (found,) = (there or here()).map_rows(levels, torch.arange(len(points)), GENERATED)
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

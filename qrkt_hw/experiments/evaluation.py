"""How good the images of a GAN are: FID, KID, Inception Score, precision and recall, and a judge's word.

All metrics are torch-fidelity's, on features of one extractor: Inception-v3 (images enlarged to 299 pixels as in
TensorFlow 1), or the judge of the data set. A number belongs to its protocol and is compared with no other.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from qrkt_hw.backends.device.cache import digest
from qrkt_hw.data import load_data
from qrkt_hw.errors import UserError
from qrkt_hw.experiments.generating import draw, gan_of, nearest, noise
from qrkt_hw.experiments.judging import Judged, Noise, features_of, judge, logits_of, pixels, verdict
from qrkt_hw.plots.images import save_grid
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import write_json

NEIGHBOURS = 3
MOST_NEIGHBOURS = 10_000  # images in precision and recall
Extractor = Callable[[Tensor], tuple[Tensor, Tensor]]  # images to features and logits


def evaluate(
    run: RunFolder,
    console: Console,
    *,
    samples: int,
    seed: int,
    split: str,
    weights: Path | None,
    judge_file: Path | None,
    yardsticks: bool,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """Measure a run; the record is kept under its ``evaluation/``.

    Args:
        run: a GAN.
        console: for progress.
        samples: images drawn.
        seed: of their noise.
        split: the real images they are compared with.
        weights: of Inception-v3, as torch-fidelity publishes them; None takes the judge's features.
        judge_file: a fixed judge; None takes the data set's own.
        yardsticks: also measure the real test images, and Gaussian images of the data's mean and covariance.
        data_dir: folder with the data set's files; None takes the run's.

    Raises:
        UserError: no GAN, weights that are none, or a folder that cannot be written.
    """
    model = gan_of(run)
    folder = run.path / "evaluation"
    try:  # before the work that would be lost
        folder.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"run: {folder} cannot be written: {error.strerror}") from error
    options = run.options()
    there = options.replace(limit=None, data_dir=data_dir or options.data.data_dir)
    data = load_data(there.data)
    judged = judge(data, console, judge_file)
    extract, extractor = _extractor(weights, judged)
    real, _ = pixels(data, split)
    images = draw(model, noise(samples, model.latent, seed))
    protocol = {
        "extractor": extractor,
        "dataset": data.name,
        "split": split,
        "real_images": len(real),
        "samples": samples,
        "resize": "bilinear to 299, as TensorFlow 1" if weights else "none",
        "bits": 8,
        "precision_recall": {"neighbours": NEIGHBOURS, "most": MOST_NEIGHBOURS},
    }
    features = extract(real)
    record: dict[str, Any] = {
        "protocol": protocol,
        "protocol_digest": digest(protocol)[:8],
        "noise_seed": seed,
        "metrics": metrics(extract(images), features),
        "judge": {**verdict(judged.model, images), "sha256": judged.sha256, "quality": judged.quality},
    }
    train, _ = pixels(data, "train", 60_000)
    test, _ = pixels(data, "test", 1000)
    _, distances = nearest(images[:1000], train)
    _, usual = nearest(test, train)
    record["nearest_training_image"] = {
        "median_distance": distances.median().item(),
        "median_distance_of_test_images": usual.median().item(),
        "copies": (distances < 0.2 * usual.median()).float().mean().item(),
    }
    if yardsticks:
        random = torch.Generator().manual_seed(seed)
        tested, _ = pixels(data, "test")
        gaussian = Noise(train).covariance(samples, random)
        record["yardsticks"] = {
            "test images": metrics(extract(tested), features),
            "gaussian images": metrics(extract(gaussian), features),
        }
    indices, _ = nearest(images[:32], train)
    rows = [t for k in range(0, 32, 16) for t in (*images[k : k + 16], *train[indices[k : k + 16]])]
    try:
        save_grid(torch.stack(rows), folder / "nearest.png", 16)
        save_grid(images[:64], folder / "samples.png", 8)
        write_json(folder / f"{datetime.now().strftime('%Y%m%d-%H%M%S-%f')}.json", record)
    except OSError as error:
        raise UserError(f"run: {folder} cannot be written: {error.strerror}") from error
    return record


def metrics(drawn: tuple[Tensor, Tensor], real: tuple[Tensor, Tensor]) -> dict[str, float]:
    """FID, KID, Inception Score, precision and recall of features and logits."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    (ours, logits), (theirs, _) = drawn, real
    fid = fid_statistics_to_metric(fid_features_to_statistics(ours), fid_features_to_statistics(theirs), False)
    size = min(1000, len(ours), len(theirs))
    kid = kid_features_to_metric(ours, theirs, kid_subset_size=size, kid_subsets=100, verbose=False)
    scores = isc_features_to_metric(logits)
    most = MOST_NEIGHBOURS
    kept = prc_features_to_metric(
        ours[:most], theirs[:most], prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False
    )
    return {
        "fid": float(fid["frechet_inception_distance"]),
        "kid": kid["kernel_inception_distance_mean"],
        "kid_deviation": kid["kernel_inception_distance_std"],
        "inception_score": scores["inception_score_mean"],
        "precision": kept["precision"],
        "recall": kept["recall"],
    }


def _extractor(weights: Path | None, judged: Judged) -> tuple[Extractor, str]:
    """What makes features, and its name with the hash of its weights."""
    if weights is None:
        model = judged.model
        return lambda images: (features_of(model, images), logits_of(model, images)), f"judge sha256 {judged.sha256}"
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
            pixels = ((part + 1) * 127.5).round().clamp(0, 255).byte()
            found.append(inception(pixels.expand(-1, 3, -1, -1).contiguous()))
        return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])

    return extract, f"inception-v3-compat sha256 {name}"

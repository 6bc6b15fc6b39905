"""Inference of a run on a split or on image files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from qrkt_hw.backends import Backend
from qrkt_hw.backends.exact import ExactBackend
from qrkt_hw.data import load_data
from qrkt_hw.data.batches import loader
from qrkt_hw.data.images import read_image
from qrkt_hw.experiments.device import on_backend
from qrkt_hw.experiments.loading import load
from qrkt_hw.layers.ablation import ablated
from qrkt_hw.models.build import quantum_layers
from qrkt_hw.runs import RunFolder
from qrkt_hw.training.metrics import classification_metrics, logits_of

BATCH = 256


def infer_split(
    run: RunFolder,
    split: str,
    limit: int | None,
    backend: Backend,
    ablate: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Metrics on a split; the record is kept in the run.

    Args:
        run: the run.
        split: ``test`` or ``validation``.
        limit: only the first images.
        backend: where the circuits run.
        ablate: names of :data:`qrkt_hw.layers.ablation.REPLACEMENTS` to evaluate beside the model itself.
        console: for the progress bar; None shows nothing.

    Returns:
        ``split, count, accuracy, f1, auroc, loss, backend, seconds`` (of evaluating the model, without loading);
        with ablations ``ablations``: name to metrics. Elsewhere than on the exact simulator also what
        :func:`qrkt_hw.experiments.device.on_backend` reports.
    """
    model = load(run, backend)
    run.check_inference()
    data = load_data(run.options().model_copy(update={"limit": None}))
    dataset: Any = data.splits[split]
    count = min(limit or len(dataset), len(dataset))
    if count < len(dataset):
        dataset = torch.utils.data.TensorDataset(*dataset[list(range(count))])
    started = time.perf_counter()
    report: dict[str, Any] = {}
    if isinstance(backend, ExactBackend) or not quantum_layers(model):
        logits, labels = logits_of(model, loader(dataset, BATCH))
        seconds = time.perf_counter() - started
    else:
        logits, labels, report = on_backend(model, loader(dataset, BATCH), backend, console)
        seconds = report["wall_seconds"]
    metrics = classification_metrics(logits, labels)
    record = {
        "split": split,
        "count": count,
        **metrics,
        "backend": backend.name,
        "seconds": round(seconds, 4),
        **report,
    }
    if ablate:
        record["ablations"] = {}
        for name in ablate:
            with ablated(model, name):
                found = classification_metrics(*logits_of(model, loader(dataset, BATCH)))
            record["ablations"][name] = found
    run.keep_inference(record)
    return record


def infer_images(run: RunFolder, paths: Sequence[Path], backend: Backend) -> dict[str, Any]:
    """Class and probabilities of image files; the record is kept in the run.

    Returns:
        ``images``: per file ``file``, ``class``, ``probabilities`` by class name; ``count``, ``backend``, ``seconds``.
    """
    description = run.description()
    images = torch.stack([read_image(path, description) for path in paths])
    model = load(run, backend)
    run.check_inference()
    started = time.perf_counter()
    with torch.no_grad():
        probabilities = model(images.to(next(model.parameters()).dtype)).softmax(-1)
    seconds = time.perf_counter() - started
    names = description["class_names"]
    results = [
        {
            "file": str(path),
            "class": names[int(row.argmax())],
            "probabilities": {name: round(float(p), 6) for name, p in zip(names, row, strict=True)},
        }
        for path, row in zip(paths, probabilities, strict=True)
    ]
    record = {"images": results, "count": len(results), "backend": backend.name, "seconds": round(seconds, 4)}
    run.keep_inference(record)
    return record

"""Inference of a run on a split or on image files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from qrkt_hw.backends import Backend
from qrkt_hw.backends.exact import ExactBackend
from qrkt_hw.data import load_data
from qrkt_hw.data.base import DataShape
from qrkt_hw.data.batches import first, loader
from qrkt_hw.data.images import read_image
from qrkt_hw.data.text import encode, trimmed
from qrkt_hw.errors import UserError
from qrkt_hw.experiments.device import on_backend
from qrkt_hw.experiments.loading import trained
from qrkt_hw.models.ablation import ablated
from qrkt_hw.models.factory import quantum_layers
from qrkt_hw.models.metrics import classification_metrics, logits_of
from qrkt_hw.runs import RunFolder

BATCH = 256


def infer_split(
    run: RunFolder,
    model: nn.Module,
    split: str,
    limit: int | None,
    backend: Backend,
    ablate: Sequence[str] = (),
    console: Console | None = None,
    data_dir: Path | None = None,
    layers: bool = False,
) -> dict[str, Any]:
    """Metrics on a split; the record is kept in the run.

    Args:
        run: the run.
        model: its model on ``backend``; the trained weights are filled in here.
        split: ``test`` or ``validation``.
        limit: only the first samples.
        backend: where the circuits run.
        ablate: names of :data:`qrkt_hw.models.ablation.REPLACEMENTS` to evaluate beside the model itself.
        console: for the progress bar; None shows nothing.
        data_dir: folder with the data set's files; None takes the run's.
        layers: also how far the values of every layer are from the exact ones, as ``layers``.

    Returns:
        ``split, count, accuracy, f1, auroc, loss, backend, seconds`` (of evaluating the model, without loading);
        with ablations ``ablations``: name to metrics. Elsewhere than on the exact simulator also what
        :func:`qrkt_hw.experiments.device.on_backend` reports.

    Raises:
        UserError: ablations on a device that bills.
    """
    if ablate and backend.bills:
        raise UserError(
            f"--ablate: {backend.name} bills circuits whose values are then thrown away; ablate on a simulator, such "
            "as --backend exact, where the weights are the same"
        )
    trained(run, model)
    if backend.bills:
        run.check_inference()  # what is paid for must be kept
    dataset = _split(run, split, limit, data_dir)
    count = len(dataset)
    started = time.perf_counter()
    report: dict[str, Any] = {}
    if isinstance(backend, ExactBackend) or not quantum_layers(model):
        logits, labels = logits_of(model, loader(dataset, BATCH))
        seconds = time.perf_counter() - started
    else:
        logits, labels, report = on_backend(model, loader(dataset, BATCH), backend, console, layers)
        seconds = report["wall_seconds"]
    _check_finite(run, logits)
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


def count(run: RunFolder, split: str, limit: int | None, data_dir: Path | None = None) -> int:
    """How many samples :func:`infer_split` takes."""
    return len(_split(run, split, limit, data_dir))


def _split(run: RunFolder, split: str, limit: int | None, data_dir: Path | None) -> Any:
    """The first samples of a split, as the run's model reads them."""
    options = run.options()
    there = options.model_copy(update={"limit": None, "data_dir": data_dir or options.data_dir})
    return first(load_data(there, run.description().get("vocabulary", ())).splits[split], limit)


def infer_images(run: RunFolder, model: nn.Module, paths: Sequence[Path], backend: Backend) -> dict[str, Any]:
    """Class and probabilities of image files; the record is kept in the run.

    Returns:
        ``images``: per file ``file``, ``class``, ``probabilities`` by class name; ``count``, ``backend``, ``seconds``.

    Raises:
        UserError: a file that cannot be read, or a run that reads texts.
    """
    description = run.description()
    if DataShape.of(description).vocabulary:
        raise UserError(f"--image: the model of {run.path} reads texts; use --text")
    images = torch.stack([read_image(path, description) for path in paths])
    return _classified(run, model, images, "images", [{"file": str(path)} for path in paths], backend)


def infer_texts(run: RunFolder, model: nn.Module, texts: Sequence[str], backend: Backend) -> dict[str, Any]:
    """Class and probabilities of texts; the record is kept in the run.

    Returns:
        ``texts``: per text ``text``, ``class``, ``probabilities`` by class name; ``count``, ``backend``, ``seconds``.

    Raises:
        UserError: a run that reads images.
    """
    description = run.description()
    shape = DataShape.of(description)
    if not shape.vocabulary:
        raise UserError(f"--text: the model of {run.path} reads images; use --image")
    options = run.options()
    reading = {"unique": options.unique_words, "pairs": options.word_pairs}
    ids = trimmed(encode(texts, description["vocabulary"], shape.length, **reading))
    return _classified(run, model, ids, "texts", [{"text": text} for text in texts], backend)


def _classified(
    run: RunFolder,
    model: nn.Module,
    inputs: torch.Tensor,
    kind: str,
    items: list[dict[str, Any]],
    backend: Backend,
) -> dict[str, Any]:
    trained(run, model)
    if backend.bills:
        run.check_inference()
    started = time.perf_counter()
    with torch.no_grad():
        logits = model(inputs)
    _check_finite(run, logits)
    probabilities = logits.softmax(-1)
    seconds = time.perf_counter() - started
    names = run.description()["class_names"]
    for item, row in zip(items, probabilities, strict=True):
        item["class"] = names[int(row.argmax())]
        item["probabilities"] = {name: round(float(p), 6) for name, p in zip(names, row, strict=True)}
    record = {kind: items, "count": len(items), "backend": backend.name, "seconds": round(seconds, 4)}
    run.keep_inference(record)
    return record


def _check_finite(run: RunFolder, logits: torch.Tensor) -> None:
    """Make sure that logits ``(samples, classes)`` say something: a class out of NaN would be the first one.

    Raises:
        UserError: they do not.
    """
    odd = int((~logits.isfinite()).any(-1).sum())
    if odd:
        raise UserError(
            f"run: {run.path} gives no finite values for {odd} of {len(logits)} samples; its weights are damaged "
            f"({run.model.name}), or its training diverged"
        )

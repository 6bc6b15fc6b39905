"""Inference of a run: metrics on a split, or the classes of image files or texts."""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from qrkt_hw.backends import Backend
from qrkt_hw.backends.exact import ExactBackend
from qrkt_hw.backends.registry import tracked
from qrkt_hw.backends.several import Devices
from qrkt_hw.data.batches import loader
from qrkt_hw.data.ranks import here
from qrkt_hw.errors import UserError
from qrkt_hw.experiments.devices import FineTuned, Watched, logits_everywhere, on_backend, on_several
from qrkt_hw.experiments.loading import Inputs, restored
from qrkt_hw.models.ablation import ablated
from qrkt_hw.models.factory import quantum_layers, set_backend
from qrkt_hw.models.metrics import classification_metrics, logits_of
from qrkt_hw.resources.forecast import BATCH
from qrkt_hw.runs import RunFolder


def infer_split(
    run: RunFolder,
    model: nn.Module,
    split: str,
    samples: Any,
    backend: Backend,
    ablate: Sequence[str] = (),
    console: Console | None = None,
    layers: bool = False,
    stage_shots: Sequence[int] = (),
    tuned: FineTuned | None = None,
    repeat: int = 0,
) -> dict[str, Any]:
    """Metrics on samples of a split; the record is kept in the run.

    Args:
        run: the run.
        model: its model, on ``backend``.
        split: the name of the split.
        samples: of :func:`read_split`.
        backend: where the circuits run.
        ablate: names of :data:`qrkt_hw.models.ablation.REPLACEMENTS` to evaluate beside the model itself.
        console: for the progress bar; None shows nothing.
        layers: also how far the values of every layer are from the exact ones, as ``layers``.
        stage_shots: of each sequential stage; none for those of the backend.
        tuned: what :func:`fine_tuned` made of ``model``; the exact values are then those of the model before.
        repeat: so many samples, the most uncertain ones, are evaluated twice.

    Returns:
        ``split, count, accuracy, f1, auroc, loss, backend, seconds`` (of evaluating the model, without loading);
        with ablations ``ablations``: name to metrics. Elsewhere than on the exact simulator also what
        :func:`on_backend` reports.

    Raises UserError: ablations on a device that bills, or logits that are not finite.
    """
    if ablate and isinstance(backend, Devices):
        raise UserError("--ablate: several devices take no ablations; ablate on --backend exact, with the same weights")
    if ablate and backend.bills:
        raise UserError(
            f"--ablate: {backend.name} bills circuits whose values are then thrown away; ablate on a simulator, such "
            "as --backend exact, where the weights are the same"
        )
    if backend.bills:
        run.check_inference()  # what is paid for must be kept
    exact = isinstance(backend, ExactBackend) or not quantum_layers(model)
    there = here() if exact else here().over_samples(backend)
    batches, started = loader(samples, backend.batch or BATCH, ranks=there), time.perf_counter()
    report: dict[str, Any] = {}
    if exact:
        logits, labels = logits_everywhere(model, batches, console)
    else:
        logits, labels, report = on_backend(
            model, batches, backend, console, layers, stage_shots, tuned and tuned.original, repeat
        )
    seconds = report.get("wall_seconds", time.perf_counter() - started)
    _check_finite(run, logits)
    metrics = classification_metrics(logits, labels)
    record = {"split": split, "count": len(samples), **metrics, "backend": backend.name, "seconds": round(seconds, 4)}
    record.update(report)
    if tuned is not None:
        record["fine_tuned"] = tuned.record
    for name in ablate:
        with ablated(model, name):
            found = classification_metrics(*logits_everywhere(model, batches, console))
        record.setdefault("ablations", {})[name] = found
    if here().leads:
        run.keep_inference(record)
    return record


def classify(
    run: RunFolder,
    model: nn.Module,
    inputs: Inputs,
    backend: Backend,
    stage_shots: Sequence[int] = (),
    tuned: FineTuned | None = None,
) -> dict[str, Any]:
    """Class and probabilities of inputs, of which each rank computes its part; the record is kept in the run.

    Args:
        run, model: the run and its model on ``backend``.
        inputs: of :func:`read_paths`, :func:`read_images` or :func:`read_texts`.
        backend: where the circuits run.
        stage_shots: of each sequential stage; none for those of the backend.
        tuned: what :func:`fine_tuned` made of ``model``.

    Returns:
        Under ``images`` or ``texts`` for each input ``file`` or ``text``, ``class``, ``probabilities`` by class name,
        ``converted`` where it was; ``count``, ``backend``, ``seconds``, and elsewhere than on the exact simulator
        ``backend_details``.

    Raises UserError: logits that are not finite.
    """
    if backend.bills:
        run.check_inference()
    started = time.perf_counter()
    if stage_shots:
        set_backend(model, Watched(backend, False, stage_shots))
    there = here().over_samples(backend) if quantum_layers(model) else here()
    if isinstance(backend, Devices):
        logits = on_several(model, inputs.samples, backend, None, False)[0]
    else:
        with torch.no_grad():
            (logits,) = there.map_rows(lambda part: [model(part)], inputs.samples, backend.batch or BATCH)
    _check_finite(run, logits)
    seconds = time.perf_counter() - started
    classes, items = run.description()["class_names"], []
    for name, done, row in zip(inputs.names, inputs.notes, logits.softmax(-1), strict=True):
        shares = {cls: round(float(p), 6) for cls, p in zip(classes, row, strict=True)}
        key = "file" if inputs.kind == "images" else "text"
        items.append({key: name, "class": classes[int(row.argmax())], "probabilities": shares})
        if done:
            items[-1]["converted"] = "; ".join(done)
    record = {inputs.kind: items, "count": len(items), "backend": backend.name, "seconds": round(seconds, 4)}
    record |= {} if isinstance(backend, ExactBackend) else {"backend_details": backend.about()}
    record |= {"stage_shots": list(stage_shots)} if stage_shots else {}
    record |= {"fine_tuned": tuned.record} if tuned is not None else {}
    if here().leads:
        run.keep_inference(record)
    return record


class Mistake(NamedTuple):
    """A sample that a model classifies wrongly."""

    place: int  # in the split
    true: int
    predicted: int
    confidence: float
    inputs: Tensor


def mistakes(
    run: RunFolder, samples: Any, shown: int, console: Console | None = None
) -> tuple[NDArray[np.int64], list[Mistake]]:
    """Counts ``(classes, classes)`` of true against predicted classes on the exact simulator, and of the mistakes the
    ``shown`` in which the model is most confident. Raises as :func:`infer_split`."""
    model, wrong, done = restored(run), list[Mistake](), 0
    classes = len(run.description()["class_names"])
    counts = np.zeros((classes, classes), dtype=np.int64)
    for inputs, labels in tracked(console, "evaluating", loader(samples, BATCH)):
        logits, _ = logits_of(model, [(inputs, labels)])
        _check_finite(run, logits)
        shares, predicted = logits.softmax(-1).max(-1)
        np.add.at(counts, (labels.numpy(), predicted.numpy()), 1)
        for k in (predicted != labels).nonzero()[:, 0].tolist():
            wrong.append(Mistake(done + k, int(labels[k]), int(predicted[k]), float(shares[k]), inputs[k]))
        wrong = heapq.nlargest(shown, wrong, key=lambda one: (one.confidence, -one.place))
        done += len(labels)
    return counts, wrong


def _check_finite(run: RunFolder, logits: Tensor) -> None:
    """Make sure that logits ``(samples, classes)`` say something: a class out of NaN would be the first one."""
    odd = int((~logits.isfinite()).any(-1).sum())
    if odd:
        raise UserError(
            f"run: {run.path} gives no finite values for {odd} of {len(logits)} samples; its weights are damaged "
            f"({run.model.name}), or its training diverged"
        )

"""Inference of a run: metrics on a split, or the classes of image files or texts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from qrkt_hw.backends import Backend, Call
from qrkt_hw.backends.budget import LARGEST_JOB
from qrkt_hw.backends.device.packing import DeviceBackend
from qrkt_hw.backends.exact import ExactBackend
from qrkt_hw.backends.registry import Waiting
from qrkt_hw.data import load_data
from qrkt_hw.data.base import DataShape
from qrkt_hw.data.batches import Batches, first, loader
from qrkt_hw.data.ranks import Ranks, here, idle
from qrkt_hw.errors import UserError
from qrkt_hw.experiments.loading import Inputs, restored
from qrkt_hw.models.ablation import ablated
from qrkt_hw.models.factory import quantum_layers, set_backend
from qrkt_hw.models.metrics import classification_metrics, logits_of, mcnemar, wilson
from qrkt_hw.models.noise import Response, add_hooks, allocated, sensitivities
from qrkt_hw.models.weights import load_weights, save_weights
from qrkt_hw.resources.forecast import forecast
from qrkt_hw.resources.logical import stages_of, trace
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import replace_with, write_json
from qrkt_hw.runs.folder import read_json

BATCH = 256
VALIDATED = 512  # samples that decide whether a fine-tuning is kept
LOOKED_AT = 64  # samples from which the sensitivity to noise is known


def read_split(run: RunFolder, split: str, limit: int | None = None, data_dir: Path | None = None) -> Any:
    """The first ``limit`` samples of a split, as the run's model reads them; None as ``data_dir`` takes the run's."""
    options = run.options()
    there = options.replace(limit=None, data_dir=data_dir or options.data.data_dir)
    return first(load_data(there.data, run.description().get("vocabulary", ())).splits[split], limit)


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

    Returns:
        ``split, count, accuracy, f1, auroc, loss, backend, seconds`` (of evaluating the model, without loading);
        with ablations ``ablations``: name to metrics. Elsewhere than on the exact simulator also what
        :func:`on_backend` reports.

    Raises UserError: ablations on a device that bills, or logits that are not finite.
    """
    if ablate and backend.bills:
        raise UserError(
            f"--ablate: {backend.name} bills circuits whose values are then thrown away; ablate on a simulator, such "
            "as --backend exact, where the weights are the same"
        )
    if backend.bills:
        run.check_inference()  # what is paid for must be kept
    exact = isinstance(backend, ExactBackend) or not quantum_layers(model)
    there = here() if exact else here().over_samples(backend)
    batches, started = loader(samples, BATCH, ranks=there), time.perf_counter()
    report: dict[str, Any] = {}
    if exact:
        logits, labels = logits_everywhere(model, batches)
    else:
        logits, labels, report = on_backend(
            model, batches, backend, console, layers, stage_shots, tuned and tuned.original
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
            found = classification_metrics(*logits_everywhere(model, batches))
        record.setdefault("ablations", {})[name] = found
    if here().leads:
        run.keep_inference(record)
    return record


def shots_of_stages(
    run: RunFolder, backend: Backend, asked: str, data_dir: Path | None = None
) -> tuple[list[int], str]:
    """Shots of each sequential stage of a run's model, and a sentence on them.

    Args:
        run: the run.
        backend: a device that samples.
        asked: ``auto``, or numbers with commas between. ``auto`` deals what the backend's shots would take to where the
            logits of validation samples are sensitive to noise.
        data_dir: of these samples.

    Raises UserError: not such a number for each stage, or a simulator.
    """
    name = "--shots-per-stage"
    if not isinstance(backend, DeviceBackend) or not backend.shots:
        raise UserError(f"{name} applies only to devices that sample; backend {backend.name!r} does not")
    model = restored(run)
    stages = stages_of(model, DataShape.of(run.description()))
    if asked != "auto":
        numbers = [int(part) for part in asked.split(",") if part.strip().isdigit()]
        if len(numbers) != asked.count(",") + 1 or not all(1 <= n <= LARGEST_JOB for n in numbers):
            raise UserError(f"{name}: {asked!r} must be auto, or numbers from 1 to {LARGEST_JOB:,} with commas between")
        if len(numbers) != len(stages):
            raise UserError(f"{name}: {len(numbers)} numbers, and the model has {len(stages)} sequential stages")
        return numbers, f"shots of the stages: {asked}"
    (inputs, _), *_ = loader(read_split(run, "validation", LOOKED_AT, data_dir), LOOKED_AT)
    noise = sensitivities(model, inputs, [[call.layer for call in stage] for stage in stages])
    seconds = [
        (forecast([s], BATCH, BATCH, backend, shots=2).seconds - forecast([s], BATCH, BATCH, backend, shots=1).seconds)
        for s in stages
    ]
    found = allocated(noise, seconds, backend.shots)
    before, after = (
        sum(s / n for s, n in zip(noise, own, strict=True)) ** 0.5 for own in ([backend.shots] * len(found), found)
    )
    shown = ", ".join(map(str, found))
    return found, (
        f"shots of the stages: {shown}, in the QPU time of {backend.shots} everywhere; shot noise of the margin about "
        f"{after:.3g} instead of {before:.3g} (from {len(inputs)} validation samples)"
    )


class FineTuned(NamedTuple):
    """A model that was fitted to a device: what is kept of that, and the model as it was before."""

    record: dict[str, Any]
    original: nn.Module


def fine_tuned(
    run: RunFolder, model: nn.Module, backend: Backend, count: int, data_dir: Path | None, console: Console,
    stage_shots: Sequence[int] = (),
) -> FineTuned:  # fmt: skip
    """Fit a classifier, in place, to what a device returns for training images; the angles of its circuits stay.

    The device evaluates the images once. Least squares of its values on the exact ones give its response, layer by
    layer; gradient steps on the training split then go through the exact circuits with this response.

    Args:
        run, model: the run and its trained model, on ``backend``.
        backend: where the circuits run, held open.
        count: training images, the first of the split.
        data_dir: of the training split.
        console: for the progress bar.
        stage_shots: of each sequential stage; none for those of the backend.

    Returns:
        The model as it was, and: ``images``, the response of each layer (``layers``), the validation loss with this
        response before and after (``loss_before``, ``loss_after``), ``seconds``, and the file of the weights. An
        inference on a device that bills and is resumed takes the weights that it had before.
    """
    from qrkt_hw.training.classifier import refit

    started, splits = time.perf_counter(), [read_split(run, name, None, data_dir) for name in ("train", "validation")]
    original, watched = deepcopy(model), Watched(backend, True, stage_shots)
    pairs: dict[str, list[Any]] = {}
    watched.pairs = pairs
    set_backend(original, ExactBackend("exact"))
    set_backend(model, watched)
    batches = loader(first(splits[0], count), BATCH)
    total = len(trace(model, next(iter(batches))[0][:1])) * len(batches)
    with _Bar(console, total) as tell, backend.reporting(tell):
        logits_of(model, batches)
    activity = getattr(getattr(backend, "jobs", None), "activity", None)
    kept = run.inference / f"fine-tuned-{activity.name if activity else backend.name}.safetensors"
    told = kept.with_suffix(".json")
    if activity is not None and kept.is_file() and told.is_file():
        load_weights(model, kept)
        set_backend(model, backend)
        return FineTuned(read_json(told), original)
    set_backend(model, ExactBackend("exact"))
    responses = {}
    for layer in quantum_layers(model):
        both = zip(*pairs[layer.network.tag], strict=True)
        exact, found = (np.concatenate(part).reshape(-1, layer.outputs) for part in both)
        responses[layer.network.tag] = Response.of(layer, exact, found)
    remove = add_hooks(model, lambda layer: responses[layer.network.tag].noise())
    try:
        before, after = refit(model, splits[0], first(splits[1], VALIDATED), run.options())
    finally:
        remove()
    set_backend(model, backend)
    layers = {
        name: {"damping": round(float(r.damping.mean()), 4), "offset": round(float(abs(r.offset).mean()), 4),
               "shots": round(min(r.shots, 1e9), 1)} for name, r in responses.items()
    }  # fmt: skip
    record = {
        "images": min(count, len(splits[0])), "layers": layers, "loss_before": before, "loss_after": min(before, after),
        "seconds": round(time.perf_counter() - started, 3), "weights": kept.name,
    }  # fmt: skip
    run.inference.mkdir(exist_ok=True)
    write_json(told, record)
    replace_with(kept, lambda path: save_weights(model.state_dict(), path, 0))
    return FineTuned(record, original)


def logits_everywhere(model: nn.Module, batches: Any) -> tuple[Tensor, Tensor]:
    """Logits and labels of all batches, of which each rank evaluates its part where they are divided among ranks."""
    found = logits_of(model, batches)
    if isinstance(batches, Batches):
        logits, labels = batches.whole(found)
        return logits, labels
    return found


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
        inputs: of :func:`read_paths`, or made of :func:`read_images` or :func:`read_texts`.
        backend: where the circuits run.
        stage_shots: of each sequential stage; none for those of the backend.
        tuned: what :func:`fine_tuned` made of ``model``.

    Returns:
        Under ``images`` or ``texts`` for each input ``file`` or ``text``, ``class``, ``probabilities`` by class name,
        ``converted`` where it was; ``count``, ``backend``, ``seconds``.

    Raises UserError: logits that are not finite.
    """
    if backend.bills:
        run.check_inference()
    started = time.perf_counter()
    if stage_shots:
        set_backend(model, Watched(backend, False, stage_shots))
    there = here().over_samples(backend) if quantum_layers(model) else here()
    with torch.no_grad():
        (logits,) = there.map_rows(lambda part: [model(part)], inputs.samples, BATCH)
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
    record |= {"stage_shots": list(stage_shots)} if stage_shots else {}
    record |= {"fine_tuned": tuned.record} if tuned is not None else {}
    if here().leads:
        run.keep_inference(record)
    return record


def _check_finite(run: RunFolder, logits: Tensor) -> None:
    """Make sure that logits ``(samples, classes)`` say something: a class out of NaN would be the first one."""
    odd = int((~logits.isfinite()).any(-1).sum())
    if odd:
        raise UserError(
            f"run: {run.path} gives no finite values for {odd} of {len(logits)} samples; its weights are damaged "
            f"({run.model.name}), or its training diverged"
        )


def on_backend(
    model: nn.Module,
    batches: Any,
    backend: Backend,
    console: Console | None,
    layers: bool = False,
    stage_shots: Sequence[int] = (),
    original: nn.Module | None = None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits on a backend, labels, and a report beside the exact simulator.

    Args:
        model: in evaluation mode; its circuits are moved to the backend and stay there.
        batches: a sized iterable of inputs and labels.
        backend: where the circuits run; a device that bills is held open by whoever calls.
        console: for the progress bar; None shows nothing.
        layers: compare every value with the exact one at the same inputs.
        stage_shots: of each sequential stage; none for those of the backend.
        original: gives the exact logits instead of ``model``.

    Returns:
        Logits ``(images, classes)``, labels ``(images,)``, and: ``backend_details`` (name, kind, shots, device,
        calibration date), ``circuits``, ``executions``, ``rounds``, ``wall_seconds``, ``interval`` of the accuracy,
        ``exact_accuracy``, ``exact_interval``, ``agreement`` (share of images classified alike) and
        ``agreement_interval``; ``discordant`` (images that the backend alone, and that the exact simulator alone,
        classifies rightly) and the ``p_value`` of the exact McNemar test on them. Intervals are Wilson's of 95 %.
        With ``layers`` also :meth:`Watched.rows`.
    """
    set_backend(model, ExactBackend("exact"))
    exact, labels = logits_everywhere(model if original is None else original, batches)
    total = len(trace(model, next(iter(batches))[0][:1])) * len(batches)
    watched = Watched(backend, layers, stage_shots)
    set_backend(model, watched)
    before, started = asdict(backend.counters), time.perf_counter()
    with _Bar(console, total) as tell, backend.reporting(tell):
        logits, _ = logits_everywhere(model, batches)
    wall = time.perf_counter() - started
    set_backend(model, backend)
    used = {key: value - before[key] for key, value in asdict(backend.counters).items()}
    there = batches.ranks if isinstance(batches, Batches) else Ranks()
    rows, everybody = watched.rows(there), there.gather(used)
    used = {key: (max if key == "rounds" else sum)(one[key] for one in everybody) for key in used}
    right, right_exact = logits.argmax(-1) == labels, exact.argmax(-1) == labels
    alike = logits.argmax(-1) == exact.argmax(-1)
    discordant = [int((right & ~right_exact).sum()), int((right_exact & ~right).sum())]
    return logits, labels, {
        **({"layers": rows} if layers else {}),
        **({"stage_shots": list(stage_shots)} if stage_shots else {}),
        "backend_details": backend.about(),
        "circuits": used["circuits"],
        "executions": used["executions"],
        "rounds": used["rounds"],
        "wall_seconds": round(wall, 3),
        "interval": wilson(int(right.sum()), len(labels)),
        "exact_accuracy": right_exact.double().mean().item(),
        "exact_interval": wilson(int(right_exact.sum()), len(labels)),
        "agreement": alike.double().mean().item(),
        "agreement_interval": wilson(int(alike.sum()), len(labels)),
        "discordant": discordant,
        "p_value": mcnemar(*discordant),
    }  # fmt: skip


class Watched(Backend):
    """Asks another backend for every value, which counts and tells what it does, also where torch could see through it.

    Args:
        inner: that backend.
        compare: compare every value with the exact one at the same inputs.
        stage_shots: of each sequential stage of a forward pass; none for those of the backend.
    """

    def __init__(self, inner: Backend, compare: bool = True, stage_shots: Sequence[int] = ()) -> None:
        super().__init__(inner.name)
        self.inner, self.exact, self.compare = inner, ExactBackend("exact"), compare
        self.turns = itertools.cycle(stage_shots)  # a stage is one run
        self.kind, self.shots, self.counters = inner.kind, inner.shots, inner.counters
        self.gradient, self.perturbation, self.target = inner.gradient, inner.perturbation, inner.target
        # errors of all values by tag, as they were returned, and before mitigation where there is one
        self.errors: dict[str, list[NDArray[np.float64]]] = {}
        self.raw: dict[str, list[NDArray[np.float64]]] = {}
        # exact values and those found, kept where it is a dictionary
        self.pairs: dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] | None = None

    def circuits_for(self, template: Any) -> int:
        return self.inner.circuits_for(template)

    def about(self) -> dict[str, Any]:
        return self.inner.about()

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        if idle():  # nothing counts
            return self.exact.run(calls)
        shots = next(self.turns, None)
        values = self.inner.run(calls if shots is None else [replace(call, shots=shots) for call in calls])
        if not self.compare:
            return values
        before = getattr(getattr(self.inner, "packer", None), "unmitigated", None)
        for place, (call, exact) in enumerate(zip(calls, self.exact.run(calls), strict=True)):
            if self.pairs is not None:
                self.pairs.setdefault(call.tag, []).append((exact, values[place]))
            self.errors.setdefault(call.tag, []).append(np.abs(values[place] - exact).ravel())
            if before is not None and len(before) == len(calls):
                self.raw.setdefault(call.tag, []).append(np.abs(before[place] - exact).ravel())
        return values

    def rows(self, there: Ranks) -> list[dict[str, Any]]:
        """A row a layer of all ranks, in the order in which they ran: ``layer, values, mean_error, max_error``, and
        with mitigation ``unmitigated_mean_error``."""
        found = []
        everybody = there.gather(self.errors)
        for tag in everybody[-1]:  # the last rank has a sample of every batch
            error = np.concatenate([part for one in everybody for part in one.get(tag, ())])
            row = {"layer": tag, "values": len(error), "mean_error": round(float(error.mean()), 6),
                   "max_error": round(float(error.max()), 6)}  # fmt: skip
            if tag in self.raw:
                row["unmitigated_mean_error"] = round(float(np.concatenate(self.raw[tag]).mean()), 6)
            found.append(row)
        return found


class _Bar(Waiting):
    """A bar over circuit batches that names the one being waited for; now and then lines where there is no terminal."""

    def __init__(self, console: Console | None, total: int) -> None:
        super().__init__(console)
        self.total, self.done, self.every = total, 0, max(1, total // 5)
        self.lines = console is not None and not console.is_terminal
        columns = [TextColumn("circuit batch"), MofNCompleteColumn(), BarColumn(bar_width=30),
                   TextColumn("{task.description}"), TimeElapsedColumn(), TextColumn("left"),
                   TimeRemainingColumn()]  # fmt: skip
        self.bar = Progress(*columns, console=console, disable=console is None or self.lines, transient=True)

    def __enter__(self) -> _Bar:
        self.bar.start()
        self.task = self.bar.add_task("starting", total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, text: str) -> None:
        """What is waited for within the circuit batch."""
        self.bar.update(self.task, description=text if len(text) <= 110 else text[:107] + "...")
        if self.lines:
            super().update(text)

    def __call__(self, text: str) -> None:
        shown = text if len(text) <= 90 else text[:87] + "..."
        self.bar.update(self.task, description=f"waiting for {shown}", completed=self.done)
        if self.lines and self.done % self.every == 0:
            self.console.print(
                f"circuit batch {self.done + 1} of {self.total}: waiting for {shown}", highlight=False, soft_wrap=True
            )
        self.done += 1

"""Inference of a run: metrics on a split, or the classes of image files or texts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from qrkt_hw.backends import Backend, Call
from qrkt_hw.backends.exact import ExactBackend
from qrkt_hw.backends.registry import Waiting
from qrkt_hw.backends.several import Devices
from qrkt_hw.data import load_data
from qrkt_hw.data.base import regular
from qrkt_hw.data.batches import Batches, first, loader
from qrkt_hw.data.images import LARGEST_FILE, SUFFIXES, read_image
from qrkt_hw.data.parquet import Stream
from qrkt_hw.data.ranks import Ranks, here, idle
from qrkt_hw.errors import UserError
from qrkt_hw.experiments.loading import Reader
from qrkt_hw.models.ablation import ablated
from qrkt_hw.models.factory import quantum_layers, set_backend
from qrkt_hw.models.metrics import classification_metrics, logits_of, mcnemar, wilson
from qrkt_hw.resources.logical import trace
from qrkt_hw.runs import RunFolder

BATCH = 256


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
    batches, started = loader(samples, BATCH, ranks=there), time.perf_counter()
    report: dict[str, Any] = {}
    if exact:
        logits, labels = logits_everywhere(model, batches)
    else:
        logits, labels, report = on_backend(model, batches, backend, console, layers)
    seconds = report.get("wall_seconds", time.perf_counter() - started)
    _check_finite(run, logits)
    metrics = classification_metrics(logits, labels)
    record = {"split": split, "count": len(samples), **metrics, "backend": backend.name, "seconds": round(seconds, 4)}
    record.update(report)
    for name in ablate:
        with ablated(model, name):
            found = classification_metrics(*logits_everywhere(model, batches))
        record.setdefault("ablations", {})[name] = found
    if here().leads:
        run.keep_inference(record)
    return record


def logits_everywhere(model: nn.Module, batches: Any) -> tuple[Tensor, Tensor]:
    """Logits and labels of all batches, of which each rank evaluates its part where they are divided among ranks."""
    found = logits_of(model, batches)
    if isinstance(batches, Batches):
        logits, labels = batches.whole(found)
        return logits, labels
    return found


def read_images(run: RunFolder, paths: Sequence[Path]) -> Tensor:
    """Image files as inputs of the run's model. Raises UserError: a file that cannot be read."""
    description = run.description()
    return torch.stack([read_image(path, description) for path in paths])


def read_texts(run: RunFolder, texts: Sequence[str]) -> Tensor:
    """Texts as inputs of the run's model."""
    return Reader(run.options(), run.description())(texts)


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
        return Inputs("texts", read_texts(run, lines), lines, [[] for _ in lines])
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


def classify(run: RunFolder, model: nn.Module, inputs: Inputs, backend: Backend) -> dict[str, Any]:
    """Class and probabilities of inputs, of which each rank computes its part; the record is kept in the run.

    Args:
        run, model: the run and its model on ``backend``.
        inputs: of :func:`read_paths`, or made of :func:`read_images` or :func:`read_texts`.
        backend: where the circuits run.

    Returns:
        Under ``images`` or ``texts`` for each input ``file`` or ``text``, ``class``, ``probabilities`` by class name,
        ``converted`` where it was; ``count``, ``backend``, ``seconds``.

    Raises UserError: logits that are not finite.
    """
    if backend.bills:
        run.check_inference()
    started = time.perf_counter()
    there = here().over_samples(backend) if quantum_layers(model) else here()
    if isinstance(backend, Devices):
        logits = _on_devices(model, inputs.samples, backend, None, False)[0]
    else:
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
    model: nn.Module, batches: Any, backend: Backend, console: Console | None, layers: bool = False
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits on a backend, labels, and a report beside the exact simulator.

    Args:
        model: in evaluation mode; its circuits are moved to the backend and stay there.
        batches: a sized iterable of inputs and labels.
        backend: where the circuits run; a device that bills is held open by whoever calls.
        console: for the progress bar; None shows nothing.
        layers: compare every value with the exact one at the same inputs.

    Returns:
        Logits ``(images, classes)``, labels ``(images,)``, and: ``backend_details`` (name, kind, shots, device,
        calibration date), ``circuits``, ``executions``, ``rounds``, ``wall_seconds``, ``interval`` of the accuracy,
        ``exact_accuracy``, ``exact_interval``, ``agreement`` (share of images classified alike) and
        ``agreement_interval``; ``discordant`` (images that the backend alone, and that the exact simulator alone,
        classifies rightly) and the ``p_value`` of the exact McNemar test on them. Intervals are Wilson's of 95 %.
        With ``layers`` also :meth:`Watched.rows`.
    """
    set_backend(model, ExactBackend("exact"))
    exact, labels = logits_everywhere(model, batches)
    total = len(trace(model, next(iter(batches))[0][:1])) * len(batches)
    watched, shared = Watched(backend, compare=layers), list[tuple[int, int, str]]()
    if isinstance(backend, Devices):
        total *= len(backend.shares or backend.devices)
    else:
        set_backend(model, watched)
    before, started = asdict(backend.counters), time.perf_counter()
    with _Bar(console, total) as tell, backend.reporting(tell):
        if isinstance(backend, Devices):
            logits, shared = _on_devices(model, batches.dataset.dataset, backend, watched, layers)
        else:
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
        **({"devices": _shares(backend, shared, logits, labels)} if isinstance(backend, Devices) else {}),
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


def _on_devices(
    model: nn.Module, samples: Any, backend: Devices, watched: Watched | None, layers: bool
) -> tuple[Tensor, list[tuple[int, int, str]]]:
    """Logits of all samples, each on the device that has it; and first sample, sample behind the last and device of
    every portion. What a device told of its layers is added to ``watched``."""
    if isinstance(samples, Stream):  # of which no part can be read alone
        samples = TensorDataset(*map(torch.cat, zip(*loader(samples, BATCH), strict=True)))

    def work(device: Backend, start: int, stop: int) -> tuple[Tensor, Watched]:
        own, seen = deepcopy(model), Watched(device, compare=layers)
        set_backend(own, seen)
        if isinstance(samples, Tensor):
            with torch.no_grad():
                return own(samples[start:stop]), seen
        return logits_of(own, loader(Subset(samples, range(start, stop)), BATCH))[0], seen

    parts = backend.evaluate(len(samples), work)
    for *_, (_, seen) in parts if watched is not None else ():
        for kept, found in ((watched.errors, seen.errors), (watched.raw, seen.raw)):  # type: ignore[union-attr]
            for tag, errors in found.items():
                kept.setdefault(tag, []).extend(errors)
    return torch.cat([logits for *_, (logits, _) in parts]), [part[:3] for part in parts]


def _shares(
    backend: Devices, parts: Sequence[tuple[int, int, str]], logits: Tensor, labels: Tensor
) -> list[dict[str, Any]]:
    """A row a device: ``device, count, accuracy, interval``, how many samples others had begun, bill, and why it was
    left out where it was."""
    right, rows = logits.argmax(-1) == labels, []
    for name in (*backend.devices, *backend.absent):
        own = [torch.arange(start, stop) for start, stop, who in parts if who == name]
        count = sum(map(len, own))
        good = int(right[torch.cat(own)].sum()) if own else 0
        row: dict[str, Any] = {"device": name, "count": count, "accuracy": good / count if count else None,
                               "interval": wilson(good, count) if count else None,
                               "taken_over": backend.taken_over(name), **backend.bill(name)}  # fmt: skip
        rows.append(row | ({"left_out": backend.left_out[name]} if name in backend.left_out else {}))
    return rows


class Watched(Backend):
    """Asks another backend for every value, which counts and tells what it does, also where torch could see through it.

    Args:
        inner: that backend.
        compare: compare every value with the exact one at the same inputs.
    """

    def __init__(self, inner: Backend, compare: bool = True) -> None:
        super().__init__(inner.name)
        self.inner, self.exact, self.compare = inner, ExactBackend("exact"), compare
        self.kind, self.shots, self.counters = inner.kind, inner.shots, inner.counters
        self.gradient, self.perturbation, self.target = inner.gradient, inner.perturbation, inner.target
        # errors of all values by tag, as they were returned, and before mitigation where there is one
        self.errors: dict[str, list[NDArray[np.float64]]] = {}
        self.raw: dict[str, list[NDArray[np.float64]]] = {}

    def circuits_for(self, template: Any) -> int:
        return self.inner.circuits_for(template)

    def about(self) -> dict[str, Any]:
        return self.inner.about()

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        if idle():  # nothing counts
            return self.exact.run(calls)
        values = self.inner.run(calls)
        if not self.compare:
            return values
        before = getattr(getattr(self.inner, "packer", None), "unmitigated", None)
        for place, (call, exact) in enumerate(zip(calls, self.exact.run(calls), strict=True)):
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

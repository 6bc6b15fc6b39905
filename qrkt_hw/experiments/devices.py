"""What an inference does on a device beyond the forward pass: shares, shots, mitigation, fine-tuning, comparison."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Subset

from qrkt_hw.backends import Backend, Call
from qrkt_hw.backends.budget import Budget
from qrkt_hw.backends.device.journal import begun_terms
from qrkt_hw.backends.device.measurement import bases, flip_codes
from qrkt_hw.backends.device.packing import DeviceBackend
from qrkt_hw.backends.entries import SERVICE_KEYS, Mitigation
from qrkt_hw.backends.exact import ExactBackend
from qrkt_hw.backends.registry import Waiting, progress, tracked
from qrkt_hw.backends.several import Devices
from qrkt_hw.data.base import DataShape
from qrkt_hw.data.batches import Batches, first, in_memory, loader
from qrkt_hw.data.ranks import Ranks, idle
from qrkt_hw.errors import UserError
from qrkt_hw.experiments.loading import read_split, restored
from qrkt_hw.models.factory import check_mitigation, quantum_layers, set_backend
from qrkt_hw.models.metrics import discordant, logits_of, mcnemar, refined, wilson
from qrkt_hw.models.noise import Response, add_hooks, allocated, check_strings, sensitivities
from qrkt_hw.models.weights import load_weights, save_weights, sha256
from qrkt_hw.resources.forecast import BATCH, Forecast, forecast, largest_batch, samples_in_memory
from qrkt_hw.resources.logical import stages_of, trace
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import replace_with, write_json
from qrkt_hw.runs.folder import read_json

VALIDATED = 512  # samples that decide whether a fine-tuning is kept
LOOKED_AT = 64  # samples from which the sensitivity to noise is known
DEFAULT: Mitigation = "trex"  # docs/packing.md, "Ways of mitigation side by side"
ENOUGH = 10_000_000  # circuits x shots from which on readout is corrected by default


def shots_of_stages(
    run: RunFolder, backend: Backend, given: list[int] | None, data_dir: Path | None = None
) -> tuple[list[int], str]:
    """Shots of each sequential stage of a run's model, and a sentence on them.

    Args:
        run: the run.
        backend: a device that samples.
        given: these shots; None deals what the backend's shots would take to where the logits of validation samples are
            sensitive to noise.
        data_dir: of these samples.

    Raises UserError: not a number for each stage, a simulator, or without numbers sums of Pauli strings.
    """
    name = "--shots-per-stage"
    if not isinstance(backend, DeviceBackend) or not backend.shots:
        raise UserError(f"{name} applies only to devices that sample; backend {backend.name!r} does not")
    model = restored(run)
    stages = stages_of(model, DataShape.of(run.description()))
    if given is not None:
        if len(given) != len(stages):
            count = "1 number" if len(given) == 1 else f"{len(given)} numbers"
            raise UserError(f"{name}: {count}, and the model has {len(stages)} sequential stages")
        return given, f"shots of the stages: {', '.join(map(str, given))}"
    check_strings(model, f"{name} auto")
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
    return found, (
        f"shots of the stages: {', '.join(map(str, found))}, in the QPU time of {backend.shots} everywhere; shot noise "
        f"of the margin about {after:.3g} instead of {before:.3g} (from {len(inputs)} validation samples)"
    )


class FineTuned(NamedTuple):
    """A model that was fitted to a device: what is kept of that, and the model as it was before."""

    record: dict[str, Any]
    original: nn.Module


def fine_tuned(
    run: RunFolder, model: nn.Module, backend: Backend, count: int, splits: Mapping[str, Any], console: Console,
    stage_shots: Sequence[int] = (),
) -> FineTuned:  # fmt: skip
    """Fit a classifier, in place, to what a device returns for training images; the angles of its circuits stay.

    The device evaluates the images once. Least squares of its values on the exact ones give its response, layer by
    layer; gradient steps on the training split then go through the exact circuits with this response.

    Args:
        run, model: the run and its trained model, on ``backend``.
        backend: where the circuits run, held open.
        count: training images, the first of the split.
        splits: of :func:`read_splits`; ``train`` and ``validation`` are read.
        console: for the progress bar.
        stage_shots: of each sequential stage; none for those of the backend.

    Returns:
        The model as it was, and: ``images``, the response of each layer (``layers``), the validation loss with this
        response before and after (``loss_before``, ``loss_after``), ``seconds``, and the file of the weights. An
        inference on a device that bills and is resumed takes the weights that it had before.
    """
    from qrkt_hw.training.classifier import refit

    started, train = time.perf_counter(), splits["train"]
    original, watched = deepcopy(model), Watched(backend, True, stage_shots)
    pairs: dict[str, list[Any]] = {}
    watched.pairs = pairs
    set_backend(original, ExactBackend("exact"))
    set_backend(model, watched)
    batches = loader(first(train, count), backend.batch or BATCH)
    total = len(trace(model, next(iter(batches))[0][:1])) * len(batches)
    with _Bar(console, total) as tell, backend.reporting(tell):
        logits_of(model, batches)
    activity = getattr(getattr(backend, "jobs", None), "activity", None)
    told = None if activity is None else run.inference / f"fine-tuned-{activity.name}.json"
    record = read_json(told) if told is not None and told.is_file() else {}
    if record and (known := run.inference / Path(record["weights"]).name).is_file():
        load_weights(model, known)
        set_backend(model, backend)
        return FineTuned(record, original)
    set_backend(model, ExactBackend("exact"))
    responses = {}
    for layer in quantum_layers(model):
        both = zip(*pairs[layer.network.tag], strict=True)
        exact, found = (np.concatenate(part).reshape(-1, layer.outputs) for part in both)
        responses[layer.network.tag] = Response.of(layer, exact, found)
    remove = add_hooks(model, lambda layer: responses[layer.network.tag].noise())
    try:
        before, after = refit(model, train, first(splits["validation"], VALIDATED), run.options())
    finally:
        remove()
    set_backend(model, backend)
    weights = model.state_dict()
    kept = run.inference / f"fine-tuned-{backend.name}-{sha256(weights)[:12]}.safetensors"  # none of another record
    layers = {
        name: {"damping": round(float(r.damping.mean()), 4), "offset": round(float(abs(r.offset).mean()), 4),
               "shots": round(min(r.shots, 1e9), 1)} for name, r in responses.items()
    }  # fmt: skip
    record = {
        "images": min(count, len(train)), "layers": layers, "loss_before": before, "loss_after": min(before, after),
        "seconds": round(time.perf_counter() - started, 3), "weights": kept.name,
    }  # fmt: skip
    run.inference.mkdir(exist_ok=True)
    replace_with(kept, lambda path: save_weights(weights, path, 0))
    if told is not None:
        write_json(told, record)
    return FineTuned(record, original)


def logits_everywhere(
    model: nn.Module, batches: Any, console: Console | None = None, most: int | None = None
) -> tuple[Tensor, Tensor]:
    """Logits and labels of all batches, of which each rank evaluates its part where they are divided among ranks; at
    most ``most`` samples at a time."""
    shown = tracked(console, "evaluating", batches)
    if most is not None:
        shown = (part for batch in shown for part in zip(*(one.split(most) for one in batch), strict=True))
    found = logits_of(model, shown)
    logits, labels = batches.whole(found) if isinstance(batches, Batches) else found
    return logits, labels


def on_backend(
    model: nn.Module,
    batches: Any,
    backend: Backend,
    console: Console | None,
    layers: bool = False,
    stage_shots: Sequence[int] = (),
    original: nn.Module | None = None,
    repeat: int = 0,
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
        repeat: so many samples, the most uncertain ones, are evaluated again; their logits are the means.

    Returns:
        Logits ``(images, classes)``, labels ``(images,)``, and: ``backend_details`` (name, kind, shots, device,
        calibration date), ``circuits``, ``executions``, ``rounds``, ``wall_seconds``, ``interval`` of the accuracy,
        ``exact_accuracy``, ``exact_interval``, ``agreement`` (share of images classified alike) and
        ``agreement_interval``; ``discordant`` (images that the backend alone, and that the exact simulator alone,
        classifies rightly) and the ``p_value`` of the exact McNemar test on them. Intervals are Wilson's of 95 %.
        With ``layers`` also :meth:`Watched.rows`.
    """
    set_backend(model, ExactBackend("exact"))
    exact, labels = logits_everywhere(model if original is None else original, batches, most=BATCH)
    size, stages = backend.batch or BATCH, len(trace(model, next(iter(batches))[0][:1]))
    total = len(batches) + -(-repeat // size)
    watched, shared = Watched(backend, layers, stage_shots), list[tuple[int, int, str]]()
    if isinstance(backend, Devices):
        total = sum(-(-count // backend.portion) for count in backend.shares.values())
    else:
        set_backend(model, watched)
    before, started = asdict(backend.counters), time.perf_counter()
    with _Bar(console, stages * total) as tell, backend.reporting(tell):
        if isinstance(backend, Devices):
            logits, shared = on_several(model, batches.dataset.dataset, backend, watched, layers)
        else:
            logits = logits_everywhere(model, batches)[0]
        if isinstance(backend, DeviceBackend) and repeat:
            own = backend.packer.options
            backend.packer.options = {**own, "repeated": True}  # equal circuits are PUBs with results of their own
            try:
                logits = refined(model, batches.dataset.dataset, logits, repeat, size)
            finally:
                backend.packer.options = own
    wall = time.perf_counter() - started
    set_backend(model, backend)
    used = {key: value - before[key] for key, value in asdict(backend.counters).items()}
    there = batches.ranks if isinstance(batches, Batches) else Ranks()
    rows, everybody = watched.rows(there), there.gather(used)
    used = {key: (max if key == "rounds" else sum)(one[key] for one in everybody) for key in used}
    right, right_exact = logits.argmax(-1) == labels, exact.argmax(-1) == labels
    alike = logits.argmax(-1) == exact.argmax(-1)
    alone = discordant(right, right_exact)
    return logits, labels, {
        **({"layers": rows} if layers else {}),
        **({"stage_shots": list(stage_shots)} if stage_shots else {}),
        **({"repeated": repeat} if repeat else {}),
        **({"devices": shares_of(backend, shared, logits, labels)} if isinstance(backend, Devices) else {}),
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
        "discordant": alone,
        "p_value": mcnemar(*alone),
    }  # fmt: skip


def correct_readout(
    run: RunFolder, model: nn.Module, shape: DataShape, samples: int, backend: Backend, resume: bool,
    stage_shots: Sequence[int] = (), budget: Budget | None = None, fitted: int = 0, repeated: int = 0,
) -> str | None:  # fmt: skip
    """Correct readout by default where its calibrations are a small part of what runs; says so, None where it is not.

    It is not where an entry or a flag says how errors are mitigated, a sequential stage has fewer shots than patterns
    of flips, or it would exceed the limit together with the images of a fine-tuning (``fitted``) and the samples that
    are ``repeated``. A resumed inference continues as it was begun.
    """
    if not (isinstance(backend, DeviceBackend) and backend.shots and backend.packer.mitigation == "none"):
        return None
    stages = stages_of(model, shape)
    shots = stage_shots or [backend.shots] * len(stages)
    executions = samples * sum(n * call.circuits for n, stage in zip(shots, stages, strict=True) for call in stage)
    measured = {basis for stage in stages for call in stage for basis in bases(call.template)}
    bits = max((code.bit_length() for basis in measured for code in flip_codes(basis)), default=0)
    chosen = not backend.mitigation_set and executions >= ENOUGH and min(shots, default=0) >= 2**bits
    if resume and run.journal.is_file():
        chosen = begun_terms(run.journal, "infer").get("mitigation") == DEFAULT
    if not chosen:
        return None
    backend.correct(DEFAULT)
    limit = None if resume else getattr(Budget.of(backend, budget), "limit", None)
    batch = largest_batch(stages, max(samples, fitted), samples_in_memory(model, shape), backend, stage_shots)
    more: Any = {"stage_shots": stage_shots, "fitted": fitted, "repeated": repeated}
    if limit is not None and forecast(stages, samples, batch, backend, **more).seconds > limit:
        backend.packer.mitigate("none")
        backend.corrected = None
        return None
    return f"readout is corrected by {DEFAULT}, with calibrations of its own; --mitigation none leaves it out"


def plan_mitigations(
    model: nn.Module, shape: DataShape, samples: int, backend: DeviceBackend, budget: Budget | None, refuse: bool = True
) -> dict[str, Forecast | str]:
    """What an inference takes by each way of mitigation, or in a sentence why it does not run that way.

    Raises UserError: together they exceed the budget, unless ``refuse`` is False.
    """
    stages, found = stages_of(model, shape), dict[str, Forecast | str]()
    for how in (*get_args(Mitigation), *SERVICE_KEYS):
        try:
            backend.mitigate(how)
            check_mitigation(model, backend)
            found[how] = forecast(stages, samples, min(samples, BATCH), backend)
        except UserError as error:
            found[how] = str(error).removeprefix("--").removeprefix("mitigation: ")
    backend.mitigate("none")
    fractional = {"rx", "rzz"} & set(backend.target.operation_names)  # whose angle is free
    there = f"every circuit uses them already ({', '.join(sorted(fractional))})"
    found["fractional_gates"] = there if fractional else f"the target of {backend.device.name} has none"
    seconds = sum(one.seconds for one in found.values() if not isinstance(one, str))
    allowed = Budget.of(backend, budget)
    if refuse and allowed is not None and allowed.limit is not None and seconds > allowed.limit:
        raise UserError(f"{allowed.named}: the comparison takes {seconds:.1f} s; --limit or --shots make it shorter")
    return found


def compare_mitigations(
    run: RunFolder, model: nn.Module, split: str, samples: Any, backend: DeviceBackend,
    planned: Mapping[str, Forecast | str], console: Console | None,
) -> dict[str, Any]:  # fmt: skip
    """The same inference by each way of mitigation of :func:`plan_mitigations`; the record is kept in the run.

    Returns:
        ``split, count, backend, backend_details, exact_accuracy``, and under ``mitigations`` for each way ``rms_error``
        of all values against the exact ones at the same inputs with its 95 % ``rms_interval`` over the samples,
        ``accuracy`` with its ``interval``, the ``p_value`` of its difference from no mitigation (exact McNemar test),
        ``seconds`` planned, ``jobs``, ``executions``; or ``not_run``, which says why.
    """
    set_backend(model, ExactBackend("exact"))
    batches = loader(samples, BATCH)
    exact, labels = logits_of(model, batches)
    rows, right = list[dict[str, Any]](), dict[str, Tensor]()
    total = sum(one.rounds for one in planned.values() if not isinstance(one, str))
    with _Bar(console, total) as tell, backend.reporting(tell):
        for how, plan in planned.items():
            if isinstance(plan, str):
                rows.append({"mitigation": how, "not_run": plan})
                continue
            backend.mitigate(how)
            before, logits, squares = backend.counters.executions, [], []
            for inputs, targets in batches:
                watched = Watched(backend)
                set_backend(model, watched)
                logits.append(logits_of(model, [(inputs, targets)])[0])
                errors = [error.reshape(len(inputs), -1) for every in watched.errors.values() for error in every]
                squares.append((np.concatenate(errors, axis=1) ** 2).mean(axis=1))
            right[how] = torch.cat(logits).argmax(-1) == labels
            mean, spread = np.concatenate(squares).mean(), 1.96 * np.concatenate(squares).std() / len(labels) ** 0.5
            ends = [float(max(0.0, mean + sign * spread) ** 0.5) for sign in (-1, 1)]
            rows.append({
                "mitigation": how, "rms_error": float(mean**0.5), "rms_interval": ends,
                "accuracy": right[how].double().mean().item(), "interval": wilson(int(right[how].sum()), len(labels)),
                "p_value": mcnemar(*discordant(right[how], right["none"])), "seconds": plan.seconds, "jobs": plan.jobs,
                "executions": backend.counters.executions - before,
            })  # fmt: skip
    set_backend(model, backend)
    backend.mitigate("none")
    record = {
        "split": split, "count": len(samples), "backend": backend.name, "backend_details": backend.about(),
        "exact_accuracy": (exact.argmax(-1) == labels).double().mean().item(), "mitigations": rows,
    }  # fmt: skip
    run.keep_inference(record)
    return record


def on_several(
    model: nn.Module, samples: Any, backend: Devices, watched: Watched | None, layers: bool
) -> tuple[Tensor, list[tuple[int, int, str]]]:
    """Logits of all samples, each on the device that has it; and first sample, sample behind the last and device of
    every portion. What a device told of its layers is added to ``watched``."""
    samples = in_memory(samples)

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


def shares_of(
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
        found, everybody = list[dict[str, Any]](), there.gather(self.errors)
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
        self.bar = progress(console, 60, wrap=True, transient=True)

    def __enter__(self) -> _Bar:
        self.bar.start()
        self.task = self.bar.add_task(f"batch 1/{self.total}", total=self.total, text="starting")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, text: str) -> None:
        """What is waited for within the circuit batch."""
        self.bar.update(self.task, text=text)
        if self.lines:
            super().update(text)

    def __call__(self, text: str) -> None:
        shown = text if len(text) <= 90 else text[:87] + "..."
        self.bar.update(
            self.task, description=f"batch {self.done + 1}/{self.total}", text=f"waiting for {shown}",
            completed=self.done,
        )  # fmt: skip
        if self.lines and self.done % self.every == 0:
            self.console.print(
                f"circuit batch {self.done + 1} of {self.total}: waiting for {shown}", highlight=False, soft_wrap=True
            )
        self.done += 1

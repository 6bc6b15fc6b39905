"""Train a model into a run folder, or resume a run."""

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from qrkt_hw import backends
from qrkt_hw.backends import Backend, Budget
from qrkt_hw.backends.registry import command
from qrkt_hw.data import Data, DataShape, load_data, ranks
from qrkt_hw.data.batches import first, loader
from qrkt_hw.errors import UserError, flag
from qrkt_hw.models.factory import build_model, count_parameters, largest_circuit, quantum_layers, summed_qubits
from qrkt_hw.models.initialization import condition
from qrkt_hw.models.metrics import AGREEMENT_SAMPLES, agreement
from qrkt_hw.models.noise import inject
from qrkt_hw.models.transformer import Gan, Transformer
from qrkt_hw.models.weights import load_weights, read_weights, save_weights, sha256
from qrkt_hw.resources.tables import summarize
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import write_json
from qrkt_hw.runs.circuits import Circuits
from qrkt_hw.runs.config import Config
from qrkt_hw.runs.sections import TWICE
from qrkt_hw.training.classifier import ClassifierTask
from qrkt_hw.training.gan import GanTask
from qrkt_hw.training.loop import AfterEpoch, Record, Task, peak_memory, resume_from, train

# features of a batch of a GAN, amplitudes in one projection of another batch, below which waking a second thread costs
# more than it brings
FEW_FEATURES, FEW_AMPLITUDES = 16_384, 200_000
OF_MACHINE = ("data_dir", "workers", "threads", "devices", "backends_file")  # keys in which ranks may differ
# tensors that the data of a fine-tuning decide
OF_DATA = ("backbone.", "tokens.", "decoder.tokens.", "pool.", "head.")
Compare = Callable[..., dict[str, Any]]  # backend and stand-in, on so many samples
FEW = 4  # samples that a training is estimated from
LONG = 20.0  # seconds after which one sample, with all that is prepared once, has to do


def start(
    options: Config,
    out: Path | None,
    console: Console,
    after_epoch: AfterEpoch = None,
    data: Data | None = None,
    budget: Budget | None = None,
    source: RunFolder | None = None,
    preset: str | None = None,
    figures: bool = True,
) -> RunFolder:
    """Train a new model; returns the run.

    Args:
        options, console: of the run, and where its progress is shown.
        out: its folder; None makes a new one under ``runs/``.
        after_epoch: is called when an epoch is kept.
        data: the options' data set, where it is loaded already.
        budget: limits of QPU time and money on a device.
        source: a run whose trained weights the model starts from (fine-tuning).
        preset: the options' preset by name, kept in the run.
        figures: draw the run's charts.

    Raises:
        UserError: options that do not fit each other, the data or the source, or a folder that cannot be written.
            Nothing is left behind then.
    """
    check_accelerator(options)
    if source is not None:
        options.check_source(source.options(), source.path)
    with ranks.launched(options) as there:
        console = console if there.leads else Console(quiet=True)
        vocabulary = source.description().get("vocabulary", ()) if source is not None else ()
        data = data or there.together(lambda: load_data(options.data, vocabulary))
        backend = backends.make(options.backend, options.training.seed, console)
        budget = Budget.of(backend, budget)
        theirs = options.circuits  # of the run that the options come from
        circuits = theirs.again() if theirs is not None else Circuits(options.circuit.ansaetze, begun=True)
        options = options.with_circuits(lambda: circuits)
        # before the folder appears: impossible options leave nothing behind
        model = fresh_model(options, data, backend.stand_in or backend)
        origin: dict[str, Any] = {"preset": preset, "from": None}
        initial = None
        if source is not None:
            origin["from"] = adopt(model, options, data, source, console)

            def initial(path: Path) -> None:
                save_weights(model.state_dict(), path, 0)

        _check_training(there, options, data, model, backend)
        run = RunFolder(there.first(lambda: RunFolder.create(options, data.describe(), out, origin, initial).path))
        try:
            with (
                _writing(run, there),
                backends.open(backend, run=run, budget=budget, console=console, **_activity(options)),
            ):
                return _fit(run, options, data, model, console, backend, after_epoch, figures=figures)
        except Exception:  # not Ctrl-C: such a run is resumed from its start
            if there.leads:
                run.discard_untrained()
            raise


def resume(
    run: RunFolder,
    console: Console,
    resubmit: bool = False,
    replan: bool = False,
    budget: Budget | None = None,
    agreed: str | None = None,
    epochs: int | None = None,
    data: Data | None = None,
    after_epoch: AfterEpoch = None,
    ranks_of: dict[str, Any] | None = None,
    figures: bool = True,
) -> RunFolder:
    """Resume a run from its last whole epoch, with its own configuration.

    Another number of epochs is written into the configuration. The remaining epochs have the learning rates of a
    training of that number; past epochs keep theirs. So with a decaying rate a training that is made longer differs
    from one that was that long from the start. ``results.json`` says after which epochs the schedule changed
    (``schedule_changed_after``).

    Args:
        run, console: the run, and where its progress is shown.
        resubmit: send again what is held on a device.
        replan: let go of the plan that is pinned for a device.
        budget: limits of QPU time and money, with what was billed before.
        agreed: the run's backend by name, where it bills: a run folder alone never decides that something is paid.
        epochs: how many in all, instead of the run's number.
        data: the run's data set, where it was given in Python.
        after_epoch: is called when an epoch is kept.
        ranks_of: keys that say on how many processes to resume, instead of the run's.
        figures: draw the run's charts.

    Raises:
        UserError: a damaged run, one with more epochs than ``epochs`` already, or one on a device that bills without
            agreement.
    """
    options = run.options()
    if agreed not in (None, options.backend.name):
        raise UserError(f"--backend: {run.path} trains on {options.backend.name!r}, and a resume cannot change that")
    before = options.training.epochs
    if epochs is not None:
        done = run.epochs_done()
        if epochs < done:
            raise UserError(f"--epochs: {run.path} has {done} epochs already; name {done} or more, or train a new run")
        options = options.replace(epochs=epochs)
    anew = {"devices": None, "num_nodes": 1} if ranks.started_by() is not None else {}
    options = options.replace(**{**anew, **(ranks_of or {})})
    check_accelerator(options)
    if data is not None:
        options.check_own(data.describe(), run.description(), run.path)
    with ranks.launched(options) as there:
        console = console if there.leads else Console(quiet=True)
        data = data or there.together(lambda: load_data(options.data, run.description().get("vocabulary", ())))
        backend = backends.make(options.backend, options.training.seed, console)
        if backend.bills and agreed is None:
            raise UserError(
                f"--resume: {run.path} trains on {options.backend.name!r} with {backend.shots} shots a circuit, which "
                f"is billed; add --backend {options.backend.name} to agree (--max-qpu-seconds and --max-cost limit it)"
            )
        again: dict[str, Any] = {**_activity(options), "resume": True, "resubmit": resubmit, "replan": replan}
        with _writing(run, there), backends.open(backend, run=run, budget=budget, console=console, **again):
            model = fresh_model(options, data, backend.stand_in or backend)
            if run.initial.is_file():
                load_weights(model, run.initial)
            _check_training(there, options, data, model, backend)
            if options != run.options() and there.leads:
                run.write_options(options)
            return _fit(run, options, data, model, console, backend, after_epoch, before, figures)


def adopt(model: nn.Module, options: Config, data: Data, source: RunFolder, console: Console) -> dict[str, Any]:
    """Fill ``model`` with the trained weights of another run; what its data decide (embedding, positions, pool, head)
    stays fresh where it does not fit, and the head where the classes are others. Returns what ``origin.json`` keeps.

    Raises:
        UserError: a source without weights, or a model of another kind, circuits or sizes.
    """
    theirs, description = source.options(), source.description()
    if not source.model.is_file():
        raise UserError(f"--from: {source.path} has no trained model yet")
    with torch.random.fork_rng(devices=[]):
        trained = build_model(theirs, DataShape.of(description))
    weights = sha256(load_weights(trained, source.model, source.weights_sha256()))
    found, own = trained.state_dict(), model.state_dict()
    fresh = [name for name, value in own.items() if name not in found or found[name].shape != value.shape]
    wrong = next((name for name in fresh if not name.startswith(OF_DATA)), None)
    if wrong is not None:
        there = f"is {tuple(found[wrong].shape)}" if wrong in found else "is none"
        raise UserError(
            f"--from: {wrong} is {tuple(own[wrong].shape)} here, and {there} in {source.path}; keep its sizes"
        )
    if options.model.kind != "gan" and description["class_names"] != list(data.class_names):
        fresh += [name for name in own if name.startswith("head.") and name not in fresh]
    model.load_state_dict({name: own[name] if name in fresh else found[name] for name in own})
    new = f"; initialised for the new data: {', '.join(fresh)}" if fresh else ""
    console.print(
        f"starts from {source.path}: {len(own) - len(fresh)} of {len(own)} tensors{new}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    return {"run": str(source.path), "weights_sha256": weights, "fresh": fresh}


def _writing(run: RunFolder, there: ranks.Ranks) -> AbstractContextManager[None]:
    return run.writing() if there.leads else nullcontext()


def _check_training(there: ranks.Ranks, options: Config, data: Data, model: nn.Module, backend: Backend) -> None:
    """Make sure that the training supports its precision and the number of ranks, and that all ranks train the same.

    Raises UserError: a precision that the training cannot have, circuits that torch does not differentiate, fewer
        samples than ranks, a module that needs the whole batch, or a rank that differs in program, options, data or
        first weights.
    """
    place, mixed = backend.stand_in or backend, options.training.precision != "32-true"
    if mixed and options.has_circuits and options.circuit.dtype == "complex128":
        raise UserError("--precision: bf16-mixed does not go with --dtype complex128; take --precision 32-true")
    if quantum_layers(model) and not place.differentiable:
        if mixed:
            raise UserError(f"--precision: circuits on {backend.name!r} take float64; take --precision 32-true")
        if there.count > 1:
            billed = ", which bills its time," if backend.bills else ""
            raise UserError(
                f"--devices: training on {backend.name!r}{billed} runs in one process, not {there.count}; leave it out"
            )
    if there.count == 1:
        return
    samples = len(data.splits["train"])  # type: ignore[arg-type]
    if samples < there.count:
        raise UserError(f"--devices: {there.count} ranks and {samples} training samples: every rank needs one")
    whole = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for name, module in model.named_modules():
        if isinstance(module, whole) and not isinstance(module, ranks.Dropout):
            what = type(module).__name__
            raise UserError(f"--devices: {name} is a {what}, which needs the whole batch; leave --devices out")
    described = {name: len(split) for name, split in data.splits.items()}  # type: ignore[arg-type]
    nothing = [torch.zeros(0)]
    labels = [getattr(part, "labels", getattr(part, "tensors", nothing)[-1]) for part in data.splits.values()]
    own = json.dumps([data.describe(), described]).encode() + b"".join(kept.numpy().tobytes() for kept in labels)
    flat = {k: v for k, v in options.flat(mode="json").items() if k not in OF_MACHINE}
    there.same(
        {
            "version": metadata.version("qrkt-hw"),
            **{flag(key): str(value) for key, value in flat.items()},
            "data_sha256": hashlib.sha256(own).hexdigest(),
            "first weights": sha256(model.state_dict()),
        }
    )


def _activity(options: Config) -> dict[str, Any]:
    """What the journal keeps of a training: its options stand in the run folder."""
    return {"kind": "train", "arguments": {"backend": options.backend.name, "instance": options.backend.instance}}


def check_accelerator(options: Config) -> None:
    """Refuse a GPU that torch does not see."""
    if options.training.accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("--accelerator: cuda is not available to torch here; take --accelerator cpu")


def fresh_model(options: Config, data: Data, backend: Backend) -> nn.Module:
    """The model of these options as it is before its first step.

    Raises:
        UserError: options that do not fit each other, the data or the backend.
    """
    if options.model.kind != "gan" and data.shape.classes < 2:
        one = f"{options.data.dataset} has one class ({data.class_names[0]!r})"
        raise UserError(f"--dataset: {one}; a classifier needs at least two")
    torch.manual_seed(options.training.seed)
    model = build_model(options, data.shape, backend)
    if data.backbone is not None:
        if not isinstance(model, Transformer) or options.model.kind != "vit":
            raise UserError(f"--model: a backbone goes before images' models (vit), not {options.model.kind}")
        model.attach(data.backbone, data.input_shape)
    if options.circuit.initial_angles == "conditioned":
        condition(quantum_layers(model))
    inject(model, options.training, backend)
    if isinstance(model, Gan) and not backend.differentiable:
        loss = options.gan.loss
        if loss in TWICE and options.gan.penalty and quantum_layers(model.discriminator):
            twice = f"{loss} differentiates the discriminator's circuits twice, which {backend.name} does not allow"
            raise UserError(f"--loss: {twice}; take --loss hinge, or --backend exact")
    return model


def make_task(options: Config, data: Data, model: nn.Module) -> Task:
    return GanTask(options, data, model) if isinstance(model, Gan) else ClassifierTask(options, data, model)


@contextmanager
def threads(options: Config, data: Data) -> Iterator[None]:
    """torch's CPU threads of a training with these options; 1 unless given where a step's largest tensors are small."""
    before, m, qubits = torch.get_num_threads(), options.model, options.circuit.qubits
    if m.kind == "gan":
        small = options.data.batch_size * max(options.gan.generator_hidden, m.hidden) < FEW_FEATURES
    else:
        growth = 2**qubits / qubits if m.projection != "classical" else 1
        tokens = options.data.batch_size * data.shape.tokens(getattr(m, "patch", 1))
        small = tokens * m.hidden * growth < FEW_AMPLITUDES
    torch.set_num_threads(options.training.threads or (1 if small else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit(
    run: RunFolder,
    options: Config,
    data: Data,
    model: nn.Module,
    console: Console,
    backend: Backend,
    after_epoch: AfterEpoch = None,
    planned: int = 0,
    figures: bool = True,
) -> RunFolder:
    plain: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}  # a path may hold brackets
    stand_in = backend.stand_in if quantum_layers(model) else None
    with threads(options, data):
        if stand_in is not None:
            gpu = " on the GPU" if getattr(stand_in, "device", None) == "cuda" else ""
            console.print(
                f"{backend.name}: the torch simulator{gpu} trains, as its values are the same; "
                f"{backend.name} evaluates one sample an epoch and {AGREEMENT_SAMPLES} at the end", **plain,
            )  # fmt: skip
        console.print(f"run {run.path}", **plain)
        lines = summarize(model, data.shape, backend.shots)
        if not run.checkpoint.is_file():
            lines += estimate(options, data, model, stand_in or backend)
        console.print("\n".join(lines), **plain)
        there = ranks.here()
        there.advice = f"; resume with: qrkt-hw train --resume {run.path}"
        if there.leads:
            write_json(run.path / "backend.json", backend.about())
        task = make_task(options, data, model)
        task.figures = figures
        record = there.together(lambda: resume_from(run, task, backend))
        if there.count > 1:
            there.same({"state of the run": f"{len(record.history)} epochs, {sha256(task.modules.state_dict())}"})
        record.planned = record.planned or planned
        done, epochs = len(record.history), options.training.epochs
        if done and done < epochs and record.planned not in (0, epochs):
            console.print(
                f"from epoch {done + 1} on with the learning rates of {epochs} epochs; "
                f"so far they were those of {record.planned}", **plain,
            )  # fmt: skip
        compare = None if stand_in is None else partial(agreement, backend, model, data)

        def checked(epoch: int, metrics: dict[str, float]) -> None:
            if compare is not None:
                there.first(compare)
            if after_epoch is not None and there.leads:
                after_epoch(epoch, metrics)

        try:
            if compare is not None:
                there.first(compare)  # before an epoch is spent
            train(task, run, record, backend, console, checked)
        except KeyboardInterrupt:
            billed = command("train", run.path, {"backend": options.backend.name})
            how = billed if backend.bills else f"qrkt-hw train --resume {run.path}"
            console.print(f"resume with: {how}", **plain)
            raise
        _conclude(run, task, record, backend, compare)
        there.gather(None)  # what rank 0 wrote is there for all
    return run


def _conclude(run: RunFolder, task: Task, record: Record, backend: Backend, compare: Compare | None) -> None:
    """Write figures and ``results.json`` of the kept weights."""
    started, there = time.perf_counter(), ranks.here()
    model = task.model.cpu()
    weights = there.first(lambda: read_weights(model, run.model))
    model.load_state_dict(weights)
    found = task.results(record, run)
    compared = {} if compare is None else {"agreement": there.first(partial(compare, AGREEMENT_SAMPLES))}
    if not there.leads:
        return
    results = found | {
        "parameters": count_parameters(model),
        "qubits": largest_circuit(model),
        "summed_qubits": summed_qubits(model),
        "weights_sha256": sha256(weights),
        "data_sha256": run.data_sha256(),
        "peak_memory_mb": round(peak_memory(), 1),
        "train_seconds": round(record.train_seconds, 3),
        "cpu_seconds": round(record.cpu_seconds, 3),
        "evaluation_seconds": round(time.perf_counter() - started, 3),
        "seed": task.options.training.seed,
        **({"schedule_changed_after": record.rescheduled} if record.rescheduled else {}),
        **compared,
        "backend": backend.name,
        # what it counted, where torch cannot see through it
        "backend_details": backend.about() | ({} if backend.differentiable else asdict(backend.counters)),
    }
    write_json(run.results, results)


def estimate(options: Config, data: Data, model: nn.Module, backend: Backend) -> list[str]:
    """A line on the circuits and the time of a training; none where torch differentiates the circuits, or where trying
    costs money. The model takes a step on one sample and then on a few, and nothing of it or of the run changes."""
    if backend.differentiable or backend.bills or not quantum_layers(model):
        return []
    before = backend.state()
    sizes = {name: len(split) for name, split in data.splits.items()}  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        for few in sorted({1, min(FEW, sizes["train"])}):
            step, forward, circuits = _measured(model, data, backend, few)
            if step >= LONG:
                break
    model.zero_grad()
    backend.restore(before)
    checked = 0 if isinstance(model, Gan) else sizes["validation"]
    epoch = (step * sizes["train"] + forward * checked) / few
    whole = epoch * options.training.epochs + (forward * (checked + sizes["test"]) / few if checked else 0)
    circuits //= few
    return [
        f"{backend.name} evaluates {circuits:,} circuits for a training sample, {circuits * sizes['train']:,} in an "
        f"epoch: about {_time(epoch)} an epoch and {_time(whole)} in all (from {few} sample{'s' if few > 1 else ''}); "
        "faster, without noise: --backend exact"
    ]


def seconds_per_step(options: Config, data: Data, steps: int = 16) -> float:
    """CPU time of a training step of a fresh model, measured over ``steps`` after as many to warm up. Of a GAN both
    sides and the penalties count in their proportion. torch's random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]), threads(options, data):
        task = make_task(options, data, build_model(options, data.shape))
        task.start_epoch(1)
        batches = itertools.chain.from_iterable(itertools.repeat(task.batches))
        started = 0.0
        for number, batch in enumerate(itertools.islice(batches, 2 * steps)):
            started = time.process_time() if number == steps else started
            task.step(task.fabric.to_device(batch), number)
        return (time.process_time() - started) / steps


def _measured(model: nn.Module, data: Data, backend: Backend, count: int) -> tuple[float, float, int]:
    """Seconds of a training step on so many samples and of its forward pass, and circuits of the step."""
    inputs, _ = next(iter(loader(first(data.splits["train"], count), count)))
    inputs = inputs.to(next(model.parameters()).dtype) if inputs.is_floating_point() else inputs
    before, started = backend.counters.circuits, time.perf_counter()
    if isinstance(model, Gan):
        fake = model.generator(torch.randn(count, model.latent, dtype=inputs.dtype))
        model.discriminator(torch.cat([inputs, fake.detach()])).sum().backward()
        value = model.discriminator(fake).sum()
    else:
        value = model(inputs).sum()
    forward = time.perf_counter() - started
    value.backward()
    return time.perf_counter() - started, forward, backend.counters.circuits - before


def _time(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"

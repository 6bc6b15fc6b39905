"""Train a model into a run folder, or go on where a run stopped."""

from __future__ import annotations

import logging
import signal
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from qrkt_hw import backends
from qrkt_hw.backends import Backend, Budget
from qrkt_hw.backends.registry import command
from qrkt_hw.data import Data, load_data
from qrkt_hw.data.batches import loader
from qrkt_hw.errors import UserError
from qrkt_hw.models.factory import (
    build_model,
    count_parameters,
    field_evaluations,
    largest_circuit,
    quantum_layers,
    summed_qubits,
)
from qrkt_hw.models.gan import Gan
from qrkt_hw.models.initialization import condition
from qrkt_hw.models.weights import load_weights, read_weights, sha256
from qrkt_hw.options.run import RunOptions
from qrkt_hw.resources.tables import summarize
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import write_json
from qrkt_hw.runs.circuits import Circuits
from qrkt_hw.training import gan
from qrkt_hw.training.adversaries import Adversaries
from qrkt_hw.training.classifier import Classifier
from qrkt_hw.training.estimate import estimate
from qrkt_hw.training.measures import spent, where
from qrkt_hw.training.metrics import classification_metrics, logits_of
from qrkt_hw.training.progress import LiveProgress
from qrkt_hw.training.recorder import Recorder

EVALUATION_BATCH = 256


def start(
    options: RunOptions,
    out: Path | None,
    console: Console,
    callbacks: Sequence[Callback] = (),
    data: Data | None = None,
    budget: Budget | None = None,
) -> RunFolder:
    """Train from scratch; returns the run.

    Args:
        options: of the run.
        out: its folder; None makes a new one under ``runs/``.
        console: for progress.
        callbacks: more of Lightning's callbacks.
        data: the options' data set, where it is loaded already.
        budget: limits of QPU time and money on a device.

    Raises:
        UserError: options that do not fit each other or the data, or a folder that cannot be written. Nothing is left
            behind then.
    """
    check_accelerator(options)
    data = data or load_data(options)
    backend = backends.make(options, options.seed, console)
    budget = backend.budget(budget)
    options = options.with_circuits(begun(options))
    model = _fresh_model(options, data, backend)  # before the folder appears: impossible options leave nothing behind
    run = RunFolder.create(options, data.describe(), out)
    try:
        with run.writing(), backends.open(backend, run=run, budget=budget, console=console, **_activity(options)):
            return _fit(run, options, data, model, console, backend, callbacks)
    except Exception:  # not Ctrl-C: such a run goes on from its start
        run.discard_untrained()
        raise


def begun(options: RunOptions) -> Callable[[], Circuits]:
    """The circuits of a new run with these options: those of the run that the options come from, or fresh ones."""
    source = options.circuits
    circuits = source.again() if source is not None else Circuits(options.ansatz, begun=True)
    return lambda: circuits


def resume(
    run: RunFolder,
    console: Console,
    resubmit: bool = False,
    replan: bool = False,
    budget: Budget | None = None,
    agreed: str | None = None,
) -> RunFolder:
    """Go on with a run from its last whole epoch, with its own configuration.

    Args:
        run: the run.
        console: for progress.
        resubmit: send again what is held on a device.
        replan: let go of the plan that is pinned for a device.
        budget: limits of QPU time and money, with what was billed before.
        agreed: the run's backend by name, where it bills: a run folder alone never decides that something is paid.

    Raises:
        UserError: a damaged run, or one on a device that bills without agreement.
    """
    options = run.options()
    if agreed not in (None, options.backend):
        raise UserError(f"--backend: {run.path} trains on {options.backend!r}, and a resume cannot change that")
    check_accelerator(options)
    data = load_data(options, run.description().get("vocabulary", ()))
    backend = backends.make(options, options.seed, console)
    if backend.bills and agreed is None:
        raise UserError(
            f"--resume: {run.path} trains on {options.backend!r} with {backend.shots} shots a circuit, which is "
            f"billed; add --backend {options.backend} to agree (--max-qpu-seconds and --max-cost limit it)"
        )
    again: dict[str, Any] = {**_activity(options), "resume": True, "resubmit": resubmit, "replan": replan}
    with run.writing(), backends.open(backend, run=run, budget=budget, console=console, **again):
        return _fit(run, options, data, _fresh_model(options, data, backend), console, backend)


def _activity(options: RunOptions) -> dict[str, Any]:
    """What the journal keeps of a training: its options stand in the run folder."""
    return {"kind": "train", "arguments": {"backend": options.backend, "instance": options.instance}}


def check_accelerator(options: RunOptions) -> None:
    """Refuse a GPU that is not there.

    Raises:
        UserError: --accelerator cuda where torch sees none.
    """
    if options.accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("--accelerator: cuda is not available to torch here; take --accelerator cpu")


def _fresh_model(options: RunOptions, data: Data, backend: Backend) -> torch.nn.Module:
    if options.model != "gan" and data.shape.classes < 2:
        raise UserError(
            f"--dataset: {options.dataset} has one class ({data.class_names[0]!r}); a classifier needs at least two"
        )
    torch.manual_seed(options.seed)
    model = build_model(options, data.shape, backend)
    if options.initial_angles == "conditioned":
        condition(quantum_layers(model))
    if isinstance(model, Gan):
        gan.check_losses(options, model, backend)
    return model


def _fit(
    run: RunFolder,
    options: RunOptions,
    data: Data,
    model: torch.nn.Module,
    console: Console,
    backend: Backend,
    callbacks: Sequence[Callback] = (),
) -> RunFolder:
    torch.set_num_threads(options.threads or threads_for(options, data))
    train = loader(data.splits["train"], options.batch_size, options.seed, options.workers, options.augment)
    validation = loader(data.splits["validation"], EVALUATION_BATCH, workers=options.workers)
    # a path may hold brackets, and must stay one line
    console.print(f"run {run.path}", highlight=False, markup=False, soft_wrap=True)
    for line in summarize(model, data.shape, backend.shots):
        console.print(line, highlight=False)
    expected = None if run.checkpoint.is_file() else estimate(options, data, model, backend)
    if expected is not None:
        console.print(expected, highlight=False, soft_wrap=True)
    write_json(run.path / "backend.json", backend.about())
    module: Classifier | Adversaries
    if isinstance(model, Gan):
        module, recorder = gan.parts(run, options, data, model, len(train), backend)
    else:
        module = Classifier(model, options, len(train))
        evaluations = field_evaluations(model) * len(data.splits["train"])  # type: ignore[arg-type]
        recorder = Recorder(run, backend, evaluations)
    quiet()
    checkpoint = _whole_checkpoint(run, module, len(train))
    if checkpoint is not None and run.model.is_file():
        read_weights(model, run.model, run.weights_sha256())
    trainer = Trainer(
        accelerator=options.accelerator,
        devices=1,
        max_epochs=options.epochs,
        gradient_clip_val=None if isinstance(model, Gan) else options.clip,  # a GAN clips each side
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=TensorBoardLogger(run.path, name="tensorboard", version=""),
        log_every_n_steps=1_000_000,
        callbacks=[LiveProgress(console, len(train)), recorder, *callbacks],
    )
    before = signal.getsignal(signal.SIGINT)
    try:
        held_out = None if isinstance(model, Gan) else validation
        trainer.fit(module, train, held_out, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as stop:  # how Lightning ends on Ctrl-C, with the signal switched off
        signal.signal(signal.SIGINT, before)
        how = command("train", run.path, {"backend": options.backend})
        how = how if backend.bills else f"qrkt-hw train --resume {run.path}"
        console.print(f"go on with: {how}", highlight=False, markup=False, soft_wrap=True)
        raise KeyboardInterrupt from stop
    except Exception as error:
        foreign = (UserError, OSError, MemoryError, torch.OutOfMemoryError)
        if checkpoint is None or recorder.started or isinstance(error, foreign):
            raise
        raise _damaged(checkpoint, error) from error  # Lightning could not take up what it holds
    if isinstance(model, Gan):
        gan.conclude(run, options, model, recorder, backend)
    else:
        _conclude(run, options, data, model, recorder, backend)
    return run


def _whole_checkpoint(run: RunFolder, module: Classifier | Adversaries, batches: int) -> Path | None:
    """The checkpoint to go on from; None where no epoch was finished yet.

    Raises:
        UserError: it cannot be read, is not one of ours, or does not belong to the run's configuration.
    """
    if not run.checkpoint.is_file():
        return None
    own = {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}
    try:
        with zipfile.ZipFile(run.checkpoint) as archive:
            damaged = archive.testzip()  # torch does not compare the checksums
        if damaged is not None:
            raise ValueError(f"its part {damaged} is not what was written")
        content = torch.load(run.checkpoint, map_location="cpu", weights_only=True)
        epochs = content["callbacks"][Recorder.__qualname__]["history"][-1]["epoch"]
        found = {name: (tensor.shape, tensor.dtype) for name, tensor in content["state_dict"].items()}
        whole, moments = _optimizers(module, content["optimizer_states"]) if found == own else (True, [])
        finite = all(bool(t.isfinite().all()) for t in (*content["state_dict"].values(), *moments))
        loop = content["loops"]["fit_loop"]
        ended, seen = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
        counted = [content["epoch"] + 1, ended["ready"], ended["started"], ended["processed"], ended["completed"] + 1]
        whole = whole and set(counted) == {epochs} and set(seen["current"].values()) == {batches}
        whole = whole and seen["is_last_batch"] is True
        content["lr_schedulers"], content["pytorch-lightning_version"].split(".")
    except Exception as error:  # torch raises many kinds for a file that is not whole
        raise _damaged(run.checkpoint, error) from error
    if found != own:
        raise UserError(f"{run.checkpoint} does not fit {run.config}: was the configuration changed since?")
    if not whole or type(epochs) is not int:
        raise _damaged(run.checkpoint, ValueError("its epochs, batches or optimizers are not those of this run"))
    if not finite:
        raise _damaged(run.checkpoint, ValueError("it holds values that are not finite numbers"))
    if epochs > module.options.epochs:
        raise UserError(f"{run.config}: epochs is {module.options.epochs}, but {run.checkpoint} holds {epochs}")
    return run.checkpoint


def _optimizers(module: Classifier | Adversaries, kept: list[Any]) -> tuple[bool, list[torch.Tensor]]:
    """Whether kept states are of the module's optimizers, and all their tensors."""
    made = module.configure_optimizers()
    optimizers = [made["optimizer"]] if isinstance(made, dict) else made
    fit, tensors = len(kept) == len(optimizers) and bool(kept[-1]["state"]), []
    for optimizer, one in zip(optimizers, kept, strict=False):
        own = [p for group in optimizer.param_groups for p in group["params"]]
        for place, state in one["state"].items():
            tensors += state.values()
            fit = fit and all(t.shape in ((), own[place].shape) for t in state.values())
    return fit, tensors


def _damaged(file: Path, error: Exception) -> UserError:
    why = str(error) if type(error) is ValueError else type(error).__name__
    return UserError(f"{file} is damaged ({why}); remove it to train this run from the start")


def _conclude(
    run: RunFolder, options: RunOptions, data: Data, model: torch.nn.Module, recorder: Recorder, backend: Backend
) -> None:
    from qrkt_hw.plots.charts import plot_confusion, plot_curves  # matplotlib, only now: it delays the first step

    weights = load_weights(model, run.model)
    results: dict[str, Any] = {}
    started = time.perf_counter()
    for split in ("test", "validation"):
        logits, labels = logits_of(model, loader(data.splits[split], EVALUATION_BATCH, workers=options.workers))
        results[split] = classification_metrics(logits, labels)
        if split == "test":
            plot_confusion(logits.argmax(-1), labels, data.class_names, run.plots / "confusion.png")
    plot_curves(recorder.history, recorder.best_epoch, run.plots / "curves.png")
    write_json(
        run.results,
        {
            **results,
            "parameters": count_parameters(model),
            "qubits": largest_circuit(model),
            "summed_qubits": summed_qubits(model),
            "field_evaluations_per_forward": field_evaluations(model),
            "best_epoch": recorder.best_epoch,
            "weights_sha256": sha256(weights),
            "data_sha256": run.data_sha256(),
            **spent(recorder, started),
            **where(options, backend),
        },
    )


# amplitudes in one projection of a batch below which waking a second thread costs more than it brings
WORTH_SHARING = 200_000


def threads_for(options: RunOptions, data: Data) -> int:
    """1 where the largest tensors of a step are small, else torch's default."""
    if options.model == "gan":
        return gan.threads_for(options)
    tokens = data.shape.tokens(options.patch)
    growth = 2**options.qubits / options.qubits if options.projection != "classical" else 1
    amplitudes = options.batch_size * tokens * options.hidden * growth
    return 1 if amplitudes < WORTH_SHARING else torch.get_num_threads()


def quiet() -> None:
    """Lightning's remarks about accelerators and workers say nothing to our user."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")

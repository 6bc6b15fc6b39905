"""Search over any options by validation AUROC; several processes and machines may share one study."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from lightning.pytorch import Callback, LightningModule, Trainer
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from pydantic import ValidationError
from rich.console import Console
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from qrkt_hw.data import Data, load_data
from qrkt_hw.errors import UserError
from qrkt_hw.experiments.search import Dimension
from qrkt_hw.options.run import RunOptions
from qrkt_hw.options.validation import sentence
from qrkt_hw.plots.charts import plot_study
from qrkt_hw.runs.atomic import write_text
from qrkt_hw.runs.folder import read_json
from qrkt_hw.training import fit

DONE = (TrialState.COMPLETE, TrialState.PRUNED)
HEARTBEAT, GRACE = 30, 90  # seconds; a trial silent for longer belonged to a process that died
RACES = 6  # attempts to open a study that other processes open at the same time


class Pruner(Callback):
    """Reports validation AUROC after each epoch and stops a trial that its study gives up."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics: dict[str, float] = pl_module.epoch_metrics  # type: ignore[assignment]
        self.trial.report(metrics["val_auroc"], trainer.current_epoch + 1)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def _open(
    name: str, storage: str, space: list[str], dimensions: Sequence[Dimension], sampler: str, prune: bool, seed: int
) -> tuple[optuna.Study, list[str] | None]:
    """The study, and the options it searched when it was opened (None for a new one)."""
    store = optuna.storages.RDBStorage(
        storage,
        engine_kwargs={"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else None,
        heartbeat_interval=HEARTBEAT,
        grace_period=GRACE,
    )
    study = optuna.create_study(
        storage=store,
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        sampler=_sampler(sampler, dimensions, seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
        if prune
        else optuna.pruners.NopPruner(),
    )
    known = study.user_attrs.get("space")
    if known is None:
        study.set_user_attr("space", space)
    return study, known


def open_study(
    name: str, storage: str, dimensions: Sequence[Dimension], sampler: str, prune: bool, seed: int
) -> optuna.Study:
    """The study of that name; made where there is none.

    Raises:
        UserError: a storage that cannot be opened, or a study over other options.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = [repr(dimension) for dimension in dimensions]
    try:
        for attempt in range(RACES):
            try:
                study, known = _open(name, storage, space, dimensions, sampler, prune, seed)
                break
            except (IntegrityError, OperationalError):
                # another process made the same tables or study in this moment; theirs will do
                if attempt == RACES - 1:
                    raise
                time.sleep(0.3 * (attempt + 1))
    except Exception as error:  # SQLAlchemy and its drivers raise many kinds, and some repeat the URL
        raise UserError(f"--storage: {shown(storage)} cannot be opened ({type(error).__name__})") from None
    if known is not None and known != space:
        raise UserError(f"--study: {name} searches other options ({'; '.join(known)}); name another study")
    return study


def shown(storage: str) -> str:
    """A storage's URL for a message: without passwords, and without any part of one that cannot be read."""
    try:
        url = make_url(storage)
    except Exception:  # whatever SQLAlchemy makes of it
        return "this URL, which is not of the form dialect://user:password@host/name,"
    if "@" in f"{url.host}{url.database}":  # the rest of a password with an @ in it
        return f"this {url.drivername} URL, whose password must have its @ written as %40,"
    text = url.set(query={}).render_as_string(hide_password=True)
    return text + ("?..." if url.query else "")  # there, too, a password may stand


def _sampler(name: str, dimensions: Sequence[Dimension], seed: int) -> optuna.samplers.BaseSampler:
    if name == "grid":
        open_ended = [d.key for d in dimensions if not d.choices]
        if open_ended:
            raise UserError(f"--sampler: grid needs values to choose from, and {open_ended[0]} has an interval")
        return optuna.samplers.GridSampler({d.key: list(d.choices) for d in dimensions}, seed=seed)
    # no fixed seed: two processes of one study must not draw the same
    return optuna.samplers.RandomSampler() if name == "random" else optuna.samplers.TPESampler(constant_liar=True)


def tune(
    base: RunOptions,
    dimensions: Sequence[Dimension],
    study: optuna.Study,
    sampler: str,
    trials: int,
    out: Path,
    console: Console,
) -> optuna.Study:
    """Train trials until the study has ``trials`` finished ones, counting those of all processes.

    Args:
        base: the options that are not searched.
        dimensions: the searched ones.
        study: of :func:`open_study`.
        sampler: ``tpe``, ``random`` or ``grid``; a grid ends when it is used up.
        trials: finished trials wanted, pruned ones included.
        out: folder for ``trial-N`` runs and the results.
        console: for progress.

    Raises:
        UserError: no trial could be trained; tells the last reason.
    """
    if sampler == "grid":
        trials = min(trials, math.prod(len(d.choices) for d in dimensions))
    searched = {d.key for d in dimensions}
    shared = load_data(base) if not searched & set(_data_keys()) else None
    stop = optuna.study.MaxTrialsCallback(trials, states=DONE)
    try:
        if sum(t.state in DONE for t in study.trials) < trials:
            study.optimize(_objective(base, dimensions, out, console, shared), callbacks=[stop])
    except (SQLAlchemyError, StorageInternalError) as error:
        raise UserError(
            f"--storage: the study cannot be reached any more ({type(error).__name__}); the same command goes on"
        ) from None
    if not any(t.state == TrialState.COMPLETE for t in study.trials):
        reasons = [t.user_attrs["refused"] for t in study.trials if "refused" in t.user_attrs]
        raise UserError(
            f"--search: no trial could be trained: {reasons[-1]}" if reasons else "--search: every trial was pruned"
        )
    return study


def _data_keys() -> list[str]:
    from qrkt_hw.options.data import DataOptions

    return [key for key in DataOptions.model_fields if key not in ("batch_size", "workers", "augment")]


def _objective(
    base: RunOptions, dimensions: Sequence[Dimension], out: Path, console: Console, data: Data | None
) -> Callable[[optuna.Trial], float]:
    def objective(trial: optuna.Trial) -> float:
        chosen = {dimension.key: dimension.suggest(trial) for dimension in dimensions}
        console.print(f"trial {trial.number}: {_shown(chosen)}", highlight=False)
        try:
            options = RunOptions.model_validate({**base.model_dump(), **chosen})
            run = fit.start(options, out / f"trial-{trial.number}", console, [Pruner(trial)], data)
        except ValidationError as error:
            return _refuse(trial, sentence(error), console)
        except UserError as error:
            return _refuse(trial, str(error), console)
        results = read_json(run.results)
        trial.set_user_attr("run", str(run.path))
        trial.set_user_attr("parameters", results["parameters"]["total"])
        trial.set_user_attr("best_epoch", results["best_epoch"])
        return results["validation"]["auroc"]

    return objective


def _refuse(trial: optuna.Trial, reason: str, console: Console) -> float:
    """Options that do not fit each other are a finished trial, not the end of the search."""
    trial.set_user_attr("refused", reason)
    console.print(f"trial {trial.number} cannot be trained: {reason}", highlight=False)
    raise optuna.TrialPruned


def _shown(chosen: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in chosen.items())


def rows(study: optuna.Study) -> list[dict[str, Any]]:
    """Finished trials, best first: ``trial, state, val_auroc, epochs``, the searched options, ``parameters, run``."""
    try:
        done = [t for t in study.trials if t.state in DONE]
    except (SQLAlchemyError, StorageInternalError) as error:
        raise UserError(f"--storage: the study is damaged, or out of reach ({type(error).__name__})") from None
    done.sort(key=lambda t: (t.state != TrialState.COMPLETE, -(t.value if t.value is not None else -1), t.number))
    return [
        {
            "trial": t.number,
            "state": "refused" if "refused" in t.user_attrs else t.state.name.lower(),
            "val_auroc": t.value
            if t.value is not None
            else t.intermediate_values.get(max(t.intermediate_values, default=0)),
            "epochs": max(t.intermediate_values, default=0),
            **t.params,
            "parameters": t.user_attrs.get("parameters"),
            "run": t.user_attrs.get("run"),
        }
        for t in done
    ]


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of the spread in AUROC that each option explains (fANOVA); empty where too few trials finished."""
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    if len(complete) < 4 or len({t.value for t in complete}) < 2:
        return {}
    return dict(
        optuna.importance.get_param_importances(study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0))
    )


def write_study(study: optuna.Study, out: Path) -> list[Path]:
    """``trials.csv``, ``trials.md`` and ``study.png``; returns the files."""
    found = rows(study)
    header = list(dict.fromkeys(itertools.chain.from_iterable(found)))
    cells = [["" if row.get(key) is None else str(row[key]) for key in header] for row in found]
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "trials.csv", "\n".join(",".join(line) for line in [header, *cells]) + "\n")
    lines = ["| " + " | ".join(line) + " |" for line in [header, *cells]]
    write_text(out / "trials.md", "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]]) + "\n")
    return [out / "trials.csv", out / "trials.md", plot_study(found, importances(study), out / "study.png")]

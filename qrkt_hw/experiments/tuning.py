"""A search over options of a training by validation AUROC, with Optuna; many processes can share one study."""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from qrkt_hw.errors import UserError, unknown
from qrkt_hw.experiments.comparison import comma_separated, markdown
from qrkt_hw.plots.charts import plot_study
from qrkt_hw.runs.atomic import write_text
from qrkt_hw.runs.config import KEYS, Config, DataConfig, flattened, problem, unused
from qrkt_hw.runs.folder import read_json

DONE = (TrialState.COMPLETE, TrialState.PRUNED)
HEARTBEAT, GRACE = 30, 90  # seconds; a trial silent for longer belonged to a process that died
RACES = 6  # attempts to open a study that other processes open at the same time
DATA_KEYS = set(DataConfig.model_fields) - {"batch_size", "workers", "augment"}  # searched, they need other data


@dataclass(frozen=True)
class Dimension:
    """One searched option: choices, or an interval (``log`` in its logarithm, ``whole`` in whole numbers)."""

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Any) -> Any:
        """This option's value in an Optuna trial."""
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        if self.whole:
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)


def parse(text: str) -> Dimension:
    """``key=a,b,c``, ``key=low:high`` or ``key=log:low:high``.

    Raises UserError: another form, an option that does not exist, or a value it does not take."""
    key, equals, given = text.partition("=")
    (key,) = flattened({key.strip().removeprefix("--").replace("-", "_"): None})  # today's name of an old one
    if not equals or not given:
        raise UserError(f"--search: {text!r} is not of the form option=a,b,c or option=low:high or option=log:low:high")
    if key not in KEYS:
        raise UserError(f"--search: {unknown('option', key, KEYS, see='qrkt-hw train --help-all')}")
    parts = given.split(":")
    log = parts[0] == "log"
    bounds = parts[1:] if log else parts
    if log or len(parts) == 2:
        low, high = (_value(key, bound, text) for bound in bounds) if len(bounds) == 2 else (None, None)
        numbers = all(isinstance(b, int | float) and not isinstance(b, bool) for b in (low, high))
        if low is None or high is None or not numbers or not low < high or (log and low <= 0):
            raise UserError(f"--search: {text!r} needs two numbers, the lower first{' and positive' if log else ''}")
        return Dimension(key, (), low, high, log, isinstance(low, int) and isinstance(high, int))
    choices = tuple(_value(key, choice, text) for choice in given.split(","))
    if len(set(choices)) < len(choices):
        raise UserError(f"--search: {text!r} names a value twice")
    return Dimension(key, choices)


def check_space(options: Config, dimensions: Sequence[Dimension]) -> None:
    """Make sure that every searched value is allowed and that no searched option is without effect throughout."""
    ends = {d.key: d.choices or (d.low, d.high) for d in dimensions}
    for key, values in ends.items():
        for value in values:
            try:
                options.replace(**{key: value})
            except ValidationError as error:
                raise UserError(f"--search: {problem(error)[1]}") from error
    fixed = {key: KEYS[key].field.default for key in ends}
    reasons: dict[str, list[str | None]] = {key: [] for key in ends}
    for chosen in itertools.islice(itertools.product(*ends.values()), 10_000):
        tried = options.replace(**dict(zip(ends, chosen, strict=True)))
        for key in ends:
            if tried.flat().get(key, fixed[key]) != fixed[key]:
                reasons[key].append(unused(tried, [key]))
    for found in reasons.values():
        if found and all(found):
            raise UserError(f"--search: {found[0]}")


def _value(key: str, text: str, whole: str) -> Any:
    field = KEYS[key].field
    annotated: Any = field.annotation
    given = text.strip()
    try:
        value = TypeAdapter(annotated).validate_python(int(given) if given.lstrip("-").isdigit() else given)
    except ValidationError as error:
        raise UserError(f"--search: {whole!r}: {key} does not take {text!r}") from error
    return value if isinstance(value, int | float | str | bool) else str(value)


def _sampler(name: str, dimensions: Sequence[Dimension], seed: int) -> optuna.samplers.BaseSampler:
    if name == "grid":
        open_ended = [d.key for d in dimensions if not d.choices]
        if open_ended:
            raise UserError(f"--sampler: grid needs values to choose from, and {open_ended[0]} has an interval")
        return optuna.samplers.GridSampler({d.key: list(d.choices) for d in dimensions}, seed=seed)
    # no fixed seed: two processes of one study must not draw the same
    return optuna.samplers.RandomSampler() if name == "random" else optuna.samplers.TPESampler(constant_liar=True)


def open_study(
    name: str, storage: str, dimensions: Sequence[Dimension], sampler: str, prune: bool, seed: int
) -> optuna.Study:
    """The study of that name; made where there is none.

    Raises UserError: a storage that cannot be opened, or a study over other options."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = [repr(dimension) for dimension in dimensions]
    median = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    patient = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else None
    beat: dict[str, Any] = {"heartbeat_interval": HEARTBEAT, "grace_period": GRACE}
    sampling = _sampler(sampler, dimensions, seed)
    for attempt in range(RACES):
        try:
            study = optuna.create_study(
                storage=optuna.storages.RDBStorage(storage, engine_kwargs=patient, **beat),
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                sampler=sampling,
                pruner=median if prune else optuna.pruners.NopPruner(),
            )
            known = study.user_attrs.get("space")
            if known is None:
                study.set_user_attr("space", space)
            break
        except Exception as error:  # SQLAlchemy and its drivers raise many kinds, and some repeat the URL
            # another process may have made the same tables or study in this moment; theirs will do
            if attempt == RACES - 1 or not isinstance(error, (IntegrityError, OperationalError)):
                raise UserError(f"--storage: {shown(storage)} cannot be opened ({type(error).__name__})") from None
            time.sleep(0.3 * (attempt + 1))
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


def tune(
    base: Config,
    dimensions: Sequence[Dimension],
    study: optuna.Study,
    sampler: str,
    trials: int,
    out: Path,
    console: Console,
) -> optuna.Study:
    """Train trials until the study has ``trials`` finished ones, counting those of all processes and the pruned ones.

    Args:
        base: the options that are not searched.
        dimensions: the searched ones.
        study: of :func:`open_study`.
        sampler: ``tpe``, ``random`` or ``grid``; a grid ends when it is used up.
        trials: finished trials wanted.
        out: folder for ``trial-N`` runs and the results.
        console: for progress.

    Raises UserError: no trial could be trained; tells the last reason.
    """
    if sampler == "grid":
        trials = min(trials, math.prod(len(d.choices) for d in dimensions))
    from qrkt_hw.data import load_data  # torch loads where a trial trains: a wrong search is refused at once
    from qrkt_hw.training import fit

    data = load_data(base.data) if not DATA_KEYS & {d.key for d in dimensions} else None

    def objective(trial: optuna.Trial) -> float:
        chosen = {dimension.key: dimension.suggest(trial) for dimension in dimensions}
        shown = (
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in chosen.items()
        )
        console.print(f"trial {trial.number}: {', '.join(shown)}", highlight=False)

        def prune(epoch: int, metrics: dict[str, float]) -> None:
            if math.isnan(metrics["val_auroc"]):
                raise UserError("--dataset: all validation samples are of one class, so no AUROC tells trials apart")
            trial.report(metrics["val_auroc"], epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            run = fit.start(base.replace(**chosen), out / f"trial-{trial.number}", console, prune, data)
        except (ValidationError, UserError) as error:  # a finished trial, not the end of the search
            reason = problem(error)[1] if isinstance(error, ValidationError) else str(error)
            trial.set_user_attr("refused", reason)
            console.print(f"trial {trial.number} cannot be trained: {reason}", highlight=False)
            raise optuna.TrialPruned from error
        results = read_json(run.results)
        trial.set_user_attr("run", str(run.path))
        trial.set_user_attr("parameters", results["parameters"]["total"])
        trial.set_user_attr("best_epoch", results["best_epoch"])
        return results["validation"]["auroc"]

    stop = optuna.study.MaxTrialsCallback(trials, states=DONE)
    try:
        if sum(t.state in DONE for t in study.trials) < trials:
            study.optimize(objective, callbacks=[stop])
    except (SQLAlchemyError, StorageInternalError) as error:
        raise UserError(
            f"--storage: the study cannot be reached any more ({type(error).__name__}); the same command resumes"
        ) from None
    if not any(t.state == TrialState.COMPLETE for t in study.trials):
        reasons = [t.user_attrs["refused"] for t in study.trials if "refused" in t.user_attrs]
        raise UserError(
            f"--search: no trial could be trained: {reasons[-1]}" if reasons else "--search: every trial was pruned"
        )
    return study


def rows(study: optuna.Study) -> list[dict[str, Any]]:
    """Finished trials, best first: ``trial, state, val_auroc, epochs``, the searched options, ``parameters, run``."""
    try:
        done = [t for t in study.trials if t.state in DONE]
    except (SQLAlchemyError, StorageInternalError) as error:
        raise UserError(f"--storage: the study is damaged, or out of reach ({type(error).__name__})") from None
    done.sort(key=lambda t: (t.state != TrialState.COMPLETE, -(t.value if t.value is not None else -1), t.number))
    found = []
    for t in done:
        epochs = max(t.intermediate_values, default=0)
        state = "refused" if "refused" in t.user_attrs else t.state.name.lower()
        auroc = t.value if t.value is not None else t.intermediate_values.get(epochs)
        kept = {key: t.user_attrs.get(key) for key in ("parameters", "run")}
        found.append({"trial": t.number, "state": state, "val_auroc": auroc, "epochs": epochs, **t.params, **kept})
    return found


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of the spread in AUROC that each option explains (fANOVA); empty where too few trials finished."""
    complete = [t.value for t in study.trials if t.state == TrialState.COMPLETE]
    if len(complete) < 4 or len(set(complete)) < 2:
        return {}
    fanova = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=fanova))


def write_study(study: optuna.Study, out: Path) -> list[Path]:
    """``trials.csv``, ``trials.md`` and ``study.png``; returns the files."""
    found = rows(study)
    header = list(dict.fromkeys(itertools.chain.from_iterable(found)))
    cells = [["" if row.get(key) is None else str(row[key]) for key in header] for row in found]
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "trials.csv", comma_separated(header, cells))
    write_text(out / "trials.md", markdown(header, cells))
    return [out / "trials.csv", out / "trials.md", plot_study(found, importances(study), out / "study.png")]

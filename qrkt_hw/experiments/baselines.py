"""A run against its classical baselines: size-matched (linear layers instead of circuits), parameter-matched, and
structured."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from qrkt_hw.backends import bills
from qrkt_hw.data import Data, DataShape, load_data
from qrkt_hw.data.ranks import here
from qrkt_hw.errors import UserError
from qrkt_hw.experiments.comparison import Group, grouped, write_comparison
from qrkt_hw.experiments.evaluation import evaluate
from qrkt_hw.models.ablation import SAME, Structure, StructuredLayer
from qrkt_hw.models.factory import build_model, count_parameters
from qrkt_hw.models.metrics import reference_classifier
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import write_json
from qrkt_hw.runs.config import Config
from qrkt_hw.runs.folder import read_json
from qrkt_hw.training import fit

SIDES = ("quantum", "size-matched", "parameter-matched", "structured")
EARLIER = {"size-matched": "same-shape", "parameter-matched": "same-parameters"}  # names of folders
SAMPLES = 10_000  # generated for each measurement of a GAN


def train_baselines(
    run: RunFolder, trials: int, epochs: int | None, out: Path, console: Console
) -> tuple[list[Group], dict[str, Any]]:
    """Train the baselines of a run and compare. What an earlier call finished is kept, what it left is resumed.

    The structured one has classical layers of the circuits' structure (:func:`qrkt_hw.models.ablation.structure`);
    where it is identical to the run by construction, it is not trained.

    Of a classifier every side, the quantum one too, gets the same learning rates and epochs, and its rate is chosen
    by validation AUROC. The baselines of a GAN take its learning rates and, by the time of a step measured here side by
    side, its training time; one protocol measures all three.

    Args:
        run: with circuits; of a classifier, the trial with its own options is taken from it.
        trials: learning rates per side; a GAN takes none.
        epochs: of each training; None takes the run's, and of a GAN its time.
        out: folder of the runs, ``baselines.json``, tables and figures.
        console: for progress.

    Returns:
        The compared runs as groups, and the record written to ``baselines.json``.

    Raises UserError: the run has no circuits, or ``out`` belongs to other options.
    """
    options = run.options().alone()
    if not options.has_circuits:
        raise UserError(f"run: {run.path} has no circuits, so it has no classical baseline")
    if bills(options.backend):
        raise UserError(
            f"run: {run.path} was trained on {options.backend.name!r}, a device that bills its time, and baselines "
            "would be trained there; take a run that was trained on exact"
        )
    data = here().together(lambda: load_data(options.data))
    matched = (options.without_circuits(), parameter_matched(options, data.shape), options.replace(structured=True))
    sides, found = dict(zip(SIDES, (options, *matched), strict=True)), structures(options, data.shape)
    if all(one.kind == SAME for one in found):
        del sides["structured"]
    baselines = _Baselines(run, sides, data, out, console)
    baselines.record["structured"] = {str(one): one.difference for one in found}
    runs = baselines.gans(epochs) if options.model.kind == "gan" else baselines.classifiers(trials, epochs)
    groups = grouped(runs, list(sides))
    if here().leads:
        write_comparison(groups, out)
        write_json(out / "baselines.json", baselines.record)
    return groups, baselines.record


@dataclass
class _Baselines:
    """A run and its baselines: trained under ``out``, and what is said of them in ``record``."""

    run: RunFolder
    sides: dict[str, Config]  # by name; the run's own first
    data: Data
    out: Path
    console: Console

    def __post_init__(self) -> None:
        self.record: dict[str, Any] = {"run": str(self.run.path), "sides": {}}

    def classifiers(self, trials: int, epochs: int | None) -> list[RunFolder]:
        """Of each side the trial with the best validation AUROC."""
        chosen = []
        self.record.update(epochs=epochs or self.run.options().training.epochs, trials=trials)
        for side, own in self.sides.items():
            finished: dict[float, RunFolder] = {}
            for rate in rates(own.training.learning_rate, trials):
                trial = at_rate(own, rate).replace(epochs=self.record["epochs"])
                if trial == self.run.options().alone() and self.run.results.is_file():
                    finished[rate] = self.run
                    continue
                self.console.print(f"{side}: learning rate {rate}", highlight=False)
                finished[rate] = trained(trial, self.place(side) / f"lr-{rate}", self.data, self.console)
            validation = {rate: read_json(found.results)["validation"] for rate, found in finished.items()}
            best = best_rate(validation)
            chosen.append(finished[best])
            results = read_json(finished[best].results)
            self.record["sides"][side] = {
                "chosen": str(finished[best].path),
                "learning_rate": best,
                "hidden": own.model.hidden,
                "heads": own.model.heads,
                "mlp": own.model.mlp,
                "parameters": results["parameters"]["total"],
                "train_seconds": results["train_seconds"],
                "test": results["test"],
                "validation_auroc_by_rate": {str(rate): found["auroc"] for rate, found in validation.items()},
            }
        return chosen

    def gans(self, epochs: int | None) -> list[RunFolder]:
        """The run and the baselines that are trained for as long."""
        own = self.seconds_per_step("quantum")
        seconds = self.record["seconds_per_step"] = {"quantum": own}
        runs = {"quantum": self.run}
        for side in list(self.sides)[1:]:
            options, place, count = self.sides[side], self.place(side), epochs
            if here().first(place.exists):
                count = RunFolder.open(place).options().training.epochs
            elif count is None:
                seconds[side] = self.seconds_per_step(side)
                count = max(1, round(options.training.epochs * own / seconds[side]))
            self.console.print(f"{side}: {count} epochs", highlight=False)
            runs[side] = trained(options.replace(epochs=count), place, self.data, self.console)
        earlier = self.out / "judge.safetensors"
        classifier = earlier if earlier.is_file() else self.out / "reference-classifier.safetensors"
        here().first(lambda: reference_classifier(self.data, self.console, classifier)[1])
        measuring: dict[str, Any] = {"samples": SAMPLES, "seed": 0, "split": "test", "classifier": classifier}
        for side, folder in runs.items():
            measured = evaluate(folder, self.console, reference_scores=True, **measuring)
            results = read_json(folder.results)
            self.record["sides"][side] = {
                "run": str(folder.path),
                "epochs": results["epochs"],
                "parameters": results["parameters"]["total"],
                "cpu_seconds": results["cpu_seconds"],
                **{key: measured[key] for key in ("protocol", "metrics", "reference_classifier")},
            }
            self.record["reference_scores"] = measured["reference_scores"]
        return list(runs.values())

    def place(self, side: str) -> Path:
        earlier = self.out / EARLIER.get(side, side)
        return earlier if earlier.exists() else self.out / side

    def seconds_per_step(self, side: str) -> float:
        """Of the first rank: all of them must train for as many epochs."""
        measured = fit.seconds_per_step(self.sides[side], self.data)
        return here().first(lambda: measured)


def trained(options: Config, path: Path, data: Data, console: Console, **how: Any) -> RunFolder:
    """The finished run of these options in this folder: trained, resumed, or as an earlier call left it.

    Raises UserError: the folder holds a run of other options."""
    if not here().first(path.exists):
        return fit.start(options, path, console, data=data, **how)
    run = RunFolder.open(path)
    if run.options() != options:
        raise UserError(f"--out: {path} was trained with other options; name another folder")
    return run if here().first(run.results.is_file) else fit.resume(run, console, data=data, **how)


def structures(options: Config, shape: DataShape) -> list[Structure]:
    """What the classical layers of the same structure are, each kind once."""
    with torch.random.fork_rng(devices=[]):
        model = build_model(options.replace(structured=True), shape)
    return list(dict.fromkeys(m.structure for m in model.modules() if isinstance(m, StructuredLayer)))


def default_out(run: RunFolder) -> Path:
    """Where a run's baselines go: beside it, so that it stays a run folder of its own."""
    name = run.path.resolve().name
    earlier = run.path.with_name(f"{name}-twin")
    return earlier if earlier.exists() else run.path.with_name(f"{name}-baseline")


def rates(peak: float, trials: int) -> list[float]:
    """Learning rates around ``peak``: factors of 3 apart, alternately below and above."""
    factors = [-(k + 1) // 2 if k % 2 else k // 2 for k in range(trials)]
    return [float(f"{peak * 3.0**factor:.3g}") for factor in factors]


def at_rate(options: Config, rate: float) -> Config:
    """The options with this peak learning rate; that of the angles keeps its proportion to it."""
    own = options.training
    angles = own.angle_learning_rate
    peak = {} if angles is None else {"angle_learning_rate": angles * (rate / own.learning_rate)}
    return options.replace(learning_rate=rate, **peak)


def best_rate(validation: Mapping[float, Mapping[str, Any]]) -> float:
    """The learning rate of the highest ``auroc``, of equal ones that of the lowest ``loss``; an undefined AUROC counts
    as 0."""
    return max(validation, key=lambda rate: (validation[rate]["auroc"] or 0.0, -validation[rate]["loss"]))


def parameter_counts(options: Config, shape: DataShape) -> dict[str, int]:
    """Parameters of the model of these options, of a GAN those of each network; a classical GAN takes no memory."""
    with torch.device("meta") if options.model.kind == "gan" and not options.has_circuits else nullcontext():
        model = build_model(options, shape)
    networks: dict[str, Any] = getattr(model, "sides", {"model": model})
    return {name: count_parameters(network)["total"] for name, network in networks.items()}


def parameter_matched(options: Config, shape: DataShape) -> Config:
    """The classical model each network of which has as nearly as possible the parameters of the run's.

    Free are widths, heads (the most the run has that divide them) and the width of the MLPs; of equally near ones the
    width nearest to the run's wins, then the narrowest MLP.
    """
    target = parameter_counts(options, shape)
    classical = options.without_circuits()
    if options.model.kind == "gan":  # the discriminator's heads must not become the generator's
        classical = classical.replace(generator_heads=options.gan.generator_heads or options.model.heads)
    best: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {}
    for network, distance, changes, low, high in _sizes(options):
        while low <= high:  # totals grow with the MLP
            middle = (low + high) // 2
            changed = changes(middle)
            total = parameter_counts(classical.replace(**changed), shape)[network]
            rank = (abs(total - target[network]), distance, middle)
            if network not in best or rank < best[network][0]:
                best[network] = rank, changed
            low, high = (middle + 1, high) if total < target[network] else (low, middle - 1)
    return classical.replace(**{key: value for _, found in best.values() for key, value in found.items()})


def _sizes(options: Config) -> Iterator[tuple[str, int, Callable[[int], dict[str, Any]], int, int]]:
    """A network, the distance of a width from the run's, the options by the MLPs' width, and that one's bounds."""
    gan = options.model.kind == "gan"
    widest, step = (options.model.hidden, max(1, options.model.hidden // 32)) if gan else (2 * options.model.hidden, 1)
    for hidden in range(2, widest + 1, step):
        fitting = max(h for h in range(1, options.model.heads + 1) if hidden % h == 0)
        same = {"hidden": hidden, "heads": fitting}
        yield (
            "discriminator" if gan else "model",
            abs(hidden - options.model.hidden),
            lambda mlp, same=same: {**same, "mlp": mlp},  # type: ignore[misc]
            1,
            max(4 * hidden, options.model.mlp),
        )
    if not gan:
        return
    shrink, heads = 4 ** (options.gan.generator_stages - 1), options.gan.generator_heads or options.model.heads
    for last in range(1, options.gan.generator_hidden // shrink + 1):
        width = last * shrink
        fitting = max(h for h in range(1, heads + 1) if last % h == 0)
        same = {"generator_hidden": width, "generator_heads": fitting}
        yield (
            "generator",
            abs(width - options.gan.generator_hidden),
            lambda size, same=same, width=width: {**same, "generator_mlp_ratio": size / width},  # type: ignore[misc]
            max(1, width // 16),
            4 * width,
        )

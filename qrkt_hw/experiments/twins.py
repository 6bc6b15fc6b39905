"""A run against its classical twins: the same shape, and the same number of parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from qrkt_hw.data import Data, DataShape, load_data
from qrkt_hw.errors import UserError
from qrkt_hw.experiments.comparison import Group, grouped, write_comparison
from qrkt_hw.models.factory import build_model, count_parameters
from qrkt_hw.options.run import RunOptions
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import write_json
from qrkt_hw.runs.folder import read_json
from qrkt_hw.training import devices, fit

SIDES = ("quantum", "same-shape", "same-parameters")


def rates(peak: float, trials: int) -> list[float]:
    """Learning rates around ``peak``: factors of 3 apart, alternately below and above; the same for every side."""
    factors = [0.0]
    for k in range(1, trials):
        factors.append(-((k + 1) // 2) if k % 2 else k // 2)
    return [float(f"{peak * 3.0**factor:.3g}") for factor in factors]


def same_shape(options: RunOptions) -> RunOptions:
    """Dense maps instead of circuits, everything else alike."""
    return options.without_circuits()


def same_parameters(options: RunOptions, shape: DataShape) -> RunOptions:
    """The classical model whose number of parameters is nearest to the run's.

    Hidden width, heads (the most the run has that divide the width) and the MLP's width are free; among equally
    near ones the width nearest to the run's wins.
    """
    target = count_parameters(build_model(options, shape))["total"]
    best: tuple[tuple[int, int, int], RunOptions] | None = None
    for hidden in range(2, 2 * options.hidden + 1):
        heads = max(h for h in range(1, options.heads + 1) if hidden % h == 0)
        narrow = {"hidden": hidden, "heads": heads, "projection": "classical"}

        def total(mlp: int, narrow: dict[str, Any] = narrow) -> int:
            return count_parameters(build_model(options.model_copy(update={**narrow, "mlp": mlp}), shape))["total"]

        # the total grows by the same amount with every feature of the MLP
        least = total(1)
        step = total(2) - least
        ideal = 1 + (target - least) / step if step else 1
        for mlp in {max(1, int(ideal)), max(1, int(ideal) + 1)}:
            if mlp > max(4 * hidden, options.mlp):
                continue
            distance = abs(least + (mlp - 1) * step - target)
            rank = (distance, abs(hidden - options.hidden), mlp)
            if best is None or rank < best[0]:
                best = rank, options.model_copy(update={**narrow, "mlp": mlp})
    assert best is not None
    return best[1]


def twin(
    run: RunFolder, trials: int, epochs: int | None, out: Path, console: Console
) -> tuple[list[Group], dict[str, Any]]:
    """Train all sides with the same number of trials and epochs; choose each side's learning rate by validation AUROC.

    Trials that an earlier call finished are kept, unfinished ones are resumed.

    Args:
        run: a quantum run; the trial with its own options is taken from it.
        trials: learning rates per side.
        epochs: of each trial; None takes the run's.
        out: folder for ``SIDE/lr-RATE`` runs, ``twin.json``, tables and figures.
        console: for progress.

    Returns:
        The chosen runs as groups, and the record written to ``twin.json``.

    Raises:
        UserError: the run is classical, or ``out`` belongs to other options.
    """
    options = run.options()
    if not options.has_circuits:
        raise UserError(f"run: {run.path} has no circuits, so it has no classical twin")
    devices.refuse_billed(run, options, console)
    options = options.model_copy(update={"epochs": epochs or options.epochs})
    data = load_data(options)
    sides = dict(zip(SIDES, (options, same_shape(options), same_parameters(options, data.shape)), strict=True))
    record: dict[str, Any] = {"run": str(run.path), "epochs": options.epochs, "trials": trials, "sides": {}}
    chosen: list[RunFolder] = []
    for side, own in sides.items():
        finished = []
        for rate in rates(options.learning_rate, trials):
            trial = own.model_copy(update={"learning_rate": rate})
            if trial == run.options() and run.results.is_file():
                finished.append(run)
                continue
            console.print(f"{side}: learning rate {rate}", highlight=False)
            finished.append(_trained(trial, out / side / f"lr-{rate}", data, console))
        scores = [read_json(f.results)["validation"]["auroc"] for f in finished]
        losses = [read_json(f.results)["validation"]["loss"] for f in finished]
        best = max(range(len(finished)), key=lambda k: (scores[k], -losses[k]))
        chosen.append(finished[best])
        results = read_json(finished[best].results)
        record["sides"][side] = {
            "chosen": str(finished[best].path),
            "learning_rate": finished[best].options().learning_rate,
            "hidden": own.hidden,
            "heads": own.heads,
            "mlp": own.mlp,
            "parameters": results["parameters"]["total"],
            "train_seconds": results["train_seconds"],
            "test": results["test"],
            "validation_auroc_by_rate": {
                str(f.options().learning_rate): s for f, s in zip(finished, scores, strict=True)
            },
        }
    groups = grouped(chosen, SIDES)
    write_comparison(groups, out)
    write_json(out / "twin.json", record)
    return groups, record


def _trained(options: RunOptions, path: Path, data: Data, console: Console) -> RunFolder:
    if not path.exists():
        return fit.start(options, path, console, data=data)
    run = RunFolder.open(path)
    if run.options() != options:
        raise UserError(f"--out: {path} was trained with other options; name another folder")
    return run if run.results.is_file() else fit.resume(run, console)


def default_out(run: RunFolder) -> Path:
    """Where a run's twins go: beside it, so that it stays a run folder of its own."""
    return run.path.with_name(f"{run.path.resolve().name}-twin")

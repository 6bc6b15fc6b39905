"""A GAN against its classical twins, each trained for as long as the quantum one: same shape, same parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from qrkt_hw.data import Data, DataShape, load_data
from qrkt_hw.errors import UserError
from qrkt_hw.experiments.comparison import Group, grouped, write_comparison
from qrkt_hw.experiments.evaluation import evaluate
from qrkt_hw.experiments.judging import judge
from qrkt_hw.models.factory import build_model, count_parameters
from qrkt_hw.models.gan import Gan
from qrkt_hw.options.run import RunOptions
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import write_json
from qrkt_hw.runs.folder import read_json
from qrkt_hw.training import devices, fit
from qrkt_hw.training.gan import seconds_per_step

SIDES = ("quantum", "same-shape", "same-parameters")


def counts(options: RunOptions, shape: DataShape) -> dict[str, int]:
    """Parameters of both sides of a classical GAN, counted without memory for them."""
    with torch.device("meta"):
        model = build_model(options, shape)
    assert isinstance(model, Gan)
    return {name: count_parameters(side)["total"] for name, side in model.sides.items()}


def same_parameters(options: RunOptions, shape: DataShape) -> RunOptions:
    """The classical GAN each side of which has as nearly as many parameters as the run's.

    Free are widths, heads (the most the run has that divide them) and the width of the MLPs; among equally near ones
    the width nearest to the run's wins.
    """
    model = build_model(options, shape)
    assert isinstance(model, Gan)
    target = {name: count_parameters(side)["total"] for name, side in model.sides.items()}
    heads = options.generator_heads or options.heads
    # the discriminator's heads must not become the generator's
    classical = options.without_circuits().model_copy(update={"generator_heads": heads})
    shrink = 4 ** (options.generator_stages - 1)
    best: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}

    def consider(side: str, width: int, own: int, options_of: Any, sizes: range) -> None:
        """Bisect for the MLP whose total is nearest; totals grow with it."""
        low, high = sizes.start, sizes.stop - 1
        while low <= high:
            middle = (low + high) // 2
            changed = options_of(middle)
            total = counts(classical.model_copy(update=changed), shape)[side]
            rank = (abs(total - target[side]), abs(width - own))
            if side not in best or rank < best[side][0]:
                best[side] = rank, changed
            low, high = (middle + 1, high) if total < target[side] else (low, middle - 1)

    for hidden in range(2, options.hidden + 1, max(1, options.hidden // 32)):
        fitting = max(h for h in range(1, options.heads + 1) if hidden % h == 0)
        consider(
            "discriminator",
            hidden,
            options.hidden,
            lambda mlp, hidden=hidden, fitting=fitting: {"hidden": hidden, "heads": fitting, "mlp": mlp},
            range(1, max(4 * hidden, options.mlp) + 1),
        )
    for last in range(1, options.generator_hidden // shrink + 1):
        width = last * shrink
        fitting = max(h for h in range(1, heads + 1) if last % h == 0)
        consider(
            "generator",
            width,
            options.generator_hidden,
            lambda size, width=width, fitting=fitting: {
                "generator_hidden": width, "generator_heads": fitting, "generator_mlp_ratio": size / width,
            },
            range(max(1, width // 16), 4 * width + 1),
        )  # fmt: skip
    return classical.model_copy(update={**best["discriminator"][1], **best["generator"][1]})


def twin(
    run: RunFolder, epochs: int | None, out: Path, console: Console, samples: int = 10_000
) -> tuple[list[Group], dict[str, Any]]:
    """Train both twins for the quantum run's time and measure all three by one protocol.

    The learning rates are the run's. A twin gets the epochs that take, by the time of a step measured here side by
    side, as long as the run's. What an earlier call finished is kept, what it left is resumed.

    Args:
        run: a finished GAN with circuits.
        epochs: of both twins; None gives each the run's time.
        out: folder of the twins, ``twin.json``, tables and figures.
        console: for progress.
        samples: images drawn for each measurement.

    Raises:
        UserError: the run has no circuits, or ``out`` belongs to other options.
    """
    options = run.options()
    if not options.has_circuits:
        raise UserError(f"run: {run.path} has no circuits, so it has no classical twin")
    devices.refuse_billed(run, options, console)
    data = load_data(options)
    sides = {"same-shape": options.without_circuits(), "same-parameters": same_parameters(options, data.shape)}
    own = seconds_per_step(options, data)
    record: dict[str, Any] = {"run": str(run.path), "seconds_per_step": {"quantum": own}, "sides": {}}
    runs = [run]
    for side, twin_options in sides.items():
        runs.append(_trained(twin_options, options.epochs, epochs, own, out / side, data, console, record, side))
    judge_file = out / "judge.safetensors"
    judge(data, console, judge_file)
    for side, folder in zip(SIDES, runs, strict=True):
        measured = evaluate(
            folder, console, samples=samples, seed=0, split="test", weights=None, judge_file=judge_file, yardsticks=True
        )
        results = read_json(folder.results)
        record["sides"][side] = {
            "run": str(folder.path),
            "epochs": results["epochs"],
            "parameters": results["parameters"]["total"],
            "cpu_seconds": results["cpu_seconds"],
            "protocol": measured["protocol"],
            "metrics": measured["metrics"],
            "judge": measured["judge"],
        }
        record["yardsticks"] = measured["yardsticks"]
    groups = grouped(runs, SIDES)
    write_comparison(groups, out)
    write_json(out / "twin.json", record)
    return groups, record


def _trained(
    options: RunOptions,
    run_epochs: int,
    epochs: int | None,
    own: float,
    path: Path,
    data: Data,
    console: Console,
    record: dict[str, Any],
    side: str,
) -> RunFolder:
    if path.exists():
        run = RunFolder.open(path)
        same = {"epochs": options.epochs}
        if run.options().model_copy(update=same) != options.model_copy(update=same):
            raise UserError(f"--out: {path} was trained with other options; name another folder")
        return run if run.results.is_file() else fit.resume(run, console)
    seconds = seconds_per_step(options, data)
    record["seconds_per_step"][side] = seconds
    count = epochs or max(1, round(run_epochs * own / seconds))
    console.print(f"{side}: {count} epochs", highlight=False)
    return fit.start(options.model_copy(update={"epochs": count}), path, console, data=data)

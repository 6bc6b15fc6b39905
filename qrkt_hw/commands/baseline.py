"""``qrkt-hw baseline``."""

from pathlib import Path
from typing import Any

import click

from qrkt_hw.commands.interface import PATH, Command, console, echo, opened, run_argument, trust_flag
from qrkt_hw.commands.options import DEALT, on_ranks, options_from, ranks_in
from qrkt_hw.errors import UserError


@click.command(cls=Command)
@run_argument
@click.option("--trials", type=click.IntRange(1, 9), help="learning rates per side  [default: 3]")
@click.option("--epochs", type=click.IntRange(min=1), help="epochs of every trial  [default: the run's]")
@click.option("--out", type=PATH, help="folder of the trials  [default: RUN-baseline]")
@trust_flag
@options_from(DEALT)
def baseline(
    run: Path | None, trials: int | None, epochs: int | None, out: Path | None, trust_ansatz: bool, **flags: Any
) -> None:
    """Train the classical baselines of RUN and compare: size-matched, parameter-matched and structured.

    The structured one has classical layers of the circuits' structure, and the command says what differs. Where these
    are the circuits by construction, nothing is trained for it.

    Every side, the quantum one too, gets the same trials and epochs; its learning rate is chosen by validation AUROC
    and the test split is read for the chosen run. Called again, it resumes where it stopped.

    The baselines of a GAN get its learning rates and as much CPU time as it had; all are measured by one protocol.
    """
    folder, ranks = opened(run, trust_ansatz), ranks_in(flags)
    options = folder.options()
    if not options.has_circuits:
        raise UserError(f"run: {folder.path} has no circuits, so it has no classical baseline")
    if options.model.kind == "gan" and trials is not None:
        raise UserError("--trials: the baselines of a GAN take its own learning rates; leave it out")
    on_ranks(options, ranks, ("its --batch-size", options.data.batch_size))
    from qrkt_hw.commands.runs import show_compared
    from qrkt_hw.experiments import baselines

    place = out or baselines.default_out(folder)
    groups, record = baselines.train_baselines(folder, trials or 3, epochs, place, console(stderr=True))
    show_compared(groups)
    for structure, difference in record["structured"].items():
        echo(f"structured ({structure}): {difference}")
    echo(str(place))

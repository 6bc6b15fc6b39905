"""``qrkt-hw tune``."""

from pathlib import Path
from typing import Any

import click

from qrkt_hw.commands.interface import PATH, Command, config_flag, console, echo, preset_flag, table
from qrkt_hw.commands.options import TRAINING, check_early, merge, options_from
from qrkt_hw.errors import UserError
from qrkt_hw.runs.atomic import check_writable


@click.command(cls=Command)
@click.option(
    "--search", "searched", multiple=True, required=True, help="option=a,b,c, option=low:high or option=log:low:high"
)
@click.option(
    "--trials", type=click.IntRange(min=1), default=20, show_default=True, help="finished trials, over all processes"
)
@click.option("--sampler", type=click.Choice(["tpe", "random", "grid"]), default="tpe", show_default=True)
@click.option("--prune/--no-prune", default=True, show_default=True, help="stop trials below the median of the others")
@click.option("--storage", help="SQLAlchemy URL shared by several processes  [default: a file in --out]")
@click.option("--study", "name", default="qrkt-hw", show_default=True, help="name of the study in the storage")
@preset_flag
@config_flag
@click.option("--out", type=PATH, default=Path("tuning"), show_default=True)
@options_from(TRAINING)
def tune(
    searched: tuple[str, ...], trials: int, sampler: str, prune: bool, storage: str | None, name: str,
    preset: str | None, config: Path | None, out: Path, **flags: Any,
) -> None:  # fmt: skip
    """Search over any options of train by validation AUROC; the test split chooses nothing.

    Called again with the same study it resumes; called on several machines with one --storage they share the trials.
    """
    from qrkt_hw.experiments import tuning

    dimensions = [tuning.parse(text) for text in searched]
    keys = [dimension.key for dimension in dimensions]
    twice = [key for key in keys if keys.count(key) > 1 or flags.get(key) is not None]
    if twice:
        raise UserError(f"--search: {twice[0]} is given twice")
    options = merge(preset, config, flags)
    if options.model.kind == "gan":
        raise UserError("--model: tune searches by validation AUROC, which a gan has none of; take vit or text")
    if options != options.alone() or {"devices", "num_nodes"} & set(keys):
        raise UserError(
            "--devices: a trial runs in one process; start tune several times with one --storage to divide the trials"
        )
    tuning.check_space(options, dimensions)
    if not {"hidden", "heads", "mlp", "mlp_qubits", "image_size", "decoder_blocks", "pool"} & set(keys):
        check_early(options)
    check_writable(out, "--out")
    url = storage or f"sqlite:///{(out / 'study.db').absolute()}"
    study = tuning.open_study(name, url, dimensions, sampler, prune, options.training.seed)
    tuning.tune(options, dimensions, study, sampler, trials, out, console(stderr=True))
    found = tuning.rows(study)
    columns = ["trial", "state", "val_auroc", "epochs", *keys, "parameters"]
    table(columns, ([_cell(row.get(column)) for column in columns] for row in found[:20]))
    for key, share in tuning.importances(study).items():
        echo(f"{key} explains {share:.0%} of the spread")
    for file in tuning.write_study(study, out):
        echo(str(file))
    echo(f"best: {found[0]['run']}")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)

"""``qrkt-hw bench``."""

from pathlib import Path
from typing import Any

import click

from qrkt_hw.commands import interface as cli
from qrkt_hw.commands.options import merge


@click.command(cls=cli.Command)
@click.option("--ansatz", "ansaetze", multiple=True, help="your circuit: a name, file.py:function, or FILE.qasm")
@click.option("--quick", is_flag=True, help="small models, few epochs: minutes on two cores, without files of data")
@click.option("--tasks", help="names with commas  [default: all; with --quick those without files]")
@click.option("--seeds", type=click.IntRange(1, 100), help="trainings of each model  [default: 3; quick: 2]")
@click.option("--trials", type=click.IntRange(1, 9), help="learning rates of each model  [default: 3; quick: 1]")
@click.option("--qubits", type=click.IntRange(1, 64), help="features of a circuit  [default: 4, or the file's]")
@click.option("--layers", type=click.IntRange(1, 64), help="layers of your circuits  [default: 2]")
@click.option(
    "--projection",
    type=click.Choice(["quantum", "quantum-attention", "quantum-mlp"]),
    default="quantum-attention",
    show_default=True,
    help="where circuits stand",
)
@click.option("--data-dir", type=cli.PATH, help="folder of the data sets' files  [default: data]")
@click.option("--download", is_flag=True, help="fetch data sets that are missing")
@click.option("--out", type=cli.PATH, default=Path("bench"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output, nothing else")
def bench(
    ansaetze: tuple[str, ...], quick: bool, tasks: str | None, seeds: int | None, trials: int | None, as_json: bool,
    **how: Any,
) -> None:  # fmt: skip
    """Find out whether a circuit is any good: a suite of tasks, with other circuits and classical layers beside it.

    Every model of a task gets the same recipe, seeds and number of learning rates; validation chooses, test is
    reported. Called again, the command resumes. Writes bench.md, bench.json and bench.png.
    """
    from qrkt_hw.experiments import bench as suite
    from qrkt_hw.runs.atomic import check_writable, to_json

    names = suite.chosen(tasks, quick)
    paths = [merge(None, None, {"ansatz": ansatz}).circuit.ansatz for ansatz in ansaetze]
    found = suite.Suite(names, paths, seeds=seeds or (2 if quick else 3), trials=trials or (1 if quick else 3),
                        quick=quick, **how)  # fmt: skip
    check_writable(found.out, "--out")
    record = found.run(cli.console(stderr=True))
    files = found.write(record)
    if as_json:
        cli.echo(to_json(record))
        return
    header, rows = suite.table(record)
    cli.table(header, rows, right=header[2:])
    for line in suite.remarks(record):
        cli.echo(line)
    for file in files:
        cli.echo(str(file))

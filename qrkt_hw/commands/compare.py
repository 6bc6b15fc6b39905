"""``qrkt-hw compare``."""

from pathlib import Path

import click

from qrkt_hw.commands.interface import PATH, Command, echo, table


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, default=Path("comparison"), show_default=True)
def compare(runs: tuple[Path, ...], out: Path) -> None:
    """One table and one set of curves for several RUNS; seeds of the same configuration are averaged.

    Writes table.md, table.csv, loss.png and auroc.png.
    """
    from qrkt_hw.runs import RunFolder

    folders = [RunFolder.open(path) for path in runs]
    from qrkt_hw.experiments.comparison import grouped, write_comparison

    groups = grouped(folders)
    files = write_comparison(groups, out)
    show(groups)
    for file in files:
        echo(str(file))


def show(groups: list) -> None:
    """The table on the terminal, upright: a column per configuration."""
    from qrkt_hw.experiments.comparison import table as compared

    header, rows = compared(groups)
    upright = zip(header[1:], *(row[1:] for row in rows), strict=True)
    table(["", *(row[0] for row in rows)], upright)

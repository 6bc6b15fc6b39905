"""``qrkt-hw compare``."""

from __future__ import annotations

from pathlib import Path

import click

from qrkt_hw.commands.lazy import Command
from qrkt_hw.commands.terminal import echo


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("comparison"), show_default=True)
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
    from rich.table import Table

    from qrkt_hw.commands.console import Terminal
    from qrkt_hw.experiments.comparison import table

    header, rows = table(groups)
    shown = Table("", *(row[0] for row in rows), box=None, header_style="bold")
    for place, name in enumerate(header[1:], start=1):
        shown.add_row(name, *(row[place] for row in rows))
    Terminal(markup=False).print(shown)

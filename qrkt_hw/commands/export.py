"""``qrkt-hw export``."""

from pathlib import Path

import click

from qrkt_hw.commands import interface as cli


@click.command(cls=cli.Command)
@cli.run_argument
@click.option(
    "--format", "form", type=click.Choice(["qasm3", "qpy", "hf"]), required=True,
    help="the bound circuits as OpenQASM 3 or QPY, or a folder for the Hugging Face Hub",
)  # fmt: skip
@click.option("--out", type=cli.PATH, help="folder  [default: RUN/export/FORMAT]")
@cli.trust_flag
def export(run: Path | None, form: str, out: Path | None, trust_ansatz: bool) -> None:
    """Export the trained model of RUN for other programs.

    circuits.json names every circuit by block and projection and says how inputs and values are put together.
    """
    folder = cli.opened(run, trust_ansatz)
    from qrkt_hw.experiments import export as exporting

    place, what = exporting.export(folder, form, out)
    cli.echo(f"{what} in {place}")

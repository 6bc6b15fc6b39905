"""``qrkt-hw runs``, ``compare`` and ``export``, and the presets that a run starts from."""

from pathlib import Path

import click

from qrkt_hw.commands import interface as cli
from qrkt_hw.errors import UserError


@click.command(cls=cli.Command)
@click.argument("folders", nargs=-1, type=cli.PATH, metavar="[FOLDER]...")
@click.option("--json", "as_json", is_flag=True, help="one JSON array on standard output")
def runs(folders: tuple[Path, ...], as_json: bool) -> None:
    """List the runs in FOLDERs (default: runs/) and below, newest last: name, preset, seed, test accuracy, state."""
    from qrkt_hw.runs.atomic import to_json
    from qrkt_hw.runs.folder import RUNS, under

    missing = next((folder for folder in folders if not folder.is_dir()), None)
    if missing is not None:
        raise UserError(f"runs: no folder {missing}")
    found = []
    for root in folders or (RUNS,):
        for run in under(root):
            inside = root != run.path and root in run.path.parents
            found.append(run.summary() | {"name": str(run.path.relative_to(root)) if inside else str(run.path)})
    if as_json:
        cli.echo(to_json(found))
        return
    if not found:
        cli.echo(f"no run under {folders[0] if folders else RUNS}/; train one: qrkt-hw train")
        return
    cli.table(("name", "preset", "seed", "accuracy", "state"), (
        (one["name"], one["preset"] or "-", "-" if one["seed"] is None else str(one["seed"]),
         f"{one['accuracy']:.4f}" if isinstance(one["accuracy"], float) else "-", one["state"])
        for one in found
    ), right=("seed", "accuracy"))  # fmt: skip


@click.command(cls=cli.Command)
@click.argument("runs", nargs=-1, required=True, type=cli.PATH)
@click.option("--out", type=cli.PATH, default=Path("comparison"), show_default=True)
def compare(runs: tuple[Path, ...], out: Path) -> None:
    """One table and one set of curves for several RUNS; seeds of the same configuration are averaged.

    Writes table.md, table.csv, loss.png and auroc.png.
    """
    from qrkt_hw.runs import RunFolder

    folders = [RunFolder.open(path) for path in runs]
    from qrkt_hw.experiments.comparison import grouped, write_comparison

    groups = grouped(folders)
    files = write_comparison(groups, out)
    echo_comparison(groups)
    for file in files:
        cli.echo(str(file))


def echo_comparison(groups: list) -> None:
    """The table on the terminal, upright: a column per configuration."""
    from qrkt_hw.experiments.comparison import table as compared

    header, rows = compared(groups)
    upright = zip(header[1:], *(row[1:] for row in rows), strict=True)
    cli.table(["", *(row[0] for row in rows)], upright)


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


@click.group(cls=cli.Group)
def presets() -> None:
    """List and show the presets."""


@presets.command("list")
def list_presets() -> None:
    """Every preset with its first comment line."""
    from qrkt_hw.experiments import presets as shipped

    for name in shipped.names():
        cli.echo(f"{name:28} {shipped.text(name).splitlines()[0].lstrip('# ')}")


@presets.command("show")
@click.argument("name")
def show_preset(name: str) -> None:
    """The preset's YAML."""
    from qrkt_hw.experiments import presets as shipped

    click.echo(shipped.text(name), nl=False)

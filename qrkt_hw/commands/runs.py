"""``qrkt-hw runs``, ``compare``, ``report`` and ``export``, and the presets that a run starts from."""

import textwrap
from pathlib import Path

import click

from qrkt_hw.commands import interface as cli
from qrkt_hw.errors import UserError, unknown


@click.command(cls=cli.Command, examples="qrkt-hw runs\nqrkt-hw runs results --json")
@click.argument("folders", nargs=-1, type=cli.PATH, metavar="[FOLDER]...")
@cli.json_flag
def runs(folders: tuple[Path, ...], as_json: bool) -> None:
    """List the runs in FOLDERs (default: runs/) and below, newest last: name, preset, seed, test accuracy, state."""
    from qrkt_hw.runs.folder import RUNS, under

    missing = next((folder for folder in folders if not folder.is_dir()), None)
    if missing is not None:
        raise UserError(f"runs: no folder {missing}; name one that holds runs, or none for runs/")
    found = []
    for root in folders or (RUNS,):
        for run in under(root):
            inside = root != run.path and root in run.path.parents
            found.append(run.summary() | {"name": str(run.path.relative_to(root)) if inside else str(run.path)})
    if as_json:
        cli.told(found)
        return
    if not found:
        cli.echo(f"no run under {folders[0] if folders else RUNS}/; train one: qrkt-hw train")
        return
    cli.table(("name", "preset", "seed", "accuracy", "state"), (
        (one["name"], one["preset"] or "-", "-" if one["seed"] is None else str(one["seed"]),
         f"{one['accuracy']:.4f}" if isinstance(one["accuracy"], float) else "-", one["state"])
        for one in found
    ), right=("seed", "accuracy"))  # fmt: skip


@click.command(cls=cli.Command, examples="qrkt-hw compare runs/A runs/B -o comparison")
@click.argument("runs", nargs=-1, required=True, type=cli.PATH)
@click.option("--out", type=cli.PATH, default=Path("comparison"), show_default=True)
@cli.json_flag
def compare(runs: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """One table and one set of curves for several RUNS; seeds of the same configuration are averaged.

    Writes table.md, table.csv, loss.png and auroc.png.
    """
    from qrkt_hw.runs import RunFolder

    folders = [RunFolder.open(path) for path in runs]
    from qrkt_hw.experiments.comparison import grouped, write_comparison

    groups = grouped(folders)
    files = write_comparison(groups, out)
    if as_json:
        cli.told({"rows": comparison_rows(groups), "files": [str(file) for file in files]})
        return
    echo_comparison(groups)
    for file in files:
        cli.echo(str(file))


@click.command(
    cls=cli.Command,
    examples="""
qrkt-hw report                             the newest run, as RUN/report.html
qrkt-hw report runs/A runs/B -o both.html --open
qrkt-hw report runs/NAME -b fake_fez       its layout and price there""",
)
@click.argument("runs", nargs=-1, type=cli.PATH, metavar="[RUN]...")
@click.option("--out", type=cli.PATH, help="the file  [default: RUN/report.html; of several report.html]")
@click.option("--open", "show", is_flag=True, help="show the page in the browser")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    help="device of layout and price; repeat for more  [default: those that the run knows, else fake_torino]",
)
@click.option("--limit", type=click.IntRange(min=1), help="only the first samples of the test split")
@cli.data_dir_flag
@cli.trust_flag
@cli.json_flag
def report(
    runs: tuple[Path, ...], out: Path | None, show: bool, backends: tuple[str, ...], limit: int | None,
    data_dir: Path | None, trust_ansatz: bool, as_json: bool,
) -> None:  # fmt: skip
    """One HTML page on RUN, or on several beside each other: it loads nothing, and can be printed or passed on.

    Curves, confusion matrix and mistakes, circuits and their light cones, layout on the chip, price, device runs and
    their bill, and the command that repeats the training. Without RUN, the newest run under runs/.
    """
    from qrkt_hw.runs import RunFolder

    if len(set(map(Path.resolve, runs))) < len(runs):
        raise UserError(f"run: {max(runs, key=runs.count)} is named twice")
    folders = [RunFolder.open(path, trust_ansatz) for path in runs] or [cli.opened(None, trust_ansatz, err=as_json)]
    file = out or (folders[0].path / "report.html" if len(folders) == 1 else Path("report.html"))
    if file.is_dir() or not file.parent.is_dir():
        what = "is a folder; name a file in it" if file.is_dir() else f"lies in no folder: there is no {file.parent}"
        raise UserError(f"--out: {file} {what}")
    said = cli.console(stderr=True)
    with cli.busy(said, "loading torch and Qiskit"):
        from qrkt_hw.experiments.report import page
    text, parts = page(folders, said, data_dir=data_dir, backends=backends, limit=limit)
    from qrkt_hw.runs.atomic import write_text

    with cli.writing("--out", file):
        write_text(file, text)
    if as_json:
        cli.told({"file": str(file), "bytes": len(text.encode()), "parts": parts})
    else:
        cli.echo(str(file))
        for part in (one for one in parts if one["missing"]):
            where = f"{part['run']}, {part['title']}" if len(folders) > 1 else part["title"]
            cli.echo(f"{where}: {part['missing'].replace('`', '')}", err=True)
    if show:
        import webbrowser

        if not webbrowser.open(file.resolve().as_uri()):
            raise UserError(f"--open: no browser is found here; open {file} yourself")


def comparison_rows(groups: list) -> list[dict[str, str]]:
    """The table as a list, a configuration an entry."""
    from qrkt_hw.experiments.comparison import table as compared

    header, rows = compared(groups)
    return [dict(zip(header, row, strict=True)) for row in rows]


def echo_comparison(groups: list) -> None:
    """The table on the terminal, upright: a column per configuration."""
    from qrkt_hw.experiments.comparison import table as compared

    header, rows = compared(groups)
    upright = zip(header[1:], *(row[1:] for row in rows), strict=True)
    cli.table(["", *(row[0] for row in rows)], upright)


@click.command(
    cls=cli.Command,
    examples="qrkt-hw export runs/NAME --format qasm3\nqrkt-hw export runs/NAME --format hf -o model",
)
@cli.run_argument
@click.option(
    "--format", "form", type=cli.Word(["qasm3", "qpy", "hf"]), required=True,
    help="the bound circuits as OpenQASM 3 or QPY, or a folder for the Hugging Face Hub",
)  # fmt: skip
@click.option("--out", type=cli.PATH, help="folder  [default: RUN/export/FORMAT]")
@cli.trust_flag
@cli.json_flag
def export(run: Path | None, form: str, out: Path | None, trust_ansatz: bool, as_json: bool) -> None:
    """Export the trained model of RUN for other programs.

    circuits.json names every circuit by block and projection and says how inputs and values are put together.
    """
    folder = cli.opened(run, trust_ansatz, err=as_json)
    from qrkt_hw.experiments import export as exporting

    place, what = exporting.export(folder, form, out)
    if as_json:
        cli.told({"run": str(folder.path), "format": form, "out": str(place), "what": what})
    else:
        cli.echo(f"{what} in {place}")


@click.group(cls=cli.Group)
def presets() -> None:
    """List and show the presets."""


FAMILIES = {
    "": "Own", "best": "Best results at the size of the thesis' models", "qrkt": "QRKT-GAN",
    "thesis": "The thesis' models", "transgan": "TransGAN (classical)",
}  # fmt: skip


def _family(preset: str) -> str:
    beginning = preset.partition("-")[0]
    return beginning if beginning in FAMILIES else ""


@presets.command("list", examples="qrkt-hw presets list\nqrkt-hw presets list thesis-mnist")
@click.argument("prefix", default="", metavar="[BEGINNING]")
@cli.json_flag
def list_presets(prefix: str, as_json: bool) -> None:
    """Every preset, or those with this BEGINNING of their names, in families."""
    from qrkt_hw.experiments import presets as shipped

    found = {name: shipped.about(name) for name in shipped.names() if name.startswith(prefix.lower())}
    if not found:
        raise UserError(f"presets: {unknown('preset', prefix, shipped.names(), see='qrkt-hw presets list')}")
    if as_json:
        cli.told([{"name": name, "about": about} for name, about in found.items()])
        return
    width = max(map(len, found))
    for key, title in FAMILIES.items():
        of_family = [name for name in found if _family(name) == key]
        if of_family:
            click.secho(title, bold=True)
        for name in of_family:
            lines = textwrap.wrap(found[name], max(30, cli.columns() - width - 4))
            cli.echo(f"  {name:{width}}  " + f"\n{'':{width + 4}}".join(lines))


@presets.command("show", examples="qrkt-hw presets show best-mnist")
@click.argument("name", type=cli.PRESET)
@cli.json_flag
def show_preset(name: str, as_json: bool) -> None:
    """The preset's YAML."""
    from qrkt_hw.experiments import presets as shipped

    if as_json:
        cli.told(shipped.load(name))
    else:
        click.echo(shipped.text(name), nl=False)

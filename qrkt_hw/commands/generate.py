"""``qrkt-hw generate``."""

from pathlib import Path
from typing import Any

import click

from qrkt_hw.commands import interface as cli
from qrkt_hw.commands.options import DEALT, INFERRING, check_used, on_ranks, options_from, ranks_in
from qrkt_hw.errors import UserError


@click.command(cls=cli.Command)
@cli.run_argument
@click.option("--count", type=click.IntRange(1, 100_000), help="images  [default: 64, or 8 rows with --interpolate]")
@click.option("--seed", type=cli.SEED, default=0, show_default=True, help="of the noise")
@click.option("--grid", type=cli.PATH, help="all images in one picture (.png)")
@click.option("--out", type=cli.PATH, help="folder for one file an image  [default: a grid instead]")
@click.option("--columns", type=click.IntRange(1, 1000), help="of the grid  [default: 8]")
@click.option("--interpolate", is_flag=True, help="each row of the grid leads from one point of noise to another")
@click.option("--resume", is_flag=True, help="on a device: resume one that was stopped, by the same flags")
@click.option("--restart", is_flag=True, help="begin anew although another one was stopped half-way")
@cli.trust_flag
@options_from((*INFERRING, *DEALT))
@cli.device_flags
def generate(
    run: Path | None, count: int | None, seed: int, grid: Path | None, out: Path | None, columns: int | None,
    interpolate: bool, resume: bool, restart: bool, device: dict[str, Any], trust_ansatz: bool, **flags: Any,
) -> None:  # fmt: skip
    """Generate images with the generator of RUN: unselected, the first COUNT of the seed.

    Without --grid and --out a grid is written beside the run's samples. Without RUN, the newest run under runs/.
    """
    if grid is not None and grid.suffix.lower() != ".png":
        raise UserError(f"--grid: {grid} must end in .png")
    if columns is not None and out is not None and grid is None and not interpolate:
        raise UserError("--columns: single files stand in no grid; add --grid, or leave it out")
    row = columns or 8
    if interpolate and row < 2:
        raise UserError(f"--columns: a row of {row} leads from nowhere to nowhere; --interpolate needs at least 2")
    if interpolate and count is not None and count % row:
        raise UserError(f"--count: {count} is no multiple of {row} columns; the last row would end half-way")
    count = count or (8 * row if interpolate else 64)
    folder, ranks = cli.opened(run, trust_ansatz), ranks_in(flags)
    place = check_used(folder, flags)
    from qrkt_hw import backends

    alone = f"{place.name!r}, which bills its time, runs" if backends.bills(place) else None
    on_ranks(folder.options().replace(accelerator="cpu"), ranks, ("--count", count), alone)
    from qrkt_hw.data.ranks import here
    from qrkt_hw.experiments import generation
    from qrkt_hw.plots.charts import save_grid

    asked = {"count": count, "seed": seed, "columns": row, "interpolate": interpolate, **flags}
    with backends.open(
        place, run=folder, kind="generate", arguments=asked, console=cli.console(stderr=True), seed=seed, resume=resume,
        restart=restart, **device,
    ) as backend:  # fmt: skip
        model = generation.gan_of(folder, backend)
        points = generation.noise(count, model.latent, seed, interpolate, row)
        images = generation.draw(model, points, here().over_samples(backend))
    if not here().leads:
        return
    if out is not None:
        generation.save_images(images, out)
        cli.echo(f"{count} images in {out}")
    if grid is not None or out is None:
        file = grid or folder.path / "samples" / f"seed-{seed}.png"
        with cli.writing("--grid", file):
            save_grid(images, file, row)
        cli.echo(str(file))

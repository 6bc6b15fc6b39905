"""``qrkt-hw generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qrkt_hw.commands.lazy import Command
from qrkt_hw.commands.options import backend_options, options_from
from qrkt_hw.commands.terminal import echo
from qrkt_hw.options.training import BackendOptions


@click.command(cls=Command)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(1, 1_000_000), default=64, show_default=True, help="images")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="of the noise")
@click.option("--grid", type=click.Path(path_type=Path), help="all images in one picture (.png)")
@click.option("--out", type=click.Path(path_type=Path), help="folder for one file an image  [default: a grid instead]")
@click.option("--columns", type=click.IntRange(1), default=8, show_default=True, help="of the grid")
@click.option("--interpolate", is_flag=True, help="each row of the grid leads from one point of noise to another")
@options_from(BackendOptions)
def generate(
    run: Path | None,
    count: int,
    seed: int,
    grid: Path | None,
    out: Path | None,
    columns: int,
    interpolate: bool,
    **flags: Any,
) -> None:
    """Draw images with the generator of RUN: unselected, the first COUNT of the seed.

    Without --grid and --out a grid is written beside the run's samples. Without RUN, the newest run under runs/.
    """
    from qrkt_hw.commands.console import Terminal
    from qrkt_hw.errors import UserError
    from qrkt_hw.runs import RunFolder, newest

    if grid is not None and grid.suffix.lower() != ".png":
        raise UserError(f"--grid: {grid} must end in .png")
    console = Terminal(stderr=True)
    folder = RunFolder.open(run if run is not None else newest())
    echo(f"run {folder.path}")
    from qrkt_hw.experiments import generating
    from qrkt_hw.plots.images import save_grid
    from qrkt_hw.training.fit import announce, open_backend

    backend = open_backend(backend_options(flags), seed, console)
    model = generating.gan_of(folder, backend)
    images = generating.draw(model, generating.noise(count, model.latent, seed, interpolate, columns))
    announce(backend, console)
    if out is not None:
        generating.save_images(images, out)
        echo(f"{count} images in {out}")
    if grid is not None or out is None:
        place = grid or folder.path / "samples" / f"seed-{seed}.png"
        try:
            save_grid(images, place, columns)
        except OSError as error:
            raise UserError(f"--grid: {place} cannot be written: {error.strerror}") from error
        echo(str(place))

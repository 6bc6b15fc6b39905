"""``qrkt-hw generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qrkt_hw.commands.lazy import Command
from qrkt_hw.commands.options import INFERRING, backend_options, check_used, device_flags, options_from, trust_flag
from qrkt_hw.commands.terminal import echo


@click.command(cls=Command)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(1, 100_000), help="images  [default: 64, or 8 rows with --interpolate]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="of the noise")
@click.option("--grid", type=click.Path(path_type=Path), help="all images in one picture (.png)")
@click.option("--out", type=click.Path(path_type=Path), help="folder for one file an image  [default: a grid instead]")
@click.option("--columns", type=click.IntRange(1, 1000), help="of the grid  [default: 8]")
@click.option("--interpolate", is_flag=True, help="each row of the grid leads from one point of noise to another")
@click.option("--resume", is_flag=True, help="on a device: go on with one that was stopped, by the same flags")
@click.option("--restart", is_flag=True, help="begin anew although another one was stopped half-way")
@device_flags
@trust_flag
@options_from(INFERRING)
def generate(
    run: Path | None,
    count: int | None,
    seed: int,
    grid: Path | None,
    out: Path | None,
    columns: int | None,
    interpolate: bool,
    resume: bool,
    restart: bool,
    resubmit: bool,
    replan: bool,
    max_qpu_seconds: float | None,
    max_cost: float | None,
    trust_ansatz: bool,
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
    if columns is not None and out is not None and grid is None and not interpolate:
        raise UserError("--columns: single files stand in no grid; add --grid, or leave it out")
    row = columns or 8
    if interpolate and row < 2:
        raise UserError(f"--columns: a row of {row} leads from nowhere to nowhere; --interpolate needs at least 2")
    if interpolate and count is not None and count % row:
        raise UserError(f"--count: {count} is no multiple of {row} columns; the last row would end half-way")
    count = count or (8 * row if interpolate else 64)
    folder = RunFolder.open(run if run is not None else newest(), trust_ansatz)
    echo(f"run {folder.path}")
    check_used(folder, flags)
    console = Terminal(stderr=True)
    from qrkt_hw import backends
    from qrkt_hw.experiments import generation
    from qrkt_hw.plots.images import save_grid

    asked = {"count": count, "seed": seed, "columns": row, "interpolate": interpolate, **flags}
    how: dict[str, Any] = {"resume": resume, "restart": restart, "resubmit": resubmit, "replan": replan}
    budget = backends.Budget(max_qpu_seconds, max_cost)
    with backends.open(
        backend_options(flags), run=folder, kind="generate", arguments=asked, budget=budget, console=console, seed=seed,
        **how,
    ) as backend:  # fmt: skip
        model = generation.gan_of(folder, backend)
        images = generation.draw(model, generation.noise(count, model.latent, seed, interpolate, row))
    if out is not None:
        generation.save_images(images, out)
        echo(f"{count} images in {out}")
    if grid is not None or out is None:
        place = grid or folder.path / "samples" / f"seed-{seed}.png"
        try:
            save_grid(images, place, row)
        except OSError as error:
            raise UserError(f"--grid: {place} cannot be written: {error.strerror}") from error
        echo(str(place))

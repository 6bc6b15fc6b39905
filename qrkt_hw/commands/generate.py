"""``qrkt-hw generate`` and ``qrkt-hw evaluate``: images of a GAN, and how good they are."""

from pathlib import Path
from typing import Any

import click

from qrkt_hw.commands import interface as cli
from qrkt_hw.commands.options import INFERRING, PROCESSES, check_used, on_ranks, options_from, ranks_in
from qrkt_hw.errors import UserError
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import BackendConfig


@click.command(
    cls=cli.Command,
    first=("--samples", "--seed", "--plot", "--out", "--columns", "--interpolate", "--backend", "--shots", "--resume",
           "--json"),
    old={"count": "samples", "limit": "samples", "images": "samples", "grid": "plot", "draw": "plot"},
    examples="""
qrkt-hw generate                                64 images of the newest run
qrkt-hw generate runs/NAME --samples 16 --plot a.png
qrkt-hw generate runs/NAME --samples 100 -o images""",
)  # fmt: skip
@cli.run_argument
@click.option(
    "--samples", "count", type=click.IntRange(1, 100_000), help="images  [default: 64, or 8 rows with --interpolate]"
)
@click.option("--seed", type=cli.SEED, default=0, show_default=True, help="of the noise")
@click.option("--class", "class_name", help="generate this class only, of a conditional GAN  [default: all in turn]")
@click.option(
    "--truncation", type=cli.Number(0, 10, min_open=True),
    help="cut the noise off at plus and minus this value: better images, less varied  [default: no truncation]",
)  # fmt: skip
@click.option(
    "--plot", "grid", type=cli.PATH, help="all images in one picture (.png), or a film (.gif) with --interpolate"
)
@click.option("--out", type=cli.PATH, help="folder for one file an image  [default: a grid instead]")
@click.option("--columns", type=click.IntRange(1, 1000), help="of the grid  [default: 8]")
@click.option("--interpolate", is_flag=True, help="each row of the grid leads from one point of noise to another")
@click.option("--dry-run", is_flag=True, help="on a device: the plan and its price; nothing is submitted")
@click.option("--resume", is_flag=True, help="on a device: resume one that was stopped, by the same flags")
@click.option("--restart", is_flag=True, help="begin anew although another one was stopped half-way")
@cli.trust_flag
@cli.json_flag
@options_from((*INFERRING, *PROCESSES))
@cli.device_flags
def generate(
    run: Path | None, count: int | None, seed: int, class_name: str | None, truncation: float | None,
    grid: Path | None, out: Path | None, columns: int | None, interpolate: bool, dry_run: bool, resume: bool,
    restart: bool, device: dict[str, Any], trust_ansatz: bool, as_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Generate images with the generator of RUN: unselected, the first of the seed.

    Without --plot and --out a grid is written beside the run's samples. Without RUN, the newest run under runs/.
    """
    film = grid is not None and grid.suffix.lower() == ".gif"
    if film and not interpolate:
        raise UserError(f"--plot: {grid} is a film, which --interpolate makes; add it, or end in .png")
    if grid is not None and not film and grid.suffix.lower() != ".png":
        raise UserError(f"--plot: {grid} must end in .png, or in .gif with --interpolate")
    if columns is not None and out is not None and grid is None and not interpolate:
        raise UserError("--columns: single files stand in no grid; add --plot, or leave it out")
    row = columns or 8
    if interpolate and row < 2:
        raise UserError(f"--columns: a row of {row} leads from nowhere to nowhere; --interpolate needs at least 2")
    if interpolate and count is not None and count % row:
        raise UserError(f"--samples: {count} is no multiple of {row} columns; the last row would end half-way")
    count = count or (8 * row if interpolate else 64)
    folder, ranks = cli.opened(run, trust_ansatz, err=as_json), ranks_in(flags)
    place = check_used(folder, flags)
    chosen = None if class_name is None else _class(folder, class_name)
    from qrkt_hw import backends

    alone = f"{place.name!r}, which bills its time, runs" if backends.bills(place) else None
    alone = "--dry-run plans" if dry_run else alone
    on_ranks(folder.options().replace(accelerator="cpu"), ranks, ("--samples", count), alone)
    from qrkt_hw.data.ranks import here
    from qrkt_hw.experiments import evaluation
    from qrkt_hw.plots.images import save_film, save_grid

    if dry_run:
        if resume or restart:
            raise UserError("--dry-run only plans; leave out --resume and --restart")
        _show_plan(folder, place, count, device["budget"], as_json)
        return
    asked = {"count": count, "seed": seed, "columns": row, "interpolate": interpolate, **flags}
    # a journal of an earlier version has none of these
    asked |= {key: value for key, value in {"class": chosen, "truncation": truncation}.items() if value is not None}
    with backends.open(
        place, run=folder, kind="generate", arguments=asked, console=cli.console(stderr=True), seed=seed, resume=resume,
        restart=restart, **device,
    ) as backend:  # fmt: skip
        model = evaluation.gan_of(folder, backend)
        points = evaluation.noise(count, model.latent, seed, interpolate, row, truncation)
        labels = evaluation.classes_of(model, count, chosen, row if interpolate else 1)
        images = evaluation.draw(model, points, labels, here().over_samples(backend))
    if not here().leads:
        return
    files = [] if out is None else [out]
    if out is not None:
        evaluation.save_images(images, out)
        cli.echo(f"{count} images in {out}", err=as_json)
    if grid is not None or out is None:
        named = f"seed-{seed}" if chosen is None else f"seed-{seed}-class-{chosen}"
        file = grid or folder.path / "samples" / f"{named}.png"
        with cli.writing("--plot", file):
            (save_film if film else save_grid)(images, file, row)
        cli.echo(str(file), err=as_json)
        files.append(file)
    if as_json:
        cli.told({"run": str(folder.path), "samples": count, "seed": seed, "files": [str(file) for file in files]})


def _show_plan(folder: RunFolder, place: BackendConfig, count: int, budget: Any, as_json: bool) -> None:
    """Say what generating so many images takes on a device."""
    from qrkt_hw import backends
    from qrkt_hw.commands.infer import refuse_simulator, with_shots
    from qrkt_hw.data import DataShape
    from qrkt_hw.experiments import evaluation
    from qrkt_hw.resources.forecast import plan
    from qrkt_hw.resources.tables import summarize

    said, options, shape = cli.console(stderr=True), folder.options(), DataShape.of(folder.description())
    backend: Any = backends.make(place, options.training.seed, said)
    backend = with_shots(backend, place, options.training.seed, said)
    refuse_simulator(backend, dry_run=True)
    model = evaluation.gan_of(folder, backend)
    for line in summarize(model, shape, backend.shots):
        said.print(line, highlight=False)
    batch, refuse = min(count, evaluation.GENERATED), budget.flag is not None
    planned = plan(model, options, shape, count, batch, backend, budget, refuse)
    if as_json:
        cli.told({"backend": backend.name, **planned.record()})
        return
    for line in planned.lines(backend.name):
        cli.echo(line)


def _class(folder: RunFolder, name: str) -> int:
    """The number of a class, by its name or by itself."""
    options, names = folder.options(), list(folder.description()["class_names"])
    if options.model.kind != "gan":
        raise UserError(f"run: {folder.path} is a classifier; a GAN is needed (qrkt-hw train --model gan)")
    if not options.gan.conditional:
        raise UserError(f"--class: {folder.path} was trained without --conditional and knows no classes; leave it out")
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise UserError(f"--class: no class {name!r}; there are {shown}, or their numbers from 0 to {len(names) - 1}")


@click.command(
    cls=cli.Command,
    old={"count": "samples", "limit": "samples", "images": "samples"},
    examples="""
qrkt-hw evaluate                                the newest run, 50,000 samples
qrkt-hw evaluate runs/NAME --samples 2000 --split test""",
)
@cli.run_argument
@click.option(
    "--samples", type=click.IntRange(100, 200_000), default=50_000, show_default=True, help="generated samples"
)
@click.option("--seed", type=cli.SEED, default=0, show_default=True, help="of their noise")
@click.option("--split", type=cli.Word(["train", "test"]), default="train", show_default=True, help="real images")
@click.option(
    "--inception-weights",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Inception-v3 as torch-fidelity publishes it  [default: the reference classifier's features]",
)
@click.option(
    "--reference-classifier",
    type=cli.PATH,
    help="its file, made where it is missing  [default: one for each data set, in the cache]",
)
@cli.data_dir_flag
@click.option(
    "--reference-scores", is_flag=True, help="also the real test images, and Gaussian images of equal covariance"
)
@cli.trust_flag
@cli.json_flag
@options_from(PROCESSES)
def evaluate(
    run: Path | None, samples: int, seed: int, split: str, inception_weights: Path | None,
    reference_classifier: Path | None, data_dir: Path | None, reference_scores: bool, trust_ansatz: bool, as_json: bool,
    **flags: Any,
) -> None:  # fmt: skip
    """FID, KID, Inception Score, precision and recall of RUN's images, and what a reference classifier says of them.

    The result states its protocol; compare puts equal protocols into one column only. Without RUN, the newest run.
    """
    folder, ranks = cli.opened(run, trust_ansatz, err=as_json), ranks_in(flags)
    check_used(folder, {"data_dir": data_dir})
    on_ranks(folder.options().replace(accelerator="cpu"), ranks, ("--samples", samples))
    from qrkt_hw.experiments import evaluation

    record = evaluation.evaluate(
        folder, cli.console(stderr=True), samples=samples, seed=seed, split=split, inception=inception_weights,
        classifier=reference_classifier, reference_scores=reference_scores, data_dir=data_dir,
    )  # fmt: skip
    if as_json:
        cli.told(record)
        return
    p, reference = record["protocol"], record["reference_classifier"]
    cli.echo(f"protocol {record['protocol_digest']}: {p['samples']} images against {p['real_images']} of {p['split']}")
    extractor = p["extractor"].replace("judge", "reference classifier")  # the word that the digest keeps
    cli.echo(f"  features of {extractor}; resized: {p['resize']}")
    for name, row in {"run": record["metrics"], **record.get("reference_scores", {})}.items():
        cli.echo(
            f"  {name:16} FID {row['fid']:.3f}  KID {row['kid']:.5f} ± {row['kid_deviation']:.5f}  "
            f"score {row['inception_score']:.3f}  precision {row['precision']:.3f}  recall {row['recall']:.3f}"
        )
    quality = reference["quality"]
    cli.echo(
        f"reference classifier ({quality['test_accuracy']:.2%} accurate on test images): confidence above "
        f"{reference['threshold']} in {reference['confident']:.1%} of the samples"
    )
    cli.echo(
        f"  for comparison: {quality['confident_of_test']:.1%} of test, {quality['confident_of_gaussian']:.1%} of "
        f"Gaussian, {quality['confident_of_shuffled']:.1%} of shuffled images"
    )
    cli.echo("  classes take " + " ".join(f"{share:.1%}" for share in reference["shares"]))
    distance = record["sliced_wasserstein"]
    cli.echo(
        f"sliced Wasserstein distance of pixels to training images: {distance['run']:.4f} (test images: "
        f"{distance['test images']:.4f}), without an extractor"
    )
    near = record["nearest_training_image"]
    cli.echo(
        f"nearest training image: {near['median_distance']:.2f} away (test images: "
        f"{near['median_distance_of_test_images']:.2f}), copies {near['copies']:.1%}; evaluation/nearest.png"
    )

"""``qrkt-hw evaluate``."""

from pathlib import Path
from typing import Any

import click

from qrkt_hw.commands import interface as cli
from qrkt_hw.commands.options import DEALT, check_used, on_ranks, options_from, ranks_in


@click.command(cls=cli.Command)
@cli.run_argument
@click.option(
    "--samples", type=click.IntRange(100, 200_000), default=50_000, show_default=True, help="generated samples"
)
@click.option("--seed", type=cli.SEED, default=0, show_default=True, help="of their noise")
@click.option("--split", type=click.Choice(["train", "test"]), default="train", show_default=True, help="real images")
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
@options_from(DEALT)
def evaluate(
    run: Path | None, samples: int, seed: int, split: str, inception_weights: Path | None,
    reference_classifier: Path | None, data_dir: Path | None, reference_scores: bool, trust_ansatz: bool, as_json: bool,
    **flags: Any,
) -> None:  # fmt: skip
    """FID, KID, Inception Score, precision and recall of RUN's images, and what a reference classifier says of them.

    The result states its protocol; compare puts equal protocols into one column only. Without RUN, the newest run.
    """
    from qrkt_hw.runs.atomic import to_json

    folder, ranks = cli.opened(run, trust_ansatz, err=as_json), ranks_in(flags)
    check_used(folder, {"data_dir": data_dir})
    on_ranks(folder.options().replace(accelerator="cpu"), ranks, ("--samples", samples))
    from qrkt_hw.experiments import evaluation

    record = evaluation.evaluate(
        folder, cli.console(stderr=True), samples=samples, seed=seed, split=split, inception=inception_weights,
        classifier=reference_classifier, reference_scores=reference_scores, data_dir=data_dir,
    )  # fmt: skip
    if as_json:
        cli.echo(to_json(record))
        return
    p, reference = record["protocol"], record["reference_classifier"]
    cli.echo(f"protocol {record['protocol_digest']}: {p['samples']} images against {p['real_images']} of {p['split']}")
    cli.echo(f"  features of {p['extractor']}; resized: {p['resize']}")
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
    near = record["nearest_training_image"]
    cli.echo(
        f"nearest training image: {near['median_distance']:.2f} away (test images: "
        f"{near['median_distance_of_test_images']:.2f}), copies {near['copies']:.1%}; evaluation/nearest.png"
    )

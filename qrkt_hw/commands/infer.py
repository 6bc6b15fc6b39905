"""``qrkt-hw infer``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from qrkt_hw.errors import UserError


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["test", "validation"]), default=None, help="[default: test]")
@click.option(
    "--image", "images", multiple=True, type=click.Path(path_type=Path), help="an image file; repeat for more"
)
@click.option("--limit", type=click.IntRange(min=1), help="only the first images of the split")
@click.option("--backend", default="exact", show_default=True, help="where the circuits run")
@click.option(
    "--ablate",
    multiple=True,
    type=click.Choice(["batch-mean", "sine"]),
    help="also the accuracy with every circuit's output replaced: by its batch mean, or by the sine of its input",
)
@click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output, nothing else")
def infer(
    run: Path | None,
    split: str | None,
    images: tuple[Path, ...],
    limit: int | None,
    backend: str,
    ablate: tuple[str, ...],
    as_json: bool,
) -> None:
    """Accuracy, macro F1 and AUROC of RUN on a split, or class and probabilities of image files.

    Without RUN, the newest run under runs/, named on the first line.
    """
    from qrkt_hw.runs import RunFolder, newest

    if images and (split or limit or ablate):
        raise UserError("--image brings its own images; leave out --split, --limit and --ablate")
    folder = RunFolder.open(run if run is not None else newest())
    click.echo(f"run {folder.path}", err=as_json)
    from qrkt_hw.experiments import inference

    if images:
        record = inference.infer_images(folder, images, backend)
    else:
        record = inference.infer_split(folder, split or "test", limit, backend, ablate)
    if as_json:
        click.echo(json.dumps(record))
    elif images:
        for result in record["images"]:
            top = sorted(result["probabilities"].items(), key=lambda item: -item[1])[:3]
            shown = "  ".join(f"{name} {p:.3f}" for name, p in top)
            click.echo(f"{result['file']}: {result['class']}   ({shown})")
    else:
        click.echo(
            f"{record['split']}, {record['count']} images on {record['backend']}: accuracy {record['accuracy']:.4f}  "
            f"F1 {record['f1']:.4f}  AUROC {record['auroc']:.4f}  ({record['seconds']:.2f} s)"
        )
        for name, found in record.get("ablations", {}).items():
            click.echo(f"  circuits replaced by their {name.replace('-', ' ')}: accuracy {found['accuracy']:.4f}")

"""A picture of generated images beside a baseline's and real ones: unselected, a column for each class.

The images are those of noise seed 0 in their order, and the first of each class of the test split.
Usage: ``python benchmarks/gallery.py RUN BASELINE --out FILE.png [--data-dir DIR] [--rows N]``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from qrkt_hw.data import Data, load_data
from qrkt_hw.experiments.evaluation import classes_of, draw, gan_of, noise
from qrkt_hw.models.metrics import pixels
from qrkt_hw.plots.images import grid
from qrkt_hw.runs import RunFolder

LINE, SIZE = 30, 17  # pixels of a line of text, and of its letters


def real(data: Data, rows: int) -> Tensor:
    """The first test images of each class ``(rows * classes, channels, size, size)`` in [-1, 1], in turn."""
    images, labels = pixels(data, "test", 10_000)
    classes = [images[labels == k][:rows] for k in range(data.shape.classes)]
    return torch.stack(classes, 1).flatten(0, 1)


def generated(path: Path, rows: int) -> Tensor:
    """Generated images ``(rows * classes, channels, size, size)`` in [-1, 1], the classes in turn."""
    model = gan_of(RunFolder(path))
    if not model.classes:
        raise SystemExit(f"{path}: its GAN knows no classes; train with --conditional")
    count = rows * model.classes
    return draw(model, noise(count, model.latent, 0), classes_of(model, count))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--rows", type=int, default=4)
    given = parser.parse_args()
    options = RunFolder(given.run).options()
    data = load_data(options.replace(limit=None, data_dir=given.data_dir or options.data.data_dir).data)
    panels = {
        "with quantum circuits": generated(given.run, given.rows),
        "classical baseline": generated(given.baseline, given.rows),
        "real test images": real(data, given.rows),
    }
    pictures = {name: grid(images, data.shape.classes).convert("RGB") for name, images in panels.items()}
    width = max(one.width for one in pictures.values())
    canvas = Image.new("RGB", (width, sum(one.height + LINE for one in pictures.values())), "white")
    pen, font, top = ImageDraw.Draw(canvas), ImageFont.load_default(SIZE), 0
    for name, one in pictures.items():
        pen.text((4, top + LINE / 2), name, "black", font, anchor="lm")
        canvas.paste(one, (0, top + LINE))
        top += LINE + one.height
    # 64 colours are enough for greys, and would change an image in colour
    (canvas.quantize(64) if data.shape.channels == 1 else canvas).save(given.out, optimize=True)


if __name__ == "__main__":
    main()

"""Images from the generator of a run."""

import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from qrkt_hw.backends import Backend
from qrkt_hw.data.ranks import Ranks, here
from qrkt_hw.errors import UserError
from qrkt_hw.experiments.loading import restored
from qrkt_hw.models.gan import Gan
from qrkt_hw.plots.charts import picture, to_bytes
from qrkt_hw.runs import RunFolder

BATCH = 250


def gan_of(run: RunFolder, backend: str | Backend = "exact") -> Gan:
    """The GAN of a run. Raises UserError: the run is a classifier, or has no weights yet."""
    if run.options().model.kind != "gan":
        raise UserError(f"run: {run.path} is a classifier; a GAN is needed (qrkt-hw train --model gan)")
    model = restored(run, backend)
    assert isinstance(model, Gan)
    return model


def noise(count: int, latent: int, seed: int, interpolate: bool = False, row: int = 8) -> Tensor:
    """``(count, latent)`` of this seed: independent, or in rows that lead from one point to the next on the sphere."""
    random = torch.Generator().manual_seed(seed)
    if not interpolate:
        return torch.randn(count, latent, generator=random)
    ends = torch.randn(-(-count // row), 2, latent, generator=random)
    units = ends / ends.norm(dim=-1, keepdim=True)
    angle = (units[:, 0] * units[:, 1]).sum(-1).clamp(-1, 1).acos()[:, None, None]
    t = torch.linspace(0, 1, row)[None, :, None]
    path = (((1 - t) * angle).sin() * ends[:, :1] + (t * angle).sin() * ends[:, 1:]) / angle.sin()
    return path.flatten(0, 1)[:count]


@torch.no_grad()
def draw(model: Gan, points: Tensor, there: Ranks | None = None) -> Tensor:
    """Images ``(count, channels, size, size)`` in [-1, 1] of noise, rounded to 8 bits as a file would hold them; each
    rank draws its part. Raises UserError: values that are not finite."""

    def levels(part: Tensor) -> list[Tensor]:
        images = model(part).float().clamp(-1, 1)
        if not images.isfinite().all():
            raise UserError(
                "run: the generator draws no finite pixels; its weights are damaged, or its training diverged"
            )
        return [((images + 1) * 127.5).round().byte()]

    (found,) = (there or here()).dealt(levels, points, BATCH)
    return found / 127.5 - 1


def save_images(images: Tensor, folder: Path) -> None:
    """One PNG for each image, ``00000.png`` and so on. Raises UserError: the folder cannot be written."""
    temporary = folder / f".{os.getpid()}.tmp"  # a picture is whole or not there, whenever the process ends
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(to_bytes(images)):
            picture(image).save(temporary, format="PNG")
            temporary.replace(folder / f"{number:05d}.png")
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"--out: {folder} cannot be written: {error.strerror}") from error

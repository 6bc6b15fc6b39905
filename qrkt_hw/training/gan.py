"""The task of a GAN: its losses, penalties, DiffAugment, and the samples that show it learn.

``wgangp-eps``: Gulrajani et al. 2017 with Karras et al.'s drift term (2018). ``hinge``: Lim and Ye 2017.
``nonsaturating-r1``: Goodfellow et al. 2014 with the penalty of Mescheder et al. 2018.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qrkt_hw.data import Data
from qrkt_hw.data.images import evaluating
from qrkt_hw.data.ranks import drawn, part, squared_mean
from qrkt_hw.models.factory import count_parameters
from qrkt_hw.models.transformer import Gan
from qrkt_hw.plots.charts import save_animation, save_grid
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import Config, GanConfig
from qrkt_hw.training.loop import Record, Task, groups

MEASURED = ("generator_loss", "discriminator_loss", "penalty", "real_score", "fake_score")
DRIFT = 1e-3
SHIFT, HOLE = 1 / 8, 1 / 2  # of a side: the longest translation, the cutout
COLUMNS, ROWS = 8, 8  # of a grid of samples
Score = Callable[[Tensor], Tensor]


class GanTask(Task):
    """Adam on each side: every step is one of the discriminator, every ``critic_steps``-th one also of the generator.
    Both sides of the model see the normalised data as pixels in [-1, 1]."""

    model: Gan
    shown = "generator {generator_loss:.3f}  discriminator {discriminator_loss:.3f}  scores "
    shown += "{real_score:+.2f} {fake_score:+.2f}"

    def __init__(self, options: Config, data: Data, model: Gan) -> None:
        o, t = options.gan, options.training
        rates = {model.generator: o.generator_learning_rate, model.discriminator: o.discriminator_learning_rate}
        adam: dict[str, Any] = {"betas": (o.beta1, o.beta2), "fused": True}
        pairs = [(m, torch.optim.Adam(groups(m, t, own or t.learning_rate), **adam)) for m, own in rates.items()]
        super().__init__(options, data, model, model.generator, pairs)
        self.generator, self.discriminator = self.learners
        weight = model.generator.enter.weight
        self.like: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
        self.mean, self.std = (torch.tensor(v, device=weight.device).view(-1, 1, 1) for v in (data.mean, data.std))
        self.every = o.samples_every or max(1, t.epochs // 20)

    @property
    def kept(self) -> Gan:
        return self.model if self.averaged is None else Gan(self.averaged.module, self.model.discriminator)  # type: ignore[arg-type]

    def updates(self, steps: int) -> list[int]:
        return [steps // self.options.gan.critic_steps, steps]

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        self._generator_loss = torch.zeros((), device=self.like["device"])
        self._measured = list[Tensor]()

    def step(self, batch: tuple[Tensor, ...], number: int) -> None:
        o = self.options.gan
        left = 1 - number / self.total_steps if o.rate_decay == "linear" else 1.0
        warm = min(1.0, (number + 1) / (self.options.training.warmup_steps + 1))
        real = ((batch[0] * self.std + self.mean) * 2 - 1).to(self.like["dtype"])
        due = (number + 1) % o.critic_steps == 0
        with torch.set_grad_enabled(due):  # the same images serve both sides: generating them is most of a step
            fake = self.generator(drawn(partial(torch.randn, **self.like), (len(real), self.model.latent)))
        self._rate, rate = (learner.peak * left * warm for learner in self.learners)
        losses = self._discriminator_step(real, fake.detach(), rate, number % o.penalty_every == 0)
        if due:
            self._generator_loss = self._generator_step(fake, self._rate)
        self._measured.append(torch.stack([self._generator_loss, *losses]))

    def _discriminator_step(self, real: Tensor, fake: Tensor, rate: float, penalised: bool) -> list[Tensor]:
        o = self.options.gan
        real, fake = diff_augment(real, o.diffaugment), diff_augment(fake, o.diffaugment)
        on_real, on_fake = self.discriminator(torch.cat([real, fake])).split([len(real), len(fake)])
        loss = discriminator_loss(o.loss, on_real, on_fake)
        extra = penalty(o, self.discriminator, real, fake) if penalised else loss.new_zeros(())
        self.discriminator.update(part(loss + o.penalty_every * extra), rate)
        return [part(x.detach()) for x in (loss, extra, on_real.mean(), on_fake.mean())]

    def _generator_step(self, fake: Tensor, rate: float) -> Tensor:
        o = self.options.gan
        for weight in self.discriminator.parameters:
            weight.requires_grad_(False)
        loss = generator_loss(o.loss, self.discriminator(diff_augment(fake, o.diffaugment)))
        loss = part(loss)
        self.generator.update(loss, rate)
        for weight in self.discriminator.parameters:
            weight.requires_grad_(True)
        if self.averaged is not None:
            self.averaged.update_parameters(self.model.generator)
        return loss.detach()

    def end_epoch(self, epoch: int) -> dict[str, float]:
        means = self.ranks.sum(torch.stack(self._measured).mean(0)).tolist()
        metrics = dict(zip(MEASURED, means, strict=True))
        for name, learner in zip(self.model.sides, self.learners, strict=True):
            metrics |= learner.gradient_norms(f"{name}_")
        if not all(map(math.isfinite, metrics.values())):
            raise self.diverged(epoch, "losses {generator_loss} and {discriminator_loss}".format(**metrics))
        return {**metrics, "learning_rate": self._rate}

    def keep(self, record: Record, run: RunFolder) -> bool:
        """The last weights, and a grid of samples of the same noise."""
        record.best_epoch = epoch = record.history[-1]["epoch"]
        due = epoch == self.options.training.epochs or epoch % self.every == 0
        if (due or epoch == 1) and self.ranks.leads:
            kept = self.kept
            noise = torch.randn(COLUMNS * ROWS, kept.latent, generator=torch.Generator().manual_seed(0))
            with torch.no_grad(), evaluating(kept):
                images = kept(noise.to(self.like["device"]))
            save_grid(images, run.path / "samples" / f"epoch-{epoch:05d}.png", COLUMNS)
        return due

    def results(self, record: Record, run: RunFolder) -> dict[str, Any]:
        if self.figures and self.ranks.leads:
            from qrkt_hw.plots.charts import plot_losses  # matplotlib, only now: it delays the first step

            plot_losses(record.history, run.plots / "losses.png")
        if self.ranks.leads:
            frames = sorted((run.path / "samples").glob("epoch-*.png"))
            save_animation(frames, run.path / "samples" / "training.gif")
        losses = {k: v for k, v in record.history[-1].items() if k.endswith(("loss", "score", "penalty"))}
        sides = {name: count_parameters(side) for name, side in self.model.sides.items()}
        return {"parameters_of": sides, "losses": losses, "epochs": record.best_epoch}


def generator_loss(loss: str, fake: Tensor) -> Tensor:
    """Of the scores of generated images."""
    return F.softplus(-fake).mean() if loss == "nonsaturating-r1" else -fake.mean()


def discriminator_loss(loss: str, real: Tensor, fake: Tensor) -> Tensor:
    """Of the scores of real and generated images, without penalty."""
    if loss == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if loss == "nonsaturating-r1":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    return fake.mean() - real.mean() + DRIFT * squared_mean(real)


def penalty(options: GanConfig, score: Score, real: Tensor, fake: Tensor) -> Tensor:
    """The gradient penalty of the options' loss, weighted; 0 for a loss without one.

    R1 is ``weight / 2 * mean |grad score(real)|^2``. wgangp-eps is ``weight / phi^2 * mean (|grad score| - phi)^2``
    at random points between real and generated images, ``(batch, channels, size, size)``.
    """
    if options.loss == "hinge" or not options.penalty:
        return real.new_zeros(())
    if options.loss == "nonsaturating-r1":
        return options.penalty / 2 * _gradients(score, real).square().flatten(1).sum(1).mean()
    count = min(len(real), len(fake))
    between = drawn(partial(torch.rand, dtype=real.dtype, device=real.device), (count, 1, 1, 1))
    points = between * real[:count] + (1 - between) * fake[:count]
    norms, phi = _gradients(score, points).flatten(1).norm(dim=1), options.penalty_target
    return options.penalty / phi**2 * (norms - phi).square().mean()


def _gradients(score: Score, images: Tensor) -> Tensor:
    """Gradient of each score in its image, itself differentiable."""
    points = images.detach().requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no second derivative
        (gradients,) = torch.autograd.grad(score(points).sum(), points, create_graph=True)
    return gradients


def diff_augment(images: Tensor, policy: str) -> Tensor:
    """DiffAugment (Zhao et al. 2020): images ``(batch, channels, size, size)`` in [-1, 1] by the policies named.

    ``color``: brightness +-0.5, saturation times 0 to 2, contrast times 0.5 to 1.5. ``translation``: up to 1/8 of a
    side, padded with 0. ``cutout``: a square of half a side becomes 0. Every image has its own random numbers, of
    torch's generator; gradients pass. ``policy`` is ``none``, or names with commas between.
    """
    for name in () if policy == "none" else policy.split(","):
        images = POLICIES[name](images)
    return images


def color(images: Tensor) -> Tensor:
    draw = partial(torch.rand, dtype=images.dtype, device=images.device)
    brightness, saturation, contrast = drawn(draw, (3, len(images), 1, 1, 1), axis=1)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (2 * saturation) + grey
    middle = images.mean((1, 2, 3), keepdim=True)
    return (images - middle) * (contrast + 0.5) + middle


def translation(images: Tensor) -> Tensor:
    size = images.shape[-1]
    most = int(size * SHIFT + 0.5)
    padded = F.pad(images, (most,) * 4)
    draw = partial(torch.randint, 0, 2 * most + 1, device=images.device)
    moves = drawn(draw, (2, len(images), 1, 1), axis=1)
    along = torch.arange(size, device=images.device)
    rows, columns = moves[0] + along[:, None], moves[1] + along[None, :]
    picture = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[picture, :, rows, columns].permute(0, 3, 1, 2)


def cutout(images: Tensor) -> Tensor:
    size = images.shape[-1]
    side = int(size * HOLE + 0.5)
    draw = partial(torch.randint, 0, size + 1 - side % 2, device=images.device)
    corners = drawn(draw, (2, len(images), 1, 1), axis=1) - side // 2
    along = torch.arange(size, device=images.device)
    inside = [(along >= corner) & (along < corner + side) for corner in corners]
    hole = inside[0].transpose(-1, -2) & inside[1]
    return images * ~hole[:, None]


POLICIES = {"color": color, "translation": translation, "cutout": cutout}

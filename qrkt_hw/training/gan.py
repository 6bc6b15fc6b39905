"""The task of a GAN: its losses, penalties, DiffAugment, and the samples that show it learn.

``wgangp-eps``: Gulrajani et al. 2017 with Karras et al.'s drift term (2018). ``hinge``: Lim and Ye 2017.
``nonsaturating-r1``: Goodfellow et al. 2014 with the penalty of Mescheder et al. 2018.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qrkt_hw.data import Data, load_data
from qrkt_hw.data.batches import loader, portions
from qrkt_hw.data.images import evaluating
from qrkt_hw.data.ranks import drawn, part, squared_mean
from qrkt_hw.errors import RunWarning
from qrkt_hw.models.factory import count_parameters
from qrkt_hw.models.metrics import BATCH, class_shares, fid, reference_classifier, shown
from qrkt_hw.models.transformer import Gan, of_class
from qrkt_hw.plots.images import save_animation, save_grid
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import Config, GanConfig
from qrkt_hw.runs.sections import OWN
from qrkt_hw.training.loop import Record, Task, groups

MEASURED = ("generator_loss", "discriminator_loss", "penalty", "real_score", "fake_score")
DRIFT = 1e-3
# A saturated tanh passes no gradient, and a generator whose first images are all black would keep them so. What goes
# into it beyond +-2, where it is 0.96, is penalised while the images of a batch have nearly no variance, which is 0.25
# and more in a data set. At all times the penalty raised the FID of digits.
TANH_LIMIT, TANH_PENALTY, ALIKE = 2.0, 1.0, 0.01
SHIFT, HOLE = 1 / 8, 1 / 2  # of a side: the longest translation, the cutout
SATURATING = ("hinge", "nonsaturating-r1")  # losses of the discriminator that end at 0
COLUMNS, ROWS = 8, 8  # of a grid of samples
REAL_BATCHES = 5  # of 1,024 training images, with which a live FID compares
# Rules of thumb. A discriminator that cannot tell the images apart has a loss of 2 (hinge) or 2 ln 2; one that does so
# without error has 0. A class of which 10 samples are expected falls below 1 by chance once in 20,000 measurements.
WON = 0.05  # mean loss of the discriminator below which it has won
SAME = 0.05  # variance over generated images, of that over real ones, below which they are all alike
VANISHED, EXPECTED = 0.1, 10  # share of a class, of that in training images, below which it is gone; samples expected
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
        self._reference: tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Tensor, Tensor] | None = None
        self._told = set[str]()

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
        labels = batch[1] if o.conditional else None
        noise = drawn(partial(torch.randn, **self.like), (len(real), self.model.latent))
        due, fake = (number + 1) % o.critic_steps == 0, None
        if o.accumulate == 1:  # the same images serve both networks: generating them is most of a step
            with torch.set_grad_enabled(due):
                fake = self._generated(noise, labels)
        self._rate, rate = (learner.peak * left * warm for learner in self.learners)
        losses = self._discriminator_step(real, labels, noise, fake, rate, number % o.penalty_every == 0)
        if due:
            self._generator_loss = self._generator_step(labels, noise, fake, self._rate)
        self._measured.append(torch.stack([self._generator_loss, *losses]))

    def _generated(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Images as the generator has them before they are bounded."""
        return self.generator(noise, labels, True)

    def _score(self, images: Tensor, labels: Tensor | None) -> Tensor:
        return of_class(self.discriminator(images), labels)

    def _score_in_full_precision(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """By the network itself: Fabric's wrapper of it would round what is differentiated twice to bfloat16."""
        return of_class(self.model.discriminator(images), labels)

    def _portions(self, *tensors: Tensor | None) -> Iterator[list[Any]]:
        """The batch's tensors part by part, as ``--accumulate`` says."""
        count = next(len(t) for t in tensors if t is not None)
        for rows in portions(count, self.options.gan.accumulate, self.like["device"]):
            yield [None if t is None else t[rows] for t in tensors]

    def _discriminator_step(
        self, real: Tensor, labels: Tensor | None, noise: Tensor, fake: Tensor | None, rate: float, penalised: bool
    ) -> Tensor:
        o, measured = self.options.gan, list[Tensor]()
        given = None if fake is None else fake.detach()

        def losses() -> Iterator[Tensor]:
            for real_, labels_, noise_, fake_ in self._portions(real, labels, noise, given):
                if fake_ is None:
                    with torch.no_grad():
                        fake_ = self._generated(noise_, labels_)
                fake_ = self.model.generator.bound(fake_)
                self._pixels = real_, fake_
                real_, fake_ = diff_augment(real_, o.diffaugment), diff_augment(fake_, o.diffaugment)
                twice = None if labels_ is None else torch.cat([labels_, labels_])
                on_real, on_fake = self._score(torch.cat([real_, fake_]), twice).split([len(real_), len(fake_)])
                loss = discriminator_loss(o.loss, on_real, on_fake)
                extra = loss.new_zeros(())
                if penalised:
                    extra = penalty(o, partial(self._score_in_full_precision, labels=labels_), real_, fake_)
                yield part(loss + o.penalty_every * extra)
                found = loss, extra, on_real.mean(), on_fake.mean()
                measured.append(torch.stack([part(x.detach()) for x in found]))

        self.discriminator.update(losses(), rate)
        return torch.stack(measured).sum(0)

    def _generator_step(self, labels: Tensor | None, noise: Tensor, fake: Tensor | None, rate: float) -> Tensor:
        o, found = self.options.gan, list[Tensor]()

        def losses() -> Iterator[Tensor]:
            for labels_, noise_, fake_ in self._portions(labels, noise, fake):
                raw = self._generated(noise_, labels_) if fake_ is None else fake_
                images = self.model.generator.bound(raw)
                loss = generator_loss(o.loss, self._score(diff_augment(images, o.diffaugment), labels_))
                found.append(part(loss.detach()))
                yield part(loss + tanh_penalty(raw, images) if self.model.generator.bounded else loss)

        for weight in self.discriminator.parameters:
            weight.requires_grad_(False)
        self.generator.update(losses(), rate)
        for weight in self.discriminator.parameters:
            weight.requires_grad_(True)
        if self.averaged is not None:
            self.averaged.update_parameters(self.model.generator)
        return torch.stack(found).sum(0)

    def end_epoch(self, epoch: int) -> dict[str, float]:
        means = self.ranks.sum(torch.stack(self._measured).mean(0)).tolist()
        metrics = dict(zip(MEASURED, means, strict=True))
        for name, learner in zip(self.model.sides, self.learners, strict=True):
            metrics |= learner.gradient_norms(f"{name}_")
        if not all(map(math.isfinite, metrics.values())):
            raise self.diverged(epoch, "losses {generator_loss} and {discriminator_loss}".format(**metrics))
        due = self._due(epoch)
        if self.options.gan.live_fid is not None:
            metrics["fid"] = self.ranks.first(partial(self._live_fid, epoch)) if due else math.nan
            self.shown = GanTask.shown + ("  FID {fid:.1f}" if due else "")
        if self.ranks.leads:
            self._detect(epoch, metrics["discriminator_loss"])
        return {**metrics, "learning_rate": self._rate}

    def _due(self, epoch: int) -> bool:
        return epoch == self.options.training.epochs or epoch % self.every == 0

    def _drawn(self, count: int) -> Tensor:
        """Images of the same noise every time, by the weights that are kept."""
        kept, found = self.kept, list[Tensor]()
        noise = torch.randn(count, kept.latent, generator=torch.Generator().manual_seed(0)).to(self.like["device"])
        labels = torch.arange(count, device=self.like["device"]) % kept.classes if kept.classes else None
        with torch.no_grad(), evaluating(kept):
            for rows in torch.arange(count).split(COLUMNS * ROWS):
                found.append(kept(noise[rows], None if labels is None else labels[rows]))
        return torch.cat(found)

    def _live_fid(self, epoch: int) -> float:
        """FID of a few samples, by the reference classifier's features, against training images."""
        if self._reference is None:
            options, data = self.options.data, self.data
            if options.limit is not None and options.dataset != OWN:  # of all images, as evaluate has it
                data = load_data(self.options.replace(limit=None).data)
            classifier, _ = reference_classifier(data, Console(stderr=True))
            batches = itertools.islice(loader(data.splits["train"], BATCH, seed=0), REAL_BATCHES)
            real, logits = classifier.extract(torch.cat([shown(data, images) for images, _ in batches]))
            self._reference = classifier.extract, real, class_shares(logits)
        extract, real, usual = self._reference
        features, logits = extract(self._drawn(self.options.gan.live_fid or 0).float().cpu().clamp(-1, 1))
        found = class_shares(logits)
        ratios = (found / usual).where(usual * len(logits) >= EXPECTED, math.inf)
        if 2 * epoch >= self.options.training.epochs and ratios.min() < VANISHED:
            k = int(ratios.argmin())
            what = f"class {self.data.class_names[k]} is {found[k]:.1%} of {len(logits)} generated samples"
            self._tell("classes vanish", f"{what} and {usual[k]:.1%} of the training images")
        return fid(features, real)

    def _detect(self, epoch: int, loss: float) -> None:
        """Warn, once for each, of a discriminator that has won and of generated images that are all alike."""
        if self.options.gan.loss in SATURATING and loss < WON:
            what = f"its mean loss in epoch {epoch} is {loss:.3f}"
            self._tell("the discriminator has won", f"{what}, so it tells generated images from real ones every time")
        real, fake = (images.float().var(0).mean().item() for images in self._pixels)
        started = 4 * epoch > self.options.training.epochs  # first images are alike in every training
        if started and fake < SAME * real:  # False where there is a single image
            what = f"their variance in epoch {epoch} is {fake / real:.1%} of the real images'"
            self._tell("all generated images are alike", what)

    def _tell(self, name: str, what: str) -> None:
        if name in self._told:
            return
        self._told.add(name)
        o, ways = self.options.gan, ["a lower --discriminator-learning-rate"]
        if o.loss != "hinge":  # which has no penalty
            ways.append("a larger --penalty")
        if not set(POLICIES) <= set(o.diffaugment.split(",")):
            ways.append(f"--diffaugment {','.join(POLICIES)}")
        warnings.warn(f"{name}: {what}; try {' or '.join(ways)}", RunWarning, stacklevel=2)

    def enough(self, record: Record) -> str:
        found = [row["fid"] for row in record.history if math.isfinite(row.get("fid", math.nan))]
        patience = self.options.gan.patience or len(found)
        if len(found) <= patience or min(found[-patience:]) < min(found[:-patience]):
            return ""
        return f"its FID of {min(found):.1f} has not fallen for {patience} measurements (--patience)"

    def keep(self, record: Record, run: RunFolder) -> bool:
        """The last weights, or those of the lowest live FID, and a grid of samples of the same noise."""
        last = record.history[-1]
        epoch, due = last["epoch"], self._due(last["epoch"])
        if (due or epoch == 1) and self.ranks.leads:
            save_grid(self._drawn(COLUMNS * ROWS), run.path / "samples" / f"epoch-{epoch:05d}.png", COLUMNS)
        if self.options.gan.live_fid is not None:
            score = -last["fid"], 0.0
            if not math.isfinite(score[0]) or (record.best_epoch and score <= record.best):
                return False
            record.best = score
        record.best_epoch = epoch
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
        found = {"parameters_of": sides, "losses": losses, "epochs": record.history[-1]["epoch"]}
        if self.options.gan.live_fid is not None:
            found |= {"best_epoch": record.best_epoch, "live_fid": -record.best[0]}
        return found


def generator_loss(loss: str, fake: Tensor) -> Tensor:
    """Of the scores of generated images."""
    return F.softplus(-fake).mean() if loss == "nonsaturating-r1" else -fake.mean()


def tanh_penalty(raw: Tensor, images: Tensor) -> Tensor:
    """The mean square of what is beyond +-2 before the tanh, where all images are alike, else 0; 0 for one image.

    ``raw`` and ``images`` are ``(count, channels, size, size)``, before and after the tanh. A part of a batch, be it of
    a rank or of ``--accumulate``, is judged by its own images.
    """
    alike = len(images) > 1 and images.detach().var(0, correction=0).mean() < ALIKE
    return alike * TANH_PENALTY * (raw.abs() - TANH_LIMIT).relu().square().mean()


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

"""The Lightning module of a GAN: two optimisers, penalties, augmentation and the averaged generator."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel

from qrkt_hw.models.factory import named_blocks
from qrkt_hw.models.gan import Gan, Generator
from qrkt_hw.options.run import RunOptions
from qrkt_hw.training.classifier import NORMS_EVERY, warm_average
from qrkt_hw.training.diffaugment import diff_augment
from qrkt_hw.training.losses import discriminator_loss, generator_loss, penalty
from qrkt_hw.training.measures import gradient_norms

MEASURED = ("generator_loss", "discriminator_loss", "penalty", "real_score", "fake_score")


class Adversaries(LightningModule):
    """Adam on each side; every batch is a step of the discriminator, every n-th one also of the generator.

    Random numbers depend on seed and epoch alone, learning rates on the number of the step, so that a resumed run does
    what an uninterrupted one did.

    Args:
        model: both sides.
        options: of the run.
        steps_per_epoch: batches in an epoch.
        statistics: mean and deviation per channel of the normalised data; they become pixels in [-1, 1] here.
    """

    def __init__(
        self, model: Gan, options: RunOptions, steps_per_epoch: int, statistics: tuple[tuple[float, ...], ...]
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.options = options
        self.averaged = AveragedModel(model.generator, multi_avg_fn=warm_average(options.ema)) if options.ema else None
        # walking the tree of modules anew for every use is some per cent of a small step
        self._weights = {name: list(side.parameters()) for name, side in model.sides.items()}
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = options.epochs * steps_per_epoch
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in statistics)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self._start_epoch()
        self._last_generator_loss = torch.zeros(())
        self.epoch_metrics: dict[str, float] = {}

    @property
    def kept(self) -> Gan:
        """Both sides, with the averaged generator where weights are averaged."""
        return (
            self.model
            if self.averaged is None
            else Gan(cast(Generator, self.averaged.module), self.model.discriminator)
        )

    def forward(self, noise: Tensor) -> Tensor:
        return self.kept(noise)

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.options.seed * 1_000_003 + self.current_epoch + 1)
        self._start_epoch()
        self._last_generator_loss = torch.zeros((), device=self.device)

    def _start_epoch(self) -> None:
        self._measured: list[Tensor] = []
        self._norms: dict[str, list[Tensor]] = {side: [] for side in self.model.sides}
        self._updates = dict.fromkeys(self.model.sides, 0)

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> None:
        o = self.options
        step = self.current_epoch * self.steps_per_epoch + number
        on_generator, on_discriminator = self._optimizers(step)
        real = self.pixels(batch[0])
        penalised = step % o.penalty_every == 0
        due = (step + 1) % o.critic_steps == 0
        with torch.set_grad_enabled(due):  # the same images serve both sides: drawing them is most of a step
            fake = self.model.generator(self.noise(len(real)))
        losses = self._discriminator_step(real, fake.detach(), on_discriminator, penalised)
        if due:
            self._last_generator_loss = self._generator_step(fake, on_generator)
        self._measured.append(torch.stack([self._last_generator_loss, *losses]))
        if number + 1 == self.steps_per_epoch:  # callbacks end their epoch before the module does
            means = torch.stack(self._measured).mean(0).tolist()
            self.epoch_metrics = {**dict(zip(MEASURED, means, strict=True)), **self._mean_norms()}
            self.log_dict(self.epoch_metrics)

    def pixels(self, normalised: Tensor) -> Tensor:
        """Data as pixels in [-1, 1], in the precision of the model."""
        kind = next(self.model.parameters()).dtype
        return ((normalised * self.std + self.mean) * 2 - 1).to(kind)

    def noise(self, count: int) -> Tensor:
        """``(count, latent)``, standard normal."""
        weight = self.model.generator.enter.weight
        return torch.randn(count, self.model.latent, dtype=weight.dtype, device=weight.device)

    def _discriminator_step(self, real: Tensor, fake: Tensor, optimizer: Any, penalised: bool) -> list[Tensor]:
        o, score = self.options, self.model.discriminator
        real, fake = diff_augment(real, o.diffaugment), diff_augment(fake, o.diffaugment)
        on_real, on_fake = score(torch.cat([real, fake])).split([len(real), len(fake)])
        loss = discriminator_loss(o.loss, on_real, on_fake)
        extra = penalty(o, score, real, fake) if penalised else loss.new_zeros(())
        self._update(loss + o.penalty_every * extra, "discriminator", optimizer)
        return [x.detach() for x in (loss, extra, on_real.mean(), on_fake.mean())]

    def _generator_step(self, fake: Tensor, optimizer: Any) -> Tensor:
        o = self.options
        self._learns("discriminator", False)
        loss = generator_loss(o.loss, self.model.discriminator(diff_augment(fake, o.diffaugment)))
        self._update(loss, "generator", optimizer)
        self._learns("discriminator", True)
        if self.averaged is not None:
            self.averaged.update_parameters(self.model.generator)
        return loss.detach()

    def _learns(self, name: str, yes: bool) -> None:
        for weight in self._weights[name]:
            weight.requires_grad_(yes)

    def _update(self, loss: Tensor, name: str, optimizer: Any) -> None:
        side, norms = self.model.sides[name], self._norms[name]
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self._updates[name] % NORMS_EVERY == 0:  # before clipping; every tenth step is enough for a mean
            norms.append(gradient_norms(named_blocks(side).values()))
        self._updates[name] += 1
        clip_grad_norm_(self._weights[name], self.options.clip, foreach=True)
        optimizer.step()

    def _mean_norms(self) -> dict[str, float]:
        found = {}
        for name, side in self.model.sides.items():
            if self._norms[name]:
                means = torch.stack(self._norms[name]).mean(0).tolist()
                found.update({f"gradient_norm_{name}_{b}": x for b, x in zip(named_blocks(side), means, strict=True)})
            else:  # an epoch too short for a step of the generator
                found.update({f"gradient_norm_{name}_{b}": 0.0 for b in named_blocks(side)})
        return found

    def _optimizers(self, step: int) -> Any:
        """Both optimisers, with the learning rates of this step."""
        found: Any = self.optimizers()
        for optimizer, rate in zip(found, self._rates(), strict=True):
            left = 1 - step / self.total_steps if self.options.rate_decay == "linear" else 1.0
            warm = min(1.0, (step + 1) / (self.options.warmup_steps + 1))
            optimizer.param_groups[0]["lr"] = rate * left * warm
        return found

    def _rates(self) -> tuple[float, float]:
        o = self.options
        return o.generator_learning_rate or o.learning_rate, o.discriminator_learning_rate or o.learning_rate

    def configure_optimizers(self) -> Any:
        o = self.options
        sides = (self.model.generator, self.model.discriminator)
        return [
            torch.optim.Adam(
                side.parameters(), lr=rate, betas=(o.beta1, o.beta2), weight_decay=o.weight_decay, fused=True
            )
            for side, rate in zip(sides, self._rates(), strict=True)
        ]

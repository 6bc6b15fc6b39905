"""The Lightning module of a classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from qrkt_hw.models.factory import named_blocks
from qrkt_hw.options.run import RunOptions
from qrkt_hw.training.measures import gradient_norms
from qrkt_hw.training.metrics import classification_metrics
from qrkt_hw.training.schedule import warmup_cosine

NORMS_EVERY = 10


def warm_average(decay: float) -> Callable[..., None]:
    """An exponential moving average that follows quickly at first: decay ``min(decay, (1 + n) / (10 + n))``."""

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(list(averaged), list(current), 1 - now)

    return update


class Classifier(LightningModule):
    """AdamW with warm-up and cosine decay on cross-entropy; metrics once per epoch.

    Args:
        model: ``(batch, ...)`` to logits ``(batch, classes)``.
        options: of the run.
        steps_per_epoch: optimiser steps in an epoch; sets the length of the cosine.
    """

    def __init__(self, model: nn.Module, options: RunOptions, steps_per_epoch: int) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.averaged = AveragedModel(model, multi_avg_fn=warm_average(options.ema)) if options.ema else None
        self.total_steps = options.epochs * steps_per_epoch
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._block_names = list(named_blocks(model))
        self.epoch_metrics: dict[str, float] = {}

    @property
    def kept(self) -> nn.Module:
        """The model that is validated and kept: the averaged one where weights are averaged."""
        return self.model if self.averaged is None else self.averaged.module

    def forward(self, inputs: Tensor) -> Tensor:
        return self.kept(inputs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def on_train_epoch_start(self) -> None:
        # dropout depends on seed and epoch alone, so that a resumed run draws what an uninterrupted one drew
        torch.manual_seed(self.options.seed * 1_000_003 + self.current_epoch + 1)
        self._losses, self._norms = [], []

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        inputs, labels = batch
        loss = F.cross_entropy(self.model(inputs), labels, label_smoothing=self.options.label_smoothing)
        self._losses.append(loss.detach())
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # before clipping; every tenth step is enough for a mean
        if (len(self._losses) - 1) % NORMS_EVERY == 0:
            self._norms.append(gradient_norms(named_blocks(self.model).values()))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val, foreach=True)

    def on_validation_epoch_start(self) -> None:
        self._seen = []

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        inputs, labels = batch
        self._seen.append((self.kept(inputs), labels))

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        found = classification_metrics(torch.cat([s[0] for s in self._seen]), torch.cat([s[1] for s in self._seen]))
        # validation closes the epoch, so the training loss is complete here
        self.epoch_metrics = {"train_loss": torch.stack(self._losses).mean().item()}
        self.epoch_metrics.update({f"val_{key}": value for key, value in found.items()})
        if self._norms and self._block_names:
            means = torch.stack(self._norms).mean(0).tolist()
            self.epoch_metrics.update({f"gradient_norm_{n}": x for n, x in zip(self._block_names, means, strict=True)})
        self.log_dict(self.epoch_metrics)

    def configure_optimizers(self) -> Any:
        o = self.options
        # many small tensors: one fused update takes a tenth of the time of one after another
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=o.learning_rate, weight_decay=o.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, o.warmup_steps, self.total_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

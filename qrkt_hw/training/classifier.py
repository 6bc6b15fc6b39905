"""The Lightning module of a classifier."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from qrkt_hw.options.run import RunOptions
from qrkt_hw.training.metrics import classification_metrics
from qrkt_hw.training.schedule import warmup_cosine


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
        self.total_steps = options.epochs * steps_per_epoch
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._losses: list[Tensor] = []
        self.epoch_metrics: dict[str, float] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)

    def on_train_epoch_start(self) -> None:
        # dropout depends on seed and epoch alone, so that a resumed run draws what an uninterrupted one drew
        torch.manual_seed(self.options.seed * 1_000_003 + self.current_epoch + 1)
        self._losses = []

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        inputs, labels = batch
        loss = F.cross_entropy(self.model(inputs), labels, label_smoothing=self.options.label_smoothing)
        self._losses.append(loss.detach())
        return loss

    def on_validation_epoch_start(self) -> None:
        self._seen = []

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        inputs, labels = batch
        self._seen.append((self.model(inputs), labels))

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        found = classification_metrics(torch.cat([s[0] for s in self._seen]), torch.cat([s[1] for s in self._seen]))
        # validation closes the epoch, so the training loss is complete here
        self.epoch_metrics = {"train_loss": torch.stack(self._losses).mean().item()}
        self.epoch_metrics.update({f"val_{key}": value for key, value in found.items()})
        self.log_dict(self.epoch_metrics)

    def configure_optimizers(self) -> Any:
        o = self.options
        optimizer = torch.optim.AdamW(self.parameters(), lr=o.learning_rate, weight_decay=o.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, o.warmup_steps, self.total_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

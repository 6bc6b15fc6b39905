"""The task of a classifier: cross-entropy, validated after each epoch."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qrkt_hw.data import Data
from qrkt_hw.data.batches import Batches, loader
from qrkt_hw.data.ranks import part
from qrkt_hw.models.factory import field_evaluations, quantum_layers
from qrkt_hw.models.metrics import classification_metrics, logits_of
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import Config
from qrkt_hw.training.loop import Record, Task, groups

EVALUATION_BATCH = 256
REFIT_STEPS, REFIT_BATCH, REFIT_RATE = 300, 64, 0.003


def rate_factor(step: int, warmup: int, total: int, schedule: str = "cosine") -> float:
    """Factor on the peak learning rate at ``step`` (0-based) of ``total``: linear warm-up from 0, then 1 (``constant``)
    or decay to 0 along a ``cosine`` or a line (``linear``). A function of the step, unlike torch's ``SequentialLR``:
    nothing to keep and restore."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return 1.0 if schedule == "constant" else 1 - min(1.0, progress)


@torch.enable_grad()
def refit(model: nn.Module, samples: Any, validation: Any, options: Config) -> tuple[float, float]:
    """Steps down the gradient of all parameters of a classifier but the circuits' angles, in evaluation mode.

    Hooks of its layers may give their values as a device does. Gives the loss on the validation samples before and
    after; where it did not fall, the weights stay as they were.
    """
    angles = {layer.weight for layer in quantum_layers(model)}
    free = [p for p in model.parameters() if p not in angles]
    seed, before = options.training.seed, {k: v.clone() for k, v in model.state_dict().items()}

    def lost() -> float:
        torch.manual_seed(seed)
        logits, labels = logits_of(model, loader(validation, EVALUATION_BATCH))
        return F.cross_entropy(logits, labels).item()

    with torch.random.fork_rng(devices=[]):
        first = lost()
        for angle in angles:
            angle.requires_grad_(False)
        optimizer, batches = torch.optim.Adam(free, REFIT_RATE), loader(samples, REFIT_BATCH, seed)
        step = 0
        while step < REFIT_STEPS:
            batches.sampler.set_epoch(step)  # type: ignore[attr-defined]
            for inputs, labels in itertools.islice(batches, REFIT_STEPS - step):
                loss = F.cross_entropy(model(inputs), labels, label_smoothing=options.training.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(free, options.training.clip)
                optimizer.param_groups[0]["lr"] = REFIT_RATE * rate_factor(step, REFIT_STEPS // 10, REFIT_STEPS)
                optimizer.step()
                step += 1
        for angle in angles:
            angle.requires_grad_(True)
        optimizer.zero_grad()
        last = lost()
    if not last < first:
        model.load_state_dict(before)
    return first, last


class ClassifierTask(Task):
    """AdamW with warm-up and a schedule; the epoch of the highest validation AUROC is kept. The model gives logits
    ``(batch, classes)``."""

    shown = "loss {train_loss:.3f}  val acc {val_accuracy:.3f}  val AUROC {val_auroc:.4f}"

    def __init__(self, options: Config, data: Data, model: nn.Module) -> None:
        # many small tensors: one fused update takes a tenth of the time of one after another
        optimizer = torch.optim.AdamW(groups(model, options.training, options.training.learning_rate), fused=True)
        super().__init__(options, data, model, model, [(model, optimizer)])
        (self.learner,) = self.learners
        self.validation = self._evaluated("validation")
        self.evaluations = field_evaluations(model) * len(data.splits["train"])  # type: ignore[arg-type]

    def _evaluated(self, split: str) -> Batches:
        samples, workers = self.data.splits[split], self.options.data.workers
        return loader(samples, EVALUATION_BATCH, workers=workers, ranks=self.ranks)

    def _logits(self, model: nn.Module, batches: Batches, given: Iterable[Any]) -> list[Tensor]:
        """Logits and labels of a split, of whose batches each rank evaluates its part."""
        return batches.whole(logits_of(model, given))

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        self._losses = list[Tensor]()

    def _rate(self, step: int) -> float:
        t = self.options.training
        return self.learner.peak * rate_factor(step, t.warmup_steps, self.total_steps, t.schedule)

    def step(self, batch: tuple[Tensor, ...], number: int) -> None:
        inputs, labels, *mixed = batch
        logits, smoothing = self.learner(inputs), self.options.training.label_smoothing
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if mixed:  # the cross-entropy is linear in the labels
            partners, weight = mixed
            loss = weight * loss + (1 - weight) * F.cross_entropy(logits, partners, label_smoothing=smoothing)
        loss = part(loss)
        self.learner.update([loss], self._rate(number))
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self._losses.append(loss.detach())

    def end_epoch(self, epoch: int) -> dict[str, float]:
        loss = self.ranks.sum(torch.stack(self._losses).mean()).item()
        given = map(self.fabric.to_device, self.validation)
        found = classification_metrics(*self._logits(self.kept, self.validation, given))
        if not (math.isfinite(loss) and math.isfinite(found["loss"])):
            raise self.diverged(epoch, f"training loss {loss}, validation loss {found['loss']}")
        return {
            "train_loss": loss,
            **{f"val_{name}": value for name, value in found.items()},
            **self.learner.gradient_norms(),
            "learning_rate": self._rate(epoch * len(self.batches)),
            "field_evaluations": epoch * self.evaluations,
        }

    def keep(self, record: Record, run: RunFolder) -> bool:
        last = record.history[-1]
        # equal AUROC (often 1.0 on easy data) is decided by the loss; with a class missing there may be no AUROC
        score = last["val_auroc"] if math.isfinite(last["val_auroc"]) else 0.0, -last["val_loss"]
        if score <= record.best:
            return False
        record.best, record.best_epoch = score, last["epoch"]
        return True

    def results(self, record: Record, run: RunFolder) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for split in ("test", "validation"):
            batches = self._evaluated(split)
            logits, labels = self._logits(self.model, batches, batches)
            found[split] = classification_metrics(logits, labels)
            if split == "test" and self.figures and self.ranks.leads:
                from qrkt_hw.plots.charts import plot_confusion, plot_curves  # matplotlib, which takes a second

                plot_confusion(logits.argmax(-1), labels, self.data.class_names, run.plots / "confusion.png")
                plot_curves(record.history, record.best_epoch, run.plots / "curves.png")
        found["field_evaluations_per_forward"] = field_evaluations(self.model)
        return found | {"best_epoch": record.best_epoch}

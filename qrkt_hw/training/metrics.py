"""Loss, accuracy, macro F1 and one-vs-rest AUROC from logits."""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_auroc, multiclass_f1_score


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """``loss`` (mean cross-entropy), ``accuracy``, ``f1`` (macro) and ``auroc`` (macro, one-vs-rest).

    The AUROC is the mean over the classes that occur in ``labels`` but do not make up all of them; where there is no
    such class it is NaN.

    Args:
        logits: ``(samples, classes)``.
        labels: ``(samples,)``, int64.
    """
    logits = logits.float()
    classes = logits.shape[-1]
    scores = logits.softmax(-1)
    return {
        "loss": F.cross_entropy(logits, labels).item(),
        "accuracy": multiclass_accuracy(scores, labels, num_classes=classes, average="micro").item(),
        "f1": multiclass_f1_score(scores, labels, num_classes=classes, average="macro").item(),
        "auroc": _auroc(scores, labels, classes),
    }


def _auroc(scores: Tensor, labels: Tensor, classes: int) -> float:
    counts = torch.bincount(labels, minlength=classes)
    defined = (counts > 0) & (counts < len(labels))
    if not defined.any():
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the classes that are left out below
        each = multiclass_auroc(scores, labels, num_classes=classes, average="none")
    assert each is not None
    return each[defined].mean().item()


@torch.no_grad()
def logits_of(model: torch.nn.Module, batches) -> tuple[Tensor, Tensor]:
    """Logits ``(samples, classes)`` and labels of all batches, the model in evaluation mode."""
    was = model.training
    model.eval()
    parts = [(model(inputs), labels) for inputs, labels in batches]
    model.train(was)
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

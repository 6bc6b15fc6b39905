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
    such class it is NaN. The F1 is the mean over the classes that occur in labels or predictions. Where a logit is
    not finite, or without a sample, all are NaN: no class was predicted.

    Args:
        logits: ``(samples, classes)``.
        labels: ``(samples,)``, int64.
    """
    if not len(labels) or not logits.isfinite().all():
        return dict.fromkeys(("loss", "accuracy", "f1", "auroc"), math.nan)
    logits = logits.float()
    classes = logits.shape[-1]
    scores = logits.softmax(-1)
    return {
        "loss": F.cross_entropy(logits, labels).item(),
        "accuracy": multiclass_accuracy(scores, labels, num_classes=classes, average="micro").item(),
        "f1": multiclass_f1_score(scores, labels, num_classes=classes, average="macro").item(),
        "auroc": _auroc(scores, labels, classes),
    }


def wilson(right: int, count: int) -> list[float]:
    """Ends of the 95 % Wilson score interval of a proportion of ``right`` in ``count``; NaN without a sample.

    Unlike a bootstrap it has a width where all or none are right. Wilson, J. Am. Stat. Assoc. 22, 1927.
    """
    from scipy.stats import binomtest  # only now: it takes a while to import

    if not count:
        return [math.nan, math.nan]
    found = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return [float(found.low), float(found.high)]


def mcnemar(first_only: int, second_only: int) -> float:
    """p-value of the exact McNemar test: whether two classifiers of the same samples are right equally often.

    Two-sided and binomial on the samples where one alone is right; 1 where there is none.
    """
    from scipy.stats import binomtest

    discordant = first_only + second_only
    return float(binomtest(first_only, discordant).pvalue) if discordant else 1.0


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

"""Loss, accuracy, macro F1 and one-vs-rest AUROC from logits.

Written out here because importing torchmetrics or scikit-learn takes as long as importing torch; the values are theirs.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from qrkt_hw.data.images import evaluating


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
    scores = logits.softmax(-1)
    predicted = scores.argmax(-1)
    classes = torch.arange(logits.shape[-1], device=logits.device)
    chosen, true = predicted[:, None] == classes, labels[:, None] == classes
    both, either = (chosen & true).sum(0), chosen.sum(0) + true.sum(0)
    occurs = (either > 0).float()
    return {
        "loss": F.cross_entropy(logits, labels).item(),
        "accuracy": ((predicted == labels).sum() / len(labels)).item(),
        "f1": (2 * both / either.clamp(min=1) * occurs / occurs.sum()).sum().item(),
        "auroc": _auroc(scores, true),
    }


def _auroc(scores: Tensor, true: Tensor) -> float:
    areas = []
    for score, positive in zip(scores.T, true.T, strict=True):
        if not positive.any() or positive.all():
            continue
        order = score.argsort(descending=True)
        ends = F.pad(score[order].diff(), (0, 1), value=1).nonzero()[:, 0]  # the last of samples with equal scores
        found = positive[order].cumsum(0)[ends]
        false = ends + 1 - found
        areas.append(torch.trapezoid(F.pad(found / found[-1], (1, 0)), F.pad(false / false[-1], (1, 0))))
    return torch.stack(areas).mean().item() if areas else math.nan


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


@torch.no_grad()
def logits_of(model: torch.nn.Module, batches) -> tuple[Tensor, Tensor]:
    """Logits ``(samples, classes)`` and labels of all batches, the model in evaluation mode."""
    with evaluating(model):
        parts = [(model(inputs), labels) for inputs, labels in batches]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

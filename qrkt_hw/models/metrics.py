"""Loss, accuracy, macro F1 and one-vs-rest AUROC from logits; and how far a backend is from its stand-in.

Written out here because importing torchmetrics or scikit-learn takes as long as importing torch; the values are theirs.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from qrkt_hw.backends import Backend, Call
from qrkt_hw.backends.exact import ExactBackend, evaluate_by_weights
from qrkt_hw.data import Data
from qrkt_hw.data.batches import first, loader
from qrkt_hw.data.images import evaluating
from qrkt_hw.errors import UserError
from qrkt_hw.models.factory import evaluated_on
from qrkt_hw.models.transformer import Gan
from qrkt_hw.simulator import REAL

BOUNDS = {torch.complex128: 1e-8, torch.complex64: 1e-5}  # of a difference of two expectation values
AGREEMENT_SAMPLES = 32  # that a backend evaluates after a training


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


def discordant(first: Tensor, second: Tensor) -> list[int]:
    """How many samples the first classifier alone is right on, and the second alone; of bool ``(samples,)`` each."""
    return [int((first & ~second).sum()), int((second & ~first).sum())]


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


class _Both(Backend):
    """Values of a backend; ``largest`` is how far those of the torch simulator were from them, in each precision."""

    def __init__(self, backend: Backend, stand_in: ExactBackend) -> None:
        super().__init__(backend.name)
        self.backend, self.other = backend, stand_in
        self.largest = dict.fromkeys(BOUNDS, 0.0)

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        found = self.backend.run(calls)
        for call, values in zip(calls, found, strict=True):
            for dtype in BOUNDS:
                function, real = self.other.simulator(call.template, dtype), REAL[dtype]

                def computed(inputs: Tensor, weights: Tensor, function: Any = function, real: Any = real) -> Tensor:
                    return function(inputs.to(real), weights.to(real)).double()

                other = evaluate_by_weights(call, computed, call.template.num_outputs)
                difference = np.abs(values.reshape(other.shape) - other)
                # NaN is as wrong as can be
                self.largest[dtype] = max(self.largest[dtype], float(np.nan_to_num(difference, nan=np.inf).max()))
        return found


def agreement(backend: Backend, model: nn.Module, data: Data, count: int = 1) -> dict[str, Any]:
    """Compare a backend with ``backend.stand_in``, which computes in its place in a training.

    Args:
        backend: with a stand-in.
        model: a classifier, or a GAN.
        data: its first test samples are evaluated; a GAN generates images and scores them.
        count: samples; fewer where the split has fewer.

    Returns:
        What ``results.json`` keeps under ``agreement``: ``samples``, ``accuracy`` of a classifier, ``circuits``,
        ``largest_difference`` of two expectation values, and ``seconds``.

    Raises:
        UserError: an expectation value differs by more than rounding.
    """
    started, both = time.perf_counter(), _Both(backend, backend.stand_in)  # type: ignore[arg-type]
    circuits, found, like = backend.counters.circuits, dict[str, Any](), next(model.parameters())
    with evaluated_on(model, both):
        if isinstance(model, Gan):
            noise = torch.randn(count, model.latent, generator=torch.Generator().manual_seed(0))
            model.discriminator(model.generator(noise.to(like)))
        else:
            inputs, labels = next(iter(loader(first(data.splits["test"], count), count)))
            classes = model(inputs.to(like.device)).argmax(-1).cpu()
            count, found = len(labels), {"accuracy": float((classes == labels).double().mean())}
    for dtype, bound in BOUNDS.items():
        if not both.largest[dtype] <= bound:
            what = f"an expectation value differs by {both.largest[dtype]:.1e} from the torch simulator's ({dtype})"
            raise UserError(
                f"backend {backend.name!r}: {what}; the bound is {bound:g}. Train with --backend exact, or with "
                "--gradient parameter_shift on this backend"
            )
    return {
        "samples": count, **found, "circuits": backend.counters.circuits - circuits,
        "largest_difference": both.largest[torch.complex128], "seconds": round(time.perf_counter() - started, 3),
    }  # fmt: skip

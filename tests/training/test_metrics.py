"""Metrics against scikit-learn, and the learning-rate schedule."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

from qrkt_hw.models.metrics import classification_metrics, logits_of
from qrkt_hw.training.classifier import rate_factor


def test_metrics_are_scikit_learns():
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 4), torch.randint(4, (200,))
    scores, predicted = logits.softmax(-1).double().numpy(), logits.argmax(-1).numpy()
    scores /= scores.sum(1, keepdims=True)
    found = classification_metrics(logits, labels)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["f1"] == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-6)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores, multi_class="ovr"), abs=1e-6)
    assert found["loss"] == pytest.approx(log_loss(labels, scores), abs=1e-6)


def test_auroc_is_the_mean_over_classes_that_occur():
    torch.manual_seed(0)
    logits = torch.randn(50, 4)
    labels = torch.randint(3, (50,))  # class 3 never occurs
    scores = logits.softmax(-1).numpy()
    wanted = np.mean([roc_auc_score(labels == c, scores[:, c]) for c in range(3)])
    assert classification_metrics(logits, labels)["auroc"] == pytest.approx(wanted, abs=1e-6)


def test_auroc_of_one_class_is_not_a_number():
    assert math.isnan(classification_metrics(torch.randn(5, 3), torch.zeros(5, dtype=torch.long))["auroc"])


def test_evaluation_leaves_the_model_in_its_mode():
    model = torch.nn.Sequential(torch.nn.Dropout(0.9), torch.nn.Linear(2, 3)).train()
    batches = [(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))]
    assert torch.equal(logits_of(model, batches)[0], logits_of(model, batches)[0])  # no dropout
    assert model.training


def test_the_rate_rises_then_falls_to_nothing():
    rates = [rate_factor(step, 10, 100) for step in range(101)]
    assert all(a < b for a, b in itertools.pairwise(rates[:10]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[0] > 0 and max(rates) <= 1 and rates[100] == pytest.approx(0)


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (1000, 10), (10, 10), (0, 0)])
def test_odd_lengths_keep_the_rate_between_0_and_1(warmup, total):
    assert all(0 <= rate_factor(step, warmup, total) <= 1 for step in range(20))

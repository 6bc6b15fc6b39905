"""Figures are written, whatever the classes are called."""

import pytest
import torch

from qrkt_hw.plots.charts import plot_confusion, plot_curves


@pytest.mark.parametrize("names", [["a", "b"], ["$", "a$b$c"], ["ä" * 30, "_^{"], [str(k) for k in range(40)]])
def test_a_confusion_matrix_for_any_names(names, tmp_path):
    labels = torch.arange(len(names)).repeat(3)
    file = plot_confusion(labels.roll(1), labels, names, tmp_path / "plots" / "c.png")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_curves_of_one_epoch(tmp_path):
    row = {"epoch": 1, "train_loss": 2.0, "val_loss": 2.1, "val_auroc": float("nan"), "val_accuracy": 0.1}
    assert plot_curves([row], 1, tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")

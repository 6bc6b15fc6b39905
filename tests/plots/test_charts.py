"""Figures are written, whatever the classes are called."""

import re

import pytest
import torch

from qrkt_hw.plots.charts import apart, over_epochs, plot_beside, plot_comparison, plot_confusion, plot_curves, short


@pytest.mark.parametrize("names", [["a", "b"], ["$", "a$b$c"], ["ä" * 30, "_^{"], [str(k) for k in range(40)]])
def test_a_confusion_matrix_for_any_names(names, tmp_path):
    labels = torch.arange(len(names)).repeat(3)
    file = plot_confusion(labels.roll(1), labels, names, tmp_path / "plots" / "c.png")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_curves_of_one_epoch(tmp_path):
    row = {"epoch": 1, "train_loss": 2.0, "val_loss": 2.1, "val_auroc": float("nan"), "val_accuracy": 0.1}
    assert plot_curves([row], 1, tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("auroc", [0.9, 1.0, float("nan")])
def test_a_comparison_of_perfect_short_and_undefined_runs(auroc, tmp_path):
    def history(epochs, every):
        return [
            {"epoch": k, "seconds": every * k, "field_evaluations": 0, "val_loss": 1 / k, "val_auroc": auroc}
            for k in range(1, epochs + 1)
        ]

    files = plot_comparison([("a", [history(1, 2.0)]), ("b", [history(30, 9.0), history(30, 8.0)])], tmp_path)
    assert [file.name for file in files] == ["loss.png", "auroc.png"]


@pytest.mark.filterwarnings("error")
def test_names_of_runs_are_shown_as_they_are(tmp_path):
    history = [{"epoch": k, "seconds": k, "val_loss": 1 / k, "val_auroc": 0.5} for k in (1, 2)]
    names = ["_mine", "a$b$", "$^{"]
    plot_beside([(n, [history]) for n in names], "val_loss", "loss", {"epoch": "epoch"}, tmp_path / "a.svg")
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "a.svg").read_text())
    assert {"_mine", "a$b$", "$^{"} <= set(map(str.strip, shown))


@pytest.mark.filterwarnings("error")
def test_a_metric_of_few_epochs_is_drawn_as_points(tmp_path):
    history = [{"epoch": k, "fid": 9.0 if k % 2 == 0 else float("nan")} for k in range(1, 6)]
    over_epochs(history, {"FID": {"fid": "measured"}}, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().count("<use ") > 2


def test_replicas_on_coupled_qubits_have_other_shades():
    edges = [(k, k + 1, 0.01) for k in range(9)] + [(1, 8, 0.01)]
    shades = apart([[0, 1], [2, 3], [8, 9], [5, 6]], edges, ["a", "b", "c"])
    assert shades == {0: "a", 1: "a", 2: "b", 3: "b", 8: "b", 9: "b", 5: "a", 6: "a"}
    assert [short(x) for x in (0.05, 250_000, 1.5e6, 2)] == ["0.05", "250k", "1.5M", "2"]

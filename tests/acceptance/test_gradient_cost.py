"""Parameter shift as one broadcast call against the stock gradient; training with it lowers the loss."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from qrkt_hw.commands import main
from qrkt_hw.data import load_data
from qrkt_hw.models.factory import build_model
from qrkt_hw.runs import RunFolder

pytestmark = pytest.mark.acceptance
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.mark.slow
def test_a_backward_pass_is_forty_times_cheaper_than_the_stock_gradient():
    from parameter_shift import compare

    found = compare()
    assert found["largest_difference"] < 1e-9
    assert found["cpu_ratio"] >= 40, found


def test_the_stock_gradient_has_the_same_values_and_costs_more():
    from parameter_shift import compare

    found = compare(batch=1)
    assert found["largest_difference"] < 1e-9
    assert found["cpu_ratio"] > 5, found


def loss_before_and_after(tmp_path, *arguments):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--out", str(out), "--gradient", "parameter_shift", "--limit", "64", "--epochs", "1",
              "--backend", "aer_cpu", *arguments])  # fmt: skip
    assert stopped.value.code == 0
    run = RunFolder.open(out)
    options, data = run.options(), load_data(run.options().data)
    torch.manual_seed(options.training.seed)
    model = build_model(options, data.shape).eval()
    images, labels = data.splits["train"][:]
    losses = []
    for weights in (None, load_file(run.model)):
        if weights is not None:
            model.load_state_dict(weights)
        with torch.no_grad():
            losses.append(torch.nn.functional.cross_entropy(model(images), labels).item())
    details = json.loads((out / "results.json").read_text())["backend_details"]
    assert details["gradient"] == "parameter_shift" and details["circuits"] > 0
    assert np.isfinite(losses).all()
    return losses


def test_training_by_parameter_shift_lowers_the_loss(tmp_path):
    tiny = ["--hidden", "4", "--heads", "2", "--qubits", "2", "--mlp", "2", "--rk-blocks", "1", "--rk", "rk1",
            "--layers", "1", "--patch", "8", "--batch-size", "16", "--warmup-steps", "0"]  # fmt: skip
    before, after = loss_before_and_after(tmp_path, *tiny)
    assert after < before


@pytest.mark.slow
def test_the_default_model_lowers_its_loss_by_parameter_shift(tmp_path):
    before, after = loss_before_and_after(tmp_path)
    assert after < before

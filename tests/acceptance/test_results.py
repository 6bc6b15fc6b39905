"""The runs kept under results/ are whole, and say what docs/results.md shows."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from qrkt_hw.data.base import DataShape
from qrkt_hw.experiments.loading import load
from qrkt_hw.models.factory import count_parameters
from tests.command_line import qrkt

pytestmark = pytest.mark.acceptance
ROOT = Path(__file__).parents[2]
RUNS = sorted(path.parent for path in (ROOT / "results").glob("*/seed-*/config.yaml"))
LIMITS = {"best-mnist": (0.975, 3520), "best-cifar10": (0.62, 20590), "best-imdb": (0.88, 243896)}
DATA = os.environ.get("QRKT_HW_DATA")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.parent.name}-{run.name}")
def test_a_kept_run_loads_and_has_the_parameters_it_states(run):
    results = json.loads((run / "results.json").read_text())
    model = load(run)
    assert count_parameters(model) == results["parameters"]
    if run.parent.name in LIMITS:
        accuracy, most = LIMITS[run.parent.name]
        assert results["test"]["accuracy"] >= accuracy
        assert results["parameters"]["total"] <= most
    data = json.loads((run / "data.json").read_text())
    shape = DataShape.of(data)
    inputs = torch.zeros(2, shape.channels, shape.image_size, shape.image_size)
    if shape.vocabulary:
        inputs = torch.ones(2, 7, dtype=torch.int64)
    with torch.no_grad():
        logits = model(inputs)
    assert logits.shape == (2, len(data["class_names"])) and logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="needs the data sets; set QRKT_HW_DATA to their folder")
@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.parent.name}-{run.name}")
def test_inference_of_a_kept_run_repeats_its_figure(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")  # an inference leaves its record in the run
    done = qrkt("infer", "run", "--data-dir", DATA, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stated = json.loads((run / "results.json").read_text())["test"]
    assert json.loads(done.stdout)["accuracy"] == pytest.approx(stated["accuracy"], abs=2e-4)


def test_the_page_shows_every_kept_group():
    page = (ROOT / "docs" / "results.md").read_text()
    for name in {run.parent.name for run in RUNS}:
        runs = [json.loads((run / "results.json").read_text()) for run in RUNS if run.parent.name == name]
        mean = 100 * sum(run["test"]["accuracy"] for run in runs) / len(runs)
        assert f"| {mean:.2f}" in page, name

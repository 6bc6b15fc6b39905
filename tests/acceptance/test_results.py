"""The runs kept under results/ are whole, and say what docs/results.md shows."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qrkt_hw.experiments.evaluation import classes_of, draw, gan_of, noise
from qrkt_hw.experiments.loading import load
from qrkt_hw.models.factory import count_parameters
from qrkt_hw.plots.images import grid
from qrkt_hw.runs import RunFolder
from tests.command_line import qrkt

pytestmark = pytest.mark.acceptance
ROOT = Path(__file__).parents[2]
RUNS = sorted(path.parent for path in (ROOT / "results").glob("*/seed-*/config.yaml"))
GANS = [ROOT / "results" / name for name in ("qrkt-gan-digits", "qrkt-gan-mnist")]
LIMITS = {
    "best-mnist": (0.975, 3520), "best-mnist-4-qubits": (0.975, 3520), "best-cifar10": (0.62, 20590),
    "best-imdb": (0.88, 243896), "best-cifar100": (0.4, 40000), "best-imagenet-10": (0.5, 25000),
}  # fmt: skip
DATA = os.environ.get("QRKT_HW_DATA")


LOGITS = ROOT / "results" / "logits.json"  # of every kept run when it was kept, for two inputs


def logits(run: Path) -> torch.Tensor:
    """Of two raw inputs that depend on nothing but the run's data: what users give to a loaded model."""
    data = json.loads((run / "data.json").read_text())
    model = load(run)
    words, size = data.get("vocabulary"), data["image_size"]
    if words:
        raw = [" ".join(words[2 + k * step % (len(words) - 2)] for k in range(60)) for step in (97, 1009)]
    else:
        count = 2 * data["channels"] * size**2
        raw = (np.arange(count) * 7919 % 251).astype(np.uint8).reshape(2, data["channels"], size, size)
    with torch.no_grad():
        return model(model.preprocess(raw))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.parent.name}-{run.name}")
def test_a_kept_run_gives_the_logits_it_gave_and_has_the_parameters_it_states(run):
    results = json.loads((run / "results.json").read_text())
    assert count_parameters(load(run)) == results["parameters"]
    if run.parent.name in LIMITS:
        accuracy, most = LIMITS[run.parent.name]
        assert results["test"]["accuracy"] >= accuracy
        assert results["parameters"]["total"] <= most
    found, kept = logits(run), torch.tensor(json.loads(LOGITS.read_text())[f"{run.parent.name}/{run.name}"])
    assert found.shape == kept.shape == (2, len(json.loads((run / "data.json").read_text())["class_names"]))
    # other processors add in another order; a wrong gate or weight is thousands of times more
    torch.testing.assert_close(found, kept, rtol=0, atol=1e-4 * float(kept.abs().max()))


def test_every_run_is_kept_with_its_logits():
    assert len(RUNS) >= 64
    assert sorted(json.loads(LOGITS.read_text())) == sorted(f"{run.parent.name}/{run.name}" for run in RUNS)


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="needs the data sets; set QRKT_HW_DATA to their folder")
@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.parent.name}-{run.name}")
def test_inference_of_a_kept_run_repeats_its_figure(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")  # an inference leaves its record in the run
    done = qrkt("infer", "run", "--data-dir", DATA, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stated = json.loads((run / "results.json").read_text())["test"]
    assert json.loads(done.stdout)["accuracy"] == pytest.approx(stated["accuracy"], abs=2e-4)


@pytest.mark.parametrize("run", GANS, ids=lambda run: run.name)
def test_a_kept_gan_draws_the_images_it_drew(run):
    model = gan_of(RunFolder.open(run))
    images = draw(model, noise(64, model.latent, 0), classes_of(model, 64))
    with Image.open(run / "samples.png") as kept:
        difference = np.abs(np.asarray(grid(images, 8), int) - np.asarray(kept, int))
    assert difference.max() <= 1  # other processors add in another order, which can round a pixel the other way


@pytest.mark.slow
@pytest.mark.parametrize("run", GANS, ids=lambda run: run.name)
def test_evaluation_of_a_kept_gan_repeats_its_figures(run, tmp_path):
    kept = json.loads(min((run / "evaluation").glob("*.json")).read_text())  # the oldest; a user may have made others
    where = []
    if kept["protocol"]["dataset"] != "digits":
        if DATA is None:
            pytest.skip("needs the data sets; set QRKT_HW_DATA to their folder")
        where = ["--data-dir", DATA]
    shutil.copytree(run, tmp_path / "run")
    how = ["--split", kept["protocol"]["split"], "--samples", kept["protocol"]["samples"]]
    done = qrkt("evaluate", "run", *where, *map(str, how), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["metrics"] == pytest.approx(kept["metrics"], rel=0.01)
    assert found["reference_classifier"]["confident"] == pytest.approx(
        kept["reference_classifier"]["confident"], abs=0.005
    )


def test_the_page_shows_every_kept_group():
    page = (ROOT / "docs" / "results.md").read_text()
    for name in {run.parent.name for run in RUNS}:
        runs = [json.loads((run / "results.json").read_text()) for run in RUNS if run.parent.name == name]
        mean = 100 * sum(run["test"]["accuracy"] for run in runs) / len(runs)
        assert f"| {mean:.2f}" in page, name

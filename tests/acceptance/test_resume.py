"""Training killed at any moment and resumed equals training that was never interrupted, bit for bit."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.acceptance.killing_jobs import forked
from tests.command_line import qrkt

pytestmark = pytest.mark.acceptance
TRAIN = ["train", "--epochs", "3", "--limit", "200", "--batch-size", "50", "--rk", "rk1", "--rk-blocks", "1"]
TRAIN += ["--warmup-steps", "2"]
MOMENTS = [
    "folder-made", "first-step", "first-epoch", "first-validation", "metrics-written-first-epoch", "second-epoch",
    "later-validation", "best-model-written", "checkpoint-half-written", "checkpoint-written", "last-epoch",
    "evaluation", "before-results",
]  # fmt: skip
# the epoch that was under way, where it is not the last one in metrics.csv
EPOCH = {
    "folder-made": 1, "first-step": 1, "first-epoch": 1, "first-validation": 1, "second-epoch": 2,
    "later-validation": 2, "checkpoint-half-written": 2, "last-epoch": 3, "evaluation": 4, "before-results": 4,
}  # fmt: skip
QUICK = {"checkpoint-half-written"}


def trained(folder: Path):
    """Weights, and metrics without the columns that measure the machine."""
    with (folder / "metrics.csv").open() as handle:
        rows = [
            {k: v for k, v in row.items() if "seconds" not in k and "memory" not in k} for row in csv.DictReader(handle)
        ]
    results = json.loads((folder / "results.json").read_text())
    return (folder / "model.safetensors").read_bytes(), rows, results["test"], results["best_epoch"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finished = qrkt(*TRAIN, "--out", "run", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return trained(folder / "run")


@pytest.mark.parametrize("moment", [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in MOMENTS])
def test_killed_and_resumed_equals_uninterrupted(moment, uninterrupted, tmp_path):
    status, said = forked([*TRAIN, "--out", "run"], tmp_path, moment)
    assert status == -9, said
    kept = whole_epochs(tmp_path / "run")
    assert kept >= EPOCH.get(moment, rows_written(tmp_path / "run")) - 1
    resumed = qrkt("train", "--resume", "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert trained(tmp_path / "run") == uninterrupted
    # what was whole is not done again
    assert len([line for line in resumed.stderr.splitlines() if line.startswith("epoch ")]) == 3 - kept
    assert not list((tmp_path / "run").glob(".*.tmp"))


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """A run of three epochs, and what becomes of it when it goes on to five without interruption."""
    folder = tmp_path_factory.mktemp("longer")
    assert qrkt(*TRAIN, "--out", "three", cwd=folder).returncode == 0
    shutil.copytree(folder / "three", folder / "five")
    assert qrkt("train", "--resume", "five", "--epochs", "5", cwd=folder).returncode == 0
    return folder / "three", folder / "five"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["first-step", "metrics-written-first-epoch", "checkpoint-half-written"])
def test_a_longer_training_that_is_killed_equals_one_that_is_not(moment, longer, tmp_path):
    shutil.copytree(longer[0], tmp_path / "run")
    status, said = forked(["train", "--resume", "run", "--epochs", 5], tmp_path, moment)
    assert status == -9, said
    assert qrkt("train", "--resume", "run", cwd=tmp_path).returncode == 0
    assert trained(tmp_path / "run") == trained(longer[1])
    kept = [json.loads((run / "results.json").read_text()) for run in (tmp_path / "run", longer[1])]
    assert kept[0]["schedule_changed_after"] == kept[1]["schedule_changed_after"] == [3]


def whole_epochs(folder: Path) -> int:
    if not (folder / "last.ckpt").is_file():
        return 0
    return len(torch.load(folder / "last.ckpt", weights_only=True)["record"]["history"])


def rows_written(folder: Path) -> int:
    metrics = folder / "metrics.csv"
    return len(metrics.read_text().splitlines()) - 1 if metrics.is_file() else 0


def test_the_same_seed_gives_the_same_weights(uninterrupted, tmp_path):
    assert qrkt(*TRAIN, "--out", "again", cwd=tmp_path).returncode == 0
    assert trained(tmp_path / "again")[0] == uninterrupted[0]
    assert qrkt(*TRAIN, "--seed", "7", "--out", "other", cwd=tmp_path).returncode == 0
    assert trained(tmp_path / "other")[0] != uninterrupted[0]


def test_a_finished_run_resumes_to_itself(uninterrupted, tmp_path):
    assert qrkt(*TRAIN, "--out", "run", cwd=tmp_path).returncode == 0
    assert qrkt("train", "--resume", "run", cwd=tmp_path).returncode == 0
    assert trained(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("moment", ["first-epoch", pytest.param("later-validation", marks=pytest.mark.slow),
                                    pytest.param("evaluation", marks=pytest.mark.slow)])  # fmt: skip
def test_ctrl_c_leaves_a_run_that_goes_on(moment, uninterrupted, tmp_path):
    status, said = forked([*TRAIN, "--out", "run"], tmp_path, f"{moment}@SIGINT")
    assert status == 130 and "Traceback" not in said, said
    assert qrkt("train", "--resume", "run", cwd=tmp_path).returncode == 0
    assert trained(tmp_path / "run") == uninterrupted

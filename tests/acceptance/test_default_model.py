"""What a newcomer gets: ``qrkt-hw train`` without options, its accuracy over seeds, what the circuits contribute."""

import json
import subprocess
import sys
import time

import pytest

from tests.command_line import qrkt as here

pytestmark = [pytest.mark.acceptance]


def qrkt(*arguments, cwd):
    result = subprocess.run(
        [sys.executable, "-m", "qrkt_hw", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_seeds_learn_the_digits(tmp_path):
    accuracies, without = [], []
    for seed in range(5):
        started = time.perf_counter()
        qrkt("train", "--seed", seed, "--out", f"seed-{seed}", cwd=tmp_path)
        assert time.perf_counter() - started < 90
        results = json.loads((tmp_path / f"seed-{seed}" / "results.json").read_text())
        record = json.loads(qrkt("infer", f"seed-{seed}", "--ablate", "batch-mean", "--json", cwd=tmp_path))
        assert record["count"] == 360
        assert record["accuracy"] == pytest.approx(results["test"]["accuracy"], abs=1e-9)
        accuracies.append(record["accuracy"])
        without.append(record["ablations"]["batch-mean"]["accuracy"])
    print("test accuracy", accuracies, "circuits replaced by their batch mean", without)
    assert sum(accuracies) / 5 >= 0.97
    assert min(accuracies) >= 0.955
    assert max(without) < min(accuracies)


def test_a_short_training_learns(charts, tmp_path):
    done = here("train", "--epochs", 6, "--rk", "rk1", "--warmup-steps", 20, "--out", "short", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "short"
    results = json.loads((folder / "results.json").read_text())
    assert results["test"]["accuracy"] > 0.6
    keys = {
        "test", "validation", "parameters", "qubits", "train_seconds", "cpu_seconds", "best_epoch", "seed", "backend"
    }  # fmt: skip
    assert keys <= set(results)
    assert {"loss", "accuracy", "f1", "auroc"} <= set(results["test"])
    assert set(results["parameters"]) >= {"quantum", "classical", "total"}
    for name in (
        "config.yaml", "metrics.csv", "environment.json", "model.safetensors", "last.ckpt", "plots/curves.png",
        "plots/confusion.png",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0
    assert list((folder / "tensorboard").glob("events*"))
    first = here("infer", "short", "--ablate", "batch-mean", "--ablate", "sine", cwd=tmp_path).stdout
    assert first.startswith("run short") and "batch mean" in first and "sine" in first
    from qrkt_hw import load

    model = load(folder)
    assert not model.training

"""Training on Aer: the torch simulator trains in its place, and Aer is held beside it."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file

from qrkt_hw import QuantumLayer
from qrkt_hw.backends import resolve
from qrkt_hw.backends.aer import AerBackend
from tests.command_line import qrkt

pytestmark = pytest.mark.acceptance
TINY = ["--limit", 24, "--epochs", 2, "--hidden", 4, "--heads", 1, "--mlp", 4, "--rk", "rk1", "--patch", 8]
GAN = ["--model", "gan", "--latent", 4, "--generator-hidden", 16, "--generator-stages", 1, "--generator-patch", 8,
       "--discriminator-rk-blocks", 1, "--loss", "nonsaturating-r1"]  # fmt: skip


def train(folder, backend, *more):
    return qrkt("train", "--backend", backend, *TINY, *more, "--out", "run", cwd=folder)


def results(folder):
    return json.loads((folder / "run" / "results.json").read_text())


def assert_same_weights(one, other):
    ours, theirs = (load_file(folder / "run" / "model.safetensors") for folder in (one, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    assert train(folder, "exact").returncode == 0
    return folder


def test_the_weights_are_those_of_the_exact_backend_and_aer_was_asked(tmp_path, exact):
    done = train(tmp_path, "aer_cpu")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("aer_cpu: the torch simulator trains")
    assert_same_weights(tmp_path, exact)
    found = results(tmp_path)
    held, samples = found["agreement"], found["agreement"]["samples"]
    assert held["largest_difference"] < 1e-12
    # one sample before the first epoch and after each, then those at the end
    assert found["backend_details"]["circuits"] == held["circuits"] // samples * (3 + samples) > 0
    assert f"aer_cpu on {samples} test samples: accuracy" in done.stdout


def test_a_gan_with_a_gradient_penalty_trains(tmp_path):
    done = train(tmp_path, "aer_cpu", *GAN)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path)["agreement"]["largest_difference"] < 1e-12


def test_a_deviation_stops_the_training_and_it_can_be_resumed(tmp_path, exact, monkeypatch):
    right, calls, sound = AerBackend._evaluate, [], 0

    def drifting(self, call):
        calls.append(call)
        return right(self, call) + (1e-7 if len(calls) > sound else 0.0)

    with monkeypatch.context() as patched:
        patched.setattr(AerBackend, "_evaluate", drifting)
        done = train(tmp_path, "aer_cpu")  # from the first circuit on: no epoch is spent, no run is left
        assert done.returncode == 2 and not (tmp_path / "run").exists()
        sound, check = 2 * len(calls), len(calls)
        assert check  # the same circuits in each check
        done = train(tmp_path, "aer_cpu")  # from the first epoch on
    assert done.returncode == 2 and "differs by 1.0e-07" in done.stderr and "the bound is 1e-08" in done.stderr
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 2
    assert qrkt("train", "--resume", "run", cwd=tmp_path).returncode == 0
    assert_same_weights(tmp_path, exact)


@pytest.mark.parametrize("options", [{"shots": 8}, {"gradient": "parameter_shift"}, {"gradient": "spsa"}], ids=str)
def test_samples_and_other_gradients_run_on_aer_itself(options):
    assert resolve("aer_cpu").stand_in is not None
    assert resolve("aer_cpu", **options).stand_in is None
    assert resolve("fake_torino").stand_in is None


def test_a_layer_on_aer_runs_there():
    layer = QuantumLayer(2, ansatz="qrkt", backend="aer_cpu")
    layer(torch.zeros(3, 2))
    assert layer.backend.counters.circuits > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:aer_gpu")
@pytest.mark.parametrize("backend", ["aer_cpu", "aer_gpu"])
def test_the_default_training_takes_less_than_a_minute(tmp_path, backend):
    started = time.perf_counter()
    done = qrkt("train", "--backend", backend, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < 60
    found = results(tmp_path)
    assert found["test"]["accuracy"] > 0.95 and found["agreement"]["largest_difference"] < 1e-8

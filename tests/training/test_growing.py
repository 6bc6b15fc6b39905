"""Runs that grow: more epochs for a run, fine-tuning from a run, names, and the list of runs."""

import csv
import json
import shutil

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import qrkt_hw
from qrkt_hw.errors import UserError
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import Config
from qrkt_hw.training import fit
from qrkt_hw.training.classifier import rate_factor
from tests.command_line import qrkt, refused, trained
from tests.data import writing
from tests.runs.trained import GAN, SMALL

QUIET = Console(quiet=True)


def weights(run):
    return (run / "model.safetensors").read_bytes()


def rows(run):
    with (run / "metrics.csv").open() as file:
        read = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if "seconds" not in k and "memory" not in k} for row in read]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run of two epochs, ``two``."""
    return grown(tmp_path_factory.mktemp("growing"), "two", SMALL)


@pytest.fixture(scope="module")
def gans(tmp_path_factory):
    """A GAN of two epochs, ``gan``, whose learning rates stay."""
    return grown(tmp_path_factory.mktemp("gans"), "gan", [*GAN, "--rate-decay", "none"])


def grown(folder, name, options):
    options = [2 if options[k - 1] == "--epochs" else option for k, option in enumerate(options)]
    trained(folder, *options, "--batch-size", 16, "--warmup-steps", 1, out=name)
    return folder


@pytest.fixture
def two(home, tmp_path):
    return shutil.copytree(home / "two", tmp_path / "two")


@pytest.mark.slow
def test_constant_rates_make_a_longer_training_equal_to_one_from_the_start(gans, tmp_path):
    shutil.copytree(gans / "gan", tmp_path / "gan")
    done = qrkt("train", "--resume", "gan", "--epochs", 3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole = [3 if GAN[k - 1] == "--epochs" else option for k, option in enumerate(GAN)]
    whole = trained(tmp_path, *whole, "--rate-decay", "none", "--batch-size", 16, "--warmup-steps", 1, out="whole")
    assert rows(tmp_path / "gan") == rows(whole)
    assert load_equal(tmp_path / "gan", whole)
    assert json.loads((tmp_path / "gan" / "results.json").read_text())["schedule_changed_after"] == [2]


def load_equal(one, other):
    a, b = (load_file(run / "model.safetensors") for run in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_more_epochs_follow_the_rates_of_the_longer_training(two, home):
    done = qrkt("train", "--resume", "two", "--epochs", 4, cwd=two.parent)
    assert done.returncode == 0, done.stderr
    assert "from epoch 3 on with the learning rates of 4 epochs; so far they were those of 2" in done.stderr
    found, steps = rows(two), 4
    assert found[:2] == rows(home / "two") and [row["epoch"] for row in found] == ["1", "2", "3", "4"]
    for row in found:
        total = steps * (2 if int(row["epoch"]) <= 2 else 4)
        rate = 0.02 * rate_factor(int(row["epoch"]) * steps, 1, total)
        assert float(row["learning_rate"]) == pytest.approx(rate)
    results = json.loads((two / "results.json").read_text())
    assert results["schedule_changed_after"] == [2]
    assert RunFolder.open(two).options().training.epochs == 4
    qrkt_hw.load(two)


@pytest.mark.slow
def test_a_longer_training_that_is_stopped_equals_one_that_is_not(two, tmp_path):
    def stop(epoch, _):
        raise KeyboardInterrupt if epoch == 3 else AssertionError

    copy = RunFolder.open(shutil.copytree(two, tmp_path / "copy"))
    whole = fit.resume(RunFolder.open(two), QUIET, epochs=4)
    kept = fit.train

    def stopped(*arguments):
        kept(*arguments[:-1], stop)

    fit.train = stopped
    try:
        with pytest.raises(KeyboardInterrupt):
            fit.resume(copy, QUIET, epochs=4)
    finally:
        fit.train = kept
    assert copy.summary()["state"] == "3 of 4 epochs"
    again = fit.resume(copy, QUIET)
    assert weights(again.path) == weights(whole.path) and rows(again.path) == rows(whole.path)
    results = [json.loads(run.results.read_text()) for run in (again, whole)]
    assert results[0]["schedule_changed_after"] == results[1]["schedule_changed_after"] == [2]


def test_the_same_number_of_epochs_changes_nothing(two, home):
    assert qrkt("train", "--resume", "two", "--epochs", 2, cwd=two.parent).returncode == 0
    assert weights(two) == weights(home / "two") and rows(two) == rows(home / "two")
    assert "schedule_changed_after" not in json.loads((two / "results.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--resume", "two", "--epochs", 1], ["--epochs", "2 epochs already"]),
        (["--resume", "two", "--epochs", 0], ["--epochs", "0"]),
        (["--resume", "two", "--hidden", 8], ["--hidden"]),
        (["--resume", "two", "--from", "two"], ["--from"]),
        (["--from", "two", "--preset", "best-mnist"], ["--preset", "--from"]),
        (["--from", "two", "--qubits", 2], ["--qubits", "two", "4"]),
        (["--from", "two", "--ansatz", "qrkt"], ["--ansatz", "ry_rz_ring"]),
        (["--from", "two", "--hidden", 8], ["--from", "blocks.0"]),
        (["--from", "two", "--model", "gan"], ["--model"]),
        (["--from", "nothing"], ["nothing"]),
        (["--name", "a/b"], ["--name"]),
        (["--name", " "], ["--name"]),
        (["--name", "a", "--out", "b"], ["--name", "--out"]),
    ],
)
def test_wrong_use_is_one_sentence_and_leaves_nothing(two, arguments, words):
    before = sorted(two.parent.rglob("*"))
    refused(qrkt("train", *arguments, cwd=two.parent), *words)
    after = [p for p in two.parent.rglob("*") if p.name != ".lock"]
    assert sorted(after) == [p for p in before if p.name != ".lock"] and not (two.parent / "runs").exists()


def test_fine_tuning_starts_from_the_weights_of_a_run(two):
    done = qrkt("train", "--from", "two", "--epochs", 1, "--learning-rate", 1e-9, "--name", "fine", cwd=two.parent)
    assert done.returncode == 0, done.stderr
    fine = two.parent / "runs" / "fine"
    mine, theirs = load_file(fine / "model.safetensors"), load_file(two / "model.safetensors")
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-5) for name in mine)
    origin = json.loads((fine / "origin.json").read_text())
    assert origin["from"] == {"run": "two", "weights_sha256": RunFolder(two).weights_sha256(), "fresh": []}
    assert RunFolder.open(fine).options().model == RunFolder.open(two).options().model
    assert (fine / "circuits" / "circuits.json").is_file()
    # a name alone is a run under runs/
    assert qrkt("infer", "fine", "--limit", 5, cwd=two.parent).returncode == 0


def test_fine_tuning_on_other_classes_takes_a_fresh_head(two):
    root = writing.image_folder(two.parent / "pets", {"train": 40, "val": 10})
    options = ["--dataset", f"folder:{root}", "--image-size", 16, "--epochs", 1]
    done = qrkt("train", "--from", "two", *options, "--out", "pets-run", cwd=two.parent)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stderr.splitlines() if line.startswith("starts from two"))
    assert "head.weight" in line and "tokens." in line and "blocks." not in line
    assert qrkt_hw.load(two.parent / "pets-run").class_names == ("cat", "dog")


@pytest.mark.slow
def test_fine_tuning_on_another_backend_and_killed_before_its_first_epoch(two, tmp_path):
    source = RunFolder.open(two)
    options = source.options().replace(epochs=1, limit=8)

    def stopped(*_):
        raise KeyboardInterrupt

    kept, fit.train = fit.train, stopped
    try:
        with pytest.raises(KeyboardInterrupt):
            fit.start(options, tmp_path / "stopped", QUIET, source=source)
    finally:
        fit.train = kept
    again = fit.resume(RunFolder.open(tmp_path / "stopped"), QUIET)
    whole = fit.start(options, tmp_path / "whole", QUIET, source=source)
    assert weights(again.path) == weights(whole.path)
    there = options.replace(backend="fake_torino", shots=0, limit=2, batch_size=2, gradient="spsa")
    noisy = fit.start(there, tmp_path / "noisy", QUIET, source=source)
    assert json.loads(noisy.results.read_text())["backend"] == "fake_torino"


@pytest.mark.slow
def test_a_gan_is_fine_tuned_too(gans, tmp_path):
    done = qrkt("train", "--from", gans / "gan", "--epochs", 1, "--learning-rate", 1e-9, "--out", "fine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(qrkt("runs", gans, "--json", cwd=tmp_path).stdout)
    assert [(one["name"], one["state"]) for one in found] == [("gan", "finished")]
    mine, theirs = load_file(tmp_path / "fine" / "model.safetensors"), load_file(gans / "gan" / "model.safetensors")
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-5) for name in mine)


def test_a_run_without_weights_is_no_source(two):
    (two / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no trained model"):
        fit.start(Config(epochs=1, **SOURCE), two.parent / "x", QUIET, source=RunFolder.open(two))


SOURCE = {"limit": 64, "hidden": 16, "mlp": 8, "rk": "rk1", "rk_blocks": 1}


def test_runs_are_listed(two):
    folder = two.parent
    (folder / "runs").mkdir()
    assert "no run under runs/" in qrkt("runs", cwd=folder).stdout
    shutil.copytree(two, folder / "runs" / "20261126-101112-digits-vit")
    shutil.copytree(two, folder / "runs" / "deep" / "b")
    half = shutil.copytree(two, folder / "runs" / "half")
    (half / "results.json").unlink()
    (half / "metrics.csv").write_text("\n".join((half / "metrics.csv").read_text().splitlines()[:2]))
    broken = shutil.copytree(two, folder / "runs" / "broken")
    (broken / "config.yaml").write_text("seed: [")
    shown = qrkt("runs", cwd=folder)
    assert shown.returncode == 0 and max(map(len, shown.stdout.splitlines())) <= 80
    assert shown.stdout.split()[:5] == ["name", "preset", "seed", "accuracy", "state"]
    found = {one["name"]: one for one in json.loads(qrkt("runs", "--json", cwd=folder).stdout)}
    states = {name: one["state"] for name, one in found.items()}
    assert states == {
        "20261126-101112-digits-vit": "finished", "deep/b": "finished", "half": "1 of 2 epochs", "broken": "damaged",
    }  # fmt: skip
    test = json.loads((two / "results.json").read_text())["test"]
    assert found["20261126-101112-digits-vit"]["accuracy"] == test["accuracy"] and found["half"]["seed"] == 42
    assert [one["name"] for one in json.loads(qrkt("runs", "two", "--json", cwd=folder).stdout)] == ["two"]
    refused(qrkt("runs", "nowhere", cwd=folder), "nowhere")


def test_a_run_keeps_its_preset(tmp_path):
    small = ["--hidden", 8, "--mlp", 4, "--rk-blocks", 1, "--epochs", 1, "--limit", 20]
    run = trained(tmp_path, "--preset", "digits-hardware", *small, out="run")
    assert json.loads((run / "origin.json").read_text())["preset"] == "digits-hardware"
    assert "digits-hardware" in qrkt("runs", ".", cwd=tmp_path).stdout

"""Commands on several ranks give what they give in one process: generate, infer, evaluate, baseline, tune."""

import csv
import json
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qrkt_hw.experiments.python import train
from qrkt_hw.models.metrics import ReferenceClassifier
from tests.acceptance.on_ranks import GAN, SMALL, commands, environment, flags, on_ranks, slurm, whole
from tests.command_line import refused

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module", autouse=True)
def server():
    """The server of ranks loads torch while other tests run."""
    forkserver.ensure_running()


def reference(path: Path) -> Path:
    """A reference classifier of digits that nobody trained."""
    torch.manual_seed(0)
    said = ("test_accuracy", *(f"confident_of_{what}" for what in ("test", "gaussian", "covariance", "shuffled")))
    save_file(ReferenceClassifier(1, 10).state_dict(), path, dict.fromkeys(said, "0.5"))
    return path


def without_time(record: dict) -> dict:
    """The figures of an inference that two processes must agree in."""
    return {key: value for key, value in record.items() if "seconds" not in key and key != "backend_details"}


def images(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


NOISY = ["--backend", "fake_torino", "--json"]
SAMPLED = [*NOISY, "--shots", "40", "--value-errors"]
NEVER = {  # what several ranks cannot do
    ("generate", "gan", "--count", "1"): ["--samples 1"],
    ("infer", "vit", "--backend", "aer_cpu", "--shots", "9"): ["'aer_cpu' samples in one process"],
    ("infer", "vit", "--backend", "fake_torino", "--shots", "9", "--dry-run"): ["--dry-run"],
    ("evaluate", "gan", "--samples", "100", "--reference-classifier", "vit/config.yaml"): ["--reference-classifier"],
}


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """A GAN and a classifier, each of one epoch."""
    folder = tmp_path_factory.mktemp("both")
    for name, keys in {"gan": {**GAN, "limit": 32}, "vit": SMALL}.items():
        train(**{**keys, "epochs": 1}, out=folder / name, figures=False)
    return folder


def compared(folder: Path, count: int, drawn: int, noisy: int, long: bool) -> None:
    """Commands on ranks give what they give in one process, and what they refuse the first rank says."""
    classified = ["--samples", "100", "--reference-classifier", reference(folder / "reference.safetensors"), "--json"]
    lines = [
        ["generate", "gan", "--count", drawn, "--out"],
        ["infer", "vit", "--limit", noisy, *NOISY],
        ["infer", "vit", "--limit", "3", *SAMPLED],
        ["evaluate", "gan", *classified, *(["--reference-scores"] if long else [])],
        *([["generate", "gan", "--count", "3", *NOISY[:2], "--shots", "40", "--out"]] if long else []),
    ]

    def at(where):
        return [[*line, f"{where}-{count}-{k}"] if line[-1] == "--out" else line for k, line in enumerate(lines)]

    one = commands(str(folder), at("one"))
    kept = len(list((folder / "vit" / "inference").iterdir()))
    found, *others = whole(on_ranks(count, commands, str(folder), [*at("many"), *NEVER]))
    for done, words in zip(found[len(lines) :], NEVER.values(), strict=True):
        refused(done, *words)
    assert all(done.returncode == 0 for done in [*one, *found[: len(lines)]]), [one, found]
    for rank in others:  # the first one tells
        assert not any(done.stdout or "qrkt-hw: " in done.stderr for done in rank), rank
        assert [done.returncode for done in rank] == [done.returncode for done in found]
    assert len(list((folder / "vit" / "inference").iterdir())) == kept + 2  # and writes
    for k in (0, 4) if long else (0,):
        assert images(folder / f"one-{count}-{k}") == images(folder / f"many-{count}-{k}")
    for alone, divided in zip(one[1:4], found[1:4], strict=True):
        theirs, ours = without_time(json.loads(alone.stdout)), without_time(json.loads(divided.stdout))
        assert near(ours, theirs), (ours, theirs)


def near(ours, theirs) -> bool:
    """Equal but for rounding, through dicts and lists."""
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(near(ours[key], value) for key, value in theirs.items())
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(near, ours, theirs))
    return ours == (pytest.approx(theirs, rel=1e-4, abs=1e-5, nan_ok=True) if isinstance(theirs, float) else theirs)


def test_two_ranks_generate_infer_and_evaluate_what_one_process_does(both):
    compared(both, 2, 11, 5, long=False)


@pytest.mark.slow
def test_three_ranks_do_with_last_batches_of_few_samples(both):
    compared(both, 3, 251, 257, long=True)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["vit", "gan"])
def test_baselines_on_two_ranks_are_those_of_one_process(run, both):
    found = []
    for where, count in (("alone", 1), ("divided", 2)):
        out = both / f"{run}-{where}"
        out.mkdir()
        reference(out / "reference-classifier.safetensors")
        line = ["baseline", run, "--epochs", "1", "--out", out, *(["--trials", "2"] if run == "vit" else [])]
        results = on_ranks(count, commands, str(both), [line]) if count > 1 else [commands(str(both), [line])]
        assert [done.returncode for (done,) in whole(results)] == [0] * count, results
        record = json.loads((out / "baselines.json").read_text())
        sides = record["sides"].values()
        kept = ("learning_rate", "parameters", "test", "validation_auroc_by_rate", "metrics")
        found.append([{key: side[key] for key in kept if key in side} for side in sides])
        # a run there is like any other: nothing keeps on how many ranks it was trained
        assert not any("devices: '2'" in file.read_text() for file in out.rglob("config.yaml"))
    for theirs, ours in zip(*found, strict=True):
        assert near(ours, theirs), (ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("by", [slurm, environment])
def test_processes_of_one_job_share_the_trials_of_a_study(by, tmp_path):
    line = ["tune", "--search", "seed=1,2,3,4", "--sampler", "grid", "--no-prune", "--trials", "4"]
    done = whole(on_ranks(2, commands, str(tmp_path), [[*line, *flags({**SMALL, "epochs": 1})]], by=by))
    assert [one.returncode for (one,) in done] == [0, 0], done
    with (tmp_path / "tuning" / "trials.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert sorted({row["seed"] for row in rows}) == ["1", "2", "3", "4"]
    # each trained some of them, in one process
    assert all("trial " in one.stderr and "best: " in one.stdout for (one,) in done)

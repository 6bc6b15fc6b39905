"""Figures that are printed and kept: intervals, tests, undefined values, what a training takes, pictures and URLs."""

import json
import math
import multiprocessing
import os
import re
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from qrkt_hw.backends import resolve
from qrkt_hw.commands.options import merge
from qrkt_hw.errors import UserError
from qrkt_hw.experiments import tuning
from qrkt_hw.experiments.devices import on_backend
from qrkt_hw.experiments.evaluation import draw, save_images
from qrkt_hw.models.metrics import classification_metrics, mcnemar, wilson
from qrkt_hw.nn.quantum import QuantumLayer
from qrkt_hw.runs import RunFolder
from tests.command_line import qrkt, refused, trained

SMALL = ["--hidden", 4, "--heads", 1, "--mlp", 4, "--rk", "rk1", "--rk-blocks", 1, "--patch", 8, "--epochs", 1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("trained"), *SMALL, "--limit", 20)


def test_an_interval_has_a_width_where_all_or_none_are_right():
    low, high = wilson(20, 20)
    assert high == 1 and low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)
    for count in (1, 2, 20, 1000):
        for right in {0, 1, count // 2, count - 1, count}:
            low, high = wilson(right, count)
            assert 0 <= low <= right / count <= high <= 1 and high - low > 0
            assert wilson(count - right, count) == pytest.approx([1 - high, 1 - low])
    widths = [np.diff(wilson(n // 2, n))[0] for n in (10, 100, 1000)]
    assert all(wide > narrow for wide, narrow in pairwise(widths))
    assert all(map(math.isnan, wilson(0, 0)))


def test_wilson_covers_the_true_share_in_about_95_of_100_experiments():
    count, share = 40, 0.9
    chances = [math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(count + 1)]
    inside = sum(c for k, c in enumerate(chances) if wilson(k, count)[0] <= share <= wilson(k, count)[1])
    assert 0.92 < inside < 0.98


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (0, 6), (3, 7), (5, 5), (12, 40)])
def test_the_paired_test_is_the_binomial_of_the_pairs(first, second):
    n = first + second
    chances = [math.comb(n, k) / 2**n for k in range(n + 1)]
    tail = sum(c for c in chances if c <= chances[first] * (1 + 1e-9))
    assert mcnemar(first, second) == pytest.approx(min(1, tail))
    assert mcnemar(first, second) == mcnemar(second, first)


def test_the_record_of_a_device_holds_pairs_and_intervals_of_its_own_counts():
    torch.manual_seed(0)
    model = nn.Sequential(QuantumLayer(2, "ry_rz_ring"), nn.Linear(2, 2)).eval()
    inputs, labels = torch.randn(40, 2), torch.randint(2, (40,))
    logits, _, found = on_backend(model, [(inputs, labels)], resolve("aer_cpu", shots=4, seed=1), None)
    exact = nn.Sequential(QuantumLayer(2, "ry_rz_ring", initial_weights=model[0].weight.detach()), model[1])(inputs)
    there, here = logits.argmax(-1) == labels, exact.argmax(-1) == labels
    assert found["discordant"] == [int((there & ~here).sum()), int((here & ~there).sum())] != [0, 0]
    assert found["p_value"] == mcnemar(*found["discordant"])
    assert found["interval"] == wilson(int(there.sum()), 40) and found["exact_interval"] == wilson(int(here.sum()), 40)
    alike = int((logits.argmax(-1) == exact.argmax(-1)).sum())
    assert found["agreement_interval"] == wilson(alike, 40)


def test_infer_prints_no_interval_without_a_width(run, tmp_path):
    done = qrkt("infer", run, "--backend", "aer_cpu", "--limit", 3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"95 % interval (\d\.\d+) to (\d\.\d+) \(Wilson\)", done.stdout)
    assert len(found) == 3 and all(float(high) - float(low) > 0.2 for low, high in found)
    assert "only on exact 0: p = 1 (exact McNemar test)" in done.stdout and "bootstrap" not in done.stdout


def test_what_is_undefined_is_called_so(run, tmp_path):
    assert "AUROC undefined" in qrkt("infer", run, "--limit", 1, cwd=tmp_path).stdout
    every = classification_metrics(torch.randn(0, 3), torch.zeros(0, dtype=torch.long))
    assert all(map(math.isnan, every.values()))
    odd = classification_metrics(torch.tensor([[math.nan, 0.0], [1.0, 0.0]]), torch.tensor([0, 0]))
    assert all(map(math.isnan, odd.values()))  # NaN would be taken for class 0, and be right
    one = classification_metrics(torch.tensor([[2.0, 0.0], [3.0, 1.0]]), torch.tensor([0, 0]))
    assert one["accuracy"] == 1 and one["f1"] == 1 and math.isnan(one["auroc"])


def test_more_than_the_split_holds_is_said(run, tmp_path):
    done = qrkt("infer", run, "--limit", 1_000_000, cwd=tmp_path)
    assert "360 samples on exact" in done.stdout
    assert "--limit 1000000: the split has 360 samples, and all are taken" in done.stderr


def test_switches_of_a_device_that_may_be_off_can_be_set():
    for switch in ("pack", "dynamical_decoupling", "twirl_gates", "twirl_measure"):
        for value in (True, False):
            assert getattr(merge(None, None, {switch: value}).backend, switch) is value
    with pytest.raises(UserError, match="yes and no"):
        merge(None, None, {"hidden": True})


def test_a_training_away_from_exact_says_what_it_takes_and_stays_the_same(tmp_path):
    done = [qrkt("train", *SMALL, "--limit", 4, "--backend", "aer_cpu", "--shots", 16, "--out", name, cwd=tmp_path)
            for name in ("a", "b")]  # fmt: skip
    said = done[0].stderr
    line = next(line for line in said.splitlines() if line.startswith("aer_cpu evaluates"))
    assert re.search(r"evaluates [\d,]+ circuits for a training sample, [\d,]+ in an epoch: about .* an epoch", line)
    assert "(from 4 samples)" in line and "--backend exact" in line
    assert said.index(line) < said.index("epoch 1/1")
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("a", "b")]
    assert results[0]["test"] == results[1]["test"]
    sample = int(re.search(r"evaluates ([\d,]+) circuits", line)[1].replace(",", ""))
    epoch = int(re.search(r"sample, ([\d,]+) in", line)[1].replace(",", ""))
    assert epoch == 4 * sample > 0


def test_the_estimate_leaves_the_run_as_it_would_have_been(tmp_path, monkeypatch):
    from qrkt_hw.training import fit

    arguments = ("train", *SMALL, "--limit", 4, "--backend", "aer_cpu", "--shots", 16, "--out")
    assert qrkt(*arguments, "with", cwd=tmp_path).returncode == 0
    monkeypatch.setattr(fit, "estimate", lambda *_: [])
    assert qrkt(*arguments, "without", cwd=tmp_path).returncode == 0
    assert (tmp_path / "with" / "model.safetensors").read_bytes() == (
        tmp_path / "without" / "model.safetensors"
    ).read_bytes()
    one, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("with", "without"))
    for key in ("test", "validation"):
        assert one[key] == other[key]


def test_exact_training_estimates_nothing(run):
    assert "in an epoch" not in (run.parent / "run" / "metrics.csv").read_text()
    from qrkt_hw.data import load_data
    from qrkt_hw.models.factory import build_model
    from qrkt_hw.training.fit import estimate

    options = RunFolder(run).options()
    data = load_data(options.data)
    backend = resolve("exact")
    assert estimate(options, data, build_model(options, data.shape, backend), backend) == []


SECRETS = [
    "mysql://h/x?user=me&password=hunter2", "mysql://h/x?passwd=hunter2", "postgresql://me:hun@ter2@h/x",
    "postgresql://me:hunter2@h/x", "me:hunter2@h/x", "postgresql://me:hunter2@h:99x/x", "postgresql:me:hunter2@h/x",
    "postgresql:///x?user=me&password=hun&ter2=3", "postgresql://h/x?sslpassword=hunter2&token=hunter2",
    "postgresql+nodriver://me:hunter2@h/x", "hunter2", "://hunter2", "mysql://me:hun/ter2@h/x", "postgresql://hunter2@",
]  # fmt: skip


@pytest.mark.parametrize("url", SECRETS)
def test_no_part_of_a_password_is_shown(url, tmp_path):
    shown = tuning.shown(url)
    if url != "postgresql://hunter2@":  # there it is the user
        assert "hun" not in shown and "ter2" not in shown
    if url in (SECRETS[0], SECRETS[2]):
        done = qrkt("tune", "--search", "seed=1,2", "--storage", url, "--out", "out", cwd=tmp_path)
        refused(done, "--storage", "cannot be opened")
        assert "hun" not in done.stderr + done.stdout and "ter2" not in done.stderr + done.stdout
        kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert b"hun" not in kept and b"ter2" not in kept


def test_a_storage_still_says_where_it_is():
    assert tuning.shown("postgresql://me:hunter2@host:5432/db") == "postgresql://me:***@host:5432/db"
    assert tuning.shown("sqlite:////tmp/study.db") == "sqlite:////tmp/study.db"


def many_images(out: Path) -> None:
    save_images(torch.rand(600, 3, 128, 128) * 2 - 1, out)


def test_a_killed_generate_leaves_whole_pictures(tmp_path):
    started = multiprocessing.get_context("forkserver").Process(target=many_images, args=(tmp_path / "out",))
    started.start()
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "out").glob("*.png"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    started.kill()
    started.join()
    found = sorted((tmp_path / "out").glob("*.png"))
    assert 5 <= len(found) < 600
    for path in found[-3:]:
        Image.open(path).load()


def test_pictures_replace_in_one_step(tmp_path, monkeypatch):
    written = []
    plain = Image.Image.save
    monkeypatch.setattr(
        Image.Image, "save", lambda self, path, **more: (written.append(path), plain(self, path, **more))
    )
    save_images(torch.zeros(3, 1, 4, 4), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert not {path.name for path in written} & {"00000.png", "00001.png", "00002.png"}


def test_pixels_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="finite"):
        draw(lambda points, labels: points * math.nan, torch.ones(2, 1, 4, 4))


def test_weights_that_give_no_numbers_are_refused(run, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.yaml", "data.json"):
        (copy / name).write_bytes((run / name).read_bytes())
    state = load_file(run / "model.safetensors")
    save_file({name: value * math.nan for name, value in state.items()}, copy / "model.safetensors")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    refused(qrkt("infer", copy, cwd=tmp_path), "finite")
    refused(qrkt("infer", copy, "--image", "a.png", cwd=tmp_path), "finite")


def test_the_reference_classifier_and_the_evaluation_name_what_cannot_be_written(tmp_path, monkeypatch):
    from qrkt_hw.models.metrics import reference_classifier

    (tmp_path / "file").write_text("")
    data = SimpleNamespace(shape=SimpleNamespace(channels=1, classes=10), name="digits")
    with pytest.raises(UserError, match=r"reference_classifier: .*file cannot be written"):
        reference_classifier(data, None, tmp_path / "file" / "classifier.safetensors")  # refused before it is trained
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        reference_classifier(data, None, tmp_path / "pipe")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    data = SimpleNamespace(**vars(data), splits={"train": range(3)}, mean=(0.1,))
    data.shape.image_size = 8
    with pytest.raises(UserError, match="judges cannot be written"):
        reference_classifier(data, None)

"""A GAN's step in parts, live FID, early stop and what goes wrong in a training."""

import csv
import math
import warnings

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from qrkt_hw.commands.options import merge
from qrkt_hw.data import load_data
from qrkt_hw.errors import RunWarning, UserError
from qrkt_hw.models import metrics
from qrkt_hw.models.factory import build_model
from qrkt_hw.runs.config import Config, unused
from qrkt_hw.training import fit, gan
from qrkt_hw.training.loop import Record

QUIET = Console(quiet=True)
TINY = {
    "model": "gan", "latent": 8, "generator_hidden": 32, "generator_patch": 2, "hidden": 8, "heads": 2, "mlp": 8,
    "patch": 4, "limit": 40, "batch_size": 16, "epochs": 3, "rk": "rk1", "discriminator_rk_blocks": 1, "threads": 1,
}  # fmt: skip
NEW = {
    "conditional": True, "generator_ansatz": "orthogonal_butterfly", "generator_qubits": 8,
    "discriminator_ansatz": "orthogonal_brick", "penalty_every": 2, "diffaugment": "color,translation,cutout",
}  # fmt: skip


def started(out, after=None, **keys):
    return fit.start(Config(**{**TINY, **keys}), out, QUIET, after, figures=False)


def task_of(**keys):
    options = Config(**{**TINY, **keys})
    data = load_data(options.data)
    return fit.make_task(options, data, build_model(options, data.shape))


@pytest.fixture
def quick_classifier(monkeypatch, tmp_path):
    monkeypatch.setattr(metrics, "STEPS", 2)
    monkeypatch.setattr(metrics, "EXTRACTORS", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_step_in_parts_is_the_step(tmp_path):
    keys = {**NEW, "dtype": "complex128", "epochs": 1}
    whole, parts = (started(tmp_path / str(n), accumulate=n, **keys) for n in (1, 3))
    found, again = load_file(whole.model), load_file(parts.model)
    for name, value in found.items():
        torch.testing.assert_close(again[name], value, rtol=1e-9, atol=1e-12)
    with pytest.raises(UserError, match=r"accumulate: .*wgangp-eps"):
        started(tmp_path / "drift", accumulate=2, loss="wgangp-eps")


def test_in_mixed_precision_the_penalty_is_that_of_full_precision(tmp_path):
    keys = {**NEW, "penalty_every": 8, "epochs": 1}  # the first step's alone
    found = [started(tmp_path / to, precision=to, **keys) for to in ("32-true", "bf16-mixed")]
    full, mixed = (next(csv.DictReader(run.metrics.open())) for run in found)
    assert float(full["penalty"]) == float(mixed["penalty"]) > 0
    assert full["discriminator_loss"] != mixed["discriminator_loss"]
    assert float(mixed["discriminator_loss"]) == pytest.approx(float(full["discriminator_loss"]), rel=0.02)


def test_stopped_and_resumed_a_conditional_gan_is_the_same_bit_for_bit(tmp_path, quick_classifier):
    keys = {**NEW, "accumulate": 2, "live_fid": 100, "samples_every": 1}
    whole = started(tmp_path / "whole", **keys)

    def stop(epoch, metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        started(tmp_path / "stopped", stop, **keys)
    again = fit.resume(fit.RunFolder.open(tmp_path / "stopped"), QUIET, figures=False)
    assert again.model.read_bytes() == whole.model.read_bytes()
    rows = [list(csv.DictReader(run.metrics.open())) for run in (whole, again)]
    fids = [[row["fid"] for row in part] for part in rows]
    assert fids[0] == fids[1] and len(set(fids[0])) == 3


def test_the_weights_of_the_lowest_live_fid_are_kept_and_patience_ends_a_training():
    task = task_of(live_fid=100, patience=2, samples_every=1)
    record, kept = Record(), []
    for epoch, fid in enumerate([50.0, 40.0, math.nan, 45.0, 41.0], start=1):
        assert not task.enough(record)
        record.history.append({"epoch": epoch, "fid": fid})
        task.ranks.rank = 1  # which writes no grid
        kept.append(task.keep(record, None))
    task.ranks.rank = 0
    assert kept == [True, True, False, False, False] and record.best_epoch == 2
    assert "40.0 has not fallen for 2" in task.enough(record)
    assert "--live-fid" in unused(Config(**TINY, patience=2), ["patience"])


@pytest.mark.parametrize("side", [-15.0, 15.0])
def test_a_generator_whose_images_are_all_black_or_all_white_is_led_back(side):
    task = task_of(projection="classical", generator_heads=1)
    with torch.no_grad():
        task.model.generator.leave.bias.fill_(side)
        assert task.model.generator(torch.randn(4, 8)).abs().min() == 1  # so that no gradient passes
    task.start_epoch(1)
    task.step(next(iter(task.batches)), 0)
    assert (task.model.generator.leave.bias.grad.sign() == math.copysign(1, side)).all()

    def penalty(raw):
        return gan.tanh_penalty(raw, raw.tanh())

    alike = torch.full((2, 1, 4, 4), side)
    assert penalty(alike) > 0 == penalty(alike.clamp(-2, 2))
    assert penalty(torch.cat([alike, -alike])) == 0 == penalty(alike[:1])


def test_a_training_says_once_what_went_wrong():
    task = task_of(epochs=1)
    task._pixels = torch.randn(8, 1, 8, 8), torch.zeros(8, 1, 8, 8)
    with pytest.warns(RunWarning) as said:
        for _ in range(2):
            task._detect(5, 0.001)
    assert len(said) == 2 and "discriminator has won" in str(said[0].message) and "alike" in str(said[1].message)
    assert "--penalty" in str(said[0].message) and "--diffaugment" in str(said[0].message)
    task = task_of(loss="hinge", diffaugment="cutout,color,translation")
    with pytest.warns(RunWarning, match="try a lower --discriminator-learning-rate$"):
        task._tell("it is so", "so")
    task = task_of(loss="wgangp-eps")
    task._pixels = torch.randn(8, 1, 8, 8), torch.randn(8, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task._detect(5, -4.0)  # a loss without a bound says nothing


def test_a_class_vanishes_where_training_images_have_it():
    task = task_of(live_fid=100, epochs=1)

    def only_the_first(images):
        return torch.randn(len(images), 4), torch.eye(10)[torch.zeros(len(images), dtype=torch.long)]

    for usual, said in ((0.05, False), (0.2, True)):
        task._reference = only_the_first, torch.randn(50, 4), torch.tensor([1 - usual, usual, *[0.0] * 8])
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always", RunWarning)
            task._live_fid(1)
        text = "".join(str(one.message) for one in found if one.category is RunWarning)
        assert ("class 1 is 0.0% of 100 generated samples and 20.0% of the training images" in text) == said


def test_options_of_networks_that_would_have_no_effect_are_named():
    gan = {**TINY, "generator_projection": "classical", "generator_ansatz": "qrkt"}
    assert "the generator has no circuits" in unused(Config(**gan), ["generator_ansatz"])
    both = {**TINY, "generator_ansatz": "qrkt", "discriminator_ansatz": "qrkt", "ansatz": "rx_ring"}
    assert "take its place" in unused(Config(**both), ["ansatz"])
    with pytest.raises(UserError, match=r"only (--)?model gan reads it"):
        merge(None, None, {"generator_ansatz": "qrkt"})

"""Presets for devices: their plans fit IBM's free ten minutes, and they classify under the noise of a device."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qrkt_hw.backends import resolve
from qrkt_hw.backends.budget import JOB_SECONDS, QUICK_SECONDS
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.data.base import DataShape
from qrkt_hw.experiments import presets
from qrkt_hw.experiments.devices import correct_readout
from qrkt_hw.experiments.inference import infer_split
from qrkt_hw.experiments.loading import read_split, restored
from qrkt_hw.models.factory import build_model, set_backend
from qrkt_hw.resources.forecast import BATCH, enlarge_batch, forecast
from qrkt_hw.resources.logical import stages_of
from qrkt_hw.resources.subject import usual_shape
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import Config

pytestmark = pytest.mark.acceptance
RESULTS = Path(__file__).parents[2] / "results"
DATA = os.environ.get("QRKT_HW_DATA")
SHOTS, OPEN_PLAN = 1024, 600
PLANS = {"best-mnist-device": (1000, 250, OPEN_PLAN), "digits-device": (360, 64, 60)}  # images, shots, QPU seconds
DEVICES = ("fake_torino", "fake_fez")


def test_fifty_images_take_less_than_half_of_the_open_plan():
    options = Config(**presets.load("digits-hardware"))
    model = build_model(options, DataShape(1, 8, 10)).eval()
    backend = resolve("fake_torino", shots=SHOTS, seed=0)
    set_backend(model, backend)
    with torch.no_grad():
        model(torch.zeros(50, 1, 8, 8))
    used = backend.counters
    assert 0 < used.executions < SHOTS * used.circuits / 20
    assert JOB_SECONDS * used.rounds + QUICK_SECONDS * used.executions < OPEN_PLAN / 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("preset", PLANS)
def test_a_test_set_fits_the_plan_with_a_seventy_fifth_of_the_executions(preset, device, tmp_path):
    images, shots, limit = PLANS[preset]
    options = Config(**presets.load(preset))
    shape, backend = DataShape(**usual_shape(options)), resolve(device, shots=shots)
    model = build_model(options, shape, backend)
    correct_readout(RunFolder(tmp_path), model, shape, images, backend, False)  # as infer does by default
    stages = stages_of(model, shape)
    found = forecast(stages, images, BATCH, backend)
    assert found.seconds <= limit
    one_each = images * sum(call.circuits * call.template.num_outputs for stage in stages for call in stage)
    assert one_each * shots >= 75 * found.executions


def digits_on_torino():
    options = Config(**presets.load("digits-device"))
    shape, backend = DataShape(**usual_shape(options)), resolve("fake_torino", shots=64)
    return build_model(options, shape, backend), shape, backend


def test_a_job_holds_as_many_images_as_its_limits_allow():
    model, shape, backend = digits_on_torino()
    stages, images = stages_of(model, shape), 10_000
    before = forecast(stages, images, BATCH, backend)
    enlarge_batch(model, shape, images, backend)
    found = forecast(stages, images, backend.batch, backend)
    assert found.rounds == found.jobs == len(stages) * -(-images // backend.batch) < before.jobs / 3
    assert before.seconds - found.seconds == pytest.approx(JOB_SECONDS * (before.jobs - found.jobs), rel=0.02)
    backend.job_limits = replace(backend.job_limits, executions=found.executions // found.jobs // 2)
    enlarge_batch(model, shape, images, backend)
    halved = forecast(stages, images, backend.batch, backend)
    assert halved.jobs == halved.rounds > found.jobs


@pytest.mark.parametrize(
    ("terms", "batch"), [({}, None), ({"batch": 500}, 500), ({"batch": 1}, None), ({"batch": "500"}, None)]
)
def test_a_resumed_inference_has_the_batches_it_was_begun_with(terms, batch, tmp_path):
    model, shape, backend = digits_on_torino()
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.start("infer", "fake_torino", {"terms": terms})
    enlarge_batch(model, shape, 1000, backend, journal=tmp_path / "journal.sqlite")
    assert backend.batch == batch  # None: of BATCH samples, as in journals of earlier versions


@pytest.mark.slow
@pytest.mark.parametrize("preset", PLANS)
def test_a_kept_run_loses_little_on_a_device(preset, tmp_path):
    if preset == "best-mnist-device" and DATA is None:
        pytest.skip("needs the data set; set QRKT_HW_DATA to its folder")
    images, shots, _ = PLANS[preset]
    run = RunFolder.open(shutil.copytree(RESULTS / preset / "seed-0", tmp_path / "run"))
    backend = resolve("fake_torino", shots=shots, seed=0)
    samples = read_split(run, "test", images, DATA and Path(DATA))
    model = restored(run, backend)
    correct_readout(run, model, DataShape.of(run.description()), len(samples), backend, False)
    found = infer_split(run, model, "test", samples, backend)
    assert found["accuracy"] >= 0.95
    assert found["exact_accuracy"] - found["accuracy"] <= 0.015


@pytest.mark.parametrize("preset", PLANS)
def test_kept_figures_reach_the_target_on_both_devices(preset):
    images, shots, _ = PLANS[preset]
    files = [RESULTS / preset / f"seed-{seed}" / "devices.json" for seed in range(3)]
    for file in files:
        records = {record["backend"]: record for record in json.loads(file.read_text()) if record["count"] == images}
        for device in DEVICES:
            assert records[device]["backend_details"]["shots"] == shots
            assert records[device]["accuracy"] >= 0.95
            assert records[device]["exact_accuracy"] - records[device]["accuracy"] <= 0.015


def test_a_thousand_images_of_cifar10_fit_the_open_plan_ahead_of_a_linear_classifier():
    linear = json.loads((RESULTS / "linear_classifier.json").read_text())["cifar10-device"]["accuracy"]
    folder = RESULTS / "cifar10-device" / "seed-0"
    records = {record["backend"]: record for record in json.loads((folder / "devices.json").read_text())}
    for device in DEVICES:
        plan = json.loads((folder / f"plan-{device}-1000.json").read_text())
        assert records[device]["count"] == plan["samples"] == 1000 and plan["seconds"] <= OPEN_PLAN
        assert records[device]["executions"] == plan["executions"]
        assert records[device]["interval"][0] > linear
        assert records[device]["exact_accuracy"] - records[device]["accuracy"] <= 0.015


def test_other_devices_and_drifted_noise_cost_less_than_a_point_and_a_half():
    kept = json.loads((RESULTS / "robustness.json").read_text())
    page = (RESULTS.parent / "docs" / "backends.md").read_text()
    assert kept["images"] == 360 and len({row["device"] for row in kept["rows"]}) == 9
    assert {row["noise"].partition(",")[0] for row in kept["rows"]} == {
        "as calibrated", "drifted", "readout errors doubled"
    }  # fmt: skip
    for row in kept["rows"]:
        assert row["exact_accuracy"] - row["accuracy"] <= 0.015
        assert (
            f"| {row['device']} | {row['noise']} | {row['replicas']} | {100 * row['accuracy']:.1f} | "
            f"{100 * row['exact_accuracy']:.1f} |"
        ) in page

"""Shots where they matter, on a fake device: planned, run and kept."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from torch.utils.data import TensorDataset

from qrkt_hw.backends import Budget, resolve
from qrkt_hw.data.base import DataShape
from qrkt_hw.data.batches import loader
from qrkt_hw.experiments import devices, inference, presets
from qrkt_hw.models.factory import build_model
from qrkt_hw.models.metrics import logits_of, refined
from qrkt_hw.models.weights import sha256
from qrkt_hw.resources.forecast import plan
from qrkt_hw.resources.subject import usual_shape
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import Config
from qrkt_hw.training import classifier
from tests.command_line import qrkt, refused, trained

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"
TINY = ["--epochs", 1, "--limit", 64, "--hidden", 8, "--mlp", 4, "--heads", 2, "--rk", "rk1", "--rk-blocks", 1]
DEVICE = ["--backend", "fake_lima", "--shots", 32]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("shots"), *TINY, "--ansatz", "brickwork")


def stopped(*arguments):
    raise KeyboardInterrupt


def infer(run, *flags):
    found = qrkt("infer", run, "--limit", 6, *flags, "--json", cwd=run.parent)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout), found.stderr


def test_shots_go_where_the_logits_need_them_in_the_same_time(run):
    even, _ = infer(run, *DEVICE, "--dry-run")
    planned, said = infer(run, *DEVICE, "--shots-per-stage", "auto", "--dry-run")
    first, second = planned["stage_shots"]
    assert first != second and f"shots of the stages: {first}, {second}" in said
    assert f"of {first}, {second} shots: {planned['executions'] // 6:,} executions" in said  # one circuit at a time
    assert 0.9 * even["seconds"] < planned["seconds"] <= even["seconds"]
    record, _ = infer(run, *DEVICE, "--shots-per-stage", "auto")
    assert record["stage_shots"] == [first, second] and record["executions"] == planned["executions"]
    again, _ = infer(run, "--backend", "fake_lima", "--shots-per-stage", f"{first},{second}")
    assert again["executions"] == planned["executions"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--backend", "exact", "--shots-per-stage", "auto"], ["applies only to devices that sample", "'exact'"]),
        ([*DEVICE, "--shots-per-stage", "8,8"], ["--shots", "leave one of them out"]),
        ([*DEVICE[:2], "--shots-per-stage", "8,8,8"], ["3 numbers", "2 sequential stages"]),
        (["--backend", "fake_lima", "--shots", 0, "--mitigation", "trex"], ["--mitigation", "give --shots"]),
        ([*DEVICE, "--fine-tune", 10**9, "--dry-run"], ["--fine-tune", "the training split has"]),
        ([*DEVICE[:2], "--shots-per-stage", "8,x"], ["'8,x'", "auto, or numbers"]),
        ([*DEVICE[:2], "--shots-per-stage", "8,0"], ["'8,0'", "from 1 to"]),
        ([*DEVICE[:2], "--shots-per-stage", "9,9", "--max-qpu-seconds", 2.1], ["--max-qpu-seconds", "too many"]),
    ],
)
def test_other_shots_are_refused(run, flags, words):
    refused(qrkt("infer", run, *flags, cwd=run.parent), *words)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(classifier, "REFIT_STEPS", 8)


def test_a_model_is_fitted_to_what_the_device_returns(run, quick):
    before = (run / "model.safetensors").read_bytes()
    planned, _ = infer(run, *DEVICE, "--fine-tune", 5, "--dry-run")
    alone, _ = infer(run, *DEVICE, "--dry-run")
    assert planned["fitted"] == 5 and planned["rounds"] == 2 * alone["rounds"]
    record, said = infer(run, *DEVICE, "--fine-tune", 5)
    found = record["fine_tuned"]
    assert record["backend_details"]["estimated_seconds"] == pytest.approx(planned["seconds"], abs=1e-3)
    assert found["images"] == 5 and found["loss_after"] <= found["loss_before"]
    assert all(0.5 < layer["damping"] < 1.1 for layer in found["layers"].values())
    assert "fitted to the device by 5 training images" in said and (run / "inference" / found["weights"]).is_file()
    assert (run / "model.safetensors").read_bytes() == before
    exact, _ = infer(run)
    assert record["exact_accuracy"] == exact["accuracy"]  # of the model as it was trained
    fitted = (run / "inference" / found["weights"]).read_bytes()
    infer(run, *DEVICE, "--fine-tune", 6)
    assert (run / "inference" / found["weights"]).read_bytes() == fitted  # that an earlier record names
    again, _ = infer(run, *DEVICE, "--fine-tune", 5)
    assert {**again["fine_tuned"], "seconds": 0} == {**found, "seconds": 0}
    files = [json.loads(file.read_text()) for file in (run / "inference").glob("2*.json")]
    assert any(one.get("fine_tuned") == found for one in files)


def test_the_most_uncertain_samples_are_evaluated_twice(run):
    plain, _ = infer(run, *DEVICE)
    planned, _ = infer(run, *DEVICE, "--repeat-uncertain", 3, "--dry-run")
    record, _ = infer(run, *DEVICE, "--repeat-uncertain", 3)
    assert (planned["samples"], planned["repeated"], planned["rounds"]) == (6, 3, 2 * plain["rounds"])
    assert record["circuits"] == planned["circuits"] == 1.5 * plain["circuits"]
    assert record["repeated"] == 3 and record["loss"] != plain["loss"]
    assert record["backend_details"]["estimated_seconds"] == pytest.approx(planned["seconds"], abs=1e-3)
    refused(qrkt("infer", run, "--repeat-uncertain", 3, cwd=run.parent), "--repeat-uncertain", "'exact'")
    refused(qrkt("infer", run, *DEVICE, "--limit", 2, "--repeat-uncertain", 3, cwd=run.parent), "2 are evaluated")


def test_images_of_a_fine_tuning_go_together_however_few_are_inferred(run):
    found = qrkt("infer", run, *DEVICE, "--limit", 4, "--fine-tune", 40, "--dry-run", "--json", cwd=run.parent)
    plan = json.loads(found.stdout)
    assert (plan["fitted"], plan["rounds"], plan["jobs"]) == (40, 4, 4)  # two stages of each


def test_no_cheaper_model_is_named_that_exceeds_the_limit(tmp_path):
    run = trained(tmp_path, *["rk2" if word == "rk1" else word for word in TINY], "--ansatz", "brickwork")
    asked = ["infer", run, *DEVICE, "--limit", 4, "--max-qpu-seconds", 7, "--dry-run"]
    refused(qrkt(*asked, cwd=tmp_path), "a model trained with --rk rk1 would take 5")
    refused(qrkt(*asked, "--fine-tune", 4, cwd=tmp_path), "no cheaper model is known")


def test_readout_is_corrected_by_default_only_within_the_limit_of_all_that_runs(tmp_path):
    options = Config(**presets.load("digits-device"))
    shape, backend = DataShape(**usual_shape(options)), resolve("fake_torino", shots=1024)
    model, where = build_model(options, shape, backend), RunFolder(tmp_path)
    more = {"fitted": 100, "repeated": 100}
    plain = plan(model, options, shape, 100, 100, backend, None, **more).seconds
    limit = Budget(plain + 1)
    assert devices.correct_readout(where, model, shape, 100, backend, False, (), limit) is not None
    backend = resolve("fake_torino", shots=1024)
    assert devices.correct_readout(where, model, shape, 100, backend, False, (), limit, **more) is None
    assert plan(model, options, shape, 100, 100, backend, limit, **more).seconds == plain


def test_the_mean_is_that_of_the_least_margins():
    logits = torch.tensor([[0.0, 5.0], [1.0, 1.5], [3.0, 2.9], [9.0, 0.0]])
    samples = TensorDataset(torch.arange(4.0)[:, None], torch.zeros(4, dtype=torch.int64))
    model = torch.nn.Linear(1, 2)
    again, _ = logits_of(model, loader(samples, 4))
    found = refined(model, samples, logits, 2, 1)
    assert found[[0, 3]].equal(logits[[0, 3]]) and found[[1, 2]].allclose((logits + again)[[1, 2]] / 2)


def test_fine_tuning_needs_a_device(run):
    refused(qrkt("infer", run, "--fine-tune", 5, cwd=run.parent), "--fine-tune", "'exact'", "name a device")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_fitting_that_was_paid_for_is_not_paid_for_again(run, quick, service, monkeypatch):
    service.reset()
    entry = {"provider": "ibm", "name": "ibm_fez", "submissions_per_minute": 100_000, "patience": 5, "shots": 32}
    (run.parent / "backends.yaml").write_text(yaml.safe_dump({"fez": entry}))
    asked = ["infer", run, "--backend", "fez", "--limit", 6, "--fine-tune", 4, "--shots-per-stage", "auto"]
    plan = json.loads(qrkt(*asked, "--dry-run", "--json", cwd=run.parent).stdout)
    complete, fitted = inference.infer_split, []

    monkeypatch.setattr(inference, "infer_split", stopped)
    said = qrkt(*asked, cwd=run.parent).stderr
    typed = shlex.split(said.split("resume with: qrkt-hw ")[1].splitlines()[0])
    assert {"--fine-tune", "--shots-per-stage"} <= {*typed}
    assert len(service.report()["jobs"]) == 2

    def watched(_, model, *others):
        fitted.append(sha256(model.state_dict()))
        return complete(_, model, *others)

    monkeypatch.setattr(inference, "infer_split", watched)
    monkeypatch.setattr(classifier, "refit", lambda *_: pytest.fail("fitted again"))
    found = qrkt(*typed, "--json", cwd=run.parent)
    assert found.returncode == 0, found.stderr
    record, report = json.loads(found.stdout), service.report()
    assert not report["twice"] and len(report["jobs"]) == plan["jobs"] == 4
    assert plan["seconds"] == pytest.approx(report["seconds"], rel=0.01)
    assert record["backend_details"]["billed_seconds"] == pytest.approx(report["seconds"], abs=0.01)
    assert fitted == [sha256(safetensors.torch.load_file(run / "inference" / record["fine_tuned"]["weights"]))]
    monkeypatch.setattr(inference, "infer_split", complete)
    assert qrkt("jobs", "export", run, "--out", "record.zip", cwd=run.parent).returncode == 0
    checked = qrkt("jobs", "check", "record.zip", cwd=run.parent)
    assert checked.returncode == 0 and "6 samples on fez" in checked.stdout, checked.stderr


@pytest.mark.slow
def test_the_examples_of_the_page(tmp_path, quick):
    (block,) = re.findall(r"## Few shots\n.*?```bash\n(.*?)```", PAGE.read_text(), re.S)
    for line in block.splitlines():
        limit = 64 if " train " in line else 40 if "--repeat-uncertain" in line else 4
        words = [*shlex.split(line)[1:], "--limit", limit]
        words += ["--epochs", 1] if " train " in line else []
        done = qrkt(*words, cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)


def fit(run, *flags, source=None):
    asked = ("fit-to", source or run, "--backend", "fake_lima", "--max-qpu-seconds", 30, "--limit", 6, *flags)
    found = qrkt(*asked, cwd=run.parent)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_proposals_fit_the_budget_and_the_file_runs_the_first(run):
    found = json.loads(fit(run, "--check", 2, "--out", "fit.yaml", "--plot", "fit.png", "--json"))["proposals"]
    accuracies = [one["expected_accuracy"] for one in found if one["front"]]
    seconds = [one["seconds"] for one in found if one["front"]]
    assert accuracies == sorted(accuracies, reverse=True) and seconds == sorted(seconds, reverse=True)
    assert all(one["seconds"] <= 30 for one in found) and any(one["spacing"] for one in found)
    assert all(one["checked"]["count"] == 2 for one in found)
    assert (run.parent / "fit.png").stat().st_size > 1000
    planned, _ = infer(run, "--config", "fit.yaml", "--max-qpu-seconds", 30, "--dry-run")
    assert planned["seconds"] == pytest.approx(found[0]["seconds"])
    assert planned["executions"] == found[0]["executions"]
    other, _ = infer(run, "--config", "fit.yaml", "--shots", 16, "--dry-run")  # a flag replaces what the file says
    assert other["executions"] < planned["executions"]
    refused(qrkt("train", "--config", "fit.yaml", cwd=run.parent), "--config", "infer RUN --config")
    (run.parent / "odd.yaml").write_text("inference: {shotz: 3}")
    refused(qrkt("infer", run, "--config", "odd.yaml", cwd=run.parent), "--config", "'shotz'")
    (run.parent / "plain.yaml").write_text("hidden: 8")
    refused(qrkt("infer", run, "--config", "plain.yaml", cwd=run.parent), "--config", "no section 'inference'")


def test_models_like_a_preset_are_trained_shortly_and_said_so(run):
    shown = fit(
        run, "--epochs", 1, "--check", 0, "--search", "limit=48", "--search", "hidden=4,8", "--search", "heads=1",
        "--out", "preset.yaml", source="digits-hardware",
    )  # fmt: skip
    assert all(len(line) <= 80 for line in shown.splitlines()[:3]) and "trained for 1 epochs, with noise" in shown
    values = yaml.safe_load((run.parent / "preset.yaml").read_text())
    assert values["shot_noise"] >= 16 and values["noise_device"] == "fake_lima" and "epochs" not in values
    assert values["inference"]["backend"] == "fake_lima"
    done = qrkt("train", "--config", "preset.yaml", "--epochs", 1, "--out", "again", cwd=run.parent)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["run", "--backend", "exact", "--max-qpu-seconds", 9], ["--backend", "'exact' is a simulator"]),
        (["run", "--backend", "fake_lima", "--max-qpu-seconds", 1], ["--max-qpu-seconds", "take at least"]),
        (["run", "--backend", "fake_lima", "--max-qpu-seconds", 9, "--epochs", 2], ["--epochs", "name a preset"]),
        (["digits-hardware", "--backend", "fake_lima", "--max-qpu-seconds", 1], ["--max-qpu-seconds", "no model"]),
        (["digits-hardware", "--backend", "fake_lima", "--max-qpu-seconds", 9, "--search", "hidden=4:8"], ["interval"]),
        (["nothing", "--backend", "fake_lima", "--max-qpu-seconds", 9], ["'nothing'", "qrkt-hw presets list"]),
        (["run", "--backend", "fake_lima", "--max-qpu-seconds", "inf"], ["--max-qpu-seconds", "finite"]),
        (["run", "--backend", "fake_lima,fake_quito", "--max-qpu-seconds", 9], ["--backend", "fake_lima,fake_quito"]),
        (["run", "--backend", "fake_lima", "--max-qpu-seconds", 9, "--out", "."], ["--out", "is a folder"]),
        (["digits-hardware", "--backend", "fake_lima", "--max-qpu-seconds", 9, "--search", "epochs=1,2"], ["epochs"]),
    ],
)
def test_budgets_that_fit_nothing_are_refused(run, flags, words):
    refused(qrkt("fit-to", *(run if word == "run" else word for word in flags), cwd=run.parent), *words)


def test_a_run_is_found_by_its_name(run, tmp_path):
    shutil.copytree(run, tmp_path / "runs" / "few")
    asked = ["fit-to", "few", "--backend", "fake_lima", "--max-qpu-seconds", 1, "--limit", 6]
    refused(qrkt(*asked, cwd=tmp_path), "6 samples take at least")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_repetition_that_was_stopped_runs_nothing_twice(run, service, monkeypatch):
    service.reset()
    entry = {"provider": "ibm", "name": "ibm_fez", "submissions_per_minute": 100_000, "patience": 5, "shots": 32}
    (run.parent / "backends.yaml").write_text(yaml.safe_dump({"fez": entry}))
    asked = ["infer", run, "--backend", "fez", "--limit", 4, "--repeat-uncertain", 4]  # all: the same angles twice
    plan = json.loads(qrkt(*asked, "--dry-run", "--json", cwd=run.parent).stdout)
    complete = devices.refined
    monkeypatch.setattr(devices, "refined", stopped)
    said = qrkt(*asked, cwd=run.parent).stderr
    typed = shlex.split(said.split("resume with: qrkt-hw ")[1].splitlines()[0])
    assert "--repeat-uncertain" in typed and len(service.report()["jobs"]) == 2
    monkeypatch.setattr(devices, "refined", complete)
    found = qrkt(*typed, "--json", cwd=run.parent)
    assert found.returncode == 0, found.stderr
    record, report = json.loads(found.stdout), service.report()
    assert len(report["jobs"]) == plan["jobs"] == 4  # the first stage has the same circuits in both passes
    assert plan["seconds"] == pytest.approx(report["seconds"], rel=0.01)
    assert record["backend_details"]["billed_seconds"] == pytest.approx(report["seconds"], abs=0.01)
    assert qrkt("jobs", "export", run, "--out", "repeated.zip", cwd=run.parent).returncode == 0
    checked = qrkt("jobs", "check", "repeated.zip", cwd=run.parent)
    assert checked.returncode == 0 and "4 samples on fez" in checked.stdout, checked.stderr

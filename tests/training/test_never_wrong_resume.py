"""A resumed training counts and samples as one that was never stopped, and takes up no damaged checkpoint."""

import errno
import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qrkt_hw.errors import UserError
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import Config
from qrkt_hw.training import fit, loop
from tests.command_line import qrkt, refused
from tests.data.writing import image_folder

TINY = {"image_size": 8, "patch": 8, "hidden": 4, "heads": 1, "mlp": 2, "qubits": 2, "rk": "rk1", "rk_blocks": 1,
        "epochs": 3, "batch_size": 8, "warmup_steps": 1}  # fmt: skip
GAN = {"model": "gan", "latent": 4, "generator_hidden": 16, "generator_patch": 4, "loss": "hinge",
       "discriminator_rk_blocks": 1, "generator_rk_blocks": "0",
       **{key: value for key, value in TINY.items() if key != "rk_blocks"}, "patch": 4}  # fmt: skip
QUIET = Console(quiet=True)


class Stopped(Exception):
    """What a power cut is to these tests."""


@pytest.fixture
def stops_in_epoch_2(monkeypatch):
    """Ends the process' training in its second epoch, when some of its circuits have run."""
    epochs = []

    class Progress(loop.TrainingProgress):
        def end_epoch(self, epoch, metrics):
            super().end_epoch(epoch, metrics)
            epochs.append(epoch)

        def step(self):
            if epochs:
                raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(loop, "TrainingProgress", Progress)
        yield patch


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data") / "images", {"train": 20, "test": 12}, size=8)


def measured(run: RunFolder):
    """``results.json`` and ``metrics.csv`` without what the clock and the memory say, and the weights."""
    results = json.loads(run.results.read_text())
    for key in ("train_seconds", "cpu_seconds", "evaluation_seconds", "peak_memory_mb"):
        del results[key]
    results["backend_details"].pop("seconds", None)
    return results, run.model.read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"backend": "aer_cpu", "shots": 20}, id="aer"),
        pytest.param({"backend": "fake_manila", "shots": 20}, id="fake"),
        pytest.param({}, id="exact"),
        pytest.param({**GAN, "backend": "aer_cpu", "shots": 20}, id="gan"),
    ],
)
def test_a_stopped_training_counts_and_samples_as_one_that_was_not(changes, images, tmp_path, stops_in_epoch_2):
    options = Config.model_validate({"dataset": f"folder:{images}", **({} if "model" in changes else TINY), **changes})
    with pytest.raises(Stopped):
        fit.start(options, tmp_path / "stopped", QUIET)
    stops_in_epoch_2.undo()
    whole = fit.start(options, tmp_path / "whole", QUIET)
    stopped = fit.resume(RunFolder.open(tmp_path / "stopped"), QUIET)
    assert measured(stopped) == measured(whole)
    if "backend" in changes:  # the exact simulator is asked for tensors, not for circuits
        assert measured(whole)[0]["backend_details"]["rounds"] > 10
    again = fit.resume(RunFolder.open(tmp_path / "stopped"), QUIET)  # nothing is left to train
    assert measured(again) == measured(whole)


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    options = Config.model_validate({"dataset": f"folder:{images}", **TINY, "epochs": 2})
    return fit.start(options, tmp_path_factory.mktemp("run") / "run", QUIET).path


def state(content):
    return content["optimizer_states"][0]["state"][0]


CHECKPOINTS = {
    "epoch": lambda c: c["record"]["history"][-1].update(epoch=7),
    "epoch-text": lambda c: c["record"]["history"][-1].update(epoch="one"),
    "epoch-missing": lambda c: c["record"]["history"].pop(),
    "history": lambda c: c["record"].update(history=[{"epoch": 1.5}]),
    "history-text": lambda c: c["record"].update(history="long"),
    "history-empty": lambda c: c["record"].update(history=[]),
    "best": lambda c: c["record"].update(best=[0.5]),
    "best-text": lambda c: c["record"].update(best=("high", "low")),
    "best-epoch": lambda c: c["record"].update(best_epoch="none"),
    "seconds": lambda c: c["record"].update(train_seconds="long"),
    "steps": lambda c: state(c).update(step=torch.tensor(1.0)),
    "steps-nan": lambda c: state(c).update(step=torch.tensor(float("nan"))),
    "optimizers": lambda c: c.update(optimizer_states=[]),
    "optimizers-two": lambda c: c["optimizer_states"].append(c["optimizer_states"][0]),
    "optimizer-empty": lambda c: c["optimizer_states"][0].update(state={}),
    "optimizer-keys": lambda c: c["optimizer_states"][0].pop("param_groups"),
    "optimizer-nan": lambda c: state(c)["exp_avg"].fill_(float("nan")),
    "optimizer-scalar": lambda c: state(c).update(exp_avg=torch.tensor(0.0)),
    "optimizer-shape": lambda c: state(c).update(exp_avg=torch.zeros(77)),
    "weights-nan": lambda c: next(iter(c["state_dict"].values())).fill_(float("nan")),
    "weights-int": lambda c: c["state_dict"].update({k: v.int() for k, v in c["state_dict"].items()}),
    "counters": lambda c: c["record"]["backend"].update(counters={"rounds": "many"}),
    "counters-odd": lambda c: c["record"]["backend"].update(counters={"nope": 1}),
    "record": lambda c: c.pop("record"),
    "list": lambda c: c.clear(),
}


@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_an_odd_checkpoint_is_refused_in_a_sentence(damage, run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace("epochs: 2\n", "epochs: 3\n"))
    content = torch.load(copy / "last.ckpt", weights_only=True)
    CHECKPOINTS[damage](content)
    torch.save(content, copy / "last.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt"):
        fit.resume(RunFolder.open(copy), QUIET)


def of_lightnings_trainer(content):
    """The checkpoint as releases that trained with Lightning's Trainer wrote it."""
    epochs = len(content["record"]["history"])
    return {
        "epoch": epochs - 1,
        "global_step": 3 * epochs,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": content["state_dict"],
        "loops": {"fit_loop": {"epoch_progress": {"current": {"completed": epochs - 1}}}},
        "callbacks": {"Recorder": content["record"]},
        "optimizer_states": content["optimizer_states"],
        "lr_schedulers": [{"last_epoch": 3 * epochs}],
    }


def test_a_checkpoint_of_an_earlier_release_is_resumed_and_a_damaged_one_refused(images, tmp_path, stops_in_epoch_2):
    options = Config.model_validate({"dataset": f"folder:{images}", **TINY})
    with pytest.raises(Stopped):
        fit.start(options, tmp_path / "stopped", QUIET)
    stops_in_epoch_2.undo()
    whole, file = fit.start(options, tmp_path / "whole", QUIET), tmp_path / "stopped" / "last.ckpt"
    earlier = of_lightnings_trainer(torch.load(file, weights_only=True))
    for damaged in ({"callbacks": {}}, {"callbacks": {"Recorder": {}}}, {"optimizer_states": [{}]}, {"state_dict": {}}):
        torch.save({**earlier, **damaged}, file)
        with pytest.raises(UserError, match=r"last\.ckpt"):
            fit.resume(RunFolder.open(tmp_path / "stopped"), QUIET)
    shutil.copytree(tmp_path / "stopped", tmp_path / "first")
    first = {key: value for key, value in earlier["callbacks"]["Recorder"].items() if key != "backend"}
    for name, kept in (("stopped", earlier), ("first", {**earlier, "callbacks": {"Recorder": first}})):
        torch.save(kept, tmp_path / name / "last.ckpt")
        assert measured(fit.resume(RunFolder.open(tmp_path / name), QUIET)) == measured(whole)


def test_a_training_that_is_broken_off_leaves_its_curves_on_the_disk(images, tmp_path):
    def stop(epoch, metrics):
        if epoch == 2:
            raise Stopped

    with pytest.raises(Stopped):
        fit.start(Config.model_validate({"dataset": f"folder:{images}", **TINY}), tmp_path / "run", QUIET, stop)
    curves = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert len(curves.Scalars("val_auroc")) == 2


def test_a_flipped_bit_in_a_checkpoint_never_passes(run, tmp_path):
    data = (run / "last.ckpt").read_bytes()
    whole = measured(RunFolder(run))
    refused = 0
    for place in range(100, len(data), len(data) // 8):
        copy = tmp_path / str(place)
        shutil.copytree(run, copy)
        (copy / "last.ckpt").write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        try:
            found = fit.resume(RunFolder.open(copy), QUIET)
        except UserError:
            refused += 1
        else:
            assert measured(found) == whole
    assert refused > 2


def test_a_run_that_goes_on_after_its_end_keeps_no_results_of_another_model(run, tmp_path):
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run, copy.path)
    copy.config.write_text(copy.config.read_text().replace("epochs: 2\n", "epochs: 30\n"))
    fit.resume(copy, QUIET)
    assert json.loads(copy.results.read_text())["weights_sha256"] == copy.weights_sha256()
    from qrkt_hw import load

    load(copy)


def test_a_file_that_grows_too_large_is_a_sentence_and_leaves_nothing(images, tmp_path):
    options = [word for key, value in TINY.items() for word in (f"--{key.replace('_', '-')}", value)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        found = qrkt("train", "--dataset", f"folder:{images}", *options, "--out", "run", cwd=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    refused(found, "File too large")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_a_sentence(images, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loop, "save_weights", full)
    options = Config.model_validate({"dataset": f"folder:{images}", **TINY})
    with pytest.raises(UserError, match="No space left"):
        fit.start(options, tmp_path / "run", QUIET)
    assert not Path(tmp_path / "run").exists()

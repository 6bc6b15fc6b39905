"""Damaged weights, failed starts and damaged files of a run are refused in a sentence."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qrkt_hw.errors import RunWarning
from qrkt_hw.runs import newest
from tests.command_line import qrkt, refused
from tests.runs.trained import GAN, SMALL, copied, loss


# weights --------------------------------------------------------------------------------------------------------------
def changed(change):
    def apply(file: Path) -> None:
        state = load_file(file)
        name = next(n for n, v in state.items() if v.numel() > 8)
        save_file({**state, name: change(state[name])}, file)

    return apply


def one_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-9] ^= 4
    file.write_bytes(bytes(data))


WEIGHTS = {
    "nan": changed(lambda t: t * float("nan")),
    "inf": changed(lambda t: t.index_fill(0, torch.tensor([0]), float("inf"))),
    "int32": changed(lambda t: t.to(torch.int32)),
    "double": changed(lambda t: t.double()),
    "shape": changed(lambda t: t.reshape(-1)[:-1].clone()),
    "other": changed(lambda t: t + 0.01),
    "bit": one_bit,
}


@pytest.mark.parametrize("damage", WEIGHTS)
@pytest.mark.parametrize("command", [["infer"], ["train", "--resume"]], ids=["infer", "resume"])
def test_damaged_weights_are_refused_in_a_sentence(damage, command, home, tmp_path):
    run = copied(home / "plain", tmp_path / "run")
    WEIGHTS[damage](run / "model.safetensors")
    refused(qrkt(*command, run, cwd=tmp_path), "model.safetensors")


def test_weights_are_refused_where_nothing_kept_their_hash(home, tmp_path):
    run = copied(home / "plain", tmp_path / "run")
    save_file(load_file(run / "model.safetensors"), run / "model.safetensors", {"epoch": "1"})  # as they once were
    (run / "results.json").unlink()
    loss(run, tmp_path)
    WEIGHTS["inf"](run / "model.safetensors")
    refused(qrkt("infer", run, cwd=tmp_path), "model.safetensors", "finite")


def test_files_of_a_run_have_one_mode(home):
    assert {oct(p.stat().st_mode) for p in (home / "plain").iterdir() if p.is_file() and p.name != ".lock"} == {
        oct((home / "plain" / "config.yaml").stat().st_mode)
    }


# a failed start, and the newest run -----------------------------------------------------------------------------------
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("model", [SMALL, GAN], ids=["classifier", "gan"])
def test_a_gpu_that_is_not_there_leaves_nothing(model, tmp_path):
    refused(qrkt("train", *model, "--accelerator", "cuda", cwd=tmp_path), "--accelerator", "cuda", "cpu")
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_training_that_fails_at_once_leaves_nothing(tmp_path):
    result = qrkt("train", *SMALL, "--learning-rate", 1e30, "--warmup-steps", 0, "--batch-size", 8, "--out", "run",
                  cwd=tmp_path)  # fmt: skip
    refused(result, "diverged", "epoch 1")
    assert not (tmp_path / "run").exists()


def test_the_newest_run_has_a_model_and_what_was_skipped_is_said(home, tmp_path):
    runs = tmp_path / "runs"
    for age, name in enumerate(["trained", "empty", "emptier"]):
        copied(home / "plain", runs / name)
        os.utime(runs / name / "config.yaml", ns=(age, age))
    for name in ("empty", "emptier"):
        (runs / name / "model.safetensors").unlink()
    found = qrkt("infer", cwd=tmp_path)
    assert found.returncode == 0 and "runs/trained" in found.stdout
    (said,) = [line for line in found.stderr.splitlines() if line.startswith("warning: ")]
    assert "runs/emptier and 1 more" in said and "model.safetensors" in said
    with pytest.warns(RunWarning, match="emptier"):
        assert newest(runs).name == "trained"
    shutil.rmtree(runs / "trained")
    refused(qrkt("infer", cwd=tmp_path), "emptier", "--resume")


def test_an_answer_is_given_where_it_cannot_be_kept(home, tmp_path):
    run = copied(home / "plain", tmp_path / "run")
    shutil.rmtree(run / "inference", ignore_errors=True)
    (run / "inference").write_text("in the way")
    value, said = loss(run, tmp_path)
    assert value == loss(home / "plain", tmp_path)[0] and "not kept" in said


# damaged files --------------------------------------------------------------------------------------------------------
def described(**changes):
    def apply(run: Path) -> None:
        path = run / "data.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return apply


FILES = {
    "vocabulary": (described(vocabulary=["<pad>", "<unk>", "a"]), "length"),
    "vocabulary-number": (described(vocabulary=5), "vocabulary"),
    "mean": (described(mean=[0.1, 0.2]), "mean"),
    "std": (described(std=[]), "std"),
    "infinite": (described(mean=[float("inf")]), "mean"),
    "huge": (described(image_size=10**400), "image_size"),
    "digits": (lambda run: (run / "config.yaml").write_text("hidden: " + "9" * 5000), "config.yaml"),
    "large": (lambda run: (run / "config.yaml").write_text("hidden: 16\n" + "# x\n" * 2**18), "config.yaml"),
}


@pytest.mark.parametrize("case", FILES)
def test_damaged_files_are_refused_in_a_sentence(case, home, tmp_path):
    run, (damage, word) = copied(home / "plain", tmp_path / "run"), FILES[case]
    damage(run)
    refused(qrkt("infer", run, cwd=tmp_path), word)


@pytest.mark.parametrize(
    "content", ["hidden: " + "9" * 5000, "hidden: 16\n" + "# x\n" * 2**18], ids=["digits", "large"]
)
def test_a_configuration_of_any_size_is_refused_in_a_sentence(content, tmp_path):
    (tmp_path / "c.yaml").write_text(content)
    refused(qrkt("train", "--config", "c.yaml", "--out", "run", cwd=tmp_path), "--config", "c.yaml")


def test_a_run_under_a_name_that_is_no_text_is_refused(home, tmp_path):
    place = os.fsencode(tmp_path) + b"/bad\xff"
    shutil.copytree(os.fsencode(home / "plain"), place)
    refused(qrkt("infer", os.fsdecode(place), cwd=tmp_path), "UTF-8")


def test_one_class_is_refused(tmp_path):
    from tests.data.writing import image_folder

    image_folder(tmp_path / "images", {"train": 20, "test": 4}, size=8, names=("cat",))
    result = qrkt("train", *SMALL, "--dataset", "folder:images", "--image-size", 8, "--out", "run", cwd=tmp_path)
    refused(result, "--dataset", "one class", "cat")
    assert not (tmp_path / "run").exists()

"""What a user can do wrong: one sentence on standard error, exit status 2, nothing half-written."""

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from qrkt_hw.commands import main

pytestmark = pytest.mark.acceptance


def qrkt(*arguments, cwd):
    """The command line in this process: what a subprocess would do, without importing torch sixty times."""
    out, err, here = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(cwd)
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
    finally:
        os.chdir(here)
    return SimpleNamespace(returncode=stop.value.code or 0, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    small = ["--hidden", "16", "--mlp", "8", "--epochs", "1", "--limit", "64", "--rk", "rk1", "--rk-blocks", "1"]
    assert qrkt("train", *small, "--out", "run", cwd=folder).returncode == 0
    return folder / "run"


def refused(result, *words):
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    complaint = [line for line in result.stderr.splitlines() if line.startswith("qrkt-hw: ")]
    assert len(complaint) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in complaint[0], complaint[0]


CASES = {
    "preset": ("train --preset nope", ["--preset", "nope", "digits"]),
    "ansatz": ("train --ansatz nope", ["--ansatz", "nope", "qrkt"]),
    "ansatz-file": ("train --ansatz nope.py:f", ["--ansatz", "nope.py"]),
    "dataset": ("train --dataset nope", ["--dataset", "nope", "digits"]),
    "backend": ("train --backend nope", ["--backend", "nope", "exact"]),
    "infer-backend": ("infer {run} --backend nope", ["--backend", "nope", "exact"]),
    "heads": ("train --hidden 16 --heads 3", ["--heads", "16", "3"]),
    "qubits": ("train --hidden 16 --qubits 5", ["--qubits", "16", "5"]),
    "mlp-qubits": ("train --mlp-qubits 3", ["--mlp-qubits", "3"]),
    "patch": ("train --patch 3", ["--patch", "8", "3"]),
    "rule": ("train --rk rk9", ["--rk", "rk9", "rk4-enhanced"]),
    "number": ("train --hidden many", ["--hidden", "many"]),
    "negative": ("train --epochs -1", ["--epochs", "-1"]),
    "dropout": ("train --dropout 1.5", ["--dropout", "1.5"]),
    "nan": ("train --learning-rate nan", ["--learning-rate", "nan"]),
    "command": ("trian", ["trian"]),
    "option": ("train --nope", ["--nope"]),
    "no-run": ("infer nope", ["nope"]),
    "not-a-run": ("infer .", ["run folder"]),
    "newest-of-none": ("infer", ["runs/"]),
    "resume-none": ("train --resume nope", ["nope"]),
    "resume-with-options": ("train --resume {run} --epochs 3", ["--resume", "--epochs"]),
    "limit": ("infer {run} --limit 0", ["--limit"]),
    "split": ("infer {run} --split train", ["--split", "train", "validation"]),
    "image-and-split": ("infer {run} --image x.png --split test", ["--image", "--split"]),
    "image-missing": ("infer {run} --image nope.png", ["--image", "nope.png"]),
    "image-size": ("infer {run} --image big.png", ["--image", "big.png", "9x9", "8x8"]),
    "image-no-image": ("infer {run} --image text.txt", ["--image", "text.txt"]),
    "image-truncated": ("infer {run} --image half.png", ["--image", "half.png"]),
    "image-folder": ("infer {run} --image .", ["--image"]),
    "config-missing": ("train --config nope.yaml", ["--config", "nope.yaml"]),
    "config-key": ("train --config key.yaml", ["key.yaml", "hiden"]),
    "config-type": ("train --config type.yaml", ["type.yaml", "hidden", "wide"]),
    "config-list": ("train --config list.yaml", ["list.yaml"]),
    "config-not-yaml": ("train --config broken.yaml", ["broken.yaml"]),
    "config-binary": ("train --config half.png", ["half.png"]),
    "out-exists": ("train --out {run}", ["--out", "--resume"]),
    "out-is-file": ("train --out text.txt", ["--out", "text.txt"]),
    "out-below-file": ("train --out text.txt/run", ["--out", "text.txt"]),
    "circuit": ("circuits show nope", ["nope", "qrkt"]),
    "draw": ("circuits show qrkt --draw picture.doc", ["--draw", ".png"]),
    "preset-show": ("presets show nope", ["nope", "digits"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_is_refused_in_one_sentence(case, run, tmp_path):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "big.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    (tmp_path / "text.txt").write_text("not an image")
    (tmp_path / "key.yaml").write_text("hiden: 16\n")
    (tmp_path / "type.yaml").write_text("hidden: wide\n")
    (tmp_path / "list.yaml").write_text("- hidden\n")
    (tmp_path / "broken.yaml").write_text("hidden: [1,\n: :")
    before = contents(tmp_path)
    line, words = CASES[case]
    refused(qrkt(*line.format(run=run).split(), cwd=tmp_path), *words)
    assert contents(tmp_path) == before


def contents(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


DAMAGES = {
    "config.yaml": [b"", b"\x00\xff", b"hidden: [", b"hidden: 16\nnope: 1\n"],
    "data.json": [b"", b"{", b"[]", b"{}"],
    "model.safetensors": [b"", b"junk" * 100],
}


@pytest.mark.parametrize(("file", "content"), [(f, c) for f, cs in DAMAGES.items() for c in cs])
def test_a_damaged_run_is_named(file, content, run, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.yaml", "data.json", "model.safetensors", "results.json"):
        (copy / name).write_bytes((run / name).read_bytes())
    (copy / file).write_bytes(content)
    refused(qrkt("infer", copy, cwd=tmp_path), file)


def test_a_damaged_checkpoint_is_named(run, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.yaml", "data.json"):
        (copy / name).write_bytes((run / name).read_bytes())
    for content in (b"", b"junk" * 100, (run / "last.ckpt").read_bytes()[:5000]):
        (copy / "last.ckpt").write_bytes(content)
        refused(qrkt("train", "--resume", copy, cwd=tmp_path), "last.ckpt")


def test_a_model_of_another_shape_is_named(run, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("data.json", "model.safetensors"):
        (copy / name).write_bytes((run / name).read_bytes())
    (copy / "config.yaml").write_text((run / "config.yaml").read_text().replace("hidden: 16", "hidden: 8"))
    refused(qrkt("infer", copy, cwd=tmp_path), "model.safetensors")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_an_unwritable_folder_is_named(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    refused(qrkt("train", "--out", locked / "run", cwd=tmp_path), "--out")


def test_an_unwritable_place_is_named(tmp_path):
    refused(qrkt("train", "--out", "/proc/nowhere/run", cwd=tmp_path), "--out", "/proc/nowhere/run")


def test_infer_json_prints_one_object_and_repeats_the_figure(run, tmp_path):
    result = qrkt("infer", run, "--json", cwd=tmp_path)
    record = json.loads(result.stdout)
    assert {"split", "count", "accuracy", "f1", "auroc", "backend", "seconds"} <= set(record)
    recorded = json.loads((run / "results.json").read_text())["test"]
    for key in ("accuracy", "f1", "auroc"):
        assert record[key] == pytest.approx(recorded[key], abs=1e-6)
    assert len(list((run / "inference").glob("*.json"))) >= 1


def test_infer_of_an_image_names_its_class(run, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)).save(tmp_path / "any.png")
    result = qrkt("infer", run, "--image", "any.png", "--json", cwd=tmp_path)
    (image,) = json.loads(result.stdout)["images"]
    assert image["class"] in image["probabilities"]
    assert sum(image["probabilities"].values()) == pytest.approx(1, abs=1e-4)

"""What a user can do wrong: one sentence on standard error, exit status 2, nothing half-written."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qrkt_hw.runs import RunFolder
from tests.command_line import qrkt, refused

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    small = ["--hidden", "16", "--mlp", "8", "--epochs", "1", "--limit", "64", "--rk", "rk1", "--rk-blocks", "1"]
    assert qrkt("train", *small, "--out", "run", cwd=folder).returncode == 0
    return folder / "run"


CASES = {
    "preset": ("train --preset nope", ["--preset", "nope", "qrkt-hw presets list"]),
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
    "infinite": ("train --learning-rate inf", ["--learning-rate", "inf"]),
    "wide": ("train --hidden 1000000000", ["--hidden", "1000000000", "16384"]),
    "config-yes": ("train --config yes.yaml", ["yes.yaml", "hidden", "True"]),
    "config-deep": ("train --config deep.yaml", ["deep.yaml"]),
    "config-bomb": ("train --config bomb.yaml", ["bomb.yaml", "hidden", "list"]),
    "config-cycle": ("train --config cycle.yaml", ["cycle.yaml", "hidden", "list"]),
    "ansatz-complex": ("train --ansatz mine.py:imaginary", ["is complex", "x[0]"]),
    "ansatz-outputs": ("train --ansatz mine.py:one", ["--ansatz", "mine", "1 values", "4 inputs"]),
    "ansatz-crash": ("train --ansatz mine.py:crash", ["mine.py:crash", "division"]),
    "ansatz-nothing": ("train --ansatz mine.py:nothing", ["mine.py:nothing", "NoneType"]),
    "ansatz-missing": ("train --ansatz mine.py:missing", ["mine.py", "missing"]),
    "ansatz-broken": ("train --ansatz broken.py:f", ["broken.py"]),
    "image-bomb": ("infer {run} --image bomb.png", ["--image", "bomb.png"]),
    "image-huge": ("infer {run} --image huge.png", ["--image", "huge.png", "10000x10000", "8x8"]),
    "image-device": ("infer {run} --image /dev/null", ["--image", "/dev/null"]),
    "out-long": ("train --epochs 1 --out " + "x" * 300, ["--out", "cannot be written"]),
    "out-not-utf8": ("train --out bad\udcff", ["--out", "UTF-8"]),
    "dropout": ("train --dropout 1.5", ["--dropout", "1.5"]),
    "nan": ("train --learning-rate nan", ["--learning-rate", "nan"]),
    "command": ("trian", ["trian"]),
    "option": ("train --nope", ["--nope"]),
    "no-run": ("infer nope", ["nope"]),
    "not-a-run": ("infer .", ["run folder"]),
    "newest-of-none": ("infer", ["runs/"]),
    "resume-none": ("train --resume nope", ["nope"]),
    "resume-with-options": ("train --resume {run} --hidden 8", ["--resume", "--hidden"]),
    "resume-fewer-epochs": ("train --resume {run} --epochs 0", ["--epochs", "0"]),
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
    "draw": ("circuits show qrkt --draw picture.doc", ["--plot", ".png"]),
    "preset-show": ("presets show nope", ["nope", "qrkt-hw presets list"]),
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
    (tmp_path / "yes.yaml").write_text("hidden: yes\n")
    (tmp_path / "deep.yaml").write_text("hidden: " + "[" * 20_000)
    doubled = "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 30))
    (tmp_path / "bomb.yaml").write_text(f"a0: &a0 [x, x]\n{doubled}hidden: *a29\n")
    (tmp_path / "cycle.yaml").write_text("hidden: &h [*h]\n")
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "bomb.png").write_bytes(png_header(60_000))
    (tmp_path / "huge.png").write_bytes(png_header(10_000))
    before = contents(tmp_path)
    line, words = CASES[case]
    refused(qrkt(*line.format(run=run).split(), cwd=tmp_path), *words)
    assert contents(tmp_path) == before


MINE = """
from qiskit.circuit import ParameterVector, QuantumCircuit
from qrkt_hw.circuits import CircuitTemplate

def make(n, change, observables=()):
    x, w = ParameterVector("x", n), ParameterVector("w", 1)
    circuit = QuantumCircuit(n)
    for j in range(n):
        circuit.ry(change(x[j]), j)
    circuit.rx(w[0], 0)
    return CircuitTemplate("mine", circuit, x, w, observables)

def imaginary(n, layers): return make(n, lambda x: 1j * x)
def one(n, layers): return make(n, lambda x: x, ("Z" * n,))
def crash(n, layers): return 1 / 0
def nothing(n, layers): return None
"""


def png_header(side: int) -> bytes:
    """A picture file that claims to be large: a header and no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return start + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def batched(words: list) -> list[tuple]:
    return list(zip(words[::2], words[1::2], strict=True))


def contents(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts}


CHANGED = b"(a value of another type)"
DAMAGES = {
    "config.yaml": [b"", b"\x00\xff", b"hidden: [", b"hidden: 16\nnope: 1\n"],
    "data.json": [b"", b"{", b"[]", b"{}", b"[" * 50_000, CHANGED],
    "model.safetensors": [b"", b"junk" * 100],
}


@pytest.mark.parametrize(("file", "content"), [(f, c) for f, cs in DAMAGES.items() for c in cs])
def test_a_damaged_run_is_named(file, content, run, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.yaml", "data.json", "model.safetensors", "results.json"):
        (copy / name).write_bytes((run / name).read_bytes())
    if content == CHANGED:
        content = (run / file).read_bytes().replace(b'"image_size": 8', b'"image_size": "eight"')
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


def copied(run: Path, place: Path) -> Path:
    shutil.copytree(run, place)
    return place


def test_a_configuration_changed_after_training_is_named(run, tmp_path):
    copy = copied(run, tmp_path / "run")
    (copy / "config.yaml").write_text((run / "config.yaml").read_text().replace("hidden: 16", "hidden: 8"))
    refused(qrkt("train", "--resume", copy, cwd=tmp_path), "last.ckpt", "config.yaml")


def test_a_missing_model_is_named(run, tmp_path):
    copy = copied(run, tmp_path / "run")
    (copy / "model.safetensors").unlink()
    refused(qrkt("train", "--resume", copy, cwd=tmp_path), "model.safetensors")
    refused(qrkt("infer", copy, cwd=tmp_path), "--resume")


def test_an_inference_that_cannot_be_kept_is_answered_and_says_so(run, tmp_path):
    copy = copied(run, tmp_path / "run")
    shutil.rmtree(copy / "inference", ignore_errors=True)
    (copy / "inference").write_text("a file where the folder should be")
    found = qrkt("infer", copy, cwd=tmp_path)
    assert found.returncode == 0 and "accuracy" in found.stdout
    assert "inference cannot be written" in found.stderr and "the record is not kept" in found.stderr


def test_a_training_that_diverges_says_so(tmp_path):
    result = qrkt(
        "train", "--epochs", 3, "--limit", 64, "--batch-size", 16, "--rk", "rk1", "--rk-blocks", 1, "--warmup-steps", 0,
        "--learning-rate", 1e30, "--out", "run", cwd=tmp_path,
    )  # fmt: skip
    refused(result, "--learning-rate", "diverged", "epoch")


SMALL = ["--epochs", 1, "--limit", 3, "--rk", "rk1", "--rk-blocks", 1]


@pytest.mark.parametrize(
    "options",
    [
        ["--limit", 1, "--warmup-steps", 1000],
        ["--limit", 100_000, "--batch-size", 100_000],
        ["--batch-size", 1],
        ["--dtype", "complex128"],
        ["--hidden", 1, "--heads", 1, "--qubits", 1, "--mlp", 1, "--layers", 1],
        ["--encoder-blocks", 0, "--rk-blocks", 0],
        ["--out", "[/red] ünï cødé 数"],
        ["--patch", 8, "--positions", "sincos", "--pool", "class", "--encoder-blocks", 1],
    ],
    ids=[
        "one-image",
        "more-than-there-is",
        "batches-of-one",
        "double",
        "all-ones",
        "no-blocks",
        "odd-name",
        "one-patch",
    ],
)
def test_odd_settings_train_and_infer(options, tmp_path):
    given = {**dict(batched([*SMALL, "--out", "run"])), **dict(batched(options))}
    if given["--rk-blocks"] == 0:
        del given["--rk"]
    trained = qrkt("train", *(word for pair in given.items() for word in pair), cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    (config,) = tmp_path.rglob("config.yaml")
    folder = config.parent
    assert str(folder.relative_to(tmp_path)) in trained.stderr.splitlines()[0]
    result = qrkt("infer", folder, "--limit", 100_000, "--json", cwd=tmp_path)
    assert json.loads(result.stdout)["count"] == 360


def test_one_image_has_no_auroc_and_still_is_json(run, tmp_path):
    def no_constants(name):
        raise AssertionError(f"{name} is not JSON")

    record = json.loads(qrkt("infer", run, "--limit", 1, "--json", cwd=tmp_path).stdout, parse_constant=no_constants)
    assert record["count"] == 1 and record["auroc"] is None and record["accuracy"] in (0.0, 1.0)


def test_runs_that_is_a_file_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    refused(qrkt("train", *SMALL, cwd=tmp_path), "--out", "runs")
    refused(qrkt("infer", cwd=tmp_path), "runs/")


def test_one_process_at_a_time_trains_into_a_run(run, tmp_path):
    copy = copied(run, tmp_path / "run")
    with RunFolder(copy).writing():
        refused(qrkt("train", "--resume", copy, cwd=tmp_path), "another process", "run")


def test_a_run_with_a_circuit_of_ones_own_works_from_any_folder(tmp_path):
    (tmp_path / "mine.py").write_text(f"{MINE}\ndef all_z(n, layers): return make(n, lambda x: x)\n")
    assert qrkt("train", *SMALL, "--ansatz", "mine.py:all_z", "--out", "run", cwd=tmp_path).returncode == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = qrkt("infer", "../run", "--limit", 5, cwd=elsewhere)
    assert result.returncode == 0, result.stderr


def test_a_reader_that_goes_away_is_no_error(run, tmp_path):
    program = f"{sys.executable} -m qrkt_hw"
    command = f"{program} circuits show qrkt --qasm | head -c 10; {program} about >&-"
    result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr, result.stderr

"""Circuits of their own for attention and MLP: in the model, in the run folder, and in what is exported."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import qrkt_hw
from qrkt_hw.circuits import build
from qrkt_hw.data.base import DataShape
from qrkt_hw.errors import UserError
from qrkt_hw.models.factory import build_model, quantum_layers
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.circuits import Circuits
from qrkt_hw.runs.config import Config
from tests.command_line import qrkt, refused, trained
from tests.runs.test_never_wrong_runs import reconfigured
from tests.runs.trained import GAN, MINE, SMALL, copied

SHAPE = DataShape(1, 8, 10)
OTHER = MINE.replace("circuit.rx(w", "circuit.ry(w").replace('"mine"', '"other"')


def placed(model):
    """Templates by where they stand."""
    layers = {name: layer for name, layer in model.named_modules() if layer in quantum_layers(model)}
    return {
        place: {layer.template for name, layer in layers.items() if (".feed_forward." in name) == (place == "mlp")}
        for place in ("attention", "mlp")
    }


@pytest.mark.parametrize(
    ("options", "attention", "mlp"),
    [
        ({}, ("ry_rz_ring", 4, 1), ("ry_rz_ring", 4, 1)),
        ({"attention_ansatz": "qrkt"}, ("qrkt", 4, 1), ("ry_rz_ring", 4, 1)),
        ({"mlp_ansatz": "brickwork", "mlp_layers": 3}, ("ry_rz_ring", 4, 1), ("brickwork", 4, 3)),
        ({"mlp_layers": 2, "mlp_qubits": 2, "layers": 3}, ("ry_rz_ring", 4, 3), ("ry_rz_ring", 2, 2)),
        ({"model": "gan", "attention_ansatz": "qrkt", "mlp_ansatz": "rx_ring"}, ("qrkt", 4, 1), ("rx_ring", 4, 1)),
        ({"decoder_blocks": 1, "attention_ansatz": "qrkt"}, ("qrkt", 4, 1), ("ry_rz_ring", 4, 1)),
    ],
)
def test_each_place_has_its_circuit(options, attention, mlp):
    assert placed(build_model(Config(**options), SHAPE)) == {"attention": {build(*attention)}, "mlp": {build(*mlp)}}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run ``two`` of two users' files whose functions have the same name."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "a.py").write_text(MINE)
    (folder / "b.py").write_text(OTHER)
    trained(folder, *SMALL, "--attention-ansatz", "a.py:f", "--mlp-ansatz", "b.py:f", out="two")
    (folder / "a.py").unlink()
    return folder


def test_a_run_keeps_the_circuits_of_both(home, tmp_path):
    index = json.loads((home / "two" / "circuits" / "circuits.json").read_text())
    a, b = (f"{home / name}.py:f" for name in "ab")
    assert index["format"] == 2 and index["ansatz"] == "ry_rz_ring" and index["source"] is None
    assert {one["ansatz"]: one["name"] for one in index["circuits"]} == {a: "mine", b: "other"}
    assert {name: source["text"] for name, source in index["sources"].items()} == {a: MINE, b: OTHER}
    assert len({one["file"] for one in index["circuits"]}) == 2
    model = qrkt_hw.load(home / "two")
    names = {place: {t.name for t in found} for place, found in placed(model).items()}
    assert names == {"attention": {"mine"}, "mlp": {"other"}}
    # the run uses what it keeps, and its report names both
    run = copied(home / "two", tmp_path / "two")
    done = qrkt("train", "--resume", run, "--epochs", 2, cwd=tmp_path)
    assert done.returncode == 0 and RunFolder.open(run).options().circuits.digest == model.config.circuits.digest
    report = qrkt("resources", run, cwd=tmp_path)
    assert report.returncode == 0 and "mine" in report.stdout and "other" in report.stdout


def test_a_changed_file_is_one_warning_and_a_changed_configuration_one_sentence(home, tmp_path):
    run = copied(home / "two", tmp_path / "two")
    (home / "b.py").write_text(MINE)
    try:
        found = qrkt("infer", run, cwd=tmp_path)
    finally:
        (home / "b.py").write_text(OTHER)
    assert found.returncode == 0
    warned = [line for line in found.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1 and "b.py" in warned[0]
    reconfigured(run, mlp_ansatz="qrkt")
    refused(qrkt("infer", run, cwd=tmp_path), "config.yaml", "qrkt", "b.py")
    reconfigured(run, mlp_ansatz=f"{home / 'b.py'}:f", mlp_layers=2)
    refused(qrkt("infer", run, cwd=tmp_path), "2 layers", "b.py")


def test_an_export_holds_both_and_no_path(home, tmp_path):
    done = qrkt("export", home / "two", "--format", "hf", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "config.json").read_text()
    assert str(home) not in text and "def f(" not in text
    run, model = qrkt_hw.load(home / "two"), qrkt_hw.QViT.from_pretrained(tmp_path / "out")
    assert (model.config.circuit.attention_ansatz, model.config.circuit.mlp_ansatz) == ("f", "f-2")
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8)
    with torch.no_grad():
        assert torch.equal(model(model.preprocess(images)), run(run.preprocess(images)))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`mine` on 4 qubits" in card and "`other` on 4 qubits" in card


def test_a_model_without_a_run_has_them_and_another_circuit_takes_no_weights():
    model = qrkt_hw.create_model("digits", attention_ansatz="qrkt")
    assert {t.name for t in placed(model)["attention"]} == {"qrkt"}
    with pytest.raises(UserError, match="mlp_ansatz"):
        Config(mlp_ansatz="qrkt").check_source(Config(), Path("run"))


@pytest.mark.slow
def test_other_commands_take_them(home, tmp_path):
    twin = qrkt("baseline", home / "two", "--trials", 1, "--epochs", 1, "--out", "twin", cwd=tmp_path)
    assert twin.returncode == 0, twin.stderr
    own = ["--epochs", 1, "--limit", 32, "--hidden", 8, "--mlp", 8, "--rk", "rk1", "--rk-blocks", 1]
    search = ["--search", "mlp_ansatz=qrkt,brickwork", "--search", "mlp_layers=1,2", "--sampler", "grid"]
    tuned = qrkt("tune", *own, *search, "--trials", 1, "--out", "tuned", cwd=tmp_path)
    assert tuned.returncode == 0, tuned.stderr
    gan = trained(tmp_path, *GAN, "--mlp-ansatz", "qrkt", out="gan")
    assert {t.name for t in placed(qrkt_hw.load(gan))["mlp"]} == {"qrkt"}


def test_circuits_of_one_ansatz_are_kept_as_before(tmp_path):
    kept = Circuits(("qrkt",), begun=True)
    kept("qrkt", 4, 1), kept("qrkt", 2, 1)
    kept.write(tmp_path / "circuits")
    index = json.loads((tmp_path / "circuits" / "circuits.json").read_text())
    assert index["format"] == 1 and set(index) == {"format", "ansatz", "source", "circuits"}
    assert [one["file"] for one in index["circuits"]] == ["4-qubits-1-layers.qpy", "2-qubits-1-layers.qpy"]
    assert not any("ansatz" in one for one in index["circuits"])
    marks = sorted(((one["qubits"], one["layers"]), one["fingerprint"]) for one in index["circuits"])
    assert kept.digest == hashlib.sha256(repr(marks).encode()).hexdigest()

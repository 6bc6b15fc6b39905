"""Exported circuits give a layer's values by plain Qiskit alone; exported models load anywhere, offline."""

import base64
import json
import pickle
import shutil
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from qiskit import qasm3, qpy
from qiskit.quantum_info import SparsePauliOp, Statevector
from safetensors.torch import load_file, save_file

import qrkt_hw
from qrkt_hw.errors import UserError
from qrkt_hw.experiments.export import QViT
from tests.command_line import qrkt, refused, trained
from tests.data import writing
from tests.runs.trained import SMALL


def by_qiskit(folder, form, name, x):
    """A projection's output for one input, from the files alone."""
    about = json.loads((folder / "circuits.json").read_text())
    if form == "qpy":
        with (folder / "circuits.qpy").open("rb") as file:
            circuits = {circuit.name: circuit for circuit in qpy.load(file)}
        assert list(circuits) == [c for one in about["projections"] for c in one["circuits"]]
    else:
        wanted = [c for one in about["projections"] for c in one["circuits"] if one["projection"] == name]
        circuits = {c: qasm3.loads((folder / f"{c}.qasm").read_text()) for c in wanted}
    one = next(one for one in about["projections"] if one["projection"] == name)
    y = x * np.array(one["input_scale"] or 1.0)
    values, size = [], len(one["inputs"])
    for group, circuit in enumerate(one["circuits"]):
        given = dict(zip(one["inputs"], y[group * size : (group + 1) * size], strict=True))
        state = Statevector(circuits[circuit].assign_parameters(given))
        for terms in one["observables"]:
            values.append(state.expectation_value(SparsePauliOp.from_list([tuple(term) for term in terms])).real)
    return np.array(values) * np.array(one["scale"] or 1.0) + np.array(one["bias"] or 0.0)


@pytest.mark.parametrize("form", ["qasm3", "qpy"])
@pytest.mark.parametrize("name", ["mine", "plain", "gan"])
def test_the_files_alone_give_the_values_of_every_projection(home, form, name, tmp_path):
    done = qrkt("export", home / name, "--format", form, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model, random = qrkt_hw.load(home / name), np.random.default_rng(0)
    about = json.loads((tmp_path / "out" / "circuits.json").read_text())
    projections = dict(model.named_modules())
    assert len(about["projections"]) >= 5
    assert f"{sum(one['groups'] for one in about['projections'])} circuits in out" in done.stdout
    for one in about["projections"][:: 2 if form == "qpy" else 3]:
        x = random.normal(size=one["features"])
        with torch.no_grad():
            expected = projections[one["projection"]](torch.tensor(x, dtype=torch.float32)).numpy()
        np.testing.assert_allclose(by_qiskit(tmp_path / "out", form, one["projection"], x), expected, atol=2e-5)


def test_scales_and_bias_around_the_circuits_are_exported(tmp_path):
    run = trained(tmp_path, *SMALL, "--input-scale", "--output-bias", "--ansatz", "reuploading", "--layers", 2)
    assert qrkt("export", run, "--format", "qasm3", cwd=tmp_path).returncode == 0
    name, x = "blocks.0.fields.0.attention.query", np.linspace(-1, 2, 16)
    with torch.no_grad():
        expected = dict(qrkt_hw.load(run).named_modules())[name](torch.tensor(x, dtype=torch.float32)).numpy()
    found = by_qiskit(run / "export" / "qasm3", "qasm3", name, x)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_model_goes_through_the_hub_format_and_back(home, tmp_path):
    done = qrkt("export", home / "mine", "--format", "hf", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert {f.name for f in out.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    config, text = json.loads((out / "config.json").read_text()), (out / "README.md").read_text()
    results = json.loads((home / "mine" / "results.json").read_text())
    assert config["results"]["test"] == results["test"] and f"{results['test']['accuracy']:.4f}" in text
    assert text.startswith("---\nlibrary_name: qrkt-hw") and "light cone" in text and "no quantum advantage" in text
    # nothing of this machine, and no code
    assert str(home) not in json.dumps(config) and "def f(" not in json.dumps(config)
    run, model = qrkt_hw.load(home / "mine"), qrkt_hw.QViT.from_pretrained(out)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8)
    with torch.no_grad():
        assert torch.equal(model(model.preprocess(images)), run(run.preprocess(images)))
    assert model.predict(images) == run.predict(images) and model.class_names == run.class_names
    torch.testing.assert_close(model.predict_proba(images).sum(-1), torch.ones(5))
    model.save_pretrained(tmp_path / "again")
    for name in ("config.json", "README.md"):
        assert (tmp_path / "again" / name).read_text() == (out / name).read_text()
    there = QViT.from_pretrained(out, backend="fake_torino")
    assert there.transformer.blocks[0].fields[0].attention.query.layer.backend.name == "fake_torino"


def test_texts_and_classical_models_too(tmp_path):
    writing.imdb(tmp_path / "data")
    small = ["--epochs", 1, "--projection", "classical", "--rk", "rk1", "--rk-blocks", 1, "--text-length", 8]
    run = trained(tmp_path, "--dataset", "imdb", "--data-dir", "data", *small)
    assert qrkt("export", run, "--format", "hf", cwd=tmp_path).returncode == 0
    model = QViT.from_pretrained(run / "export" / "hf")
    assert model.predict(["a good film"]) == qrkt_hw.load(run).predict(["a good film"])
    assert model.config.data.data_dir is None
    refused(qrkt("export", run, "--format", "qpy", cwd=tmp_path), "no circuits")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda c: c.pop("options"), "options"),
        (lambda c: c["options"]["model"].update(hidden=8), "do not fit"),
        (lambda c: c["options"]["model"].update(hiden=8), "damaged"),
        (lambda c: c["circuits"]["files"].clear(), "damaged"),
        (lambda c: c["circuits"]["files"].update({k: v[:-8] for k, v in c["circuits"]["files"].items()}), "damaged"),
        (lambda c: c["circuits"]["index"].update(ansatz="other"), "damaged"),
    ],
)
def test_a_damaged_folder_is_refused(home, damage, word, tmp_path):
    out = tmp_path / "out"
    QViT.of_run(home / "plain").save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    damage(config)
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=word):
        QViT.from_pretrained(out)


def test_a_model_of_somebody_else_is_not_overwritten(home, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "circuits.json").write_text("[]")
    for form in ("hf", "qpy"):
        refused(qrkt("export", home / "plain", "--format", form, "--out", ".", cwd=tmp_path), "--out", "something else")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circuits.json", "config.json"]


def test_wrong_use_is_one_sentence(home, tmp_path):
    refused(qrkt("export", home / "gan", "--format", "hf", cwd=tmp_path), "GAN")
    refused(qrkt("export", home / "plain", cwd=tmp_path), "--format")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    refused(qrkt("export", home / "plain", "--format", "qpy", "--out", "full", cwd=tmp_path), "--out", "full")
    run = shutil.copytree(home / "plain", tmp_path / "untrained")
    (run / "model.safetensors").unlink()
    refused(qrkt("export", run, "--format", "hf", cwd=tmp_path), "no trained model")


def test_kept_runs_are_exported(tmp_path):
    from pathlib import Path

    kept = Path(qrkt_hw.__file__).parents[1] / "results" / "best-mnist-4-qubits" / "seed-0"
    assert qrkt("export", kept, "--format", "hf", "--out", "out", cwd=tmp_path).returncode == 0
    model = QViT.from_pretrained(tmp_path / "out")
    assert model.results["test"]["accuracy"] > 0.97 and len(model.class_names) == 10


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload and a download ask for."""

    asked: ClassVar[list] = []
    files: ClassVar[dict] = {}

    def answer(self, value, status=200):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {
            "Content-Length": len(content),
            "ETag": f'"{zlib.crc32(content):x}"',
            "X-Repo-Commit": "c" * 40,
        }.items():
            self.send_header(name, str(text))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append(self.path)
        if self.path.endswith("/repos/create"):
            self.answer({"url": f"http://{self.headers['Host']}/you/name", "name": "you/name"})
        elif "/preupload/" in self.path:
            found = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            self.answer({"files": found})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {"commitUrl": f"http://{self.headers['Host']}/you/name/commit/c", "commitOid": "c", "success": True}
            )
        else:  # the check of the card's header
            self.answer({"errors": [], "warnings": []})

    def do_GET(self):
        found = self.files.get(self.path.rpartition("/")[2]) if "/resolve/" in self.path else None
        self.answer(found or {}, 200 if found else 404)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_a_model_goes_to_the_hub_and_back(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", place)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place + "/{repo_id}/resolve/{revision}/{filename}")
    try:
        model = QViT.from_pretrained("best-mnist-4-qubits")
        model.push_to_hub("you/name", token="hf_none")
        assert {path.rpartition("/")[2] for path in Hub.asked} >= {"create", "main"}
        assert set(Hub.files) == {"config.json", "model.safetensors", "README.md"}
        again = QViT.from_pretrained("you/name", cache_dir=tmp_path, token=False)
    finally:
        server.shutdown()
        server.server_close()
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(again(images), model(images))
    card = Hub.files["README.md"].decode()
    test = model.results["test"]
    for said in (f"{test['accuracy']:.4f}", "ry_rz_ring", "light cone", "Seed 0", "no quantum advantage", "q_0"):
        assert said in card, said


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "model"
    QViT.from_pretrained("best-mnist-4-qubits").save_pretrained(folder)
    return folder


def edited(change):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def reweighted(change):
    def damage(folder):
        state = load_file(folder / "model.safetensors")
        state["transformer.head.weight"] = change(state["transformer.head.weight"]).contiguous()
        save_file(state, folder / "model.safetensors")

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds no object"),
        (edited(lambda c: c.pop("data")), "lacks options and data"),
        (edited(lambda c: c.update(data=None)), "must be objects"),
        (edited(lambda c: c.update(results="good")), "must be objects"),
        (edited(lambda c: c.update(options=None)), "damaged"),
        (edited(lambda c: c.update(circuits="none")), "its circuits"),
        (edited(lambda c: c["data"].pop("class_names")), "lacks class_names"),
        (edited(lambda c: c["data"].update(class_names=3)), "class_names"),
        (edited(lambda c: c["data"].update(mean=[0.1, 0.2])), "mean has 2 numbers"),
        (edited(lambda c: c["data"].update(std=[0.0])), "std"),
        (edited(lambda c: c["data"].update(image_size="28")), "image_size"),
        (edited(lambda c: c["data"]["class_names"].pop()), "do not fit"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(pickle.dumps([1])), "not a safetensors file"),
        (reweighted(lambda w: w[:5]), "do not fit"),
        (reweighted(lambda w: w.double()), "float64, not float32"),
        (reweighted(lambda w: w * torch.nan), "not finite"),
    ],
)
def test_a_folder_of_the_hub_that_is_not_whole_is_refused(whole, damage, words, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "model")
    damage(folder)
    with pytest.raises(UserError, match=words) as found:
        QViT.from_pretrained(folder)
    assert "\n" not in str(found.value)


def test_a_config_json_runs_no_code_and_spends_nothing(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "model")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef f(n, layers): ...\n")

    def change(config):
        config["circuits"] = None
        config["options"]["circuit"]["ansatz"] = f"{tmp_path / 'evil.py'}:f"

    edited(change)(folder)
    with pytest.raises(UserError, match="lacks the circuits"):
        QViT.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()
    edited(lambda c: c.update(backend="ibm_fez", circuits=None))(shutil.copytree(whole, tmp_path / "billed"))
    model = QViT.from_pretrained(tmp_path / "billed")
    assert model.transformer.blocks[0].fields[0].attention.query.layer.backend.name == "exact"


def test_what_is_no_model_of_the_hub_is_one_sentence(whole, tmp_path):
    with pytest.raises(UserError, match="and it is no id of the Hugging Face Hub"):
        QViT.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match="revision: 'best-mnist' comes with the package"):
        QViT.from_pretrained("best-mnist", revision="main")
    with pytest.raises(UserError, match="no backend 'nothing'"):
        QViT.from_pretrained(whole, backend="nothing")
    model = QViT.from_pretrained(whole)
    with pytest.raises(UserError, match=r"take model.to\(torch.float32\)"):
        model.double().save_pretrained(tmp_path / "double")
    model.results = {"test": "good"}
    assert "Measured" not in model._card()

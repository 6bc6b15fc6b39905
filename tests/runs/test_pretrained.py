"""Models by name: those with weights repeat the kept run of seed 0 bit for bit, without files or network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import qrkt_hw
from qrkt_hw import QViT, UserError
from qrkt_hw.backends.exact import ExactBackend
from qrkt_hw.data import load_data
from qrkt_hw.experiments import presets
from qrkt_hw.training.fit import fresh_model

RESULTS = Path(qrkt_hw.__file__).parents[1] / "results"
WITH_WEIGHTS = [
    "best-cifar10", "best-cifar10-4-qubits", "best-imdb", "best-mnist", "best-mnist-4-qubits", "best-mnist-device",
    "digits-device",
]  # fmt: skip


def raw(model):
    if model.config.model.kind == "text":
        return ["A good film, and a great story.", "bad"]
    reader = model.preprocess
    return torch.randint(0, 256, (3, reader.channels, reader.size, reader.size), dtype=torch.uint8)


def test_the_names():
    every = qrkt_hw.list_models()
    assert set(every) == {name for name in presets.names() if presets.load(name).get("model") != "gan"}
    assert qrkt_hw.list_models(pretrained=True) == WITH_WEIGHTS and set(WITH_WEIGHTS) < set(every)
    assert {"create_model", "list_models", "QViTClassifier", "QuantumTextClassifier"} <= set(dir(qrkt_hw))
    assert set(qrkt_hw.__all__) <= set(dir(qrkt_hw)) and all(hasattr(qrkt_hw, name) for name in qrkt_hw.__all__)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_a_trained_model_is_the_kept_run_of_seed_0(name, tmp_path, monkeypatch):
    kept = qrkt_hw.load(RESULTS / name / "seed-0")
    monkeypatch.chdir(tmp_path)
    model = qrkt_hw.create_model(name, pretrained=True)
    inputs = raw(model)
    with torch.no_grad():
        expected = kept(kept.preprocess(inputs))
        assert torch.equal(model(model.preprocess(inputs)), expected)
        assert torch.equal(QViT.from_pretrained(name)(model.preprocess(inputs)), expected)
    assert model.config == kept.config and model.config.training.seed == 0 and not model.training
    assert model.class_names == kept.class_names and model.predict(inputs) == kept.predict(inputs)
    assert list(tmp_path.iterdir()) == []


def test_the_weights_are_small_and_carry_their_figures():
    folder = Path(qrkt_hw.__file__).parent / "experiments" / "pretrained"
    files = [file for name in WITH_WEIGHTS for file in (folder / name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 2_000_000
    place = ExactBackend("mine")
    model = QViT.from_pretrained("best-mnist", backend=place)
    assert (
        model.results["test"]["accuracy"]
        == json.loads((folder / "best-mnist" / "results.json").read_text())["test"]["accuracy"]
    )
    assert model.transformer.blocks[0].fields[0].attention.query.layer.backend is place


@pytest.mark.parametrize("name", ["digits", "digits-hardware", "best-imdb", "thesis-imdb-rk4-enhanced", "best-mnist"])
def test_an_untrained_model_is_what_a_training_starts_from(name):
    torch.manual_seed(1)
    model = qrkt_hw.create_model(name)
    assert model.training
    if name == "thesis-imdb-rk4-enhanced":  # its words are not known
        assert not hasattr(model, "preprocess")
        assert model(torch.ones(2, 4, dtype=torch.int64)).shape == (2, 2)
        return
    assert model(model.preprocess(raw(model))).shape[1] == len(model.class_names)
    if name.startswith("digits"):
        options = model.config.replace(seed=1)
        fresh = fresh_model(options, load_data(options.data), ExactBackend("exact"))
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_options_over_those_of_a_preset():
    place = ExactBackend("mine")
    model = qrkt_hw.create_model("digits", rk="rk4", rk_blocks=1, backend=place)
    assert model.config.model.rk == "rk4" and len(model.blocks) == 1
    assert model.blocks[0].fields[0].attention.query.layer.backend is place
    assert qrkt_hw.create_model("best-mnist", image_size=14).tokens(torch.zeros(1, 1, 14, 14)).shape[1] == 4
    assert qrkt_hw.create_model("digits", dataset="cifar100").head.out_features == 100


@pytest.mark.parametrize(
    ("arguments", "changed", "words"),
    [
        (("best",), {}, "is no preset"),
        (("qrkt-gan-digits",), {}, "generates images"),
        (("digits", True), {}, "no weights of 'digits'"),
        (("best-mnist", True), {"rk": "rk4"}, "rk cannot change"),
        (("digits",), {"rk": "rk9"}, "rk is 'rk9'"),
        (("digits",), {"hiden": 3}, "hiden"),
        (("digits",), {"qubits": 5}, "qubits: hidden size"),
        (("digits",), {"word_pairs": True}, "word_pairs"),
        (("digits",), {"model": "gan"}, "GAN"),
        (("digits",), {"dataset": "folder:photos"}, "not known without its files"),
        (("digits",), {"backend": "nothing"}, "no backend 'nothing'"),
    ],
)
def test_wrong_use_is_one_sentence(arguments, changed, words):
    with pytest.raises(UserError, match=words) as found:
        qrkt_hw.create_model(*arguments, **changed)
    assert "\n" not in str(found.value) and " --" not in str(found.value).partition("qrkt-hw ")[0]


def test_fine_tuning_starts_from_a_name(tmp_path):
    texts = [("a good film", 1), ("a dull film", 0)] * 10
    run = qrkt_hw.train(start_from="best-imdb", train=texts, epochs=1, out=tmp_path / "run", figures=False)
    assert (
        run.folder.description()["vocabulary"] == qrkt_hw.load(RESULTS / "best-imdb" / "seed-0").preprocess.vocabulary
    )
    assert json.loads((run.path / "origin.json").read_text())["from"]["fresh"] == ["head.weight", "head.bias"]
    assert not (run.path / "plots").exists()
    with pytest.raises(UserError, match="no folder best-nothing"):
        qrkt_hw.train(start_from="best-nothing", train=texts)


class Texts(Dataset):
    classes = ("bad", "good")

    def __len__(self):
        return 20

    def __getitem__(self, k):
        return [("a good film", 1), ("a dull film", 0)][k % 2]


def test_texts_of_ones_own(tmp_path):
    texts = Texts()
    small = {"model": "text", "hidden": 8, "mlp": 4, "heads": 2, "rk": "rk1", "rk_blocks": 1, "text_length": 4}
    run = qrkt_hw.train(small, train=texts, epochs=1, out=tmp_path / "run", figures=False)
    assert run.model.class_names == ("bad", "good") and 0 <= run.infer(Texts())["accuracy"] <= 1
    again = qrkt_hw.train(resume=run, train=texts, epochs=2)
    assert again.state == "finished" and len(again.history) == 2
    for wrong, words in (([(3, 1), (4, 0)] * 9, "an input is int"), ([("a", 1)], "cannot be split")):
        with pytest.raises(UserError, match=words):
            qrkt_hw.train(small, train=wrong, out=tmp_path / "other")
    with pytest.raises(UserError, match="backbone"):
        qrkt_hw.train(small, train=texts, backbone=torch.nn.Identity(), out=tmp_path / "other")


def test_pixels_of_any_kind(tmp_path):
    model = qrkt_hw.create_model("best-mnist", pretrained=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28), np.uint8)
    assert model.predict(pixels) == model.predict(torch.from_numpy(pixels)) == model.predict(list(pixels))

"""``qrkt_hw.train`` and ``qrkt_hw.Run``: a user's own datasets and modules, results, errors in Python's words."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import qrkt_hw
from qrkt_hw.backends import resolve
from qrkt_hw.data import load_data, mnist
from qrkt_hw.data.images import labels_of
from qrkt_hw.errors import UserError, in_python
from qrkt_hw.runs.config import Config
from tests.command_line import qrkt, refused
from tests.data import writing

SMALL = {"epochs": 2, "hidden": 8, "mlp": 4, "heads": 2, "rk": "rk1", "rk_blocks": 1, "warmup_steps": 1, "limit": 64}


class Colours(Dataset):
    """Red and green images: floats as they are."""

    classes = ["red", "green"]

    def __init__(self, count=120, scale=1.0, kind=torch.float32, size=8):
        self.count, self.scale, self.kind, self.size = count, scale, kind, size

    def __len__(self):
        return self.count

    def __getitem__(self, k):
        noise = torch.rand(3, self.size, self.size, generator=torch.Generator().manual_seed(k))
        noise[k % 2] += 2
        found = noise * self.scale
        return (found * 80).to(torch.uint8) if self.kind == torch.uint8 else found, k % 2


class Backbone(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form, self.norm = form, nn.BatchNorm2d(3)
        self.convolution = nn.Conv2d(3, 6, 3, stride=2)

    def forward(self, x):
        y = self.convolution(self.norm(x)).relu()  # (batch, 6, 7, 7) of 16 pixels
        return {
            "maps": y,
            "tokens": y.flatten(2).transpose(1, 2),
            "vector": y.mean((2, 3)),
            "wrong": y.flatten(1, 2)[:, :5],
        }[self.form]


@pytest.fixture(scope="module")
def run(charts, tmp_path_factory):
    return qrkt_hw.train(SMALL, train=Colours(), out=tmp_path_factory.mktemp("own") / "run")


def test_a_torch_dataset_trains_a_model(run):
    assert run.state == "finished" and run.results["test.accuracy"] > 0.9
    assert run.config.data.dataset == "own" and len(run.history) == 2
    model = qrkt_hw.load(run.path)
    assert model.class_names == ("red", "green") and model.config == run.config
    data = Colours()
    images = torch.stack([data[k][0] for k in range(4)])
    assert torch.equal(model.preprocess(images), images)  # as training saw them
    assert model.predict(images) == ["red", "green", "red", "green"] == run.model.predict(list(images))
    assert next(iter(DataLoader(data, 4)))[0].equal(images)


def test_results_are_a_row_of_a_table(run):
    import pandas

    table = pandas.DataFrame([run.results, run.results])
    assert table["test.accuracy"].dtype == float and set(table["config.epochs"]) == {2}
    assert not any(isinstance(value, dict) for value in run.results.values())


def test_infer_takes_datasets_images_and_files(run):
    found = run.infer(Colours(30))
    assert found["count"] == 30 and found["accuracy"] > 0.9
    alone = run.infer([Colours()[1][0]])
    assert alone["images"][0]["class"] == "green"
    noisy = run.infer(Colours(3), backend="fake_torino", shots=0)
    assert noisy["backend"] == "fake_torino" and 0 <= noisy["exact_accuracy"] <= 1
    found = run.infer(Colours(3), backend="fake_lima", shots_per_stage=[8, 16], report=True, ablate=["sine"])
    assert found["stage_shots"] == [8, 16] and found["layers"] and set(found["ablations"]) == {"sine"}
    found = run.infer(Colours(3), backend="fake_lima", shots=8)
    again = run.infer(Colours(3), backend="fake_lima", shots=8, repeat_uncertain=2)
    assert (again["repeated"], again["rounds"]) == (2, 2 * found["rounds"])
    assert 3 * again["circuits"] == 5 * found["circuits"]
    with pytest.raises(UserError, match="given in Python"):
        run.infer()
    assert len(list(run.folder.inference.iterdir())) >= 3


def test_files_and_splits_of_a_named_data_set(tmp_path):
    root = writing.image_folder(tmp_path / "pets", {"train": 40, "val": 10})
    run = qrkt_hw.train({**SMALL, "limit": 20}, dataset=f"folder:{root}", image_size=8, out=tmp_path / "run")
    assert run.infer(split="validation")["split"] == "validation"
    found = run.infer([root / "val"])
    assert found["count"] == 10 and set(found["images"][0]["probabilities"]) == {"cat", "dog"}
    assert run.infer(str(next((root / "val" / "cat").iterdir())))["count"] == 1


def test_a_dataset_of_raw_images_gives_the_metrics_of_the_split(tmp_path):
    pixels, digits = mnist.read_digits()
    test = mnist.split_indices(digits)["test"]
    run = qrkt_hw.train(SMALL, out=tmp_path / "run")
    raw = [(pixels[k], int(digits[k])) for k in test]
    raws = type("Raws", (Dataset,), {"__len__": lambda _: len(raw), "__getitem__": lambda _, k: raw[k]})()
    found, split = run.infer(raws), run.infer()
    assert found["accuracy"] == split["accuracy"] and found["loss"] == pytest.approx(split["loss"], rel=1e-5)
    raw[0] = (raw[0][0], 10)
    with pytest.raises(UserError, match="label 10 found"):
        run.infer(raws)


def test_bytes_are_normalised_by_the_training_part(tmp_path):
    data = Colours(kind=torch.uint8)
    run = qrkt_hw.train(
        SMALL, train=data, validation=Colours(40, kind=torch.uint8), class_names=["l", "r"], out=tmp_path / "r"
    )
    about = json.loads((run.path / "data.json").read_text())
    assert 0 < about["mean"][0] < 1 and about["class_names"] == ["l", "r"]
    read = run.model.preprocess(data[0][0])
    expected = (data[0][0].float() / 255 - torch.tensor(about["mean"]).view(3, 1, 1)) / torch.tensor(about["std"]).view(
        3, 1, 1
    )
    torch.testing.assert_close(read[0], expected)


def test_splits_do_not_overlap_and_keep_the_classes():
    from qrkt_hw.data.images import own

    data = own(Config().data, Colours(100))
    parts = {name: set(map(int, split.indices)) for name, split in data.splits.items()}
    assert {name: len(part) for name, part in parts.items()} == {"train": 81, "validation": 9, "test": 10}
    assert len(set.union(*parts.values())) == 100
    assert np.bincount(data.splits["test"].labels).tolist() == [5, 5]


@pytest.mark.parametrize("form", ["maps", "tokens", "vector"])
def test_a_backbone_is_trained_with_the_model_and_loads_again(form, tmp_path):
    torch.manual_seed(0)
    backbone = Backbone(form)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    data = Colours(60, size=16)
    run = qrkt_hw.train({**SMALL, "epochs": 1, "limit": 40}, train=data, backbone=backbone, out=tmp_path / "run")
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    kept = load_file(run.path / "model.safetensors")
    assert not torch.equal(kept["backbone.convolution.weight"], before["convolution.weight"])
    assert int(kept["backbone.norm.num_batches_tracked"]) == 1
    images = torch.stack([data[k][0] for k in range(3)])
    again = qrkt_hw.load(run.path, backbone=Backbone(form))
    with torch.no_grad():
        torch.testing.assert_close(again(again.preprocess(images)), run.model(images))
    assert run.infer(data)["count"] == 60
    with pytest.raises(UserError, match=r"backbone of your own \(Backbone\)"):
        qrkt_hw.load(run.path)
    if form == "maps":
        same = qrkt_hw.train({**SMALL, "epochs": 1, "limit": 40}, train=data, backbone=backbone, out=tmp_path / "b")
        assert (same.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()
        longer = qrkt_hw.train(resume=run, epochs=2, train=data, backbone=backbone)
        assert len(longer.history) == 2
        with pytest.raises(UserError, match="give it again"):
            qrkt_hw.train(resume=run, epochs=3)
    (tmp_path / "one.png").write_bytes(writing.encoded(np.zeros((16, 16, 3), np.uint8)))
    refused(qrkt("infer", "run", "one.png", cwd=tmp_path), "given in Python")
    refused(qrkt("infer", "run", cwd=tmp_path), "given in Python")


def test_fine_tuning_a_run_on_a_dataset_from_python(run, tmp_path):
    fine = qrkt_hw.train(start_from=run, train=Colours(60), epochs=1, name=None, out=tmp_path / "fine")
    origin = json.loads((fine.path / "origin.json").read_text())
    assert origin["from"]["fresh"] == [] and fine.config.model == run.config.model


def test_nothing_is_read_that_the_arguments_do_not_name(tmp_path, monkeypatch):
    (tmp_path / "backends.yaml").write_text("exact: [nonsense")
    monkeypatch.chdir(tmp_path)
    run = qrkt_hw.train({**SMALL, "epochs": 1, "limit": 20}, name="mine")
    assert str(run.path) == "runs/mine" and qrkt_hw.Run("mine").results == run.results == qrkt_hw.Run().results
    refused(qrkt("infer", "mine", cwd=tmp_path), "backends.yaml")


def test_a_preset_a_config_and_a_dict_train_the_same(tmp_path):
    small = {"epochs": 1, "limit": 20, "hidden": 8, "mlp": 4, "rk_blocks": 1}
    preset = qrkt_hw.train("digits-hardware", **small, out=tmp_path / "a")
    config = qrkt_hw.train(preset.config, out=tmp_path / "b")
    nested = qrkt_hw.train(preset.config.model_dump(), out=tmp_path / "c")
    weights = {(one.path / "model.safetensors").read_bytes() for one in (preset, config, nested)}
    assert len(weights) == 1 and config.config == preset.config
    assert json.loads((preset.path / "origin.json").read_text())["preset"] == "digits-hardware"


class Odd(Colours):
    def __getitem__(self, k):
        return "an image", 0


class Labelled(Colours):
    """Colours with labels by a function of their place."""

    def __init__(self, label, count=40, **more):
        super().__init__(count)
        self.label = label
        vars(self).update(more)

    def __getitem__(self, k):
        return super().__getitem__(k)[0], self.label(k)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hidden": 10, "heads": 3}, ["heads: hidden size 10"]),
        ({"rk_blocks": -1}, ["rk_blocks"]),
        ({"hiden": 3}, ["hiden", "unknown key"]),
        ({"config": {"model": {"hiden": 3}}}, ["hiden"]),
        ({"config": "no-preset"}, ["preset"]),
        ({"penalty": 3.0}, ["penalty", "gan"]),
        ({"dataset": "nothing"}, ["dataset: no data set 'nothing'"]),
        ({"backend": "nothing"}, ["backend: no backend 'nothing'"]),
        ({"name": "a", "out": "b"}, ["name: out"]),
        ({"validation": Colours()}, ["validation: it goes with train"]),
        ({"train": Odd()}, ["train: an input is str"]),
        ({"train": [3]}, ["train: a sample is int"]),
        ({"train": Colours(40, size=7), "patch": 2}, ["patch"]),
        ({"train": Colours(40), "class_names": ["one"]}, ["class_names: label 1"]),
        ({"train": Colours(40, size=16), "backbone": Backbone("wrong")}, ["backbone: it gives (1, 5, 7)"]),
        ({"train": Colours(40), "model": "gan"}, ["model"]),
        ({"train": Labelled(lambda k: k + 0.5)}, ["train: label 0.5 found; labels are whole numbers"]),
        (
            {"train": Labelled(lambda k: 10**7 * (k % 2), classes=None)},
            ["class_names: it is needed for label 10000000"],
        ),
        ({"train": Colours(40), "class_names": "ab"}, ["class_names: it is the text 'ab'"]),
        ({"train": Colours(40), "class_names": ["a", "a"]}, ["class_names: 'a' is there twice"]),
        ({"train": Colours(40), "test": Colours(40, size=16)}, ["test: inputs of shape (3, 16, 16)"]),
        ({"train": Colours(40), "validation": Colours(40, kind=torch.uint8)}, ["validation: inputs", "(uint8)"]),
        ({"train": Colours(40), "backbone": abs}, ["backbone", "is no torch module"]),
        ({"config": 3}, ["config is a int"]),
        ({"resume": "nowhere", "name": "a"}, ["resume uses the run's own options; leave out name"]),
        ({"resume": "nowhere", "hidden": 3}, ["leave out hidden"]),
        ({"resume": "nowhere"}, ["nowhere"]),
        ({"start_from": "nowhere"}, ["nowhere"]),
    ],
)
def test_errors_speak_of_arguments(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        qrkt_hw.train(**arguments)
    assert "--" not in str(caught.value).partition("qrkt-hw ")[0]
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not any(tmp_path.rglob("config.yaml"))


def test_labels_are_those_of_the_samples():
    """A ``target_transform`` changes labels, and leaves ``targets`` as they are."""
    changed = Labelled(lambda k: k % 2, targets=list(range(40)))
    assert labels_of(changed, "train").tolist() == [k % 2 for k in range(40)]
    one_hot = Labelled(lambda k: k % 2, targets=torch.eye(40))
    assert labels_of(one_hot, "train").tolist() == [k % 2 for k in range(40)]


def test_arrays_of_any_byte_order_and_strides(run):
    image = Colours()[0][0].numpy()
    for other in (image.astype(">f4"), image[:, ::-1], np.asfortranarray(image)):
        assert torch.equal(run.model.preprocess(other), run.model.preprocess(np.ascontiguousarray(other, "<f4")))


def test_a_resume_on_other_samples_is_refused(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    with pytest.raises(UserError, match="was trained on other data"):
        qrkt_hw.train(resume=tmp_path / "run", epochs=3, train=Colours(140))
    with pytest.raises(UserError, match="give it again"):
        qrkt_hw.train(resume=tmp_path / "run", epochs=3, test=Colours())
    seen = []
    shutil.rmtree(tmp_path / "run" / "plots")
    more = {"after_epoch": lambda epoch, _: seen.append(epoch), "figures": False}
    qrkt_hw.train(resume=tmp_path / "run", epochs=3, train=Colours(), **more)
    assert seen == [3] and not (tmp_path / "run" / "plots").exists()


def test_a_frozen_normalisation_of_a_backbone_stays_frozen(tmp_path):
    backbone = Backbone("maps")
    backbone.norm.eval()
    keys = {**SMALL, "epochs": 2, "ema": 0.0, "limit": 40}
    run = qrkt_hw.train(keys, train=Colours(60, size=16), backbone=backbone, out=tmp_path / "run")
    assert backbone.training and not backbone.norm.training
    assert int(load_file(run.path / "model.safetensors")["backbone.norm.num_batches_tracked"]) == 0


def test_no_argument_of_an_inference_is_dropped(run):
    for key, value in {"limit": 3, "split": "validation", "data_dir": Path("data")}.items():
        with pytest.raises(UserError, match=f"{key}: it goes with a split"):
            run.infer(Colours(5), **{key: value})
    with pytest.raises(UserError, match="shots: backend is an object"):
        run.infer(Colours(5), backend=resolve("aer_cpu"), shots=9)
    images = [Colours()[1][0]]
    for arguments, words in (
        ({"shots_per_stage": "auto"}, "shots_per_stage: it is for one device that samples"),
        ({"fine_tune": 4, "backend": "fake_lima,fake_quito"}, "fine_tune: it is for one device"),
        ({"inputs": images, "repeat_uncertain": 1}, "repeat_uncertain: it goes with a split or a dataset"),
        ({"inputs": Colours(5), "repeat_uncertain": 1}, "repeat_uncertain: it is for one device that samples"),
        ({"inputs": images, "value_errors": True}, "value_errors: inputs without labels"),
        ({"inputs": images, "ablate": ["sine"]}, "ablate: inputs without labels"),
        ({"inputs": Colours(5), "report": True}, "value_errors: 'exact' gives exact values"),
        ({"inputs": Colours(5), "fine_tune": 3}, "fine_tune: 'exact' gives exact values"),
        ({"inputs": Colours(5), "ablate": ["cosine"]}, "ablate: no replacement 'cosine'"),
        ({"limit": 0}, "limit: 0; give the number of samples from 1 on"),
        ({"shots_per_stage": 24, "backend": "fake_lima"}, "shots_per_stage: 24; give 'auto', or a number"),
        ({"compare_mitigation": True, "ablate": ["sine"]}, "ablate: compare_mitigation compares all ways"),
        ({"compare_mitigation": True, "mitigation": "trex"}, "mitigation: compare_mitigation compares all ways"),
    ):
        with pytest.raises(UserError, match=words):
            run.infer(**arguments)


def test_sentences_in_python():
    assert in_python("no file a--b/--c.png (--d)") == "no file a--b/--c.png (d)"
    said = "--loss: this does not go; take --loss hinge, or --backend exact (--no-final-norm); see qrkt-hw train --help"
    wanted = "loss: this does not go; take loss='hinge', or backend exact (final_norm=False); see qrkt-hw train --help"
    assert in_python(said) == wanted


def test_dir_and_all_name_what_there_is():
    assert {"Run", "train", "load", "QuantumLayer", "Config", "UserError"} <= set(dir(qrkt_hw))
    assert all(getattr(qrkt_hw, name) is not None for name in qrkt_hw.__all__)
    assert set(qrkt_hw._LAZY) == set(qrkt_hw.__all__) - {"__version__"}


def test_a_stopped_training_on_a_dataset_goes_on_as_if_it_had_not(run, tmp_path):
    def stop(epoch, _):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qrkt_hw.train(SMALL, train=Colours(), out=tmp_path / "stopped", after_epoch=stop)
    again = qrkt_hw.train(resume=tmp_path / "stopped", train=Colours())
    assert (again.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="other data"):
        qrkt_hw.train(resume=shutil.copytree(again.path, tmp_path / "c"), epochs=3, train=Colours(kind=torch.uint8))


def test_tensor_datasets_and_the_data_of_digits(tmp_path):
    data = load_data(Config().data)
    x, y = data.splits["train"][range(200)]
    run = qrkt_hw.train(SMALL, train=TensorDataset(x, y), out=tmp_path / "run")
    assert run.model.class_names == tuple("0123456789")

"""A loaded model reads raw images and texts as training did, and says what it cannot have seen."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import qrkt_hw
from qrkt_hw.data import load_data, mnist
from qrkt_hw.errors import RunWarning, UserError
from qrkt_hw.runs.config import Config
from tests.command_line import qrkt


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A classical model of the digits that knows them: seconds to train."""
    folder = tmp_path_factory.mktemp("good")
    options = ["--projection", "classical", "--epochs", 12, "--rk", "rk1", "--rk-blocks", 1, "--batch-size", 32]
    assert qrkt("train", *options, "--out", "run", cwd=folder).returncode == 0
    return folder / "run"


def test_raw_digits_are_read_as_training_read_them(good):
    pixels, labels = mnist.read_digits()
    test = mnist.split_indices(labels)["test"]
    model, raw = qrkt_hw.load(good), pixels[test]
    wanted, _ = load_data(Config().data).splits["test"][range(len(test))]
    assert torch.equal(model.preprocess(raw), wanted)
    right = np.mean([name == str(label) for name, label in zip(model.predict(raw), labels[test], strict=True)])
    assert right > 0.9
    assert model.class_names == tuple("0123456789")
    with pytest.warns(RunWarning, match="preprocess"), torch.no_grad():
        wrong = model(torch.tensor(raw).float().unsqueeze(1))
    assert (wrong.argmax(-1) == torch.tensor(labels[test])).float().mean() < right - 0.2
    with warnings.catch_warnings():  # once
        warnings.simplefilter("error")
        model(torch.tensor(raw).float().unsqueeze(1))


def test_images_that_were_not_normalised_are_warned_of(good):
    images = torch.rand(5, 1, 8, 8)
    for raw in (images * 255, images * 16, images, -images * 3):
        with pytest.warns(RunWarning, match="preprocess"):
            qrkt_hw.load(good)(raw)
    model = qrkt_hw.load(good)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(model.preprocess(images))
        model(torch.zeros(1, 1, 8, 8))
        model(torch.full((1, 1, 8, 8), torch.nan))
        # where values cannot be looked at
        torch.func.vmap(lambda x: model.preprocess.look(model, (x,)) or x)(images * 255)


def test_every_form_of_an_image_gives_the_same(good):
    model = qrkt_hw.load(good)
    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    image[0, 0], image[0, 1] = 0, 255
    wanted = model.preprocess(image)
    assert wanted.shape == (1, 1, 8, 8) and wanted.dtype == torch.float32
    forms = [image[None], image[None, None], torch.tensor(image), Image.fromarray(image), [image], image / 255]
    for form in (*forms, [Image.fromarray(image).convert("RGB")], torch.tensor(image).double() / 255):
        torch.testing.assert_close(model.preprocess(form), wanted)
    assert torch.equal(model.preprocess(np.stack([image] * 3)), wanted.expand(3, -1, -1, -1))
    assert torch.equal(model.preprocess([image, Image.fromarray(image)]), wanted.expand(2, -1, -1, -1))
    assert model.predict([image]) == model.predict(image) and len(model.predict(np.stack([image] * 3))) == 3


@pytest.mark.parametrize(
    ("raw", "error", "word"),
    [
        (np.zeros((9, 9), np.uint8), ValueError, r"\(9, 9\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), ValueError, r"\(2, 3, 8, 8\)"),
        (np.zeros(8, np.uint8), ValueError, r"\(8,\)"),
        (np.full((8, 8), 255.0), ValueError, "255"),
        (np.full((8, 8), -0.5), ValueError, "-0.5"),
        (np.full((8, 8), np.nan), ValueError, "nan"),
        (np.zeros((8, 8), np.int64), TypeError, "int64"),
        (np.zeros((8, 8), bool), TypeError, "bool"),
        ([], ValueError, "empty"),
        ("a.png", UserError, "no file a.png"),
        (Image.new("F", (8, 8)), TypeError, "mode F"),
        (Image.new("L", (9, 9)), UserError, "no digit"),
    ],
)  # fmt: skip
def test_what_is_no_image_of_this_model_is_refused(raw, error, word, good):
    with pytest.raises(error, match=word):
        qrkt_hw.load(good).preprocess(raw)


def test_a_loaded_model_stays_a_module(good):
    model = qrkt_hw.load(good)
    raw = mnist.read_digits()[0][:20]
    assert set(model.state_dict()) == set(load_file(good / "model.safetensors"))
    assert isinstance(model, torch.nn.Module) and not model.training
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.predict(raw) == model.predict(raw)
        assert again.predict.model is again
        with torch.no_grad():
            again.head.weight.zero_()
            again.head.bias.copy_(torch.arange(10.0))
        assert set(again.predict(raw)) == {"9"} and set(model.predict(raw)) != {"9"}


def test_colour_and_texts_are_read_as_training_read_them():
    from qrkt_hw.data.images import normalised
    from qrkt_hw.experiments.loading import Reader

    colour = {"dataset": "x", "channels": 3, "image_size": 4, "class_names": ["a", "b"], "mean": [0.5, 0.4, 0.3],
              "std": [0.2, 0.3, 0.4], "resized": True}  # fmt: skip
    read = Reader(Config(), colour)
    image = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    wanted = normalised(image, ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))[None]
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    for form in (image, image[None], picture):
        assert torch.equal(read(form), wanted)
    assert read(picture.resize((9, 7))).shape == (1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"\(3, 4, 4\)"):
        read(image.permute(1, 2, 0)[:, :3, :2])
    texts = {"dataset": "imdb", "channels": 0, "image_size": 0, "class_names": ["a", "b"], "mean": [], "std": [],
             "vocabulary": ["<pad>", "<unk>", "good", "film"], "length": 5}  # fmt: skip
    read = Reader(Config(dataset="imdb"), texts)
    assert read("a good film").tolist() == [[1, 2, 3]]
    assert read(["film", "good good film"]).tolist() == [[3, 0, 0], [2, 2, 3]]
    with pytest.raises(TypeError, match="texts"):
        read(torch.zeros(3))


def test_a_dark_digit_of_whole_numbers_is_as_dark_as_in_floats(good):
    raw = np.zeros((8, 8))
    raw[3, 3] = 1  # of 16
    model = qrkt_hw.load(good)
    torch.testing.assert_close(model.preprocess(raw.astype(np.uint8)), model.preprocess(raw / 16))

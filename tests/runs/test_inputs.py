"""``infer RUN PATH...``: images of any size as the training images were, texts line by line."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import qrkt_hw
from qrkt_hw.data import mnist
from qrkt_hw.data.images import converted
from qrkt_hw.errors import RunWarning, UserError
from tests.command_line import qrkt
from tests.data import writing

DIGITS = {"dataset": "digits", "channels": 1, "image_size": 8}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    options = ["--projection", "classical", "--epochs", 8, "--rk", "rk1", "--rk-blocks", 1, "--batch-size", 32]
    assert qrkt("train", *options, "--out", "run", cwd=folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def test_digits():
    pixels, labels = mnist.read_digits()
    test = mnist.split_indices(labels)["test"]
    return pixels[test], labels[test]


def photo(digit, light=False, noise=3.0):
    """A digit of 8x8 on a page of 320x240 pixels, dark on light paper or light on a board."""
    large = Image.fromarray((digit * 255 / 16).astype(np.uint8)).resize((160, 160), Image.Resampling.BICUBIC)
    page = np.full((240, 320), 25.0)
    page[40:200, 70:230] = 25 + np.asarray(large) * 0.8
    page = (page if light else 255 - page) + np.random.default_rng(0).normal(0, noise, page.shape)
    return Image.fromarray(page.clip(0, 255).astype(np.uint8))


def encoded(image, **how):
    file = io.BytesIO()
    image.save(file, "PNG", **how)
    return file.getvalue()


def test_photographs_of_digits_are_read_as_the_training_digits_were(home, test_digits):
    pixels, labels = test_digits
    model = qrkt_hw.load(home / "run")
    exact = np.mean([name == str(label) for name, label in zip(model.predict(pixels), labels, strict=True)])
    with pytest.warns(RunWarning, match="inverted"):
        names = model.predict([photo(digit) for digit in pixels[:150]])
    there = np.mean([name == str(label) for name, label in zip(names, labels, strict=False)])
    assert exact > 0.9 and there > 0.75


@pytest.mark.parametrize("dataset", ["digits", "mnist"])
def test_polarity_and_size_do_not_change_a_digit(dataset, test_digits):
    about = {**DIGITS, "dataset": dataset, "image_size": 8 if dataset == "digits" else 28}
    for digit in test_digits[0][:8]:
        read = []
        for light in (False, True):
            done: list[str] = []
            image = photo(digit, light, noise=0)
            read.append(converted(encoded(image), "image", about, done).float())
            assert any("inverted" in one for one in done) == (not light) and "320x240" in done[-1]
        turned, held = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
        held[274] = 6  # a camera that was held upright
        read.append(converted(encoded(turned, exif=held), "image", about, []).float())
        for other in read[1:]:
            assert float((other - read[0]).abs().mean()) < 2
        assert read[0].max() > 200
        rows = read[0][0].sum(1).nonzero().flatten()
        if dataset == "mnist":  # a box of 20 pixels; the centre of mass in the middle
            assert int(rows[-1] - rows[0]) + 1 <= 20
            middle = (read[0][0].sum(1) * (torch.arange(28) + 0.5)).sum() / read[0].sum()
            assert abs(float(middle) - 14) < 1
        else:
            assert len(rows) == 8


def test_a_faint_digit_is_cut_out_of_noise(test_digits):
    about = {**DIGITS, "dataset": "mnist", "image_size": 28}
    for digit in test_digits[0][:8]:
        page = np.zeros((240, 320))
        page[40:200, 70:230] = np.kron(digit > 8, np.ones((20, 20)))
        faint = 230 - 60 * page + np.random.default_rng(0).normal(0, 6, page.shape)
        images = (Image.fromarray(one.clip(0, 255).astype(np.uint8)) for one in (255 * page, faint))
        clear, noisy = (converted(encoded(image), "image", about, []).flatten().numpy() for image in images)
        assert np.corrcoef(clear, noisy)[0, 1] > 0.9


@pytest.mark.parametrize("ink", [0, 255])
def test_a_drawing_on_nothing_is_a_drawing_on_paper(ink, test_digits):
    """A program that draws with transparency keeps the digit in alpha alone."""
    light = np.asarray(photo(test_digits[0][0], light=True, noise=0)) - 25
    drawn = np.dstack([np.full((*light.shape, 3), ink, np.uint8), light])
    about = {**DIGITS, "dataset": "mnist", "image_size": 28}
    found = converted(encoded(Image.fromarray(drawn)), "image", about, [])
    expected = converted(encoded(Image.fromarray(light)), "image", about, [])
    assert float((found.float() - expected.float()).abs().mean()) < 2


def test_an_own_size_with_dark_edges_is_taken_as_it_is(test_digits):
    done: list[str] = []
    small = (test_digits[0][0] * 255 / 16).astype(np.uint8)
    assert np.array_equal(converted(encoded(Image.fromarray(small)), "image", DIGITS, done)[0].numpy(), small)
    assert done == []
    flipped = converted(encoded(Image.fromarray(255 - small)), "image", DIGITS, done)[0].numpy()
    assert np.array_equal(flipped, small) and len(done) == 1


def test_a_page_without_a_digit_is_refused():
    with pytest.raises(UserError, match="no digit"):
        converted(encoded(Image.new("L", (50, 40), 240)), "blank.png", DIGITS, [])


def test_paths_folders_and_files_of_any_size(home, test_digits, tmp_path):
    pixels, labels = test_digits
    (tmp_path / "folder" / "below").mkdir(parents=True)
    photo(pixels[0]).save(tmp_path / "one.jpg")
    photo(pixels[1], light=True).save(tmp_path / "folder" / "b.PNG")
    photo(pixels[2]).convert("RGB").save(tmp_path / "folder" / "below" / "c.webp")
    (tmp_path / "folder" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    found = qrkt("infer", home / "run", "one.jpg", "folder", "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    items = json.loads(found.stdout)["images"]
    assert [one["file"] for one in items] == ["one.jpg", "folder/b.PNG", "folder/below/c.webp"]
    assert ["inverted" in one["converted"] for one in items] == [True, False, True]
    assert sum(one["class"] == str(label) for one, label in zip(items, labels, strict=False)) >= 2
    shown = qrkt("infer", home / "run", "one.jpg", cwd=tmp_path)
    assert "one.jpg: " in shown.stdout and "inverted: its background is light" in shown.stdout
    strict = qrkt("infer", home / "run", "--image", "one.jpg", cwd=tmp_path)
    assert strict.returncode == 2 and "320x240" in strict.stderr


def test_colours_are_scaled_and_cropped_as_training_did(tmp_path):
    root = writing.image_folder(tmp_path / "pets", {"train": 40, "val": 10})
    small = ["--epochs", 1, "--limit", 20, "--projection", "classical", "--rk", "rk1", "--rk-blocks", 1]
    done = qrkt("train", "--dataset", f"folder:{root}", "--image-size", 16, *small, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = qrkt_hw.load(tmp_path / "run")
    file = next((root / "val").rglob("*.png"), None) or next(p for p in (root / "val").rglob("*") if p.is_file())
    with Image.open(file) as image:
        expected = model.preprocess([image.copy()])
    assert torch.equal(model.preprocess(str(file)), expected)
    found = qrkt("infer", tmp_path / "run", root / "val", "--json", cwd=tmp_path)
    assert found.returncode == 0 and json.loads(found.stdout)["count"] == 10
    assert "converted" not in found.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.png"], ["no file missing.png"]),
        (["empty"], ["empty", "no images"]),
        (["text.txt"], ["text.txt", "not an image"]),
        (["one.png", "--split", "test"], ["one.png", "--split"]),
        (["one.png", "--value-errors"], ["--value-errors"]),
    ],
)
def test_what_cannot_be_read_is_refused(home, arguments, words, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no image")
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    refused = qrkt("infer", home / "run", *arguments, cwd=tmp_path)
    assert refused.returncode == 2 and refused.stdout.count("\n") <= 1
    assert all(word in refused.stderr for word in words), refused.stderr


def test_a_file_alone_goes_to_the_newest_run(home, test_digits, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(home / "run")
    photo(test_digits[0][0]).save(tmp_path / "one.png")
    found = qrkt("infer", "one.png", cwd=tmp_path)
    assert found.returncode == 0 and "run runs/mine" in found.stdout and "one.png: " in found.stdout


def test_texts_are_read_line_by_line(tmp_path):
    writing.imdb(tmp_path / "data")
    small = ["--epochs", 1, "--projection", "classical", "--rk", "rk1", "--rk-blocks", 1, "--text-length", 8]
    done = qrkt("train", "--dataset", "imdb", "--data-dir", "data", *small, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "texts.txt").write_text("a good film\n\n  a bad one  \n")
    found = qrkt("infer", "run", "texts.txt", "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    items = json.loads(found.stdout)["texts"]
    assert [one["text"] for one in items] == ["a good film", "a bad one"]
    alone = qrkt("infer", "run", "--text", "a bad one", "--json", cwd=tmp_path)
    assert json.loads(alone.stdout)["texts"][0]["probabilities"] == pytest.approx(items[1]["probabilities"], abs=1e-4)
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    refused = qrkt("infer", "run", "one.png", cwd=tmp_path)
    assert refused.returncode == 2 and "reads texts" in refused.stderr
